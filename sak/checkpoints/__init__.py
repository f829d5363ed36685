"""Checkpoints: our own (safetensors and JSON), the authors' layout in and out, and stage 1 carried into stage 2.

The names below load their modules when they are first used.
"""

from typing import TYPE_CHECKING

from sak import lazy_names

if TYPE_CHECKING:
    from sak.checkpoints.reference import from_reference_state_dict as from_reference_state_dict
    from sak.checkpoints.reference import import_checkpoint as import_checkpoint
    from sak.checkpoints.reference import read_reference_file as read_reference_file
    from sak.checkpoints.reference import reference_key as reference_key
    from sak.checkpoints.reference import to_reference_state_dict as to_reference_state_dict
    from sak.checkpoints.store import Transfer as Transfer
    from sak.checkpoints.store import load_student as load_student
    from sak.checkpoints.store import read_config as read_config
    from sak.checkpoints.store import save_student as save_student
    from sak.checkpoints.store import transfer as transfer
    from sak.student.stem import resample_position as resample_position

__getattr__ = lazy_names(
    __name__,
    {
        "sak.checkpoints.reference": (
            "from_reference_state_dict",
            "import_checkpoint",
            "read_reference_file",
            "reference_key",
            "to_reference_state_dict",
        ),
        "sak.checkpoints.store": ("Transfer", "load_student", "read_config", "save_student", "transfer"),
        "sak.student.stem": ("resample_position",),
    },
)
