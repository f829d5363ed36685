"""From samples to byte ranges: what to read where, worked out by compiled code for all files at once."""

from collections.abc import Sequence

import numpy as np
from numba import carray, types
from numpy.typing import NDArray

from pipeline.cache.native_calls import longs
from pipeline.cache.native_jit import Number, compiled
from pipeline.cache.native_read import TRAILER, UNCHECKED
from pipeline.cache.open_files import OpenFile
from pipeline.cache.sample_request import SampleRequest

Longs = NDArray[np.int64]

_matrix, _row = types.int64[:, ::1], types.int64[::1]


@compiled(types.void(_matrix, _matrix, _row, _row, _row, types.UniTuple(types.int64, 3), _matrix), brief=True)
def _fill(
    targets: Number,
    files: Number,
    starts: Number,
    positions: Number,
    order: Number,
    options: Number,
    ranges: Number,
) -> None:
    checked, together, width = options
    arrays, samples, groups = len(targets), len(order), len(starts) - 1
    for array in range(arrays):
        for group in range(groups):
            descriptor, places = files[array * groups + group, 0], files[array * groups + group, 1]
            for i in range(starts[group], starts[group + 1]):
                row = ranges[i * arrays + array] if together else ranges[array * samples + i]
                place = carray(longs(places + 8 * width * positions[i]), width)
                row[0] = descriptor
                row[1] = targets[array, 0] + targets[array, 1] * order[i]
                row[2], row[3] = place[0], place[1]
                if not checked:
                    row[4] = UNCHECKED
                elif width == 2:
                    row[4] = TRAILER
                else:
                    row[4] = place[2]


def plan(
    request: SampleRequest,
    targets: Sequence[tuple[int, int]],
    files: Sequence[Sequence[tuple[OpenFile, int]]],
    *,
    checked: bool,
    together: bool,
) -> Longs:
    """Rows for `read_ranges`, of every array for every sample of a request; absent samples have a negative offset.

    `targets` are (address, bytes of a sample) of each array's result, `files` for each array its file and row in it
    for each of the request's blocks. Rows lie array by array, or, with `together`, sample by sample: as the files do.
    """
    heads = np.array(
        [(file.descriptor, file.row_address(row)) for of_array in files for file, row in of_array], np.int64
    )
    ranges = np.empty((len(targets) * len(request), 5), np.int64)
    starts = np.array(request.starts, np.int64)
    options = int(checked), int(together), files[0][0][0].places.shape[2]
    _fill(np.array(targets, np.int64), heads, starts, request.positions, request.order, options, ranges)
    return ranges
