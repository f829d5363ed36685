"""What a fine-tuning run says of itself: to its user before it starts, and in its `run.json`."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from torch import nn

from pipeline.data.live_teachers import LiveTeachers
from pipeline.training.networks import Origin
from pipeline.training.task_data import TaskData
from pipeline.training.task_model import STAGE, describe
from sak.student.student import Student
from sak.variants.probe import Probe


def tell(say: Callable[[str], None], origin: Origin, guides: LiveTeachers | None) -> None:
    """What the user must hear before it starts: whatever knows nothing."""
    for line in origin.told:
        say(line)
    if guides is not None and guides.random:
        say(f"warning: live teachers with RANDOM weights: {', '.join(guides.random)}")


def what_is_read(data: TaskData, guides: LiveTeachers | None) -> dict[str, Any]:
    """What a run must find again to be the same one: its images and its live teachers."""
    names = "\n".join(data.training.name(place) for place in data.places)
    return {
        "images": len(data.places),
        "images_sha256": sha256(names.encode()).hexdigest(),
        "live": guides.describe() if guides else {},
    }


def facts(network: nn.Module, origin: Origin, *, baseline: str | None, **asked: Any) -> dict[str, Any]:
    """What `run.json` says of the run, beside what was `asked`."""
    found = describe(network)
    return {
        "stage": STAGE,
        "kind": baseline or found.kind,
        "tasks": list(found.tasks),
        "image_size": list(found.image_size),
        "init": origin.place,
        **asked,
        "student": network.config.resolved().to_json() if isinstance(network, Student) else None,
        "probe": network.config.to_json() if isinstance(network, Probe) else None,
        "teachers": {name: recipe.to_json() for name, recipe in origin.teachers.items()},
    }
