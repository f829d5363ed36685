"""What a folder of demo data holds; its presence is also what marks the folder as demo data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import sak

NAME = "manifest.json"
KIND = "sak demo data"


@dataclass(frozen=True)
class Split:
    """`images` in a split, and in how many of them each class is the main one (shards) or visible (trees)."""

    images: int
    classes: Mapping[str, int]


@dataclass(frozen=True)
class DemoManifest:
    """Counts and settings of one folder of demo data.

    `splits` is by data set (imagenet, pascal-context, nyud), then by split. `shards` gives each shard's images,
    `class_names` the meaning of `.cls`. `folders` says where each data set lies.
    """

    seed: int
    images: int
    scenes: int
    size: int
    splits: Mapping[str, Mapping[str, Split]]
    shards: Mapping[str, int]
    class_names: tuple[str, ...]
    folders: Mapping[str, str]
    licence: str = "CC0-1.0"

    def to_json(self) -> str:
        """The manifest as written to disk; it holds no time and no place."""
        return json.dumps({"kind": KIND, "made_by": f"sak {sak.__version__}", **asdict(self)}, indent=1) + "\n"


def is_demo_data(folder: Path) -> bool:
    """Whether `folder` holds a manifest of demo data."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND
