"""What every test may ask for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("sak", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("sak")

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT / default))
    if not folder.is_dir():
        pytest.skip(f"{variable}={folder} is not a folder: this test reads real or reference data from there")
    return folder.resolve()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference inputs, weights and outputs."""
    return _folder("SAK_GOLDEN", "../shared/golden")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real images and labels."""
    return _folder("SAK_TEST_DATA", "../shared/data")


@pytest.fixture(scope="session")
def run_two():
    """`run_two(worker, *arguments)` runs a program twice, as ranks 0 and 1 of one group (gloo), as torchrun would."""

    def go(worker: Path, *arguments: object, seconds: float = 280) -> None:
        with socket.socket() as opened:
            opened.bind(("127.0.0.1", 0))
            port = opened.getsockname()[1]
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                       "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
        command = [sys.executable, str(worker), *map(str, arguments)]
        started = [
            subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT,
                             stderr=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]  # fmt: skip
        errors = [process.communicate(timeout=seconds)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], "\n".join(errors)[-4000:]

    return go
