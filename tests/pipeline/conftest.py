"""A small real cache for training: images, and tiny random teachers of the real architectures, run in this process."""

from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

TEACHERS = {
    "dinov2": ("timm/vit_small_patch14_dinov2.lvd142m", {}),
    "clip": ("timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", {}),
    "sam": ("timm/samvit_base_patch16.sa1b", {"input_size": 64}),
}
SIZES = {"dinov2": 16, "clip": 24, "sam": 16}


def cache_spec(encoding="float16", kind="random_resized_crop", block=8, **changes):
    """Three teachers of four levels in 32 x 32 views; sam has a grid of 4 x 4, projected onto the student's 2 x 2."""
    document = {
        "views": {"kind": kind, "size": 32, "seed": 3},
        "calibration": {"samples": 12},
        "block": block,
        "teachers": {
            name: {
                "model": model,
                "weights": f"random:{seed}",
                "overrides": {"embed_dim": SIZES[name], "depth": 4, "num_heads": 2},
                "encoding": encoding,
                **more,
            }
            for seed, (name, (model, more)) in enumerate(TEACHERS.items())
        },
    }
    return {**document, **changes}


def write_images(folder, count, seed=0):
    """Smooth colourful noise, JPEGs of several sizes in two classes."""
    draws = np.random.default_rng(seed)
    for number in range(count):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((48 + number, 52), Image.Resampling.BICUBIC).save(place / f"im{number:03d}.jpg", quality=95)
    return folder


def extract_here(cache, data, document, *, views=1, limit=None, spec_file=None):
    """Stage 1 in this process, without a cluster."""
    from pipeline.cache.folder import Cache
    from pipeline.cache.spec import load_spec
    from pipeline.extract.calibrate import calibrate, uncalibrated
    from pipeline.extract.columns import find_index, open_targets
    from pipeline.extract.job import extract_block
    from pipeline.extract.plan import make_plan
    from pipeline.extract.worker import ExtractionRun, forget_run, identify
    from pipeline.progress import Messages

    spec_file = spec_file or cache.parent / f"{cache.name}.yaml"
    spec_file.write_text(yaml.safe_dump(document))
    spec = load_spec(spec_file)
    opened = Cache.create(cache)
    index = find_index(opened, str(data), Messages())
    identities = {name: identify(opened.top, spec, name) for name in spec.teachers}
    targets = open_targets(opened, spec, identities, index, begin=True, lease_seconds=60.0)
    plan = make_plan(targets, views=views, limit=limit)
    run = ExtractionRun(
        id=uuid4().hex[:12],
        cache=(str(cache),),
        data=str(data),
        data_key=index.data_key(),
        manifests={name: target.manifest for name, target in targets.items()},
        device="cpu",
        batch_size=8,
        decode_threads=1,
        lease_seconds=60.0,
    )
    failures = [calibrate(run, tuple(uncalibrated(targets))).failure]
    failures += [extract_block(run, job).failure for job in plan.jobs]
    forget_run(run.id)
    assert not any(failures), failures
    return spec_file


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """Images, a cache of two views of them (float16), and a held-out cache of whole images."""
    root = tmp_path_factory.mktemp("world")
    torch.set_num_threads(1)
    data, held = write_images(root / "images", 20), write_images(root / "held", 6, seed=1)
    cache, val_cache = root / "cache", root / "val_cache"
    spec = extract_here(cache, data, cache_spec(), views=2)
    extract_here(val_cache, held, cache_spec(kind="resize"))
    return SimpleNamespace(
        root=root,
        data=data,
        cache=cache,
        val_cache=val_cache,
        spec=spec,
        images=write_images,
        document=cache_spec,
        extract=extract_here,
        widths=SIZES,
    )


@pytest.fixture(scope="session")
def tiny_recipe():
    """A student that learns something of the small cache within seconds."""
    return {
        "student": {"stem": {"width": 16, "depth": 4, "heads": 2}, "weights": "random:0"},
        "data": {"workers": 0},
        "training": {
            "steps": 6,
            "batch_size": 4,
            "log_every": 1,
            "optimiser": {"rate": 3e-3},
            "schedule": {"warmup_steps": 1},
        },
    }


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """The demo's PASCAL-Context and NYUD-v2 trees: 11 training and 3 validation images of 64 x 64."""
    from pipeline.demo.data.write import write_demo_data

    root = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_data(root, images=1, scenes=14, size=64, processes=1)
    return root


@pytest.fixture(scope="session")
def finetune_recipe():
    """Sixty-four pixels, four images a step, a network that learns something within seconds."""
    return {
        "student": {"stem": {"width": 16, "depth": 4, "heads": 2}, "weights": "random:0"},
        "data": {"size": [64, 64], "workers": 0},
        "evaluation": {"workers": 0},
        "training": {
            "steps": 4,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint_every": 0,
            "evaluate_every": 0,
            "optimiser": {"rate": 3e-3},
        },
    }


@pytest.fixture(scope="session")
def distilled(small_world, tiny_recipe, tmp_path_factory):
    """A run of distillation, whose student knows dinov2, clip and sam."""
    from pipeline.distill.stage import DistillConfig, distill

    out = tmp_path_factory.mktemp("distilled") / "run"
    distill(DistillConfig(cache=str(small_world.cache), recipe=tiny_recipe, device="cpu"), out)
    return out
