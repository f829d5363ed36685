"""What live teachers cost a fine-tuning step, and whether the student's part is what it is alone: turns in one run.

(a) a step with live teachers, less the teachers and the waiting for data, / the student alone on batches that lie on
    the device with their targets: what loading and the teachers do to the student's part would show here. On a CPU with
    --workers 0 the seconds are CPU seconds: other work on the machine, and loading processes, would decide the rest;
(b) the live teachers' share of the step, all and each;
(c) images a second and the share of time spent waiting for data; (d) memory.

Networks and teachers have random weights, so nothing need be downloaded. Evaluation and prediction: `evaluate.py`.

    python benchmarks/finetune.py --quick
    python benchmarks/finetune.py --device cuda --precision bf16 --spec cache_specs/sak_b.yaml --dataset nyud \
        --recipe recipes/finetune/nyud_b.yaml --data /data/NYUDv2 --workers 12
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil
import torch
import yaml
from report import machine, table, versions

from pipeline.data.live_teachers import LiveTeachers
from pipeline.data.task_batches import TaskBatch
from pipeline.demo.data.write import write_demo_data
from pipeline.dense.task_data import open_task_data
from pipeline.finetune.networks import find_origin, make_network
from pipeline.finetune.recipe import FinetuneRecipe
from pipeline.finetune.stage import FinetuneConfig, find_live_teachers, make_batches
from pipeline.finetune.step import Distillation, Objective, finetune_step
from pipeline.settings import load_settings
from pipeline.train.config import make_optimiser
from pipeline.train.devices import make_accelerator
from sak.variants.weighting import Fixed

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Contender:
    """Something that is done to one batch after another, and what it took."""

    name: str
    batches: Iterator[TaskBatch]
    act: Callable[[TaskBatch], object]
    seconds: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        """Seconds, the median over the turns."""
        return statistics.median(self.seconds)


class Resident:
    """A batch on the device, its targets made, given again and again."""

    def __init__(self, batch: TaskBatch) -> None:
        self.keys, self.images, self.labels = batch.keys, batch.images, batch.labels
        self.targets, self.noise = batch.targets, batch.noise

    def release(self) -> None:
        """It stays."""


def take_turns(contenders: list[Contender], options: argparse.Namespace) -> None:
    """Blocks of steps, one contender after another; what was read ahead in others' turns is used up untimed first."""
    now = clock(options)
    for _ in range(options.repeats):
        for contender in contenders:
            for batch in itertools.islice(contender.batches, 2 * options.workers + 1):
                contender.act(batch)
            wait(options.device)
            start, waited = now(), 0.0
            for _ in range(options.steps):
                asked = now()
                batch = next(contender.batches)
                waited += now() - asked
                contender.act(batch)
            wait(options.device)
            contender.seconds.append((now() - start) / options.steps)
            contender.waited.append(waited / options.steps)


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """Seconds on the wall, or of the CPU where all work is this process's own."""
    return time.process_time if options.device == "cpu" and options.workers == 0 else time.perf_counter


def ask(live_teachers: LiveTeachers, batch: TaskBatch) -> None:
    """The teachers alone, on the batch's images."""
    live_teachers(batch.images)


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def random_spec(place: str, folder: Path) -> str:
    """The spec with random weights for every teacher."""
    document = yaml.safe_load(Path(place).read_text())
    for seed, teacher in enumerate(document["teachers"].values()):
        teacher["weights"] = f"random:{seed}"
    made = folder / "spec.yaml"
    made.write_text(yaml.safe_dump(document))
    return str(made)


def run(options: argparse.Namespace, root: Path, stack: ExitStack) -> None:
    """Make everything, measure, print."""
    data = options.data
    if data is None:
        data = str(root / "demo")
        write_demo_data(Path(data), images=1, scenes=options.scenes, size=options.size, processes=1)
    overrides = [f"training.precision={options.precision}", f"data.workers={options.workers}", *options.set]
    recipe = load_settings(FinetuneRecipe, Path(options.recipe), overrides)
    spec = random_spec(options.spec, root)
    config = FinetuneConfig(init="random:0", dataset=options.dataset, data=data, recipe=recipe, spec=spec,
                            device=options.device)  # fmt: skip
    accelerator = make_accelerator(recipe.training, device=options.device)
    rows = config.rows
    labelled = open_task_data(options.dataset, data, rows, fraction=1.0, seed=0, persons_only=False, boundaries=False)
    origin = find_origin(config)
    network = make_network(origin, config).to(accelerator.device)
    live_teachers = find_live_teachers(config, network, origin, accelerator)
    assert live_teachers is not None
    optimiser = make_optimiser(network, recipe.training.optimiser)
    model, prepared = accelerator.prepare(network, optimiser)
    step = finetune_step(Objective(rows, Fixed(rows.weights), (Distillation(recipe.distillation.make({})),)))

    def train(batch: TaskBatch) -> None:
        with accelerator.autocast():
            loss = step(model, batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), recipe.training.clip_norm)
        prepared.step()
        prepared.zero_grad(set_to_none=True)

    batches = make_batches(labelled, config, network, live_teachers, accelerator)
    live = stack.enter_context(closing(batches.start_at(0)))  # type: ignore[type-var]
    resident: Iterator[TaskBatch] = itertools.repeat(Resident(next(live)))  # type: ignore[arg-type]
    teachers = [
        Contender(name, resident, partial(ask, replace(live_teachers, teachers={name: teacher})))
        for name, teacher in live_teachers.teachers.items()
    ]
    contenders = [
        Contender("student alone, resident", resident, train),
        Contender("with live teachers", live, train),
        Contender("live teachers alone", resident, partial(ask, live_teachers)),
        *teachers,
    ]
    take_turns(contenders, options)
    tell(contenders, recipe, options)


def tell(contenders: list[Contender], recipe: FinetuneRecipe, options: argparse.Namespace) -> None:
    """The table, then the ratios."""
    alone, live, teachers, *_ = contenders
    batch = recipe.training.batch_size
    rows = [
        {
            "what": each.name,
            f"{'CPU ' if clock(options) is time.process_time else ''}seconds a step": f"{each.step:.4f}",
            "/ student alone": f"{each.step / alone.step:.3f}",
            "images/s": f"{batch / each.step:.1f}",
            "waiting for data": f"{100 * statistics.median(each.waited) / each.step:.1f} %",
        }
        for each in contenders
    ]
    memory = torch.cuda.max_memory_allocated() if options.device == "cuda" else psutil.Process().memory_info().rss
    print(f"{machine()}; {versions('torch', 'timm', 'accelerate')}")
    print(f"{Path(options.spec).name}, {Path(options.recipe).name} {' '.join(options.set)}, {options.dataset}, batch "
          f"{batch}, {options.precision}, {options.workers} workers; {options.repeats} turns of {options.steps} steps; "
          f"{memory / 1e9:.2f} GB\n")  # fmt: skip
    print(table(rows))
    turns = zip(live.seconds, live.waited, teachers.seconds, alone.seconds, strict=True)
    part = [(whole - waited - theirs) / student for whole, waited, theirs, student in turns]
    print(f"\n(a) the student's part of a step with live teachers / the student alone: {statistics.median(part):.3f} "
          f"({min(part):.3f} to {max(part):.3f}; aim: at most 1.05)")  # fmt: skip
    print(f"(b) the live teachers' share of the step: {100 * teachers.step / live.step:.0f} %")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--spec", default=str(ROOT / "cache_specs/demo.yaml"))
    parser.add_argument("--recipe", default=str(ROOT / "recipes/finetune/demo_pascal.yaml"))
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings, a.b=value")
    parser.add_argument("--dataset", default="demo-pascal")
    parser.add_argument("--data", help="the data set's folder; demo scenes are drawn where not given")
    parser.add_argument("--work", help="where temporary files go")
    parser.add_argument("--scenes", type=int, default=24, help="how many demo scenes")
    parser.add_argument("--size", type=int, default=128, help="side of the demo scenes")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10, help="timed steps a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smaller network, two short turns")
    options = parser.parse_args(arguments)
    if options.quick:
        options.scenes, options.size, options.steps, options.repeats, options.workers = 12, 64, 2, 2, 0
        small = ["student.stem={width: 48, depth: 4, heads: 3}", "data.size=[64, 64]", "training.batch_size=4"]
        options.set = [*options.set, *small]
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.work) as root, ExitStack() as stack:
        run(options, Path(root), stack)


if __name__ == "__main__":
    main()
