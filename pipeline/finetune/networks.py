"""The network that fine-tuning trains: from a distilled student, ImageNet weights, or under a frozen teacher."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.cache.spec import CacheSpec
from pipeline.finetune.recipe import FinetuneRecipe, NetworkRecipe
from pipeline.train.distillation import TaughtBy, student_config
from pipeline.train.run import ABOUT
from sak.checkpoints.store import WEIGHTS, load_student, transfer
from sak.errors import SakError, UsageError
from sak.student.build import build_student, multi_task_baseline, new_student
from sak.student.config import StudentConfig, size_from_json
from sak.student.student import Student
from sak.tasks import Dataset
from sak.teachers.recipe import TeacherRecipe
from sak.variants.frozen import Amalgam, AmalgamConfig, Probe, ProbeConfig

Size = tuple[int, int]
Baseline = Literal["single-task", "multi-task"]
TEACHER, TEACHERS, IMAGENET, RANDOM = "teacher:", "teachers:", "imagenet", "random:"


@dataclass(frozen=True)
class Origin:
    """Where a network starts: a distilled student, or (both None) the recipe's stem; and teachers to learn from.

    `probed` is the frozen teacher of a probe, `amalgamated` are those of an amalgamation. `told` is what the user must
    hear.
    """

    place: str
    student: Student | None = None
    probed: TeacherRecipe | None = None
    teachers: Mapping[str, TeacherRecipe] = field(default_factory=dict)
    amalgamated: tuple[TeacherRecipe, ...] = ()
    told: tuple[str, ...] = ()


def find_origin(init: str, recipe: FinetuneRecipe, spec: CacheSpec | None) -> Origin:
    """Read what `--init` names; UsageError where it is nothing that a network can start from.

    `spec` describes teachers that nothing else does, and says where the weights of the others are.
    """
    if init.startswith(TEACHERS):
        frozen = tuple(_probed(name.strip(), recipe, spec) for name in init.removeprefix(TEACHERS).split(","))
        return Origin(init, amalgamated=frozen, told=_warnings(*frozen))
    if init.startswith(TEACHER):
        probed = _probed(init.removeprefix(TEACHER), recipe, spec)
        return Origin(init, probed=probed, told=_warnings(probed))
    if init == IMAGENET or init.startswith(RANDOM):
        weights = recipe.student.weights if init == IMAGENET else init
        told = (f"warning: the stem starts from RANDOM weights ({weights})",) if weights.startswith("random") else ()
        return Origin(init, teachers=_of_spec(spec), told=told)
    folder = _checkpoint(Path(init))
    student = load_student(folder)
    known = {name: TeacherRecipe.from_json(each) for name, each in _record(folder).items()}
    described = {name: each for name, each in _of_spec(spec).items() if name in student.config.teachers}
    moved = {name: replace(each, weights=described[name].weights) for name, each in known.items() if name in described}
    return Origin(str(folder), student=student, teachers={**described, **known, **moved})


def _warnings(*teachers: TeacherRecipe) -> tuple[str, ...]:
    return tuple(f"warning: the teacher {teacher.name} has RANDOM weights" for teacher in teachers if teacher.is_random)


def make_network(
    origin: Origin, recipe: FinetuneRecipe, rows: Dataset, size: Size, *, baseline: Baseline | None, seed: int
) -> nn.Module:
    """A network with a head for each of the data set's tasks, on the CPU; what is new in it is drawn from `seed`.

    With a `baseline` nothing but the stem is taken from the origin. SakError where the origin does not fit.
    """
    if (origin.probed is not None or origin.amalgamated) and baseline is not None:
        raise UsageError("a probe is no baseline: leave --baseline out with --init teacher:...")
    if origin.amalgamated:
        return _amalgam(origin.amalgamated, rows, size, seed)
    if origin.probed is not None:
        return _probe(origin.probed, rows, size, seed)
    if origin.student is not None:
        return _from_student(origin.student, recipe.student, rows, size, baseline, seed, origin.place)
    config = _fresh(origin, recipe.student, rows, size, baseline)
    _check_freeze(config, rows.names)
    return build_student(config, seed=seed)


def _probe(recipe: TeacherRecipe, rows: Dataset, size: Size, seed: int) -> Probe:
    config = ProbeConfig(recipe, size, rows.channels)
    teacher = config.build_teacher()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Probe(config, teacher)


def _amalgam(recipes: tuple[TeacherRecipe, ...], rows: Dataset, size: Size, seed: int) -> Amalgam:
    config = AmalgamConfig(recipes, size, rows.channels)
    teachers = config.build_teachers()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Amalgam(config, teachers)


def _from_student(
    source: Student,
    recipe: NetworkRecipe,
    rows: Dataset,
    size: Size,
    baseline: Baseline | None,
    seed: int,
    place: str,
) -> Student:
    start = _stem_alone(source) if baseline is not None else source
    _check_heads(start.config, rows, place)
    config = replace(
        start.config,
        image_size=size,
        tasks=rows.channels,
        freeze=recipe.freeze,
        gate_noise=recipe.gate_noise,
        decoder=recipe.decoder or start.config.decoder,
        fusion=(recipe.fusion if baseline is None else None) or start.config.fusion,
        lora=recipe.lora_layers() or start.config.lora,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )
    same = config.decoder == start.config.decoder
    _check_freeze(config, [task for task in rows.names if not same or task not in start.config.tasks])
    network = new_student(config, seed=seed)
    transfer(start, network)
    return network


def _check_freeze(config: StudentConfig, fresh: Collection[str]) -> None:
    """Refuse to train routers alone where there are none, or under heads that nothing has trained."""
    if config.freeze != "all-but-routers":
        return
    if config.fusion != "mor":
        raise UsageError("student.freeze=all-but-routers leaves nothing to train: this network has no routers")
    if fresh:
        raise UsageError(
            f"student.freeze=all-but-routers would leave new heads of {', '.join(fresh)} at random for ever: start "
            "from a run that is fine-tuned on these tasks (--init), or freeze the stem alone"
        )


def _stem_alone(source: Student) -> Student:
    config = replace(multi_task_baseline(source.config), tasks={}, lora=None)
    if source.config.lora is not None:
        raise UsageError("a baseline starts from a plain stem, this one has LoRA layers; start it from imagenet")
    alone = new_student(config)
    alone.stem.load_state_dict(source.stem.state_dict())
    return alone


def _check_heads(config: StudentConfig, rows: Dataset, place: str) -> None:
    for task, channels in config.tasks.items():
        if task in rows.names and rows[task].channels != channels:
            raise UsageError(
                f"{place} has a head of {task} with {channels} channels already, {rows.name} needs "
                f"{rows[task].channels}: start from the distilled run"
            )


def _fresh(
    origin: Origin, recipe: NetworkRecipe, rows: Dataset, size: Size, baseline: Baseline | None
) -> StudentConfig:
    """The recipe's own student; with teachers (of the spec) where it is no baseline."""
    recipe = recipe.model_copy(update={"weights": origin.place} if origin.place != IMAGENET else {})
    taught = (
        {} if baseline is not None else {name: _taught_by(teacher, size) for name, teacher in origin.teachers.items()}
    )
    if not taught and baseline is None:
        raise UsageError(
            f"--init {origin.place} has no adapter paths: name the spec of the teachers that they are for (--spec), or "
            "train a --baseline"
        )
    config = student_config(recipe, taught, size) if taught else _plain(recipe, size)
    options: dict[str, Any] = {"gate_noise": recipe.gate_noise, "freeze": recipe.freeze, "lora": recipe.lora_layers()}
    if taught and recipe.fusion is not None:
        options["fusion"] = recipe.fusion
    return replace(config, tasks=rows.channels, decoder=recipe.decoder or "simple", **options)


def _plain(recipe: NetworkRecipe, size: Size) -> StudentConfig:
    stem = size_from_json(recipe.stem) if isinstance(recipe.stem, dict) else recipe.stem
    again = recipe.gradient_checkpointing
    return StudentConfig(size, stem, recipe.weights, fusion="none", gradient_checkpointing=again)


def _taught_by(recipe: TeacherRecipe, size: Size) -> TaughtBy:
    from sak.teachers import build_teacher

    drawn = build_teacher(recipe, image_size=size, device="meta")
    return TaughtBy(drawn.width, drawn.levels, drawn.levels)


def _of_spec(spec: CacheSpec | None) -> dict[str, TeacherRecipe]:
    if spec is None:
        return {}
    return {name: spec.recipe(name) for name in spec.teachers}


def _probed(name: str, recipe: FinetuneRecipe, spec: CacheSpec | None) -> TeacherRecipe:
    """A probe's teacher by its name in the spec, its name in the registry, or its model string."""
    described = _of_spec(spec)
    if name in described:
        return described[name]
    if not name:
        raise UsageError(f"--init {TEACHER}: name a teacher, such as {TEACHER}dinov2_b (sak-cli teachers lists them)")
    return TeacherRecipe(name.rpartition("/")[2].rpartition(":")[2], name, **recipe.probe.model_dump())


def _checkpoint(place: Path) -> Path:
    """The folder of a student's checkpoint: the place itself, or a run's best or last one."""
    if (place / WEIGHTS).is_file():
        return place
    for name in ("best", "last"):
        if (place / "checkpoints" / name / WEIGHTS).is_file():
            return place / "checkpoints" / name
    raise UsageError(
        f"--init {place}: no run and no checkpoint there; give a distilled run's directory, what sak-cli "
        f"import-checkpoint wrote, {IMAGENET}, random:SEED, or {TEACHER}NAME"
    )


def run_of(place: str) -> Path:
    """The directory of the run whose checkpoint lies at `place`; `place` itself where it is no run's."""
    folder = Path(place)
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def _record(folder: Path) -> dict[str, Any]:
    """The teachers that the run of this checkpoint was taught by; none for a checkpoint without a run."""
    about = folder.parent.parent / ABOUT
    if folder.parent.name != "checkpoints" or not about.is_file():
        return {}
    try:
        teachers: dict[str, Any] = json.loads(about.read_text()).get("teachers", {})
    except ValueError as error:
        raise SakError(
            f"{about} is damaged ({error}); name the teachers' spec with --spec and the checkpoint alone"
        ) from error
    return teachers
