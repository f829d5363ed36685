"""Boundaries of label maps, as the evaluation takes them (not the Laplacian map that training uses)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from sak.metrics.boundary.thin import thin


def segments_to_boundary(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) labels -> (H, W) bool: a pixel is boundary where its E, S or SE neighbour has another label.

    The last row tests E alone, the last column S alone, the corner is never boundary.
    """
    boundary = np.zeros(labels.shape, bool)
    boundary[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    boundary[:-1] |= labels[:-1] != labels[1:]
    boundary[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return boundary


def from_label_map(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """PASCAL-Context: the LabelMap split into 4-connected components of every label, their boundaries thinned."""
    return thin(segments_to_boundary(label(labels, connectivity=1, background=-1)))


def from_segmentation(segments: NDArray[Any]) -> NDArray[np.bool_]:
    """BSDS: one annotator's segmentation, its boundaries thinned."""
    return thin(segments_to_boundary(segments))


def from_boundary_map(boundaries: NDArray[Any]) -> NDArray[np.bool_]:
    """NYUD-v2: the file is a boundary map already, so the protocol doubles its lines, then thins them again."""
    return thin(segments_to_boundary(boundaries != 0))
