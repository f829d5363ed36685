"""Checkpoints: our own (safetensors and JSON), the authors' layout in and out, and stage 1 carried into stage 2."""

from sak.checkpoints.position import resample_position
from sak.checkpoints.reference import (
    from_reference_state_dict,
    import_checkpoint,
    read_reference_file,
    reference_key,
    to_reference_state_dict,
)
from sak.checkpoints.store import load_student, read_config, save_student
from sak.checkpoints.transfer import Transfer, transfer

__all__ = [
    "Transfer",
    "from_reference_state_dict",
    "import_checkpoint",
    "load_student",
    "read_config",
    "read_reference_file",
    "reference_key",
    "resample_position",
    "save_student",
    "to_reference_state_dict",
    "transfer",
]
