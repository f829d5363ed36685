"""What a fine-tuning is asked for: its recipe (network, losses, evaluation, training) and its configuration of data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.cluster import resolve_device
from pipeline.data.datasets import task_table
from pipeline.settings import Frozen, parse_settings, recipe_and_rest
from pipeline.train.config import OptimiserConfig, ScheduleConfig, TrainingConfig
from pipeline.train.distillation import LossRecipe, StudentRecipe
from sak.errors import UsageError, nearest
from sak.student.config import Fusion, Lora
from sak.tasks import Dataset
from sak.teachers.recipe import Size
from sak.variants.decoders import DECODERS
from sak.variants.weighting import Kind as WeightingKind

Baseline = Literal["single-task", "multi-task"]
TRUNK = ("stem", "paths", "norms", "aligners")
"""What a `Student` has from its distillation; the rest is new to fine-tuning."""


class LoraRecipe(Frozen):
    """W + alpha / rank * up @ down on some of the stem's linear layers."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = ("qkv", "proj")


class NetworkRecipe(StudentRecipe):
    """The network. From a distilled student come `stem`, `weights`, `adapters` and `down_ratio`; all else is said here.

    `gate_noise` is one draw per image and expert (the paper) or one per pixel too (published code). `decoder` is
    `simple` (the paper) where neither a checkpoint nor the recipe says otherwise. `fusion` is what the heads read:
    `mor`, `sum` (the teachers' paths added up) or `none` (the stem alone); by default what the student was made for.
    `lora` freezes the stem but for low-rank updates. `trunk_rate` is the learning rate of what comes trained (stem,
    adapter paths, aligners) as a share of that of routers and heads; 1 is the paper's.
    """

    freeze: Literal["none", "stem", "all-but-routers"] = "none"  # type: ignore[assignment]  # one more than distillation
    gate_noise: Literal["image", "pixel"] = "image"
    decoder: str | None = None
    fusion: Fusion | None = None
    lora: LoraRecipe | None = None
    trunk_rate: float = Field(default=1.0, gt=0)

    @field_validator("decoder")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in DECODERS:
            raise ValueError(f"must be one of {', '.join(DECODERS)}, got {name!r}")
        return name

    def shares(self) -> dict[str, float]:
        """Part of a `Student` -> its share of the learning rate; all others have the whole of it."""
        trained = TRUNK if self.lora is None else TRUNK[1:]  # low-rank updates of the stem are new
        return dict.fromkeys(trained, self.trunk_rate)

    def lora_layers(self) -> Lora | None:
        """The updates of the stem that are asked for."""
        return None if self.lora is None else Lora(**self.lora.model_dump())


class ProbeRecipe(Frozen):
    """The frozen teacher of `--init teacher:NAME`, where no spec describes it; see `TeacherRecipe`."""

    weights: str = "pretrained"
    input_size: Size | None = None
    levels: tuple[int, ...] | None = None
    normalization: Literal["imagenet", "native"] = "imagenet"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    overrides: dict[str, int] = Field(default_factory=dict)


class DistillationRecipe(LossRecipe):
    """`gamma` times the distillation loss; 0 trains on the tasks alone.

    `precision` is the live teachers': `auto` is bf16 where the device has it.
    """

    gamma: float = Field(default=1.0, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class TasksRecipe(Frozen):
    """`weights` replaces the table's weights of some tasks' losses.

    `weighting` is `fixed` (the paper: those weights), `uncertainty`, `dwa` (with `temperature`) or `rlw`, which replace
    them. `gradients` is their plain sum, or `pcgrad` or `cagrad` (with `cagrad_c`) on the parameters that tasks share.
    `balancing` weighs the imbalance of MLoRE's experts: 0.0003 in its runs on PASCAL-Context, 0.0005 on NYUD-v2.
    """

    weights: dict[str, float] = Field(default_factory=dict)
    weighting: WeightingKind = "fixed"
    temperature: float = Field(default=2.0, gt=0)
    gradients: Literal["sum", "pcgrad", "cagrad"] = "sum"
    cagrad_c: float = Field(default=0.4, ge=0, lt=1)
    balancing: float = Field(default=3e-4, ge=0)


class FinetuneData(Frozen):
    """`size` (height, width) of the crops, the data set's by default; `workers` processes read and augment."""

    size: Size | None = None
    workers: int = Field(default=4, ge=0)


class EvaluationRecipe(Frozen):
    """Measurements during training, on the first `limit` validation images (all by default).

    `boundary` measures edges by odsF, which takes minutes; otherwise by their loss.
    """

    batch_size: int = Field(default=8, ge=1)
    workers: int = Field(default=4, ge=0)
    boundary: bool = False
    limit: int | None = Field(default=None, ge=1)


class FinetuneOptimiser(OptimiserConfig):
    """AdamW with the paper's rates for fine-tuning, which are not its distillation's."""

    rate: float = Field(default=2e-5, gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)


class FinetuneSchedule(ScheduleConfig):
    """By default the paper's for fine-tuning."""

    kind: Literal["cosine", "poly", "constant"] = "poly"


class FinetuneTraining(TrainingConfig):
    """The loop of a fine-tuning; what a recipe leaves unsaid is the paper's fine-tuning, not its distillation."""

    default_length: ClassVar[Mapping[str, int]] = {"steps": 40_000}

    batch_size: int = Field(default=4, ge=1)
    optimiser: FinetuneOptimiser = FinetuneOptimiser()
    schedule: FinetuneSchedule = FinetuneSchedule()
    clip_norm: float | None = Field(default=10.0, gt=0)
    evaluate_every: int = Field(default=5000, ge=0)


class FinetuneRecipe(Frozen):
    """All of a fine-tuning; by default the paper's. `best` names the task whose metric makes a checkpoint the best."""

    student: NetworkRecipe = NetworkRecipe()
    probe: ProbeRecipe = ProbeRecipe()
    distillation: DistillationRecipe = DistillationRecipe()
    tasks: TasksRecipe = TasksRecipe()
    data: FinetuneData = FinetuneData()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    best: str | None = None
    training: FinetuneTraining = FinetuneTraining()

    @model_validator(mode="after")
    def _gradients_apart(self) -> "FinetuneRecipe":
        combined = self.tasks.gradients != "sum"
        if combined and (self.training.precision == "fp16" or self.training.compile):
            raise ValueError(
                f"tasks.gradients {self.tasks.gradients} needs the tasks' gradients apart, unscaled and uncompiled: "
                "train in fp32 or bf16, with training.compile false"
            )
        if self.tasks.weighting != "fixed" and self.tasks.weights:
            raise ValueError(f"tasks.weighting {self.tasks.weighting} replaces the weights: leave tasks.weights out")
        return self


class FinetuneConfig(Frozen):
    """What a run was asked for; written whole into its `config.yaml`.

    `init` is where the network starts (see `find_origin`), `spec` describes teachers that nothing else does, and where
    the weights of the others are. `teachers` are those whose answers are distilled, by default all that the student
    knows; none with `distil` false. `baseline_run` is what delta_m is over.
    """

    init: str
    dataset: str
    data: str
    recipe: FinetuneRecipe = Field(default_factory=FinetuneRecipe)
    tasks: tuple[str, ...] | None = None
    teachers: tuple[str, ...] | None = None
    spec: str | None = None
    distil: bool = True
    baseline: Baseline | None = None
    baseline_run: str | None = None
    fraction: float = 1.0
    device: str = "cuda"

    @property
    def rows(self) -> Dataset:
        """The data set's tasks that are trained, with the recipe's weights; UsageError for an unknown one."""
        rows = task_table(self.dataset).reweighted(self.recipe.tasks.weights)
        return rows if self.tasks is None else rows.select(self.tasks)

    @property
    def size(self) -> Size:
        """(H, W) of the crops and of the network."""
        return self.recipe.data.size or self.rows.input_size


RECIPE_FLAGS = {"workers": ("data.workers", "evaluation.workers"), "eval_boundary": ("evaluation.boundary",)}
"""Flags that stand for settings of the recipe."""


def finetune_config(**flags: Any) -> FinetuneConfig:
    """What the flags of `sak-cli finetune` ask for, by their names; those of the recipe go over its file."""
    recipe, rest = recipe_and_rest(FinetuneRecipe, flags, RECIPE_FLAGS)
    baseline, dataset = rest.get("baseline"), rest.get("dataset", "")
    if baseline is not None and baseline not in get_args(Baseline):
        raise UsageError(f"no baseline {baseline!r}{nearest(baseline, get_args(Baseline))}")
    if dataset.endswith((".yaml", ".yml")):
        rest["dataset"] = str(Path(dataset).resolve())
    decided = {"distil": not rest.pop("no_distill", False), "device": resolve_device(rest.get("device", "cuda"))}
    return parse_settings(FinetuneConfig, {**rest, **decided, "recipe": recipe}, "finetune")
