"""Writing the demo: every image and scene, over any number of processes, into a folder that appears whole."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.demo.data import encode, nyud, pascal
from pipeline.demo.data.contact_sheet import ROWS, Row, contact_sheet, panels
from pipeline.demo.data.folder import MANIFEST, DemoManifest, Split, whole_folder
from pipeline.demo.data.shards import Picture, plan_pictures, plan_shards, shard_name, write_shards
from pipeline.demo.data.workers import Progress, Workers, scene_workers
from pipeline.demo.render.picture import RenderedScene
from pipeline.demo.scenes.compose import LARGEST_SEED, generator, render_scene
from pipeline.demo.things.classes import CLASSES, SUBJECTS
from sak.errors import UsageError

FOLDERS = {"imagenet": "imagenet", "pascal-context": "PASCALContext", "nyud": "NYUDv2"}
LAYOUTS = {"pascal-context": pascal, "nyud": nyud}


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
    layout = LAYOUTS[job.dataset]
    objects = layout.write_scene(root, job.index, scene)
    seen = tuple(CLASSES[number].name for number in np.unique(scene.semantic))
    row = panels(scene, f"{job.dataset} {layout.name_of(job.index)}: {scene.kind}") if job.row else None
    return SceneDone(job.index, seen, tuple(objects), row)


def demo_scene(dataset: str, seed: int, size: int, index: int) -> RenderedScene:
    """Scene `index` of a tree: NYUD's are rooms at 4:3, PASCAL's are of all kinds, one in three of them upright."""
    short = round(size * 3 / 4)
    if dataset == "nyud":
        return render_scene(seed, (short, size), stream=dataset, index=index, setting="indoors")
    upright = generator(dataset, seed, index, "format").random() < 1 / 3
    return render_scene(seed, (size, short) if upright else (short, size), stream=dataset, index=index)


LIMITS = {"images": (1, 10_000_000), "scenes": (2, 1_000_000), "size": (32, 2048), "seed": (0, LARGEST_SEED)}
"""Smallest and largest of what may be asked for; two scenes are one to train on and one to validate on."""

SHEET_BYTES = 1_500_000
"""What the contact sheet takes at most, about."""


def write_demo_data(
    out: Path,
    *,
    images: int = 512,
    scenes: int = 96,
    size: int = 128,
    seed: int = 0,
    processes: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DemoManifest:
    """Write `images` ImageNet-like images as shards and `scenes` scenes into each downstream tree, under `out`.

    `size` is the longer side in pixels: shards hold squares, the trees pictures of 4:3 and 3:4. A quarter of the
    scenes, one at least, is for validation. Same arguments, same bytes, whatever `processes` is. `progress` is told
    how many of how many images and scenes are written. The folder appears when it is complete; one that is not empty
    is refused, unless `overwrite` is given and it is demo data. Raises UsageError for what cannot be asked, SakError
    for what the disk refuses.
    """
    for name, value in (("images", images), ("scenes", scenes), ("size", size), ("seed", seed)):
        _check(name, value, LIMITS[name])
    _check("processes", processes or 1 if processes is None else processes, (1, 256))
    total = images + 2 * scenes
    with (
        whole_folder(out, room=SHEET_BYTES + total * (3 * size * size + 16_000), overwrite=overwrite) as scratch,
        scene_workers(processes, total, progress) as workers,
    ):
        settings = Settings(scratch, seed, size)
        pictures = plan_pictures(images, seed)
        shards = plan_shards(images, seed)
        strip = _write_shards(settings, pictures, shards, workers)
        trees = {dataset: _write_scenes(settings, dataset, scenes, workers) for dataset in LAYOUTS}
        splits = {"imagenet": {"train": Split(images, dict(sorted(Counter(p.subject for p in pictures).items())))}}
        splits |= {dataset: _finish(settings, dataset, done) for dataset, done in trees.items()}
        named = {shard_name(number): count for number, count in enumerate(shards)}
        manifest = DemoManifest(seed, images, scenes, size, splits, named, SUBJECTS, FOLDERS)
        rows = [scene.row for scene in chain(*trees.values()) if scene.row is not None]
        title = f"Demo data, seed {seed}: {images} images, {scenes} scenes in each tree, {size} px"
        sheet = np.asarray(contact_sheet(rows, strip, title), dtype=np.uint8)
        (scratch / "contact_sheet.png").write_bytes(encode.png(sheet))
        (scratch / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check(name: str, value: int, limits: tuple[int, int]) -> None:
    low, high = limits
    if not low <= value <= high:
        raise UsageError(f"--{name} is {value}: give a number between {low} and {high}")


def _write_shards(
    settings: Settings, pictures: Sequence[Picture], sizes: tuple[int, ...], workers: Workers
) -> dict[str, np.ndarray]:
    """Write all shards; returns the first picture of each class."""
    folder = settings.root / FOLDERS["imagenet"]
    folder.mkdir()
    strip: dict[str, bytes] = {}

    def samples() -> Iterator[tuple[Picture, bytes]]:
        for picture, jpeg in zip(pictures, workers.in_order(partial(run_picture, settings), pictures), strict=True):
            strip.setdefault(picture.subject, jpeg)
            yield picture, jpeg

    write_shards(folder, sizes, samples())
    return {name: np.asarray(Image.open(BytesIO(strip[name]))) for name in sorted(strip)}


def _write_scenes(settings: Settings, dataset: str, scenes: int, workers: Workers) -> list[SceneDone]:
    """Write the scenes of a tree, all but its lists."""
    for folder in LAYOUTS[dataset].FOLDERS:
        (settings.root / FOLDERS[dataset] / folder).mkdir(parents=True)
    jobs = [SceneJob(dataset, index, row=index < ROWS) for index in range(scenes)]
    return list(workers.in_order(partial(run_scene, settings), jobs))


def _finish(settings: Settings, dataset: str, scenes: Sequence[SceneDone]) -> dict[str, Split]:
    """Write the lists of a tree; returns what its splits hold."""
    splits = _split(len(scenes))
    objects = {scene.index: scene.objects for scene in scenes}
    LAYOUTS[dataset].write_lists(settings.root / FOLDERS[dataset], splits, objects)
    return {name: _count(scenes, indices) for name, indices in splits.items()}


def _split(scenes: int) -> dict[str, range]:
    """The last quarter validates, at least one."""
    train = scenes - max(scenes // 4, 1)
    return {"train": range(train), "val": range(train, scenes)}


def _count(scenes: Sequence[SceneDone], indices: range) -> Split:
    seen = Counter(name for index in indices for name in scenes[index].classes)
    return Split(len(indices), dict(sorted(seen.items())))
