"""The published three-step trajectory of distillation, through this loop in float64."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.distill.stage import distill_step
from pipeline.train.config import TrainingConfig
from pipeline.train.devices import make_accelerator
from pipeline.train.loop import Fit
from pipeline.train.protocols import Hooks
from pipeline.train.resume import save_weights
from pipeline.train.run import RunDirectory
from sak.checkpoints.reference import from_reference_state_dict, reference_key
from sak.features import FeatureMaps
from sak.losses.distillation import DistillationLoss

TEACHERS = ("dinov2", "clip", "sam")
EXACT = 1e-10


@dataclass
class Recorded:
    """A batch as it was recorded: normalised images, whole teacher maps."""

    inputs: torch.Tensor
    targets: dict
    keys: tuple = ("a", "b")

    def release(self):
        pass


def recorded(tensors, step):
    targets = {
        teacher: FeatureMaps(
            (3, 6, 9, 12), tuple(tensors[f"step{step}.tea.{teacher}.level{level}"].double() for level in range(1, 5))
        )
        for teacher in TEACHERS
    }
    return Recorded(tensors[f"step{step}.input"].double(), targets)


@pytest.fixture
def trained(golden, tmp_path):
    tensors = load_file(golden / "sak/09a_s1_trajectory.safetensors")
    start = load_file(golden / "sak/01a_stage1_forward.safetensors")
    state = {name.removeprefix("sd."): value for name, value in start.items() if name.startswith("sd.")}
    student = from_reference_state_dict(state, image_size=(96, 96), num_heads=3, teachers=TEACHERS).double()
    config = TrainingConfig(
        steps=3,
        batch_size=2,
        log_every=1,
        optimiser={"rate": 1e-3, "weight_decay": 0.01},
        schedule={"kind": "constant"},
    )
    source = SimpleNamespace(steps_per_epoch=3, start_at=lambda step: (recorded(tensors, n) for n in range(step, 3)))
    run = RunDirectory.create(tmp_path / "run", config.model_dump(mode="json"))
    hooks = Hooks(save_model=save_weights, load_model=save_weights)
    accelerator = make_accelerator(config, device="cpu")
    step = distill_step(DistillationLoss())
    Fit(student, source, step, config=config, run=run, hooks=hooks, accelerator=accelerator)()
    meta = json.loads((golden / "sak/09a_s1_trajectory.json").read_text())
    return SimpleNamespace(student=student, run=run, tensors=tensors, meta=meta)


def test_losses_of_the_three_steps_are_the_published_ones_by_teacher_and_level(trained):
    lines, wanted = trained.run.metrics(), trained.meta["f64.losses"]
    assert (len(lines), len(wanted)) == (3, 4), "the last are those after the third step"
    for line, expected in zip(lines, wanted[:3], strict=True):
        assert line["loss"] == pytest.approx(expected["total"], rel=EXACT)
        for teacher in TEACHERS:
            for place, block in enumerate((3, 6, 9, 12), start=1):
                found = line[f"{teacher}/level{block}"]
                assert found == pytest.approx(expected[f"{teacher}_level{place}"], rel=EXACT)


def test_weights_after_three_steps_are_the_published_ones(trained):
    own = {reference_key(key, with_tasks=False): value for key, value in trained.student.state_dict().items()}
    finals = {key.removeprefix("f64_final."): value for key, value in trained.tensors.items() if "f64_final" in key}
    assert len(finals) > 20
    for key, expected in finals.items():
        torch.testing.assert_close(own[key], expected, rtol=0, atol=EXACT)
    for key, sums in trained.meta["f64.final_checksums"].items():
        assert own[key].abs().sum().item() == pytest.approx(sums["abs_sum"], rel=EXACT)
        assert own[key].square().sum().item() == pytest.approx(sums["sq_sum"], rel=EXACT)
