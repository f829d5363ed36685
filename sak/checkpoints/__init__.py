"""Checkpoints: our own (safetensors and JSON), the authors' layout in and out, and stage 1 carried into stage 2.

Names are loaded at their first use; `__init__.pyi` has their types.
"""

from sak import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "sak.checkpoints.reference": "from_reference_state_dict import_checkpoint read_reference_file "
        "reference_key to_reference_state_dict",
        "sak.checkpoints.store": "Transfer load_student read_config save_student transfer",
        "sak.student.stem": "resample_position",
    },
)
