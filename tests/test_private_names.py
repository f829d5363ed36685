"""No class and no module reaches into another's private names."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "cli.py", *sorted((ROOT / "sak").rglob("*.py")), *sorted((ROOT / "pipeline").rglob("*.py"))]

OF_LIBRARIES = {
    "_build_vision_tower",  # open_clip: builds its tower from a configuration
    "_cache",  # numba: where a compiled function lies; the demo's renderer keeps it beside its own
    "_cache_file",
    "_convert_radio",  # timm: RADIO's keys
    "_dynamo_marked_constant",  # torch: what its own decorator sets, which takes a second to import
    "_exit",  # os
    "_foreach_lerp_",  # torch
    "_reset_state",  # accelerate: one state a run
    "_shared_state",
    "_source_stamp",  # numba
}
"""What has no public name, or a dear one."""


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(kind: ast.ClassDef) -> set[str]:
    """Methods and attributes that a class gives itself."""
    methods = {node.name for node in ast.walk(kind) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return methods | {node.attr for node in ast.walk(kind) if isinstance(node, ast.Attribute) and of_self(node)}


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def reaches(node: ast.AST, own: frozenset[str] = frozenset()) -> Iterator[str]:
    """Private names of others that a part of a file uses; `own` are those of the class that it stands in."""
    if isinstance(node, ast.ClassDef):
        own = own | own_names(node)
    if isinstance(node, ast.ImportFrom):
        yield from (name.name for name in node.names if private(name.name))
    if isinstance(node, ast.Attribute) and private(node.attr) and not of_self(node) and node.attr not in own:
        yield node.attr
    for child in ast.iter_child_nodes(node):
        yield from reaches(child, own)


def test_no_class_and_no_module_reaches_into_the_private_names_of_another():
    found = {path.relative_to(ROOT): set(reaches(ast.parse(path.read_text()))) - OF_LIBRARIES for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_private_name_of_another_class_is_seen():
    found = set(reaches(ast.parse("class A:\n    def f(self, other):\n        return self._x, other._x, other._y")))
    assert found == {"_y"}
    assert set(reaches(ast.parse("from a import _b, c"))) == {"_b"}
