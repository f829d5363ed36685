"""The three formats: each writes into a folder and hands back how to run what it wrote."""

import ast
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sak
from sak.checkpoints.store import load_student, save_student
from sak.errors import UsageError
from sak.student.extractor import Deployed
from sak.student.sizes import PATCH

# The part of `sak` that reads a student's checkpoint, copied beside it: code and weights cannot drift apart.

ROOT = "sak.checkpoints.store"
ALSO = ("sak.student.extractor",)


def copy_reader(folder: Path) -> list[str]:
    """Copy the modules that loading needs into `folder/sak`; returns their names."""
    base = Path(sak.__file__).resolve().parent.parent
    names = sorted(reachable(base))
    for name in names:
        file = _file(base, name)
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return names


def reachable(base: Path) -> set[str]:
    """Modules of `sak` that `ROOT` and `ALSO` import, directly or not, with the packages they lie in."""
    found: set[str] = set()
    waiting = [ROOT, *ALSO]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [parent for parent in _parents(name) if parent not in found]
        waiting += [import_ for import_ in _imports(_file(base, name)) if import_.split(".")[0] == "sak"]
    return found


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count])


def _imports(file: Path) -> Iterator[str]:
    base = file.parent
    while (base / "__init__.py").is_file():
        base = base.parent
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if _is_module(base, f"{node.module}.{alias.name}")
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _is_module(base: Path, name: str) -> bool:
    place = base.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _file(base: Path, name: str) -> Path:
    place = base.joinpath(*name.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


MOST = 4096  # of a free dimension: images in a batch, patches along a side


@dataclass(frozen=True)
class Exported:
    """What was written: the main file's name, what it needs to run, and a function that runs it as others would."""

    file: str
    needs: tuple[str, ...]
    run: Callable[[Tensor], Sequence[Tensor]]


def to_safetensors(module: Deployed, folder: Path, dynamic_size: bool) -> Exported:
    """`student.safetensors`, `student.json`, and the part of `sak` that reads them."""
    del dynamic_size
    save_student(module.student, folder)
    copy_reader(folder)
    licence = Path(sak.__file__).resolve().parent.parent / "LICENSE"
    if licence.is_file():
        shutil.copy(licence, folder / "LICENSE")
    again = Deployed(load_student(folder).eval(), module.outputs)
    return Exported("student.safetensors", ("torch", "timm", "safetensors"), again)


def to_torch_export(module: Deployed, folder: Path, dynamic_size: bool) -> Exported:
    """`student.pt2`, a program of torch.export."""
    program = _program(module, dynamic_size)
    torch.export.save(program, folder / "student.pt2")
    return Exported("student.pt2", ("torch",), torch.export.load(folder / "student.pt2").module())


def to_onnx(module: Deployed, folder: Path, dynamic_size: bool) -> Exported:
    """`student.onnx`, run by onnxruntime; weights of 2 GB and more lie in `student.onnx.data`."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX needs {', '.join(missing)}; add them with `pip install 'sak[export]'`")
    path = folder / "student.onnx"
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program = _program(module, dynamic_size)
    with _quiet():
        torch.onnx.export(
            program,
            (_example(module),),
            path,
            dynamo=True,
            input_names=["images"],
            output_names=list(module.names),
            external_data=size > 1.9e9,
            verbose=False,
        )
    return Exported("student.onnx", ("onnxruntime",), onnx_runner(path))


def onnx_runner(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """Images through onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]

    return run


FORMATS: Mapping[str, Callable[[Deployed, Path, bool], Exported]] = {
    "safetensors": to_safetensors,
    "torch-export": to_torch_export,
    "onnx": to_onnx,
}


def _program(module: Deployed, dynamic_size: bool) -> torch.export.ExportedProgram:
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MOST)}
    if dynamic_size:
        free[2] = PATCH * torch.export.Dim("rows", min=2, max=MOST)
        free[3] = PATCH * torch.export.Dim("columns", min=2, max=MOST)
    with _quiet(), torch.no_grad():
        return torch.export.export(module, (_example(module),), dynamic_shapes=(free,))


def _example(module: Deployed) -> Tensor:
    """Two images: a batch of one would be taken for a constant."""
    return torch.zeros(2, 3, *module.student.config.image_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own talk is about themselves; what matters of theirs, the outputs, is checked."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
