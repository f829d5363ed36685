"""Building students: with a filled stem, and the paper's baselines as configurations of the same parts."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from sak.errors import UsageError, nearest
from sak.student.config import StudentConfig
from sak.student.stem import Stem
from sak.student.stem_weights import load_stem_weights, parse_random
from sak.student.student import Student


def build_student(config: StudentConfig, *, seed: int = 0) -> Student:
    """A student on the CPU whose stem holds `config.weights` and whose other parts are drawn from `seed`.

    A stem of `random:SEED` is drawn from its own seed. The global generators are left as they were.
    """
    stem_seed = parse_random(config.weights)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        student = Student(config)
        if stem_seed is not None:
            torch.manual_seed(stem_seed)
            student.stem.load_state_dict(Stem(config.size, config.image_size).state_dict(), strict=config.lora is None)
    if stem_seed is None:
        load_stem_weights(student.stem, config.stem, config.weights)
    return student


def many_to_one(config: StudentConfig) -> StudentConfig:
    """The student of Table 2 and of Table 3's first row: linear aligners on the stem, no adapter paths, no routers."""
    return replace(config, adapters=False, aligners=True, fusion="none")


def multi_task_baseline(config: StudentConfig) -> StudentConfig:
    """A shared stem with one head per task, nothing distilled."""
    return replace(config, teachers={}, adapters=False, aligners=False, fusion="none")


def single_task_baselines(config: StudentConfig) -> Mapping[str, StudentConfig]:
    """Task -> a stem and head of its own."""
    shared = multi_task_baseline(config)
    return {task: replace(shared, tasks={task: channels}) for task, channels in config.tasks.items()}


def single_task_baseline(config: StudentConfig, task: str) -> StudentConfig:
    """One task's stem and head; `UsageError` where the configuration has no such task."""
    if task not in config.tasks:
        raise UsageError(f"no task {task!r} in this student{nearest(task, config.tasks)}")
    return single_task_baselines(config)[task]


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
