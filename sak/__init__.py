"""SAK: the student that distils several vision foundation models, as tensors in and tensors out."""

__version__ = "0.1.0"
