"""Position embeddings moved to another grid; see `sak.student.position`."""

from sak.student.position import resample_position
from sak.student.sizes import Size, StemSize

__all__ = ["position_prefix", "resample_position"]


def position_prefix(size: Size) -> int:
    """Rows of a stem's position embedding that belong to no patch."""
    return int(isinstance(size, StemSize) and size.class_position)
