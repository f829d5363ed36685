"""The student to export with what its run knows of it, and the export's card: README.md for people, export.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.dense.task_model import Checkpoint, checkpoint_folder, read_about
from pipeline.export.formats import Exported
from pipeline.tables import text_table
from pipeline.train.resume import EMA_FOLDER
from sak import __version__
from sak.checkpoints.store import WEIGHTS, load_student
from sak.errors import SakError, UsageError
from sak.student.build import parameter_counts
from sak.student.extractor import IMAGENET_MEAN, IMAGENET_STD, Deployed
from sak.student.student import Student
from sak.teachers.registry import find_teacher


@dataclass(frozen=True)
class StudentSource:
    """A trained student, the folder it was read from, and `run.json` where there is one."""

    student: Student
    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)


def find_source(
    directory: Path, checkpoint: Checkpoint, *, averaged: bool, image_size: tuple[int, int] | None
) -> StudentSource:
    """The student of a run's directory or a checkpoint's folder; UsageError where there is none."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such folder; give a run's directory, or a checkpoint's folder")
    about = _about(directory)
    if "parts" in about:
        parts = ", ".join(str(directory / part) for part in about["parts"].values())
        raise UsageError(f"{directory} holds a network for each task; export them one by one: {parts}")
    folder = checkpoint_folder(directory, checkpoint) if (directory / "checkpoints").is_dir() else directory
    if averaged:
        folder = folder / EMA_FOLDER
        if not folder.is_dir():
            raise UsageError(f"{folder} is not there: the run has no averaged weights (training.ema)")
    if not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{folder} holds no student ({WEIGHTS}); runs of distill and finetune and imported checkpoints do, a "
            "probe's teacher is not ours to export"
        )
    return StudentSource(
        load_student(folder, image_size=image_size).eval(), folder, {**about, "columns": _columns(about)}
    )


def _columns(about: Mapping[str, Any]) -> list[str]:
    """The columns that were read by the run, or by the one it started from, as far as that is still there."""
    own: list[str] = about.get("reads", {}).get("columns", [])
    init = Path(str(about.get("init", "")))
    if own or init.parent.name != "checkpoints":
        return own
    return _columns(_about(init.parent.parent))


def _about(directory: Path) -> dict[str, Any]:
    return read_about(directory, "export its checkpoint's folder instead") or {}


_LOADERS = {
    "student.safetensors": """\
import sys; from pathlib import Path
sys.path.insert(0, str(Path({here!r}).resolve()))  # the folder of this card; it brings the code that reads it
import torch
from sak.checkpoints.store import load_student
from sak.student.extractor import Deployed

student = Deployed(load_student(Path({here!r})).eval(), {outputs!r})
images = torch.rand(1, 3, {height}, {width})
images = (images - torch.tensor({mean}).view(3, 1, 1)) / torch.tensor({std}).view(3, 1, 1)
with torch.no_grad(): outputs = dict(zip(student.names, student(images)))
""",
    "student.pt2": """\
import torch

student = torch.export.load({here!r} + "/student.pt2").module()
images = torch.rand(1, 3, {height}, {width})
images = (images - torch.tensor({mean}).view(3, 1, 1)) / torch.tensor({std}).view(3, 1, 1)
with torch.no_grad(): outputs = dict(zip({names}, student(images)))
""",
    "student.onnx": """\
import numpy, onnxruntime

student = onnxruntime.InferenceSession({here!r} + "/student.onnx", providers=["CPUExecutionProvider"])
images = numpy.random.rand(1, 3, {height}, {width}).astype("float32")
mean, std = (numpy.array(values, "float32").reshape(3, 1, 1) for values in ({mean}, {std}))
names = [output.name for output in student.get_outputs()]
outputs = dict(zip(names, student.run(None, {{"images": (images - mean) / std}})))
""",
}


def write_card(
    folder: Path, source: StudentSource, module: Deployed, exported: Exported, dynamic_size: bool, difference: float
) -> None:
    """Write `export.json` and `README.md`."""
    facts = _facts(source, module, exported, dynamic_size, difference)
    (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
    (folder / "README.md").write_text(_text(facts, loader(module, exported, ".")))


def loader(module: Deployed, exported: Exported, here: str) -> str:
    """Ten lines at most that load the export lying in the folder `here` and run it on an image."""
    height, width = module.student.config.image_size
    return _LOADERS[exported.file].format(
        here=here,
        outputs=module.outputs,
        names=list(module.names),
        height=height,
        width=width,
        mean=list(IMAGENET_MEAN),
        std=list(IMAGENET_STD),
    )


def _facts(
    source: StudentSource, module: Deployed, exported: Exported, dynamic_size: bool, difference: float
) -> dict[str, Any]:
    config = module.student.config
    return {
        "made_by": f"sak {__version__}",
        "stage": source.about.get("stage", "checkpoint"),
        "dataset": source.about.get("dataset"),
        "file": exported.file,
        "needs": list(exported.needs),
        "image_size": list(config.image_size),
        "any_size": dynamic_size,
        "multiple": config.size.multiple,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "outputs": list(module.names),
        "stem": str(config.stem),
        "levels": list(config.tapped),
        "decoder": config.decoder if config.tasks else None,
        "tasks": dict(config.tasks),
        "parameters": {name: count for name, count in parameter_counts(module.student).items() if count},
        "teachers": _teachers(source, list(source.student.config.teachers)),
        "difference": difference,
    }


def _teachers(source: StudentSource, names: list[str]) -> list[dict[str, str]]:
    """Name, model, weights, licence and cache key of every teacher, as far as the run knows them."""
    reads: Mapping[str, Any] = source.about.get("reads", {})
    sources: Mapping[str, Any] = {**reads.get("live", {}), **source.about.get("teachers", {})}
    columns, random = source.about.get("columns", []), reads.get("random", ())
    return [_teacher(name, _key(name, columns), sources.get(name) or {}, name in random) for name in names]


def _key(name: str, columns: Sequence[str]) -> str:
    """The key in the name of the teacher's column, `<teacher>-<key>`; empty where none was read."""
    parts = [part for path in columns for part in str(path).split("/")]
    return next((part.removeprefix(f"{name}-") for part in parts if part.rpartition("-")[0] == name), "")


def _teacher(name: str, key: str, source: Mapping[str, Any], random: bool) -> dict[str, str]:
    model = str(source.get("model") or "")
    weights = str(source.get("weights") or "")
    return {
        "name": name,
        "model": model or "not recorded",
        "weights": "RANDOM" if random or weights.startswith("random") else weights or "not recorded",
        "licence": _licence(model),
        "cache key": key or "none",
    }


def _licence(model: str) -> str:
    try:
        row = find_teacher(model) if model else None
    except SakError:
        row = None
    return row.licence if row is not None else "see its publisher"


def _text(facts: Mapping[str, Any], code: str) -> str:
    height, width = facts["image_size"]
    size = f"any multiple of {facts['multiple']} ({height} x {width} in training)" if facts["any_size"] else ""
    counts = ", ".join(f"{name} {count:,}" for name, count in facts["parameters"].items())
    tasks = ", ".join(f"{task} ({channels} channels)" for task, channels in facts["tasks"].items())
    lines = [
        "# A SAK student",
        "",
        "One ViT distilled from several vision foundation models (Lu, Cao, Wang: Swiss Army Knife, ICLR 2025), "
        "in evaluation form: no aligners, gates without noise.",
        "",
        f"- stage: {facts['stage']}" + (f", data set {facts['dataset']}" if facts["dataset"] else ""),
        f"- stem: {facts['stem']}, levels {', '.join(map(str, facts['levels']))}",
        f"- input: (batch, 3, {height}, {width}) float32, RGB in [0, 1] normalised with mean {facts['mean']} and "
        f"deviation {facts['std']}; {size or 'this size alone'}, any batch",
        f"- outputs: {', '.join(facts['outputs'])}"
        + ("; predictions are raw, at the input's size" if tuple(facts["outputs"]) == tuple(facts["tasks"]) else ""),
        *([f"- tasks: {tasks}; decoder {facts['decoder']}"] if tasks else []),
        f"- parameters: {counts}",
        f"- largest difference from the trained network when it was written: {facts['difference']:.1e}",
        "",
        "## Load it",
        "",
        f"Needs {', '.join(facts['needs'])} alone. Run in this folder:",
        "",
        "```python",
        code.rstrip(),
        "```",
        "",
        "## Teachers",
        "",
        *(["```", text_table(facts["teachers"]), "```"] if facts["teachers"] else ["None."]),
        "",
        "The licences of the teachers' weights may bind what was learnt from them; read them before you pass it on.",
        "",
        f"Made by {facts['made_by']}.",
    ]
    return "\n".join(lines) + "\n"
