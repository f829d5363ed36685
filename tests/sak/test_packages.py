import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["sak.teachers", "sak.student", "sak.checkpoints"])
def test_a_package_gives_at_run_time_the_names_that_type_checkers_see(package):
    module = import_module(package)
    stub = Path(inspect.getfile(module)).with_suffix(".pyi")
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    assert len(imports) > 5
    for node in imports:
        for alias in node.names:
            assert getattr(module, alias.name) is getattr(import_module(str(node.module)), alias.name)


def test_a_name_that_no_package_has_is_no_attribute():
    with pytest.raises(AttributeError, match=r"module 'sak.student' has no attribute 'teacher'"):
        _ = import_module("sak.student").teacher


@pytest.mark.parametrize("first", ["sak.variants.lora", "sak.student", "sak.checkpoints"])
def test_any_module_may_be_imported_first(first):
    code = f"import {first}; from sak.student import Student, build_student; from sak.checkpoints import load_student"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""
