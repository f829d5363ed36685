"""Extraction against the teachers' forward alone on the same images, decoded and on the device already; one process.

The goal is 0.95. On a GPU: the paper's B teachers in bfloat16, SAM at 1024; on the CPU smaller ones of the same
architectures, or with `--real` the paper's in float32. Weights are random: speed does not depend on them. On the CPU
all parts compete for the same cores, so CPU time is what to look at; the second table says what each part takes of it
when it runs alone.
"""

import argparse
import io
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import machine, table, versions
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cache.folder import Cache
from pipeline.cache.spec import CacheSpec, parse_spec
from pipeline.cluster import BLOCKS_IN_FLIGHT, process_environment, resolve_device
from pipeline.extract.calibrate import calibrate
from pipeline.extract.columns import find_index, open_targets
from pipeline.extract.job import extract_block, to_images
from pipeline.extract.overlap import StageSeconds, to_host
from pipeline.extract.plan import Job, make_plan
from pipeline.extract.worker import ExtractionRun, identify, worker_context
from pipeline.progress import Messages, duration

IMAGENET = 1_281_167
SMALL = {"embed_dim": 192, "depth": 12, "num_heads": 3}


def document(arguments: argparse.Namespace) -> dict:
    """The spec: the paper's teachers, or the same architectures at a small width."""
    gpu = arguments.device == "cuda"
    overrides = {} if arguments.real else {"overrides": SMALL | ({"depth": 4} if arguments.quick else {})}
    precision = {"precision": "bf16" if gpu else "fp32"}
    models = {
        "dinov2": {"model": "timm/vit_base_patch14_dinov2.lvd142m"},
        "clip": {"model": "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k"},
        "sam": {"model": "timm/samvit_base_patch16.sa1b", "input_size": 1024 if arguments.real else 256},
    }
    teachers = {
        name: {**model, **overrides, **precision, "weights": f"random:{seed}"}
        for seed, (name, model) in enumerate(models.items())
    }
    views = {"kind": "random_resized_crop", "size": arguments.size}
    return {
        "views": views,
        "block": arguments.block,
        "calibration": {"samples": min(16, arguments.images // 2)},
        "teachers": teachers,
    }


def write_photos(folder: Path, count: int) -> None:
    """Photo-like JPEGs of 500 x 400 pixels and about 100 kB, as ImageNet's are."""
    random = np.random.default_rng(0)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (25, 20, 3), np.uint8)).resize((500, 400))
            noisy = np.clip(np.asarray(coarse, np.int16) + random.integers(-25, 26, (400, 500, 3)), 0, 255)
            buffer = io.BytesIO()
            Image.fromarray(noisy.astype(np.uint8)).save(buffer, "JPEG", quality=88)
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))


def prepare(folder: Path, data: str, spec: CacheSpec, arguments: argparse.Namespace) -> tuple[ExtractionRun, list]:
    """A run and its jobs, its columns begun and calibrated."""
    cache = Cache.create(folder / "cache")
    index = find_index(cache, data, Messages())
    identities = {name: identify(cache.top, spec, name) for name in spec.teachers}
    targets = open_targets(cache, spec, identities, index, begin=True, lease_seconds=120)
    run = ExtractionRun(
        id="benchmark",
        cache=(cache.top.location.url,),
        data=index.data,
        data_key=index.data_key(),
        manifests={name: target.manifest for name, target in targets.items()},
        device=arguments.device,
        batch_size=arguments.batch_size,
        decode_threads=arguments.threads,
        lease_seconds=120,
    )
    calibrated = calibrate(run, tuple(spec.teachers))
    if calibrated.failure:
        raise SystemExit(calibrated.failure)
    return run, list(make_plan(targets, views=arguments.views, limit=None).jobs)


@dataclass
class Spent:
    """Images done, and the wall and CPU seconds they took."""

    images: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def measured(self, device: str) -> Iterator[None]:
        """Add what is spent inside, until the device is idle."""
        wall, cpu = synchronised(device), time.process_time()
        yield
        self.wall += synchronised(device) - wall
        self.cpu += time.process_time() - cpu

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.wall


def forward_alone(run: ExtractionRun, names: list[str], images: int, spent: Spent) -> Spent:
    """The forwards of `names`, one after the other, over batches that lie on the device."""
    context = worker_context(run)
    samples = range(min(len(context.index), 4 * run.batch_size))
    batches = [to_images(each.pixels, context.device) for each in context.source.batches(samples, 0, run.batch_size)]
    batches = [each for each in batches if len(each) == run.batch_size]
    teachers = [context.teacher(name).teacher for name in names]
    for teacher in teachers:
        teacher(batches[0])
    with spent.measured(run.device):
        for number in range(-(-images // run.batch_size)):
            for teacher in teachers:
                teacher(batches[number % len(batches)])
            spent.images += run.batch_size
    return spent


def synchronised(device: str) -> float:
    """The time once the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def extraction(run: ExtractionRun, jobs: list, spent: Spent) -> StageSeconds:
    """All jobs, as a worker does them; where the time went."""
    with spent.measured(run.device), ThreadPoolExecutor(BLOCKS_IN_FLIGHT) as pool:
        answers = list(pool.map(partial(extract_block, run), jobs))
    failures = [answer.failure for answer in answers if answer.failure]
    if failures:
        raise SystemExit(failures[0])
    reports = [answer.value.report for answer in answers]
    spent.images += sum(report.images for report in reports)
    return sum((report.stages for report in reports), StageSeconds())


def cpu_seconds(run: ExtractionRun, job: Job, views: int) -> dict[str, float]:
    """CPU seconds an image takes in each part, one after the other: a view beyond those asked for is written."""
    context, samples = worker_context(run), job.samples
    spent = {part: Spent() for part in ("decode", "forward", "encode", "write")}
    with spent["decode"].measured(run.device):
        batches = list(context.source.batches(samples, views, run.batch_size))
    for name in job.teachers:
        loaded = context.teacher(name)
        lease = loaded.column.lease(views, job.block)
        with lease, loaded.column.write(lease, views, job.block) as block:
            for batch in batches:
                images = to_images(batch.pixels, context.device)
                with spent["forward"].measured(run.device):
                    features = loaded.teacher(images)
                with spent["encode"].measured(run.device):
                    encoded = loaded.codec.encode(features, batch.keys)
                with spent["write"].measured(run.device):
                    block.append(batch.samples, to_host(encoded.arrays).arrays(), batch.views, batch.crcs)
            with spent["write"].measured(run.device):
                block.finish(fidelity={}, facts={})
    return {part: each.cpu / len(samples) for part, each in spent.items()}


def gflops(run: ExtractionRun, name: str) -> float:
    """Floating-point operations of one image's forward, in 1e9."""
    context = worker_context(run)
    size = run.manifests[name].document["views"]["size"]
    images = torch.zeros(1, 3, *size, device=context.device)
    with FlopCounterMode(display=False) as counter:
        context.teacher(name).teacher(images)
    return counter.get_total_flops() / 1e9


def memory(device: str) -> str:
    """Peak memory of the process, and of the device."""
    peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    return peak + (f", device {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device == "cuda" else "")


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the table."""
    data = arguments.data
    if data is None:
        write_photos(folder, arguments.images)
        data = str(folder / "photos.tar")
    spec = parse_spec(document(arguments))
    run, jobs = prepare(folder, data, spec, arguments)
    jobs = jobs[: 1 + -(-arguments.images // arguments.block)]  # the first warms up
    extraction(run, jobs[:1], Spent())
    before = memory(arguments.device)
    rows, names = [], list(spec.teachers)
    for name in names:
        rate, cost = forward_alone(run, [name], arguments.images // 4, Spent()).rate, gflops(run, name)
        rows.append({"forward alone": name, "images/s": rate, "GFLOP/image": cost, "TFLOP/s": rate * cost / 1000})
    alone, whole, stages = Spent(), Spent(), StageSeconds()
    rounds = [jobs[start : start + 2 * BLOCKS_IN_FLIGHT] for start in range(1, len(jobs), 2 * BLOCKS_IN_FLIGHT)]
    for each in rounds:  # in turns, so that both meet the same machine
        forward_alone(run, names, sum(len(job.samples) for job in each), alone)
        stages += extraction(run, each, whole)
    total = sum(row["GFLOP/image"] for row in rows)
    all_ = {"forward alone": "all", "images/s": alone.rate, "GFLOP/image": total}
    rows.append(all_ | {"TFLOP/s": alone.rate * total / 1000})
    cpu = (alone.cpu / alone.images) / (whole.cpu / whole.images)
    result = {"extraction, images/s": whole.rate, "of forward alone": whole.rate / alone.rate}
    print(table(rows))
    print()
    print(table([result | {"the same in CPU time": cpu, "ImageNet": duration(IMAGENET / whole.rate)}]))
    seconds = cpu_seconds(run, jobs[0], arguments.views)
    parts = {"of the CPU time": "ms an image"} | {part: 1000 * each for part, each in seconds.items()}
    shares = {"of the CPU time": "share"} | {part: each / sum(seconds.values()) for part, each in seconds.items()}
    print("\n" + table([parts, shares]))
    beside = sum(each for part, each in seconds.items() if part != "forward")
    print(
        f"\nWith the forward on a device of its own one core would decode, encode and write {1 / beside:.0f} images/s"
    )
    print(
        f"\nShares of the time in a block: {stages.note()}; waiting for the other block's forward {stages.turn:.1f} s"
    )
    print(f"Peak memory before: {before}; after: {memory(arguments.device)}")


def as_worker(threads: int) -> None:
    """Start again with the environment of a worker, which must be there before torch is."""
    wanted = process_environment(threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs")
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto")
    parser.add_argument("--real", action="store_true", help="the paper's B teachers on the CPU too: slow")
    parser.add_argument("--data", help="real shards, instead of made-up photos")
    parser.add_argument("--images", type=int, help="how many photos: to make up, or to take of --data")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of a view")
    parser.add_argument("--block", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of a worker")
    arguments = parser.parse_args()
    as_worker(arguments.threads)
    arguments.device = resolve_device(arguments.device)
    gpu = arguments.device == "cuda"
    arguments.real = arguments.real or gpu
    arguments.size = arguments.size or (384 if arguments.real else 56 if arguments.quick else 128)
    arguments.batch_size = arguments.batch_size or (32 if gpu else 8)
    arguments.images = arguments.images or (64 if arguments.quick else 4096 if gpu else 192)
    arguments.block = arguments.block or max(arguments.batch_size, arguments.images // 16)
    print(f"{machine()}; {versions('torch', 'timm', 'pillow')}")
    print(f"Views of {arguments.size} pixels, batches of {arguments.batch_size}, on {arguments.device}\n")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


if __name__ == "__main__":
    main()
