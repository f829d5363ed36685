"""A model in training, in a run's checkpoints: the two functions that the loop is given."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.training.checkpoint import read_tensors

NAME = "model.safetensors"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write everything, what is thrown away later too."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / NAME)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Put them back; CheckpointError where they cannot be read."""
    model.load_state_dict(read_tensors(folder / NAME))
