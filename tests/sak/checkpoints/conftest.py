"""Reference files as tensors, and the students in them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """In the authors' order, which the file has lost."""
        state = self.under("sd.")
        return {key: state[key] for key in self.meta["state_dict_order"]}


def read(golden: Path, name: str) -> Reference:
    folder = golden / "sak"
    return Reference(load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text()))


@pytest.fixture(scope="module")
def stage1(golden: Path) -> Reference:
    return read(golden, "01a_stage1_forward")


@pytest.fixture(scope="module")
def stage2(golden: Path) -> Reference:
    return read(golden, "02b_nyud_stage2_forward")


@pytest.fixture(scope="module")
def weights_moved(golden: Path) -> Reference:
    return read(golden, "06a_update_weights")


@pytest.fixture(scope="module")
def trajectory(golden: Path) -> Reference:
    return read(golden, "09a_s1_trajectory")
