"""A trained network for dense prediction, whatever it is made of: what evaluation, prediction and export are given."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pipeline.data.datasets import task_table
from pipeline.train.resume import load_weights, save_weights
from pipeline.train.run import ABOUT
from sak.checkpoints.probe_store import PROBE_WEIGHTS, fill_heads, load_probe, save_probe
from sak.checkpoints.store import WEIGHTS, load_student
from sak.errors import SakError, UsageError, nearest
from sak.student.student import Student
from sak.tasks import DATASETS, Dataset
from sak.teachers.recipe import Size
from sak.variants.frozen import Probe

Checkpoint = Literal["best", "last"]
STAGE = "finetune"


@dataclass(frozen=True)
class TaskModel:
    """A network with heads.

    Attributes:
        model: a `Student` or a `Probe`.
        tasks: what it predicts, in the data set's order.
        image_size: (height, width) that it takes.
        dataset: the data set's name, or the path of the YAML file that describes it; None: not known.
        kind: sak, multi-task, single-task or probe.
    """

    model: nn.Module
    tasks: tuple[str, ...]
    image_size: Size
    dataset: str | None
    kind: str

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> output; puts the network into eval mode, leaves devices and autocast to the caller."""
        if self.model.training:
            self.model.eval()
        outputs: dict[str, Tensor] = self.model(images, tasks=self.tasks).tasks
        return {task: outputs[task] for task in self.tasks}

    @property
    def channels(self) -> dict[str, int]:
        """Task -> channels of its head."""
        return {task: _config(self.model).tasks[task] for task in self.tasks}


def describe(model: nn.Module, *, dataset: str | None = None, kind: str | None = None) -> TaskModel:
    """A network as a `TaskModel`; its kind follows from its parts where it is not given."""
    config = _config(model)
    return TaskModel(model, tuple(config.tasks), tuple(config.image_size), dataset, kind or _kind(model))


def save_task_model(model: nn.Module, folder: Path) -> None:
    """Write a network's checkpoint into the folder: a student whole, a probe without its teacher."""
    if isinstance(model, Probe):
        save_probe(model, folder)
    else:
        save_weights(model, folder)


def restore_task_model(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a network that is there; SakError where they are another one's."""
    if isinstance(model, Probe):
        fill_heads(model, folder)
    else:
        load_weights(model, folder)


def load_task_model(
    root: Path, *, checkpoint: Checkpoint = "best", dataset: str | None = None, image_size: Size | None = None
) -> list[TaskModel]:
    """The networks of a fine-tuned run (one; a single-task baseline has one a task) or of a checkpoint's folder.

    Args:
        root: a run's directory; or a folder with `student.safetensors` (such as `sak-cli import-checkpoint` writes) or
            `probe.safetensors`, for which `dataset` must be named where its channels do not tell.
        checkpoint: of a run; `last` where it has no `best`.
        dataset: wins over what is recorded, and is checked against the heads.
        image_size: (height, width) other than the trained one; the position embedding is resampled.

    Raises:
        SakError: it is no fine-tuned run, has no such checkpoint, or does not fit the data set; one line.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give a fine-tuned run's directory, or a checkpoint's folder")
    about = read_about(root)
    if about is None:
        model = _load(root, image_size)
        return [_checked(describe(model, dataset=dataset or _guess(_config(model).tasks, root)), root)]
    if about.get("stage") != STAGE:
        raise UsageError(
            f"{root} is a run of {about.get('stage', 'another stage')}, no fine-tuned one: it has no task heads yet; "
            f"fine-tune it first (sak-cli finetune --init {root})"
        )
    networks = []
    for run in (root / folder for folder in about.get("parts", {"": "."}).values()):
        facts = read_about(run)
        if facts is None:
            raise UsageError(f"{run} is not trained yet; go on with {root} first (sak-cli finetune ... --resume)")
        model = _load(checkpoint_folder(run, checkpoint), image_size)
        network = describe(model, dataset=dataset or facts["dataset"], kind=facts["kind"])
        networks.append(_checked(network, run, f"it was trained on {facts['dataset']}"))
    return networks


def checkpoint_folder(run: Path, checkpoint: Checkpoint = "best") -> Path:
    """`checkpoints/best` or `checkpoints/last` of a run, `last` where there is no `best`; UsageError where none is."""
    for name in (checkpoint, "last"):
        folder = run / "checkpoints" / name
        if folder.is_dir():
            return folder
    raise UsageError(f"{run} has no checkpoint yet; let it train on with --resume")


def _load(folder: Path, image_size: Size | None) -> nn.Module:
    if (folder / PROBE_WEIGHTS).is_file():
        return load_probe(folder, image_size=image_size)
    if not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{folder} is no fine-tuned run and holds no checkpoint ({WEIGHTS}); give what sak-cli finetune or "
            "import-checkpoint wrote"
        )
    return load_student(folder, image_size=image_size)


def _guess(tasks: Mapping[str, int], folder: Path) -> str:
    """The data set whose heads these are; UsageError where it is none's, or more than one's."""
    fitting = [
        name
        for name, rows in DATASETS.items()
        if not name.startswith("demo-") and all(rows.channels.get(task) == count for task, count in tasks.items())
    ]
    if len(fitting) != 1 and tasks:
        heads = f"fit {' and '.join(fitting)}" if fitting else "are those of no known data set"
        raise UsageError(f"{folder}: its heads {heads}; name the data set with --dataset")
    return fitting[0] if tasks else ""


def _checked(network: TaskModel, root: Path, hint: str = "name the data set it was trained on") -> TaskModel:
    """With its tasks in the data set's order; UsageError, ending with the hint, unless its heads are the data set's."""
    if not network.tasks:
        raise UsageError(f"{root} has no task heads: it is a distilled student; fine-tune it first (sak-cli finetune)")
    rows = task_table(network.dataset or "")
    for task, channels in network.channels.items():
        if task not in rows.names:
            raise UsageError(
                f"{root} predicts {task}, which {rows.name} does not have (it has {', '.join(rows.names)}); {hint}"
            )
        if rows[task].channels != channels:
            raise UsageError(
                f"{root}: its head of {task} has {channels} channels, {rows.name} has {rows[task].channels}; {hint}"
            )
    return replace(network, tasks=tuple(task for task in rows.names if task in network.tasks))


def read_about(root: Path, remedy: str = "") -> dict[str, Any] | None:
    """What a run's `run.json` says, None where there is none; SakError, ending with the remedy, where it is damaged."""
    path = root / ABOUT
    if not path.is_file():
        return None
    try:
        about: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        remedy = remedy or f"the weights in {root}/checkpoints/last may be loaded"
        raise SakError(f"{path} is damaged ({error}); {remedy}") from error
    return about


def _config(model: nn.Module) -> Any:
    if not isinstance(model, Student | Probe):
        raise TypeError(f"a student or a probe, not {type(model).__name__}")
    return model.config


def _kind(model: nn.Module) -> str:
    if isinstance(model, Probe):
        return "probe"
    config = _config(model)
    return "sak" if config.teachers else "multi-task" if len(config.tasks) > 1 else "single-task"


@dataclass(frozen=True)
class TaskModels:
    """The networks of a run as one: of one size, with different tasks of one data set.

    A single-task baseline has one a task, any other run a single one.
    """

    directory: Path
    models: tuple[TaskModel, ...]

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        checkpoint: Checkpoint = "best",
        dataset: str | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> "TaskModels":
        """Of a run or a checkpoint's folder, see `load_task_model`; UsageError where their sizes differ."""
        models = load_task_model(directory, checkpoint=checkpoint, dataset=dataset, image_size=image_size)
        sizes = sorted({model.image_size for model in models})
        if len(sizes) > 1:
            raise UsageError(f"{directory}: its networks take images of {sizes}; train them at one size")
        return cls(directory, tuple(models))

    @property
    def dataset(self) -> str:
        """The data set's name, or the YAML file that describes it."""
        return self.models[0].dataset or ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that the networks take."""
        return self.models[0].image_size

    @property
    def single(self) -> nn.Module | None:
        """The network, where it is one alone."""
        return self.models[0].model if len(self.models) == 1 else None

    def table(self, wanted: Sequence[str] | None = None) -> Dataset:
        """The rows of all tasks, or of those wanted; UsageError for one that is not predicted."""
        predicted = [task for model in self.models for task in model.tasks]
        for task in wanted or ():
            if task not in predicted:
                raise UsageError(f"--tasks: {self.directory} does not predict {task!r}{nearest(task, predicted)}")
        return task_table(self.dataset).select(predicted if wanted is None else wanted)

    def to(self, device: torch.device | str) -> None:
        """Move them, in eval mode."""
        for model in self.models:
            model.model.to(device).eval()

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Every task's output, as `TaskModel.predict`."""
        return {task: output for model in self.models for task, output in model.predict(images).items()}


def check_options(checkpoint: str, *limits: tuple[str, int | None, int]) -> None:
    """UsageError for another checkpoint than `best` and `last`, or a number under its least: (option, value, least)."""
    if checkpoint not in get_args(Checkpoint):
        raise UsageError(f"no checkpoint {checkpoint!r}{nearest(checkpoint, get_args(Checkpoint))}")
    for option, value, least in limits:
        if value is not None and value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")
