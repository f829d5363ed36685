"""What is shipped of a trained model: its tower as float16 safetensors, and a card that says where it comes from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from pipeline.demo.teachers.objective import Objective
from pipeline.demo.teachers.pool import FREE
from pipeline.demo.teachers.recipe import DemoTeachersRecipe
from pipeline.demo.weights.shipped import LICENCE, demo_model
from pipeline.storage.local import replace_durably
from pipeline.train.run import RunDirectory
from sak.errors import SakError


def write_model(root: Path, name: str, model: Objective, recipe: DemoTeachersRecipe, run: RunDirectory) -> Path:
    """Write `<name>.md`, then `<name>.safetensors`, which says that the model is done; returns the latter."""
    tensors = {key: tensor.detach().to("cpu", torch.float16) for key, tensor in model.tower.state_dict().items()}
    beyond = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if beyond:
        raise SakError(f"{name}: {', '.join(beyond[:3])} cannot be kept as float16; train it again with a lower rate")
    data = save({key: tensor.contiguous() for key, tensor in tensors.items()}, {"format": "pt"})
    replace_durably(root / f"{name}.md", card(name, model, recipe, run, data).encode())
    target = root / f"{name}.safetensors"
    replace_durably(target, data)
    return target


def card(name: str, model: Objective, recipe: DemoTeachersRecipe, run: RunDirectory, data: bytes) -> str:
    """The card's text."""
    training, shape = recipe.training(name), demo_model(name)
    sessions = run.about()["sessions"]
    cost = sum(session.get("cpu_seconds", 0.0) for session in sessions)
    measured = [line for line in run.metrics() if line.get("evaluation")]
    pool = recipe.scenes(name)
    scenes = pool.scenes - pool.held_out
    scenes -= scenes // FREE if model.subjects_only else 0
    packages = sessions[-1]["packages"]
    kept = f", the last {pool.held_out} held out" if pool.held_out else ""
    parameters = sum(parameter.numel() for parameter in model.tower.parameters())
    rows = [
        ("architecture", f"timm {shape.architecture}, width {shape.width}, depth {shape.depth}, {shape.heads} heads"),
        ("parameters", f"{parameters:,}"),
        ("objective", model.says),
        (
            "data",
            f"{pool.scenes:,} procedural scenes of {pool.size} px, stream `training`, "
            f"seed {pool.seed}{kept}{', those with a main class' if model.subjects_only else ''}",
        ),
        ("starts from", f"weights `random:{training.seed}`"),
        (
            "training",
            f"{training.steps:,} steps of {training.batch_size} scenes "
            f"({(training.steps or 0) * training.batch_size / scenes:.1f} epochs), AdamW, rate "
            f"{training.optimiser.rate:g}, seed {training.seed}",
        ),
        ("cost", f"{cost:,.0f} CPU seconds, {len(sessions)} session(s), torch {packages['torch']}"),
        ("measured on held-out scenes", _listed(measured[-1])),
        ("the same before training", _listed(measured[0])),
        ("licence", f"{LICENCE}: to the public domain"),
        ("SHA-256", hashlib.sha256(data).hexdigest()),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"# demo/{name}\n\nMade by `sak-cli demo-teachers --only {name}`.\n\n| | |\n|---|---|\n{table}\n"


def _listed(line: Mapping[str, float]) -> str:
    values = {key: value for key, value in line.items() if key not in ("step", "evaluation", "time")}
    return ", ".join(f"{key} {value:.3f}" for key, value in values.items())
