"""The part of `sak` that reads a student's checkpoint, copied beside it: code and weights cannot drift apart."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import sak

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
        waiting += [each for each in _imports(_file(base, name)) if each.split(".")[0] == "sak"]
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
