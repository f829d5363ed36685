import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize("package", ["sak.teachers", "sak.student", "sak.checkpoints"])
def test_a_package_gives_at_run_time_the_names_that_type_checkers_see(package):
    module = import_module(package)
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        for name in [alias.name for alias in node.names if alias.asname]:
            assert getattr(module, name) is getattr(import_module(str(node.module)), name)


def test_a_name_that_no_package_has_is_no_attribute():
    with pytest.raises(AttributeError, match=r"module 'sak.student' has no attribute 'teacher'"):
        _ = import_module("sak.student").teacher


@pytest.mark.parametrize("first", ["sak.variants.lora", "sak.student", "sak.checkpoints"])
def test_any_module_may_be_imported_first(first):
    code = f"import {first}; from sak.student import Student, build_student; from sak.checkpoints import load_student"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""
