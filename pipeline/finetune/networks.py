"""The network that fine-tuning trains: from a distilled student, ImageNet weights, or under a frozen teacher."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.cache.spec import load_spec
from pipeline.finetune.recipe import FinetuneConfig, FinetuneRecipe
from pipeline.train.distillation import TeacherLevels, student_config
from pipeline.train.run import ABOUT
from sak.checkpoints.store import WEIGHTS, load_student, transfer
from sak.errors import SakError, UsageError
from sak.student.build import build_student, multi_task_baseline, new_student
from sak.student.config import StudentConfig, size_from_json
from sak.student.student import Student
from sak.tasks import Dataset
from sak.teachers.recipe import Size, TeacherRecipe
from sak.variants.frozen import Amalgam, AmalgamConfig, Probe, ProbeConfig

TEACHER, TEACHERS, IMAGENET, RANDOM = "teacher:", "teachers:", "imagenet", "random:"


@dataclass(frozen=True)
class Origin:
    """Where a network starts: a distilled student, frozen teachers, or (neither given) the recipe's stem.

    `location` is the checkpoint's folder, or what `--init` names. `frozen` are the teachers of an amalgamation, or the
    one of a probe; `teachers` are those to learn from. `warnings` are for the user.
    """

    location: str
    student: Student | None = None
    frozen: tuple[TeacherRecipe, ...] = ()
    teachers: Mapping[str, TeacherRecipe] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def find_origin(config: FinetuneConfig) -> Origin:
    """Read what `init` names; UsageError where it is nothing that a network can start from."""
    init, recipe = config.init, config.recipe
    spec = load_spec(config.spec) if config.spec is not None else None
    in_spec = {name: spec.recipe(name) for name in spec.teachers} if spec is not None else {}
    if init.startswith((TEACHER, TEACHERS)):
        names = init.removeprefix(TEACHERS).split(",") if init.startswith(TEACHERS) else [init.removeprefix(TEACHER)]
        frozen = tuple(in_spec.get(name) or _unspecified(name, recipe) for name in map(str.strip, names))
        random = [teacher.name for teacher in frozen if teacher.is_random]
        return Origin(
            init, frozen=frozen, warnings=tuple(f"warning: the teacher {name} has RANDOM weights" for name in random)
        )
    if init == IMAGENET or init.startswith(RANDOM):
        weights = recipe.student.weights if init == IMAGENET else init
        warning = f"warning: the stem starts from RANDOM weights ({weights})"
        return Origin(init, teachers=in_spec, warnings=(warning,) if weights.startswith("random") else ())
    folder = _checkpoint(Path(init))
    student = load_student(folder)
    teachers = {name: teacher for name, teacher in in_spec.items() if name in student.config.teachers}
    for name, document in _recorded_teachers(folder).items():
        recorded = TeacherRecipe.from_json(document)
        teachers[name] = replace(recorded, weights=teachers[name].weights) if name in teachers else recorded
    return Origin(str(folder), student=student, teachers=teachers)


def make_network(origin: Origin, config: FinetuneConfig) -> nn.Module:
    """A network with a head for each of the data set's tasks, on the CPU; what is new in it is drawn from the seed.

    With a baseline nothing but the stem is taken from the origin. SakError where the origin does not fit.
    """
    if origin.frozen:
        if config.baseline is not None:
            raise UsageError("a probe is no baseline: leave --baseline out with --init teacher:...")
        return _over_frozen(origin, config)
    if origin.student is not None:
        return _from_student(origin.student, config, origin.location)
    made = _fresh(origin, config)
    _check_freeze(made, config.rows.names)
    return build_student(made, seed=config.recipe.training.seed)


def _over_frozen(origin: Origin, config: FinetuneConfig) -> Probe:
    """A probe of one teacher, or an amalgamation of several."""
    make: Callable[[], Probe]
    if origin.location.startswith(TEACHERS):
        several = AmalgamConfig(origin.frozen, config.size, config.rows.channels)
        make = partial(Amalgam, several, several.build_teachers())
    else:
        single = ProbeConfig(origin.frozen[0], config.size, config.rows.channels)
        make = partial(Probe, single, single.build_teacher())
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.recipe.training.seed)
        return make()


def _from_student(source: Student, config: FinetuneConfig, location: str) -> Student:
    start = _stem_alone(source) if config.baseline is not None else source
    _check_heads(start.config, config.rows, location)
    made = _tuned(start.config, config)
    trained = start.config.tasks if made.decoder == start.config.decoder else ()
    _check_freeze(made, [task for task in config.rows.names if task not in trained])
    network = new_student(made, seed=config.recipe.training.seed)
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


def _check_heads(config: StudentConfig, rows: Dataset, location: str) -> None:
    for task, channels in config.tasks.items():
        if task in rows.names and rows[task].channels != channels:
            raise UsageError(
                f"{location} has a head of {task} with {channels} channels already, {rows.name} needs "
                f"{rows[task].channels}: start from the distilled run"
            )


def _fresh(origin: Origin, config: FinetuneConfig) -> StudentConfig:
    """The recipe's own student; with teachers (of the spec) where it is no baseline."""
    recipe, size = config.recipe.student, config.size
    if origin.location != IMAGENET:
        recipe = recipe.model_copy(update={"weights": origin.location})
    if config.baseline is not None:
        stem = size_from_json(recipe.stem) if isinstance(recipe.stem, dict) else recipe.stem
        return _tuned(StudentConfig(size, stem, recipe.weights, fusion="none"), config)
    if not origin.teachers:
        raise UsageError(
            f"--init {origin.location} has no adapter paths: name the spec of the teachers that they are for (--spec), "
            "or train a --baseline"
        )
    teachers = {name: _all_levels(teacher, size) for name, teacher in origin.teachers.items()}
    return _tuned(student_config(recipe, teachers, size), config)


def _tuned(student: StudentConfig, config: FinetuneConfig) -> StudentConfig:
    """With the data set's heads, and what the recipe says of fine-tuning."""
    recipe = config.recipe.student
    return replace(
        student,
        image_size=config.size,
        tasks=config.rows.channels,
        freeze=recipe.freeze,
        gate_noise=recipe.gate_noise,
        decoder=recipe.decoder or student.decoder,
        fusion=(recipe.fusion if config.baseline is None else None) or student.fusion,
        lora=recipe.lora_layers() or student.lora,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )


def _all_levels(recipe: TeacherRecipe, size: Size) -> TeacherLevels:
    from sak.teachers import build_teacher

    drawn = build_teacher(recipe, image_size=size, device="meta")
    return TeacherLevels(drawn.width, drawn.levels, drawn.levels)


def _unspecified(name: str, recipe: FinetuneRecipe) -> TeacherRecipe:
    """A frozen teacher that no spec has, by its name in the registry or its model string."""
    if not name:
        raise UsageError(f"--init {TEACHER}: name a teacher, such as {TEACHER}dinov2_b (sak-cli teachers lists them)")
    return TeacherRecipe(name.rpartition("/")[2].rpartition(":")[2], name, **recipe.probe.model_dump())


def _checkpoint(path: Path) -> Path:
    """The folder of a student's checkpoint: the path itself, or a run's best or last one."""
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if (folder / WEIGHTS).is_file():
            return folder
    raise UsageError(
        f"--init {path}: no run and no checkpoint there; give a distilled run's directory, what sak-cli "
        f"import-checkpoint wrote, {IMAGENET}, random:SEED, or {TEACHER}NAME"
    )


def run_of(location: str) -> Path:
    """The directory of the run whose checkpoint's folder `location` is; that folder itself where it is no run's."""
    folder = Path(location)
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def _recorded_teachers(folder: Path) -> dict[str, Any]:
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
