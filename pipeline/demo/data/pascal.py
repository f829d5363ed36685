"""A tree in PASCAL-Context's layout (the multi-task release): pictures, labels of five tasks, lists and names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.data import encode
from pipeline.demo.render.picture import RenderedScene, too_small
from pipeline.demo.things.classes import CLASSES, CONTEXT_NUMBERS, IGNORED, NYU_NUMBERS, PART_ID, lookup

FOLDERS = (
    "JPEGImages",
    "ImageSets/Context",
    "ImageSets/Parts",
    "semseg/VOC12",
    "semseg/pascal-context",
    "human_parts",
    "pascal-context/trainval",
    "normals_distill",
    "sal_distill",
    "json",
)

OBJECT_FIELDS = ("class", "class_ind", "mask", "parts")
PART_FIELDS = ("part_name", "mask")

VOC_NAMES = {row.voc: row.name for row in CLASSES} | {11: "diningtable"}


def name_of(index: int) -> str:
    """The image id of scene `index`."""
    return f"demo_{index + 1:06d}"


def write_scene(root: Path, index: int, scene: RenderedScene) -> list[int]:
    """Write every file of one scene; returns the VOC classes of its objects, in order.

    Every fourth scene has its semantic map in semseg/pascal-context, where the layout falls back to.
    """
    name = name_of(index)
    semseg = lookup("voc")[scene.semantic].astype(np.uint8)
    semseg[too_small(scene.instances)] = IGNORED
    objects = _objects(scene)
    anno = {"imname": name, "objects": objects}
    semseg_folder = "pascal-context" if index % 4 == 3 else "VOC12"
    files = {
        f"JPEGImages/{name}.jpg": encode.jpeg(scene.rgb),
        f"semseg/{semseg_folder}/{name}.png": encode.png(semseg),
        f"human_parts/{name}.mat": encode.mat({"anno": anno}),
        f"pascal-context/trainval/{name}.mat": encode.mat({"LabelMap": lookup("context")[scene.semantic]}),
        f"normals_distill/{name}.png": encode.normals_png(scene.normals),
        f"sal_distill/{name}.png": encode.mask_png(scene.saliency),
    }
    for path, content in files.items():
        (root / path).write_bytes(content)
    return [int(entry["class_ind"]) for entry in objects.flat]


def _objects(scene: RenderedScene) -> NDArray[np.void]:
    """PASCAL-Part's struct array of the VOC objects that are seen, (1, n)."""
    voc = lookup("voc")
    entries = []
    for instance in np.unique(scene.instances):
        mask = scene.instances == instance
        number = int(voc[scene.semantic[mask][0]])
        if number:
            parts = _parts(scene.part_names, mask)
            entries.append((VOC_NAMES[number], np.uint8(number), mask.astype(np.uint8), parts))
    return _structs(OBJECT_FIELDS, entries)


def _parts(names: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[Any]:
    entries = []
    for name, number in PART_ID.items():
        part = mask & (names == number)
        if part.any():
            entries.append((name, part.astype(np.uint8)))
    return _structs(PART_FIELDS, entries) if entries else np.zeros((0, 0))


def _structs(fields: Sequence[str], entries: Sequence[tuple[Any, ...]]) -> NDArray[np.void]:
    array = np.zeros((1, len(entries)), dtype=[(field, object) for field in fields])
    for number, entry in enumerate(entries):
        array[0, number] = entry
    return array


def write_lists(root: Path, splits: Mapping[str, Sequence[int]], objects: Mapping[int, Sequence[int]]) -> None:
    """Write ImageSets and json; `splits` holds scene indices, `objects` each scene's VOC classes."""
    for split, indices in splits.items():
        names = [name_of(index) for index in indices]
        (root / "ImageSets/Context" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        rows = [f'\t"{name_of(index)}": {json.dumps(list(objects[index]))}' for index in indices]
        (root / "ImageSets/Parts" / f"{split}.txt").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    parts: dict[str, dict[str, int]] = {str(number): {} for number in range(1, 21)}
    parts["15"] = dict(PART_ID)
    for name, content in (
        ("pascal_part", parts),
        ("nyu_classes", NYU_NUMBERS),
        ("context_classes", CONTEXT_NUMBERS),
    ):
        (root / "json" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
