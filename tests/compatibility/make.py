"""Write `tests/compatibility/v<version>/`: a small cache, runs, a study and an export, as this version leaves them.

    python tests/compatibility/make.py [FOLDER]

All but the maps in `said/` is made by the command line alone, in the folder itself with relative paths, so that a copy
of it is used from within as its first user did. Images and labels get one time of change, which tests can set again.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from sak import __version__

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHEN = 1_700_000_000
"""Seconds since 1970: when every image and label was last changed."""

IMAGES, BLOCK, STEPS = 20, 8, 40
DINOV2 = {"model": "timm/vit_small_patch14_dinov2.lvd142m", "weights": "random:1"}
CLIP = {"model": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "weights": "random:2"}
SAM = {"model": "timm/samvit_base_patch16.sa1b", "weights": "random:3", "input_size": 64}


def tiny(model: dict, width: int, **more: object) -> dict:
    return {**model, "overrides": {"embed_dim": width, "depth": 4, "num_heads": 2}, "levels": [2, 4], **more}


CROPS = {"kind": "random_resized_crop", "size": 32, "seed": 3}
COMMON = {"calibration": {"samples": 12}, "block": BLOCK}
SPECS = {
    "zarr": {"views": CROPS, **COMMON, "codec": "zstd",
             "teachers": {"dinov2": tiny(DINOV2, 8, encoding="int8"), "sam": tiny(SAM, 8, encoding="float16")}},
    "webdataset": {"views": CROPS, **COMMON, "format": "webdataset",
                   "teachers": {"dinov2": tiny(DINOV2, 8, encoding="bfloat16"),
                                "clip": tiny(CLIP, 12, encoding={"kind": "int4", "pca": 4})}},
    "held-out": {"views": {"kind": "resize", "size": 32}, **COMMON,
                 "teachers": {"dinov2": tiny(DINOV2, 8, encoding="float16"), "sam": tiny(SAM, 8, encoding="float16")}},
}  # fmt: skip
TRAINING = {"steps": STEPS, "batch_size": 4, "log_every": 1, "optimiser": {"rate": 3e-3}}
RECIPES = {
    "distill": {
        "student": {"stem": {"width": 8, "depth": 4, "heads": 2}, "weights": "random:0"},
        "data": {"workers": 0},
        "training": {**TRAINING, "schedule": {"warmup_steps": 2}, "ema": 0.9, "evaluate_every": 0,
                     "checkpoint_every": 0},
    },
    "finetune": {
        "student": {"stem": {"width": 8, "depth": 4, "heads": 2}, "weights": "random:0"},
        "data": {"size": [64, 64], "workers": 0},
        "evaluation": {"workers": 0},
        "best": "semseg",
        "training": {**TRAINING, "batch_size": 2, "checkpoint_every": 0, "evaluate_every": 0},
    },
}  # fmt: skip
STUDY = {
    "title": "Teachers alone",
    "device": "cpu",
    "extract": {"spec": "specs/zarr.yaml", "data": "data/imagenet", "cache": "caches/zarr", "samples": IMAGES},
    "distill": {"config": "recipes/distill.yaml", "recipe": {"training.steps": 4, "training.ema": None}},
    "seeds": [0],
    "rows": {"DINOv2": {"distill.teachers": ["dinov2"]}, "SAM": {"distill.teachers": ["sam"]}},
}
ABOUT = f"""# What version {{version}} wrote

Made by `python tests/compatibility/make.py` from commit {{commit}}, by the
command line alone, in this folder with relative paths; never edited since. `test_version_before.py` goes on with it.

| here | is |
|---|---|
| `data/` | {IMAGES} images and six labelled scenes of `demo-data`, times of change {WHEN} |
| `specs/`, `recipes/`, `study.yaml` | what was asked for: tiny teachers with RANDOM weights, tiny students |
| `caches/zarr` | int8 and projected float16, zstd; its second view lacks the last of three blocks |
| `caches/webdataset` | bfloat16, and int4 with PCA; the last of three blocks is missing |
| `caches/held-out` | whole images, float16, to measure rep_sim on |
| `runs/distill`, `runs/finetune` | {STEPS} steps, undisturbed; the latter is evaluated |
| `runs/distill-stopped`, `runs/finetune-stopped` | the same, stopped by a signal; `run.json` says where |
| `study/` | a finished study of two rows |
| `export/` | `runs/distill` as safetensors |
| `said/` | what `cache ls`, `cache stats` and `evaluate` said; maps that the caches hold; the processor |

Left out, to be small: pictures, NYUD-v2's layout, optimisers of finished runs, the export's copy of our source.
"""
EXTRACT = "extract --data data/imagenet --device cpu --workers 1 --batch-size 8 --ignore-space"
DISTILL = "distill --cache caches/zarr --val-cache caches/held-out --views 1 --config recipes/distill.yaml --device cpu"
FINETUNE = "finetune --init runs/distill --dataset demo-pascal --data data --config recipes/finetune.yaml --device cpu"
EVALUATE = "--device cpu --workers 0 --batch-size 2 --pictures 0"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else HERE / f"v{__version__.rpartition('.')[0]}").resolve()
    folder.mkdir(parents=True)
    os.chdir(folder)
    for kind, documents in (("specs", SPECS), ("recipes", RECIPES)):
        Path(kind).mkdir()
        for name, document in documents.items():
            Path(kind, f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    Path("study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    Path("said").mkdir()
    make_data()
    make_caches()
    make_runs()
    sak("ablate study.yaml --out study --jobs 1")
    sak("export runs/distill --to safetensors --out export")
    prune()
    Path("said/processor.json").write_text(json.dumps(processor()) + "\n")
    describe()


def processor() -> dict[str, str]:
    """Where the same arithmetic gives the same bits: the kind of processor, and the library."""
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "torch": version("torch")}


def make_data() -> None:
    sak(f"demo-data data --images {IMAGES} --scenes 6 --size 64 --processes 1")
    shutil.rmtree("data/NYUDv2", ignore_errors=True)
    for path in Path("data").rglob("*"):
        os.utime(path, (WHEN, WHEN))


def make_caches() -> None:
    """`zarr` has all of its first view and two of three blocks of its second, `webdataset` two of three blocks."""
    sak(f"{EXTRACT} --spec specs/held-out.yaml --cache caches/held-out")
    sak(f"{EXTRACT} --spec specs/zarr.yaml --cache caches/zarr")
    sak(f"{EXTRACT} --spec specs/zarr.yaml --cache caches/zarr --views 2 --limit {2 * BLOCK}")
    sak(f"{EXTRACT} --spec specs/webdataset.yaml --cache caches/webdataset --limit {2 * BLOCK}")
    for name in ("zarr", "webdataset", "held-out"):
        for word in ("ls", "stats"):
            Path("said", f"{word}-{name}.json").write_text(sak(f"cache {word} caches/{name} --json"))
        opened = documented("FeatureCache").open(f"caches/{name}", allow_partial=True)
        save_file(read_maps(opened, range(3)), f"said/maps-{name}.safetensors")


def documented(name: str) -> Any:
    """The class or function that docs/api.md lists, wherever it lies by now."""
    page = (ROOT / "docs" / "api.md").read_text()
    (path,) = {found for found in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE) if found.endswith(f".{name}")}
    module, _, attribute = path.rpartition(".")
    return getattr(import_module(module), attribute)


def read_maps(cache: Any, items: Iterable[int], view: int = 0) -> dict[str, torch.Tensor]:
    """What a `FeatureCache` gives for some of its samples, as training sees it: `<teacher>.<level>` -> (B, C, H, W)."""
    collated = torch.utils.data.default_collate(cache.items(list(items), view))
    found = {}
    for teacher, targets in cache.decode(collated["features"], collated["parts"]).items():
        for level, target in zip(targets.levels, targets, strict=True):
            projected = hasattr(target, "leftover")
            found[f"{teacher}.{level}"] = (target.map if projected else target).contiguous()
            if projected:
                found[f"{teacher}.{level}.leftover"] = target.leftover
    return found


def make_runs() -> None:
    """Each twice: to its end, and stopped by a signal."""
    sak(f"{DISTILL} --out runs/distill")
    stopped(f"{DISTILL} --out runs/distill-stopped", Path("runs/distill-stopped"))
    sak(f"{FINETUNE} --out runs/finetune")
    stopped(f"{FINETUNE} --out runs/finetune-stopped", Path("runs/finetune-stopped"))
    Path("said", "evaluation.json").write_text(sak(f"evaluate runs/finetune --json {EVALUATE}"))


def prune() -> None:
    """Leave out what nothing here goes on with: pictures, and the optimisers of the runs that are done."""
    done = ("runs/distill", "runs/finetune", "study")
    optimisers = [
        path for run in done for name in ("training", "random-*") for path in Path(run).rglob(f"{name}.safetensors")
    ]
    pictures = [path for top in ("runs", "study") for path in Path(top).rglob("*.png")]
    for path in [*optimisers, *pictures, *Path().rglob(".lock"), Path("data/contact_sheet.png")]:
        path.unlink()
    shutil.rmtree("export/sak")
    shutil.rmtree("data/.labels")
    for path in sorted(Path().rglob("*"), reverse=True):  # git keeps no empty folders
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def sak(line: str) -> str:
    """Standard output of a command; its other words go to ours."""
    sys.stderr.write(f"sak-cli {line}\n")
    ended = subprocess.run(command(line), env=environment(), check=True, stdout=subprocess.PIPE, text=True)
    return ended.stdout


def command(line: str) -> list[str]:
    return [sys.executable, "-m", "cli", *line.split()]


def environment() -> dict[str, str]:
    labels = str(Path("data", ".labels"))
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SAK_LABEL_CACHE": labels}


def stopped(line: str, run: Path) -> None:
    """The command, told to stop once it has measured a dozen steps."""
    sys.stderr.write(f"sak-cli {line}, to be stopped\n")
    process = subprocess.Popen(command(line), env=environment())
    measured = run / "metrics.jsonl"
    while process.poll() is None and not (measured.is_file() and measured.read_text().count("\n") >= 12):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    session = json.loads((run / "run.json").read_text())["sessions"][-1]
    if code != 128 + signal.SIGTERM or not 0 < session["step"] < STEPS:
        raise SystemExit(f"{run} was not stopped half way: exit code {code}, {session}; make it again")


def describe() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    Path("README.md").write_text(ABOUT.format(version=__version__, commit=commit.stdout.strip()))


if __name__ == "__main__":
    main()
