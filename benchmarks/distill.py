"""What reading a cache costs a training step, and what it saves: ratios of steps that take turns in one run.

(a) a step from the cache / the same step with images and decoded targets already on the device, with the page cache
    warm, and cold (its pages dropped before every turn);
(b) a step with live teachers / a step from the cache, beside the bound that operations alone give;
(c) images a second and GB/s read; (d) memory.

Ratios are taken turn by turn, between turns that follow each other; their median and quartiles are printed, for wall
time and for this process's processor time, which other work on the machine disturbs less.

Without --data the images are noise; teachers have random weights with --random, so nothing need be downloaded.

    python benchmarks/distill.py --quick
    python benchmarks/distill.py --spec benchmarks/distill_s128.yaml --batch 8 --steps 6 \
        --set "student.stem={width: 384, depth: 12, heads: 6}"
    python benchmarks/distill.py --device cuda --precision bf16 --spec cache_specs/sak_b.yaml --random \
        --recipe recipes/distill/sak_b_from_b.yaml --data /data/photos --batch 64 --workers 12
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from report import machine, table, versions

from pipeline.cache.spec import load_spec
from pipeline.cache.tools.sizes import forward_operations
from pipeline.data.distillation import CachedBatches, DistillBatch
from pipeline.distill.stage import DistillConfig, DistillRecipe, distill_step, make_batches
from pipeline.distill.targets import TargetSource, open_targets
from pipeline.settings import load_settings
from pipeline.train.config import make_optimiser
from pipeline.train.devices import make_accelerator
from pipeline.train.distillation import student_config
from sak.losses.distillation import DistillationLoss
from sak.student.build import build_student
from sak.teachers.recipe import TeacherFacts, is_sam

ROOT = Path(__file__).resolve().parent.parent
GB = 1e9


@dataclass
class Contender:
    """One way to get batches, and what its steps took."""

    name: str
    batches: Iterator[DistillBatch]
    before: Callable[[], None] = lambda: None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    helpers: list[float] = field(default_factory=list)
    peak: float = 0.0

    @property
    def step(self) -> float:
        """Seconds, the median over the turns."""
        return statistics.median(self.wall)


@dataclass(frozen=True)
class Clock:
    """Seconds so far: on the wall, of this process's processors, of the processes that decode images."""

    wall: float
    cpu: float
    helpers: float

    @classmethod
    def now(cls) -> "Clock":
        """Read it."""
        spent = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
        return cls(time.perf_counter(), time.process_time(), sum(each.user + each.system for each in spent))


@dataclass(frozen=True)
class Ratio:
    """One contender's turns over another's."""

    turns: list[float]

    def __str__(self) -> str:
        low, middle, high = statistics.quantiles(self.turns, n=4) if len(self.turns) > 1 else self.turns * 3
        return f"{middle:.3f} ({low:.3f} to {high:.3f})"

    @property
    def median(self) -> float:
        """Of the turns."""
        return statistics.median(self.turns)


class Resident:
    """A batch on the device, its targets decoded, given again and again."""

    def __init__(self, batch: DistillBatch) -> None:
        self.keys, self.inputs, self.targets = batch.keys, batch.inputs, batch.targets

    def release(self) -> None:
        """It stays."""


def noise(folder: Path, count: int, size: int) -> Path:
    """JPEGs of smooth noise, somewhat larger than the view."""
    draws = np.random.default_rng(0)
    (folder / "class").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((size * 4 // 3, size), Image.Resampling.BICUBIC).save(
            folder / f"class/{number:05d}.jpg", quality=90
        )
    return folder


def make_cache(options: argparse.Namespace, root: Path) -> tuple[str, Path]:
    """(the cache, the spec that made it): extracted here, unless one was named."""
    from pipeline.cluster import ClusterConfig  # not needed by the processes that decode images
    from pipeline.extract.columns import ExtractConfig
    from pipeline.extract.stage import extract

    document = yaml.safe_load(Path(options.spec).read_text())
    if options.random:
        for seed, teacher in enumerate(document["teachers"].values()):
            teacher["weights"] = f"random:{seed}"
    spec = root / "spec.yaml"
    spec.write_text(yaml.safe_dump(document))
    data = options.data or str(noise(root / "images", options.images, document["views"]["size"]))
    cache = options.cache or str(root / "cache")
    extract(ExtractConfig(spec=str(spec), data=data, cache=cache, batch_size=16,
                          cluster=ClusterConfig(device=options.device)))  # fmt: skip
    return cache, spec


def bound(spec_file: Path, recipe: DistillRecipe, targets: TargetSource) -> float:
    """A step with live teachers over one without, by operations alone: a training step is three student forwards."""
    spec = load_spec(spec_file)
    config = student_config(recipe.student, targets.teachers, targets.cache.view_policy.size)
    size = config.size
    student = forward_operations(TeacherFacts(size.width, size.depth, config.grid))
    paths = (size.depth + 1) * 4 / config.down_ratio / (24 * size.depth) * len(targets.teachers)
    step = 3 * student * (1 + (paths if config.adapters else 0))
    teachers = sum(
        forward_operations(spec.facts(name, name), windowed=is_sam(each.model)) for name, each in spec.teachers.items()
    )
    return (step + teachers) / step


def drop_pages(cache: CachedBatches) -> None:
    """Have the next read come from the disk: the cache's pages are given up, its files opened anew."""
    folder = Path(cache.cache.cache.top.location.url.removeprefix("file://"))
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def take_turns(contenders: list[Contender], advance: Callable[[object], None], options: argparse.Namespace) -> None:
    """Blocks of steps, one contender after another; what was read ahead in others' turns is used up untimed first."""
    ahead = 2 * options.workers + 4
    for _ in range(options.repeats):
        for contender in contenders:
            contender.before()
            for batch in itertools.islice(contender.batches, ahead):
                advance(batch)
            _wait(options.device)
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = Clock.now()
            for batch in itertools.islice(contender.batches, options.steps):
                advance(batch)
            _wait(options.device)
            end = Clock.now()
            contender.wall.append((end.wall - start.wall) / options.steps)
            contender.cpu.append((end.cpu - start.cpu) / options.steps)
            contender.helpers.append((end.helpers - start.helpers) / options.steps)
            cuda = options.device == "cuda"
            contender.peak = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run(options: argparse.Namespace, root: Path, stack: ExitStack) -> None:
    """Make everything, measure, print."""
    cache, spec = make_cache(options, root)
    overrides = [f"training.batch_size={options.batch}", f"training.precision={options.precision}",
                 f"data.workers={options.workers}", "student.weights=random:0", *options.set]  # fmt: skip
    recipe = load_settings(DistillRecipe, Path(options.recipe), overrides)
    accelerator = make_accelerator(recipe.training, device=options.device)
    asked = DistillConfig(cache=cache, recipe=recipe, device=options.device)
    targets = open_targets(asked, accelerator.device)
    live = open_targets(asked.model_copy(update={"online": True}), accelerator.device)
    config = student_config(recipe.student, targets.teachers, targets.cache.view_policy.size)
    student = build_student(config).to(accelerator.device)
    optimiser = make_optimiser(student, recipe.training.optimiser)
    model, prepared = accelerator.prepare(torch.compile(student) if recipe.training.compile else student, optimiser)
    step = distill_step(DistillationLoss(**recipe.loss.model_dump()))

    def advance(batch: object) -> None:
        with accelerator.autocast():
            loss = step(model, batch).loss  # type: ignore[arg-type]
        accelerator.backward(loss)
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        batch.release()  # type: ignore[attr-defined]

    sources = (targets, targets, targets, live)
    once, cached, cold, beside = (make_batches(each, recipe, accelerator) for each in sources)
    with closing(once.start_at(0)) as batches:  # type: ignore[type-var]
        first = Resident(next(batches))
    contenders = [
        Contender("on the device", itertools.repeat(first)),  # type: ignore[arg-type]
        Contender("cache, warm", closed(stack, cached)),
        Contender("cache, cold", closed(stack, cold), before=lambda: drop_pages(cold)),
    ]
    if not options.without_live:
        contenders.append(Contender("live teachers", closed(stack, beside)))
    take_turns(contenders, advance, options)
    print(f"{machine()}; {versions('torch', 'timm', 'accelerate')}")
    print(
        f"{Path(options.spec).name}, {Path(options.recipe).name} {' '.join(options.set)}, batch {options.batch}, "
        f"{options.precision}, {options.workers} decoding processes, {torch.get_num_threads()} threads, "
        f"{targets.cache.sample_bytes / 1e6:.3f} MB an image; {options.repeats} turns of {options.steps} steps\n"
    )
    tell(contenders, targets.cache.sample_bytes, options)
    tell_ratios(contenders, bound(spec, recipe, targets))


def closed(stack: ExitStack, source: CachedBatches) -> Iterator[DistillBatch]:
    """The source's batches, ended with the benchmark."""
    return stack.enter_context(closing(source.start_at(0)))  # type: ignore[type-var]


def tell(contenders: list[Contender], sample_bytes: int, options: argparse.Namespace) -> None:
    """The table; medians over the turns."""
    resident = contenders[0]
    memory = "peak on the device, GB" if options.device == "cuda" else "resident set, GB"
    rows = [
        {
            "batches": each.name,
            "step, s": f"{each.step:.4f}",
            "/ on the device": f"{Ratio(over(each.wall, resident.wall)).median:.3f}",
            "CPU, s": f"{statistics.median(each.cpu):.4f}",
            "decoding CPU, s": f"{statistics.median(each.helpers):.4f}",
            "images/s": f"{options.batch / each.step:.1f}",
            "GB/s read": f"{options.batch * sample_bytes / each.step / GB:.3f}" if "cache" in each.name else "-",
            memory: f"{each.peak / GB:.2f}",
        }
        for each in contenders
    ]
    print(table(rows))


def over(above: list[float], below: list[float]) -> list[float]:
    """Turn by turn."""
    return [one / other for one, other in zip(above, below, strict=True)]


def tell_ratios(contenders: list[Contender], limit: float) -> None:
    """(a), and (b) where live teachers took part."""
    resident, warm, cold, *live = contenders
    print("\nmedian (quartiles) of the turns' ratios")
    for name, each in (("warm", warm), ("cold", cold)):
        print(f"(a) from the cache, {name} / on the device: wall {Ratio(over(each.wall, resident.wall))}, "
              f"CPU {Ratio(over(each.cpu, resident.cpu))}")  # fmt: skip
    print("    aim: at most 1.05 warm")
    for each in live:
        wall, cpu = Ratio(over(each.wall, warm.wall)), Ratio(over(each.cpu, warm.cpu))
        print(f"(b) live teachers / from the cache, warm: wall {wall}, CPU {cpu}; bound by operations {limit:.2f}, "
              f"{100 * wall.median / limit:.0f} % of it reached")  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--spec", default=str(ROOT / "cache_specs/demo_random.yaml"))
    parser.add_argument("--recipe", default=str(ROOT / "recipes/distill/demo.yaml"))
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings, a.b=value")
    parser.add_argument("--data", help="image shards or a folder; noise where not given")
    parser.add_argument("--cache", help="a cache of that data and spec; made in a temporary folder where not given")
    parser.add_argument("--work", help="where temporary files go")
    parser.add_argument("--random", action="store_true", help="random teacher weights")
    parser.add_argument("--images", type=int, default=128, help="how many images of noise")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="timed steps a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-live", action="store_true", help="leave (b) out")
    parser.add_argument("--quick", action="store_true", help="a smaller student, two short turns")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.steps, options.repeats, options.workers = 48, 3, 2, 0
        options.set = [*options.set, "student.stem={width: 48, depth: 4, heads: 3}"]
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.work) as root, ExitStack() as stack:
        run(options, Path(root), stack)


if __name__ == "__main__":
    main()
