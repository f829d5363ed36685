"""docs/cluster.md: its examples parse, and the options of Dask and of ours that they use exist."""

import ast
import re
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from distributed.cli.dask_worker import main as dask_worker
from typer.main import get_command

from cli import app
from pipeline.cluster import process_environment

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text()
SNIPPETS = [dedent(each) for each in re.findall(r"\n\n((?: {4,}.*\n|\n(?= {4}))+)", TEXT)]


def options_of(command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def one(beginning: str) -> str:
    (found,) = [each for each in SNIPPETS if each.startswith(beginning)]
    return found


def test_the_python_example_parses():
    ast.parse(one("# cluster.py"))


def test_the_kubernetes_example_is_yaml_of_a_cluster_with_the_environment_of_our_workers(monkeypatch):
    for name in process_environment(8):  # what is set stays, and Dask sets some where it starts workers
        monkeypatch.delenv(name, raising=False)
    cluster = yaml.safe_load(one("apiVersion:"))
    assert cluster["kind"] == "DaskCluster"
    (container,) = cluster["spec"]["worker"]["spec"]["containers"]
    assert container["args"][:2] == ["dask", "worker"]
    told = {each["name"]: each["value"] for each in container["env"]}
    ours = process_environment(8)
    assert {name: ours[name] for name in told} == told


@pytest.mark.parametrize("snippet", [each for each in SNIPPETS if not each.startswith(("# cluster.py", "apiVersion"))])
def test_shell_examples_parse(snippet):
    subprocess.run(["bash", "-n"], input=snippet, text=True, check=True)


def test_every_option_exists():
    shell = "\n".join(each for each in SNIPPETS if not each.startswith("apiVersion"))
    ours = options_of(get_command(app).commands["extract"])
    workers = options_of(dask_worker)
    for line in shell.splitlines():
        for command, known in (("sak-cli extract", ours), ("dask worker", workers), ("worker_extra_args", workers)):
            if command in line:
                used = set(re.findall(r"--[a-z-]+", line.partition(command)[2]))
                assert used <= known, f"{command}: {used - known}"
