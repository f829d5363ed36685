"""What the adapter paths cost: a student with three teachers against the bare timm ViT, in one run.

Prints a table in Markdown: forward + backward time, the contenders taking turns (medians; the process's own CPU time
too, which is what counts on a shared CPU), its ratio to the bare ViT of the same mode (eager or compiled), and memory.
On CUDA that is the step's growth to its peak; on the CPU, where PyTorch keeps no such account, what the forward pass
keeps for the backward pass, parameters aside.

    python benchmarks/student.py --size b --batch 64 --device cuda --autocast
"""

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from report import machine, table, versions
from torch import Tensor, nn

from sak.student.adapter_path import Adapter, AdapterPaths, StackedWeights, adapt_all, stack_weights
from sak.student.build import new_student
from sak.student.config import StudentConfig
from sak.student.sizes import STEMS, StemSize, plain_vit
from sak.student.student import Student

SIZES = dict(zip("sbl", STEMS.values(), strict=True)) | {"tiny": StemSize(width=48, depth=4, heads=3)}
TEACHERS = ("dinov2", "clip", "sam")
MIB = 1 << 20


class StoredStacked(AdapterPaths):
    """Adapter paths whose parameters themselves are stacked: the other way to batch them, kept for comparison."""

    def __init__(self, paths: AdapterPaths, depth: int) -> None:
        super().__init__((), width=0, depth=0, hidden=0)
        for block in range(depth + 1):
            adapters: list[Adapter] = [path[block] for path in paths.values()]  # type: ignore[index]
            for name, value in stack_weights(adapters)._asdict().items():
                self.register_parameter(f"{name}_{block}", nn.Parameter(value.detach()))
        for teacher in paths:
            self[teacher] = nn.Identity()

    def step(self, block: int, paths: Tensor | None, tokens: Tensor) -> Tensor:
        """As `AdapterPaths.step`."""
        entering = tokens.expand(len(self), *tokens.shape) if paths is None else paths + tokens
        weights = StackedWeights(*(self.get_parameter(f"{name}_{block}") for name in StackedWeights._fields))
        return adapt_all(weights, entering)


@dataclass
class Contender:
    """One thing to time, and what came of it."""

    name: str
    mode: str
    step: Callable[[], None]
    model: nn.Module
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    memory: float = 0.0


def bare_step(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    """Forward and backward of the bare ViT."""

    def step() -> None:
        run(images).float().square().mean().backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return step


def student_step(model: Student, run: Callable[[Tensor], object], images: Tensor) -> Callable[[], None]:
    """Forward and backward of the student, every teacher's maps in the loss."""

    def step() -> None:
        output = run(images)
        losses = [map_.float().square().mean() for maps in output.teachers.values() for map_ in maps]  # type: ignore[attr-defined]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return step


def student_of(size: StemSize, image: int, kind: str, device: str) -> Student:
    """A stage-1 student whose adapters are evaluated in one of three ways."""
    teachers = dict.fromkeys(TEACHERS, size.width)
    student = new_student(StudentConfig(image_size=(image, image), stem=size, teachers=teachers, weights="random:0"))
    if kind == "stored stacked":
        student.paths = StoredStacked(student.paths, size.depth)
    student.paths.stacked = kind != "one after another"
    return student.train().to(device)


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Bare ViT and students, eager and, where asked for, compiled."""
    size, device = SIZES[options.size], options.device
    images = torch.randn(options.batch, 3, options.image, options.image, device=device)
    found = []
    for mode in options.modes:
        compiled = (lambda model: torch.compile(model, fullgraph=True)) if mode == "compiled" else (lambda model: model)
        vit = plain_vit(size, (options.image, options.image)).train().to(device)
        found.append(Contender("bare timm ViT", mode, bare_step(vit, compiled(vit), images), vit))
        for kind in ("stacked at forward", "stored stacked", "one after another"):
            student = student_of(size, options.image, kind, device)
            step = student_step(student, compiled(student), images)
            found.append(Contender(f"student, {kind}", mode, step, student))
    return found


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(all_contenders: list[Contender], options: argparse.Namespace) -> None:
    """Warm up and take memory once each, then let them take turns."""
    for contender in all_contenders:
        for _ in range(options.warmup):
            contender.step()
        contender.memory = memory_of(contender, options.device)
    for _ in range(options.repeats):
        for contender in all_contenders:
            gc.collect()
            synchronise(options.device)
            start, start_cpu = time.perf_counter(), time.process_time()
            contender.step()
            synchronise(options.device)
            contender.seconds.append(time.perf_counter() - start)
            contender.cpu_seconds.append(time.process_time() - start_cpu)


def memory_of(contender: Contender, device: str) -> float:
    """MiB: the growth to the peak of one step on CUDA, what is kept for the backward pass on the CPU."""
    step = contender.step
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    own = {parameter.untyped_storage().data_ptr() for parameter in contender.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values()) / MIB


def report(all_contenders: list[Contender], options: argparse.Namespace) -> None:
    """The table."""
    precision = "bf16 autocast" if options.autocast else "float32"
    memory = "growth to peak, MiB" if options.device == "cuda" else "kept for backward, MiB"
    bare = {one.mode: one for one in all_contenders if one.name == "bare timm ViT"}
    rows = [
        {
            "model": one.name,
            "mode": one.mode,
            "parameters, M": f"{sum(parameter.numel() for parameter in one.model.parameters()) / 1e6:.2f}",
            "median, s": f"{statistics.median(one.seconds):.4f}",
            "/ bare ViT": f"{statistics.median(one.seconds) / statistics.median(bare[one.mode].seconds):.2f}",
            "CPU time, s": f"{statistics.median(one.cpu_seconds):.4f}",
            "/ bare": f"{statistics.median(one.cpu_seconds) / statistics.median(bare[one.mode].cpu_seconds):.2f}",
            memory: f"{one.memory:.0f}",
            "/ bare ": f"{one.memory / bare[one.mode].memory:.2f}",
        }
        for one in all_contenders
    ]
    print(f"{machine()}; {versions('torch', 'timm')}")
    print(
        f"size {options.size}, {options.image} x {options.image}, batch {options.batch}, three teachers, {precision}, "
        f"{options.device}, {torch.get_num_threads()} CPU threads, forward + backward, {options.repeats} each in turn\n"
    )
    print(table(rows))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="b")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image", type=int, default=384)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast")
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=("eager", "compiled"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny, eager, two repeats")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.image, options.modes, options.repeats = "tiny", 64, ("eager",), 2
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    warnings.simplefilter("ignore")  # the compiler's own libraries warn of themselves
    with torch.autocast(options.device, torch.bfloat16, enabled=options.autocast):
        all_contenders = contenders(options)
        measure(all_contenders, options)
    report(all_contenders, options)


if __name__ == "__main__":
    main()
