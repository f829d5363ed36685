"""The layer rules hold, and a planted violation of each is caught."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PLANTED: dict[str, tuple[str, ...]] = {
    "sak imports pipeline": ("sak/planted.py", "import pipeline.images"),
    "a lower layer imports a higher one": ("pipeline/images/planted.py", "import pipeline.cache"),
    "features import the student": ("sak/features.py", "import sak.student"),
    "losses import teachers": ("sak/losses/planted.py", "import sak.teachers"),
    "images import data": ("pipeline/images/planted.py", "import pipeline.data"),
    "cache imports training": ("pipeline/cache/planted.py", "import pipeline.train"),
    "a stage imports a stage": ("pipeline/distill/stage.py", "import pipeline.extract.stage"),
    "zarr in sak": ("sak/losses/planted.py", "import zarr"),
    "dask in sak": ("sak/losses/planted.py", "import dask"),
    "the student imports a loss": ("sak/student/planted.py", "import sak.losses"),
    "the student reaches a teacher by a variant": ("sak/student/planted.py", "import sak.variants.frozen"),
    "losses import a variant": ("sak/losses/planted.py", "import sak.variants"),
    "open_clip outside sak.teachers": ("pipeline/images/planted.py", "import open_clip"),
    "segment_anything in the student": ("sak/student/planted.py", "import segment_anything"),
    "open_clip in a module that is new": ("sak/planted.py", "import open_clip"),
    "segment_anything in the checkpoints": ("sak/checkpoints/planted.py", "import segment_anything.modeling"),
    "open_clip in a stage": ("pipeline/doctor.py", "def f():\n    from open_clip import create_model"),
    "webdataset in sak": ("sak/teachers/planted.py", "from webdataset import WebDataset"),
    "numcodecs in sak": ("sak/features.py", "import numcodecs"),
    "another stage uses the parts of extract": ("pipeline/distill/stage.py", "import pipeline.extract.plan"),
    "a stage reaches another by a helper": (
        "pipeline/planted.py",
        "import pipeline.extract.stage",
        "pipeline/distill/stage.py",
    ),
    "the ablation uses the demo": ("pipeline/ablate/stage.py", "def f():\n    from pipeline.demo.data import write"),
    "cluster imports training": ("pipeline/cluster.py", "import pipeline.train"),
    "settings import a row of the task table": ("pipeline/settings.py", "import sak.tasks"),
    "settings import storage": ("pipeline/settings.py", "import pipeline.storage"),
    "tasks import a metric": ("sak/tasks.py", "import sak.metrics"),
    "typer below the command line": ("pipeline/images/planted.py", "import typer"),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_caught(rule: str, tmp_path: Path):
    for folder in ("sak", "pipeline"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path, line, *users = PLANTED[rule]
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{line}\n")
    for user in users:
        with (tmp_path / user).open("a") as file:
            file.write(f"\nimport {path.removesuffix('.py').replace('/', '.')}\n")
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_nothing_imports_the_command_line():
    modules = [path for folder in ("sak", "pipeline", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in modules if "cli" in _imports(path)] == []


def test_the_command_line_uses_the_project_and_typer_alone():
    """zarr, dask, open_clip and the like are reached through `sak` and `pipeline`, inside functions too."""
    assert _imports(ROOT / "cli.py") <= {*sys.stdlib_module_names, "typer", "sak", "pipeline"}


def test_every_module_has_its_layer():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " ".join(next(contract["layers"] for contract in contracts if contract["type"] == "layers"))
    known = set(re.findall(r"[\w.]+", layers))
    here = {
        f"{folder}.{path.stem}"
        for folder in ("sak", "pipeline")
        for path in (ROOT / folder).iterdir()
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert here <= known


def test_the_command_line_imports_nothing_heavy_at_its_top():
    tree = ast.parse((ROOT / "cli.py").read_text())
    top = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert top <= {
        "atexit",
        "collections",
        "contextlib",
        "functools",
        "json",
        "os",
        "pathlib",
        "sak",
        "signal",
        "sys",
        "traceback",
        "typer",
        "typing",
    }


def test_the_project_speaks_of_itself_alone():
    """Tracked text names no data folder but the two defaults, and no path of a machine."""
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file()]
    if not files:
        pytest.skip("not a git checkout: which files are the project's cannot be told")
    words = tuple(
        "".join(parts) for parts in (("/work", "/"), ("shared/", "ARCH"), ("shared/", "METHOD"), ("/root", "/"))
    )
    texts = {path: path.read_bytes() for path in files}
    assert [(path, word) for path, text in texts.items() for word in words if word.encode() in text] == []
