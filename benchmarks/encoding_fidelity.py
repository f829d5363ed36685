"""Bytes against fidelity: what each encoding of a spec's teachers costs and keeps, on images not calibrated on.

python benchmarks/encoding_fidelity.py --spec cache_specs/demo.yaml --shards demo/data/imagenet --figure encodings.svg
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import machine, table, versions
from torch import Tensor

from pipeline.cache.calibration import Calibrator
from pipeline.cache.column_codec import LevelFidelity, measure
from pipeline.cache.level_codec import LevelCodec
from pipeline.cache.projection import Reduction
from pipeline.cache.spec import CacheSpec, EncodingSpec, load_spec
from sak.features import FeatureMaps
from sak.teachers import build_teacher

Rows = list[dict[str, object]]


def encodings(width: int) -> dict[str, EncodingSpec]:
    """Every kind, and the integers after half, a third and a sixth of the components."""
    plain = {kind: EncodingSpec(kind=kind) for kind in ("float16", "bfloat16", "int8", "int4")}
    shares = {"C/2": width // 2, "C/3": width // 3, "C/6": width // 6}
    reduced = {
        f"{kind}, PCA {name}": EncodingSpec(kind=kind, pca=count)
        for kind in ("int8", "int4")
        for name, count in shares.items()
    }
    return plain | reduced


def images(shards: Path, count: int, size: tuple[int, int]) -> Tensor:
    """(count, 3, H, W) in [0, 1]: the first images of the tars in a folder, resized."""
    pixels = [
        np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
        for image, _ in zip(_images(shards), range(count), strict=False)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def _images(shards: Path) -> Iterator[Image.Image]:
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if Path(member.name).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
                    yield Image.open(io.BytesIO(tar.extractfile(member).read()))


def teacher_rows(name: str, spec: CacheSpec, pixels: Tensor, batch: int) -> Rows:
    """One row an encoding: bits of a stored value for each channel and token, and what is lost; the worst level's."""
    teacher = build_teacher(spec.recipe(name), image_size=spec.views.size)
    reduction = Reduction(spec.teachers[name].grid or "native", teacher.grid(), spec.grid)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    parts = [teacher.features((part - mean) / std) for part in pixels.split(batch)]
    maps = {level: torch.cat([part[level] for part in parts]) for level in teacher.levels}
    half = len(pixels) // 2
    rows: Rows = []
    for label, encoding in encodings(teacher.width).items():
        calibrator = Calibrator(teacher.levels, encoding.pca)
        first = {level: reduction(map_[:half]).map for level, map_ in maps.items()}
        calibrator.update(FeatureMaps(teacher.levels, tuple(first.values())))
        statistics = calibrator.finish().levels
        kept: list[LevelFidelity] = []
        for level, map_ in maps.items():
            codec = LevelCodec(encoding, teacher=name, level=level, width=teacher.width, grid=reduction.stored_grid,
                               statistics=statistics[level])  # fmt: skip
            reduced = reduction(map_[half:])
            kept.append(measure(reduced, codec.decode(codec.encode(reduced.map)), statistics[level]))
            stored = sum(array.nbytes for array in codec.arrays)
        rows.append(
            {
                "teacher": f"{name} RANDOM" if teacher.is_random else name,
                "encoding": label,
                "bits a value": 8 * stored / (teacher.width * prod(reduction.stored_grid)),
                "relative error": max(each.relative_error for each in kept),
                "cosine of raw maps": f"{min(each.cosine for each in kept):.5f}",
            }
        )
    return rows


def draw(rows: Rows, path: Path) -> None:
    """Bits against relative error, both logarithmic, a colour a teacher, a mark an encoding."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sak"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for teacher in dict.fromkeys(str(row["teacher"]) for row in rows):
        own = sorted((row for row in rows if row["teacher"] == teacher), key=lambda row: float(row["bits a value"]))  # type: ignore[arg-type]
        axes.plot([row["bits a value"] for row in own], [row["relative error"] for row in own], "o", label=teacher)
    first = rows[: len(encodings(6))]
    most = max(float(row["bits a value"]) for row in first)  # type: ignore[arg-type]
    for row in first:
        name = str(row["encoding"])
        shift, side = ((0, 8 if "int8" in name else -14), "center") if "PCA" in name else ((7, -3), "left")
        if row["bits a value"] == most:  # inside the frame
            shift, side = (-7, -3), "right"
        axes.annotate(name, (row["bits a value"], row["relative error"]), fontsize=8, xytext=shift,  # type: ignore[arg-type]
                      textcoords="offset points", ha=side)  # fmt: skip
    axes.margins(x=0.1, y=0.25)
    axes.set(xscale="log", yscale="log", xlabel="bits stored for each channel of a token",
             ylabel="relative error, standardised space")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Print the table; draw it where `--figure` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default="cache_specs/demo.yaml")
    parser.add_argument("--shards", type=Path, default=Path("demo/data/imagenet"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    spec = load_spec(asked.spec)
    if not asked.shards.is_dir():
        parser.exit(0, f"{asked.shards} is not there: make demo data first, or name shards with --shards\n")
    pixels = images(asked.shards, 8 if asked.quick else asked.images, spec.views.size)
    rows = [row for name in spec.teachers for row in teacher_rows(name, spec, pixels, asked.batch)]
    print(f"{machine()}; {versions('torch', 'timm')}; {len(pixels)} images of {asked.shards.name}\n")
    print(table(rows))
    if asked.figure is not None:
        draw(rows, asked.figure)


if __name__ == "__main__":
    main()
