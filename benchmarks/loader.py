"""How fast the training loader reads and augments: five PASCAL-Context tasks at 512x512, samples a second on one core.

    python benchmarks/loader.py [--quick]

The tree is synthetic, of VOC's sizes: JPEG photographs of noise over random cells, label PNGs, and the two .mat files.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from boundary import synthetic
from PIL import Image
from report import machine, table, versions
from scipy.io import savemat
from scipy.ndimage import gaussian_filter

from pipeline.data import augment
from pipeline.data.datasets import open_dataset
from pipeline.data.sample import TaskDataset

SIZE = (375, 500)
PARTS = ("head", "torso", "luarm", "rlarm", "luleg", "rfoot")


def write_tree(root: Path, images: int) -> None:
    """A PASCALContext tree with every label of every image."""
    tree = root / "PASCALContext"
    for folder in ("JPEGImages", "semseg/VOC12", "human_parts", "pascal-context/trainval", "normals_distill"):
        (tree / folder).mkdir(parents=True)
    for folder in ("sal_distill", "json", "ImageSets/Context"):
        (tree / folder).mkdir(parents=True)
    classes = {f"class{number}": number for number in range(1, 60)}
    for name in ("nyu", "context"):
        (tree / f"json/{name}_classes.json").write_text(json.dumps(classes))
    names = [f"2008_{number:06d}" for number in range(images)]
    (tree / "ImageSets/Context/train.txt").write_text("\n".join(names))
    for seed, name in enumerate(names):
        write_sample(tree, name, seed)


def write_sample(tree: Path, name: str, seed: int) -> None:
    """One image with its six label files."""
    rng = np.random.default_rng(seed)
    labels, _ = synthetic(seed, SIZE, 30)
    colours = rng.integers(0, 256, (30, 3))
    texture = gaussian_filter(rng.normal(0, 60, (*SIZE, 3)), (1, 1, 0))
    picture = np.clip(colours[labels] + texture, 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(tree / f"JPEGImages/{name}.jpg", quality=92)
    Image.fromarray((labels % 21).astype(np.uint8)).save(tree / f"semseg/VOC12/{name}.png")
    Image.fromarray(((labels % 3 == 0) * 255).astype(np.uint8)).save(tree / f"sal_distill/{name}.png")
    normals = rng.integers(0, 256, (30, 3)).astype(np.uint8)[labels]
    Image.fromarray(normals).save(tree / f"normals_distill/{name}.png")
    savemat(tree / f"pascal-context/trainval/{name}.mat", {"LabelMap": (labels + 1).astype(np.uint16)})
    savemat(tree / f"human_parts/{name}.mat", {"anno": person(labels)})


def person(labels: np.ndarray) -> np.ndarray:
    """One person whose parts are cells of the label map, as PASCAL-Part's files hold them."""
    parts = np.zeros((1, len(PARTS)), [("part_name", "O"), ("mask", "O")])
    for number, name in enumerate(PARTS):
        parts[0, number] = (name, (labels == number).astype(np.uint8))
    objects = np.zeros((1, 1), [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")])
    objects[0, 0] = ("person", np.uint8([[15]]), (labels < len(PARTS)).astype(np.uint8), parts)
    anno = np.zeros((1, 1), [("imname", "O"), ("objects", "O")])
    anno[0, 0] = ("x", objects)
    return anno


def rate(dataset: TaskDataset, samples: int, epoch: int) -> tuple[float, float]:
    """Samples a second through reading and the whole training augmentation, by the wall clock and by CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for index in range(samples):
        augment.for_training(dataset[index], (512, 512), seed=0, epoch=epoch)
    return samples / (time.perf_counter() - wall), samples / (time.process_time() - cpu)


def row(what: str, rates: Sequence[tuple[float, float]]) -> dict[str, object]:
    """Medians over passes; on a busy machine CPU time says what a core of its own would do."""
    wall, cpu = (statistics.median(side) for side in zip(*rates, strict=True))
    return {"five tasks at 512x512, one core": what, "samples/s": wall, "samples/s of CPU time": cpu}


def main() -> None:
    """Print samples a second, labels parsed for the first time and found again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    arguments = parser.parse_args()
    samples = 16 if arguments.quick else 100
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAK_LABEL_CACHE"] = f"{folder}/labels"
        write_tree(Path(folder), samples)
        dataset = open_dataset("pascal-context", folder, "train")
        dataset[0]  # compiles the thinning
        first = rate(dataset, samples, 0)
        again = [rate(dataset, samples, epoch) for epoch in range(1, 4)]
    print(f"{machine()}; {versions('numpy', 'opencv-python-headless', 'torch')}")
    rows = [row("first pass, .mat files parsed", [first]), row("later passes, median of 3", again)]
    print(table(rows))


if __name__ == "__main__":
    main()
