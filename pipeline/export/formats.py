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

# The part of `sak` that reads a student's checkpoint is copied beside it: code and weights cannot drift apart.
ROOT = "sak.checkpoints.store"
ALSO = ("sak.student.extractor",)


def copy_reader(folder: Path) -> None:
    """Copy the modules that loading needs into `folder/sak`."""
    base = Path(sak.__file__).resolve().parent.parent
    for file in reachable(base).values():
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def reachable(base: Path) -> dict[str, Path]:
    """The files of the modules of `sak` that `ROOT` and `ALSO` import, directly or not, and of their packages."""
    files: dict[str, Path] = {}
    waiting = [ROOT, *ALSO]
    while waiting:
        name = waiting.pop()
        file = _file(base, name)
        if name not in files and file is not None:
            files[name] = file
            waiting += [name.rpartition(".")[0], *_imports(file)]
    return files


def _imports(file: Path) -> Iterator[str]:
    """Names that may be modules: of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _file(base: Path, name: str) -> Path | None:
    """The file of a module of `sak`; None of any other name."""
    path = base.joinpath(*name.split("."))
    files = [path / "__init__.py", path.with_suffix(".py")] if name.split(".")[0] == "sak" else []
    return next((file for file in files if file.is_file()), None)


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
