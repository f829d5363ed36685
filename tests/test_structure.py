"""What keeps the tree readable: no import cycles between files, short files, small rooms, short functions."""

import ast
import statistics
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "cli.py", *sorted((ROOT / "sak").rglob("*.py")), *sorted((ROOT / "pipeline").rglob("*.py"))]
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(module: str, tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """The files that a file's import statements run, wherever they stand: in functions and for type checkers too.

    An import runs the packages above its module as well, but for those that the importing file lies in itself.
    """

    def file_of(name: str) -> str | None:
        return name if name in modules else f"{name}.__init__" if f"{name}.__init__" in modules else None

    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            above = [".".join(parts[:count]) for count in range(1, len(parts))]
            runs = [name, *(package for package in above if not f"{module}.".startswith(f"{package}."))]
            yield from (file for file in map(file_of, runs) if file is not None)


def cycle(trees: dict[str, ast.Module]) -> list[str]:
    """The files of one import cycle; empty where there is none."""
    graph = {module: set(imported(module, tree, set(trees))) - {module} for module, tree in trees.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, source: list[str]) -> int:
    """Lines that are neither blank, comment nor docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = range(function.lineno, function.end_lineno + 1)
    docstring = set() if body is function.body else set(range(function.body[0].lineno, function.body[0].end_lineno + 1))
    return sum(
        1
        for number in lines
        if number not in docstring and source[number - 1].strip() and not source[number - 1].strip().startswith("#")
    )


def test_no_two_files_import_each_other():
    assert cycle({module_of(path): tree for path, tree in TREES.items()}) == []


def test_a_cycle_through_a_package_and_a_function_is_found():
    found = cycle({
        "sak.planted.__init__": ast.parse("from sak.planted.low import low"),
        "sak.planted.low": ast.parse("def late():\n    from sak.planted import something"),
    })  # fmt: skip
    assert set(found) == {"sak.planted.__init__", "sak.planted.low"}


def test_a_cycle_by_what_a_package_imports_is_found():
    found = cycle({
        "sak.planted.__init__": ast.parse("from sak.user import use"),
        "sak.planted.low": ast.parse(""),
        "sak.user": ast.parse("from sak.planted.low import low"),
    })  # fmt: skip
    assert set(found) == {"sak.planted.__init__", "sak.user"}


def test_no_file_is_longer_than_one_reads():
    long = {module_of(path): len(path.read_text().splitlines()) for path in FILES if path != ROOT / "cli.py"}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_no_room_has_more_modules_than_one_remembers():
    rooms = {path.parent for path in FILES}
    assert [str(room.relative_to(ROOT)) for room in rooms if len(list(room.glob("*.py"))) > 20] == []


def test_functions_are_short():
    lengths = [
        code_lines(node, path.read_text().splitlines())
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert statistics.median(lengths) <= 6
    assert statistics.quantiles(lengths, n=20)[-1] <= 21


def test_no_protocol_is_checked_by_its_shape():
    """`isinstance` of a runtime-checkable protocol evaluates properties on Python 3.11: teachers would run in it."""
    named = {
        module_of(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if "runtime_checkable" in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None))
    }
    assert named == set()
