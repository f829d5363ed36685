"""How long boundary evaluation takes: one image on one core, and a NYUD-v2 test set's worth of images on all cores.

    python benchmarks/boundary.py [--quick] [--images 654]

Images are synthetic: label maps of random Voronoi cells, predictions their blurred boundaries with noise, so that every
threshold selects other pixels, which is the slow case.
"""

import argparse
import resource
import statistics
import time
from multiprocessing import get_context

import numpy as np
from report import machine, table, versions
from scipy.ndimage import gaussian_filter

from sak.metrics.boundary import count, from_label_map, segments_to_boundary
from sak.metrics.boundary_thinning import non_maximum_suppression


def synthetic(seed: int, size: tuple[int, int], cells: int) -> tuple[np.ndarray, np.ndarray]:
    """A label map of Voronoi cells and a noisy uint8 prediction of its boundaries."""
    rng = np.random.default_rng(seed)
    centres = rng.random((cells, 2)) * size
    grid = np.stack(np.mgrid[: size[0], : size[1]], axis=-1).reshape(-1, 2)
    labels = np.concatenate([((part[:, None] - centres) ** 2).sum(-1).argmin(1) for part in np.array_split(grid, 50)])
    labels = labels.reshape(size)
    edges = gaussian_filter(segments_to_boundary(labels).astype(np.float32), 1.5)
    noise = gaussian_filter(rng.random(size).astype(np.float32), 2.0)
    prediction = np.clip(0.7 * edges / edges.max() + 0.6 * (noise - noise.min()) / np.ptp(noise), 0, 1)
    return labels, np.trunc(255 * prediction).astype(np.uint8)


def evaluate(job: tuple[int, tuple[int, int], int, float]) -> float:
    """CPU seconds to suppress, thin and match one image at 99 thresholds, ground truth included."""
    seed, size, cells, distance = job
    labels, prediction = synthetic(seed, size, cells)
    start = time.process_time()
    count(non_maximum_suppression(prediction), [from_label_map(labels)], max_distance=distance)
    return time.process_time() - start


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs")
    parser.add_argument("--images", type=int, default=654)
    arguments = parser.parse_args()
    images = 20 if arguments.quick else arguments.images
    evaluate((0, (64, 64), 8, 0.0075))  # compiles the kernels
    one = [evaluate((seed, (321, 481), 40, 0.0075)) for seed in range(5)]
    start = time.perf_counter()
    with get_context("spawn").Pool() as pool:
        jobs = [(seed, (425, 560), 60, 0.011) for seed in range(images)]
        spent = pool.map(evaluate, jobs, chunksize=4)
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{machine()}; {versions('numba', 'numpy')}")
    rows = [
        {"what": "one 321x481 image, 99 thresholds, one core, median of 5", "seconds": statistics.median(one)},
        {"what": f"{images} images of 425x560, all cores, wall time", "seconds": wall},
        {"what": "of which scoring, CPU seconds summed, compiled kernels loaded", "seconds": sum(spent)},
    ]
    print(table(rows))
    print(f"peak memory of a worker: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
