"""Tiny teachers through the real code path."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="session")
def tiny():
    """Size overrides of a teacher that costs nothing."""
    return dict(TINY)


@pytest.fixture
def save_state(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors as a safetensors file, under a prefix."""

    def save(state, prefix: str = "", name: str = "weights.safetensors") -> Path:
        path = tmp_path / name
        save_file({f"{prefix}{key}": value.detach().contiguous().clone() for key, value in state.items()}, path)
        return path

    return save


@pytest.fixture
def images() -> torch.Tensor:
    """Two images of 64x96 in [0, 1]."""
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache and an empty torch home, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"
