"""What every test may ask for."""

import os
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
