"""The unit of work: one image or one scene, rendered and encoded from its number alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.demo import encode, nyud, pascal
from pipeline.data.demo.classes import CLASSES
from pipeline.data.demo.compose import render_scene
from pipeline.data.demo.render import RenderedScene
from pipeline.data.demo.seeds import generator
from pipeline.data.demo.shards import Picture
from pipeline.data.demo.sheet import Row, panels

FOLDERS = {"imagenet": "imagenet", "pascal-context": "PASCALContext", "nyud": "NYUDv2"}


@dataclass(frozen=True)
class Settings:
    """What all jobs of a run share."""

    root: Path
    seed: int
    size: int


@dataclass(frozen=True)
class SceneJob:
    """A scene to render and write into a tree; `row` asks for its row of the contact sheet."""

    dataset: str
    index: int
    row: bool = False


@dataclass(frozen=True)
class SceneDone:
    """What lists, manifest and contact sheet need to know of a written scene."""

    index: int
    classes: tuple[str, ...]
    objects: tuple[int, ...]
    row: Row | None


def run_picture(settings: Settings, picture: Picture) -> bytes:
    """The JPEG of one ImageNet-like image, square."""
    scene = render_scene(settings.seed, settings.size, stream="imagenet", index=picture.index, subject=picture.subject)
    return encode.jpeg(scene.rgb)


def run_scene(settings: Settings, job: SceneJob) -> SceneDone:
    """Render one scene and write its files into its tree."""
    scene = demo_scene(job.dataset, settings.seed, settings.size, job.index)
    root = settings.root / FOLDERS[job.dataset]
    objects: list[int] = []
    if job.dataset == "pascal-context":
        objects = pascal.write_scene(root, job.index, scene)
        name = pascal.name_of(job.index)
    else:
        nyud.write_scene(root, job.index, scene)
        name = nyud.name_of(job.index)
    seen = tuple(CLASSES[number].name for number in np.unique(scene.semantic))
    row = panels(scene, f"{job.dataset} {name}: {scene.kind}") if job.row else None
    return SceneDone(job.index, seen, tuple(objects), row)


def demo_scene(dataset: str, seed: int, size: int, index: int) -> RenderedScene:
    """Scene `index` of a tree: NYUD's are rooms at 4:3, PASCAL's are of all kinds, one in three of them upright."""
    short = round(size * 3 / 4)
    if dataset == "nyud":
        return render_scene(seed, (short, size), stream=dataset, index=index, setting="indoors")
    upright = generator(dataset, seed, index, "format").random() < 1 / 3
    return render_scene(seed, (size, short) if upright else (short, size), stream=dataset, index=index)
