"""What share of an evaluation the pixel metrics take: CPU time an image beside the boundary metric, on one core.

    python benchmarks/metrics.py [--quick]

An evaluation here is what becomes of the heads' outputs: classes and probabilities read from them, pixel metrics, and
boundary matching; the student's forward pass and reading files come on top and would make the shares smaller.
Images are synthetic, of the data sets' sizes: cells of one class and one surface, and noisy predictions of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from boundary import synthetic
from report import machine, table, versions
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sak.metrics.boundary import count, from_boundary_map, from_label_map, segments_to_boundary
from sak.metrics.boundary_thinning import non_maximum_suppression
from sak.metrics.outputs import pixel_metric, read_output
from sak.tasks import NYUD, PASCAL_CONTEXT, Dataset, Task

SIZES = {"pascal-context": (375, 500), "nyud": (425, 560)}
CELLS = 40


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of `repeats` runs."""
    work()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - start))
    return statistics.median(spent)


def boundary_work(rows: Dataset, labels: np.ndarray, prediction: np.ndarray) -> Callable[[], object]:
    """Ground truth, suppression, thinning and matching of one image."""
    distance = rows["edge"].boundary_tolerance
    assert distance is not None

    def work() -> object:
        nyud = rows.name == "nyud"
        truth = from_boundary_map(segments_to_boundary(labels)) if nyud else from_label_map(labels)
        return count(non_maximum_suppression(prediction), [truth], max_distance=distance)

    return work


def output_and_label(task: Task, labels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What a head might put out (1, C, H, W), and its label: a tenth of the pixels ignored."""
    size = labels.shape
    noise = torch.from_numpy(
        np.stack([gaussian_filter(rng.normal(0, 6, size), 2) for _ in range(task.channels)]).astype(np.float32)
    )
    if task.name in ("normals", "depth"):
        surfaces = rng.normal(size=(CELLS, task.channels)) if task.name == "normals" else rng.uniform(1, 9, (CELLS, 1))
        truth = torch.from_numpy(np.ascontiguousarray(surfaces[labels].transpose(2, 0, 1), np.float32))
        ignored = 255.0 if task.name == "normals" else 0.0
        output = truth + 0.3 * noise
    else:
        truth = torch.from_numpy(labels % task.channels)[None].float()
        output = noise + torch.nn.functional.one_hot(truth[0].long(), task.channels).permute(2, 0, 1)
        ignored = 255.0
    truth[:, : size[0] // 10] = ignored
    return output[None], truth if task.name == "normals" else truth[0]


def measure(rows: Dataset, repeats: int) -> list[dict[str, object]]:
    """A row a task of one data set, and one for all pixel metrics together."""
    rng = np.random.default_rng(0)
    labels, prediction = synthetic(0, SIZES[rows.name], CELLS)
    boundary = milliseconds(boundary_work(rows, labels, prediction), repeats)
    found: list[dict[str, object]] = [_row(rows.name, "odsF", 0.0, boundary)]
    metrics = readings = 0.0
    for task in rows:
        metric = pixel_metric(task)
        if metric is None:
            continue
        output, label = output_and_label(task, labels, rng)
        reading = milliseconds(lambda task=task, output=output: read_output(task, output), repeats)
        values = read_output(task, output)[0]
        updating = milliseconds(lambda metric=metric, values=values, label=label: metric.update(values, label), repeats)
        metrics += updating
        readings += reading
        found.append(_row(rows.name, task.metric, reading, updating))
    share = 100 * metrics / (metrics + readings + boundary)
    return [*found, _row(rows.name, f"pixel metrics together: {share:.1f} % of it all", readings, metrics)]


def _row(name: str, metric: str, reading: float, updating: float) -> dict[str, object]:
    height, width = SIZES[name]
    return {
        "data set": f"{name} {height}x{width}",
        "metric": metric,
        "CPU ms an image": updating,
        "reading the output, ms": reading,
    }


def main() -> None:
    """Print both data sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    repeats = 3 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    rows = [row for dataset in (PASCAL_CONTEXT, NYUD) for row in measure(dataset, repeats)]
    print(f"{machine()}; {versions('numba', 'numpy', 'torch')}")
    print(table(rows))


if __name__ == "__main__":
    main()
