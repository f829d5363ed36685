"""Building students: with a filled stem, and the paper's baselines as configurations of the same parts."""

from dataclasses import replace

import torch

from sak.errors import UsageError, nearest
from sak.student.config import StudentConfig
from sak.student.lora import merge_lora
from sak.student.stem_weights import load_stem_weights
from sak.student.student import Student
from sak.weight_files import random_seed


def new_student(config: StudentConfig, *, seed: int = 0) -> Student:
    """A student on the CPU with all its parts drawn from `seed`, the stem too; global generators are left alone."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Student(config)


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
