"""Building students: with a filled stem, and the paper's baselines as configurations of the same parts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sak.errors import UsageError, nearest
from sak.student.adapter_path import AdapterPaths
from sak.student.aligner import linear_aligners, output_norms
from sak.student.config import StudentConfig
from sak.student.heads import Decoder, DecoderShape
from sak.student.router import Routers, StemAlone, SumOfPaths
from sak.student.stem import Stem, load_stem_weights
from sak.student.student import Student
from sak.variants.decoders import DECODERS
from sak.variants.lora import LORA_KEYS, add_lora, merge_lora
from sak.variants.swin import SwinPaths, SwinSize, SwinStem
from sak.weight_files import random_seed


def make_student(config: StudentConfig) -> Student:
    """A student with fresh random parts, drawn from torch's generator.

    Drawn in this order: another one would give other students to the same seed.
    """
    levels = dict(zip(config.tapped, config.level_widths, strict=True))
    teachers = tuple(config.teacher_widths) if config.adapters else ()
    student = Student(
        config,
        stem=_make_stem(config),
        paths=_make_paths(config, teachers),
        norms=output_norms(teachers, levels if teachers else {}),
        aligners=linear_aligners(config.teacher_widths, levels if config.aligned else {}),
        routers=_make_routers(config, levels),
        heads=_make_decoder(config),
    )
    if config.lora is not None:
        add_lora(student.stem, config.lora)
    _freeze(student)
    return student


def _make_stem(config: StudentConfig) -> Stem | SwinStem:
    again = config.gradient_checkpointing
    if isinstance(config.size, SwinSize):
        return SwinStem(config.size, config.image_size, gradient_checkpointing=again)
    return Stem(config.size, config.image_size, gradient_checkpointing=again)


def _make_paths(config: StudentConfig, teachers: Sequence[str]) -> AdapterPaths | SwinPaths:
    size, ratio, again = config.size, config.down_ratio, config.gradient_checkpointing
    if isinstance(size, SwinSize):
        return SwinPaths(teachers, size, config.image_size, down_ratio=ratio, gradient_checkpointing=again)
    hidden = size.width // ratio
    return AdapterPaths(teachers, width=size.width, depth=size.depth, hidden=hidden, gradient_checkpointing=again)


def _make_routers(config: StudentConfig, levels: Mapping[int, int]) -> StemAlone:
    if config.fusion == "none":
        return StemAlone()
    if config.fusion == "sum":
        return SumOfPaths()
    return Routers(
        levels if config.tasks else {},
        config.tasks,
        len(config.experts),
        prefix=config.size.prefix,
        kind=config.gate_noise,
        grids={level: config.grid_at(level) for level in levels},
    )


def _make_decoder(config: StudentConfig) -> Decoder:
    first = config.size.stride_at(config.tapped[0])
    shape = DecoderShape(config.size.width, config.level_widths, first // 4, dict(config.tasks))
    return DECODERS[config.decoder](shape)


def _freeze(student: Student) -> None:
    config = student.config
    if config.freeze == "all-but-routers":
        student.requires_grad_(False)
        student.routers.requires_grad_(True)
    elif config.freeze == "stem" or config.lora is not None:
        for name, parameter in student.stem.named_parameters():
            parameter.requires_grad_(name.endswith(LORA_KEYS))


def new_student(config: StudentConfig, *, seed: int = 0) -> Student:
    """A student on the CPU with all its parts drawn from `seed`, the stem too; global generators are left alone."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return make_student(config)


def build_student(config: StudentConfig, *, seed: int = 0) -> Student:
    """A student whose stem starts from `config.weights` and whose other parts are drawn from `seed`, on the CPU.

    A stem of `random:SEED` is drawn from its own seed. `SakError` where the stem's weights are missing or do not fit.
    """
    stem_seed = random_seed(config.weights)
    student = new_student(config, seed=seed)
    if stem_seed is None:
        load_stem_weights(student.stem, config.stem, config.weights)
    else:
        plain = replace(config, teachers={}, tasks={}, lora=None, aligners=False, freeze="none")
        stem = new_student(plain, seed=stem_seed).stem
        student.stem.load_state_dict(stem.state_dict(), strict=config.lora is None)
    return student


def many_to_one(config: StudentConfig) -> StudentConfig:
    """The student of Table 2 and of Table 3's first row: linear aligners on the stem, no adapter paths, no routers."""
    return replace(config, adapters=False, aligners=True, fusion="none")


def multi_task_baseline(config: StudentConfig) -> StudentConfig:
    """A shared stem with one head per task, nothing distilled."""
    return replace(config, teachers={}, adapters=False, aligners=False, fusion="none")


def single_task_baseline(config: StudentConfig, task: str) -> StudentConfig:
    """One task's stem and head; `UsageError` where the configuration has no such task."""
    if task not in config.tasks:
        raise UsageError(f"no task {task!r} in this student{nearest(task, config.tasks)}")
    return replace(multi_task_baseline(config), tasks={task: config.tasks[task]})


def without_lora(student: Student) -> Student:
    """The student with its LoRA layers merged into plain ones, in place; the stem stays frozen or not as it was."""
    if student.config.lora is not None:
        merge_lora(student.stem)
        student.config = replace(student.config, lora=None, freeze="stem")
    student.stem.requires_grad_(student.config.freeze == "none")
    return student


def parameter_counts(student: Student) -> dict[str, int]:
    """Parameters per part of the paper's figure: TAS, TSAP, TSAP_out_norms, aligners, MoR, heads, and their total."""
    parts = {
        "TAS": student.stem,
        "TSAP": student.paths,
        "TSAP_out_norms": student.norms,
        "aligners": student.aligners,
        "MoR": student.routers,
        "heads": student.heads,
    }
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    return counts | {"total": sum(counts.values())}
