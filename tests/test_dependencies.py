"""What pyproject.toml asks of a user's machine is what the product imports."""

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path

from pipeline.train.run import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Not imported by us, and needed by what is: by the package, who imports it and what for.
BY_OTHERS = {
    "bokeh": "distributed imports it for its dashboard, whose address `extract` says",
    "pcodec": "numcodecs imports it for the codec `pcodec` that a spec may name",
}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _asked() -> set[str]:
    return {_normal(re.match(r"[\w.-]+", line)[0]) for line in PROJECT["dependencies"]}


def _imported() -> set[str]:
    """The packages of every module that the product imports, inside functions too."""
    modules = set()
    for path in [*(ROOT / "sak").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py"), ROOT / "cli.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    packages = metadata.packages_distributions()
    return {_normal(package) for module in modules for package in packages.get(module, ())}


def test_every_dependency_is_imported_or_named_with_its_reason():
    assert _asked() - _imported() == set(BY_OTHERS)


def test_every_package_that_is_imported_is_asked_for():
    ours_or_extra = {"sak", "onnx", "onnxruntime", "onnxscript", "tensorboard", "wandb", "s3fs", "gcsfs", "setuptools"}
    assert _imported() - _asked() - ours_or_extra == set()


def test_constraints_pin_every_dependency_and_nothing_that_left():
    pinned = {_normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]}
    assert _asked() <= pinned
    assert "torchmetrics" not in pinned


def test_the_packages_whose_versions_a_run_records_are_dependencies():
    assert {_normal(name) for name in PACKAGES} - {"sak"} <= _asked()
    assert {"torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow", "opencv-python-headless"} <= {
        *PACKAGES
    }
