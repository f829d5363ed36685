"""The tasks' metrics beside baselines and the paper's numbers, as tables and as the radar of Figure 3."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan

from pipeline.data.datasets import task_table
from pipeline.paper import TABLES
from pipeline.pictures.compare import title as task_title
from pipeline.reporting.charts import radar
from pipeline.reporting.html import PNG, Markup, figure, missing, number, picture, section, table
from pipeline.reporting.runs import ReportedRun
from sak.errors import SakError
from sak.metrics.delta_m import delta_m
from sak.tasks import Dataset

_PAPER = {
    "pascal-context": {"multi-task baseline (paper, B)": ("table7", "multi-task baseline"),
                       "SAK (paper, B)": ("table7", "DINOv2+CLIP+SAM"), "SAK (paper, L)": ("table5", "SAK")},
    "nyud": {"single-task baseline (paper, L)": ("table6", "single-task baseline"),
             "SAK (paper, L)": ("table6", "SAK")},
}  # fmt: skip
_LARGEST_PICTURE = 8 << 20
_TOLD = 8  # runs that a sentence each is written for; the table has all
_METRICS = {
    "mIoU": "mIoU is the mean over classes of intersection over union, in %.",
    "parts mIoU": "parts mIoU is mIoU over the parts of persons.",
    "maxF": "maxF is the best F-measure over thresholds, in %.",
    "RMSE": "RMSE is the root mean squared error, in metres.",
    "mErr": "mErr is the mean angle between normals, in degrees.",
    "odsF": "odsF is the F-measure of boundaries at the one best threshold for all images, in %.",
}


def metrics(runs: Sequence[ReportedRun]) -> Markup:
    """A table and a radar a data set."""
    title = "How well the tasks are solved"
    mine = [run for run in runs if run.metrics and run.dataset is not None]
    if not mine:
        return section("metrics", title, missing("Left out: no fine-tuned run was evaluated (sak-cli evaluate RUN)."))
    parts: list[Markup | str] = []
    without = [run.name for run in runs if run.dataset is not None and not run.metrics]
    if without:
        parts.append(missing(f"Not evaluated (sak-cli evaluate), so not in these tables: {', '.join(without)}."))
    for name in dict.fromkeys(str(run.dataset) for run in mine):
        try:
            rows = task_table(name)
        except SakError as error:
            parts.append(missing(str(error)))
            continue
        parts += _dataset(rows, [run for run in mine if run.dataset == name])
    return section("metrics", title, *parts)


def _dataset(dataset: Dataset, runs: Sequence[ReportedRun]) -> list[Markup | str]:
    scores: dict[str, Mapping[str, float]] = {_called(run): run.metrics for run in runs}
    trivial = {f"{run.name}: looks at no image": run.trivial for run in runs[:1] if run.trivial}
    paper = {
        name: TABLES[place].rows[row] for name, (place, row) in _PAPER.get(dataset.name, {}).items()
    }  # the demo's sets are other images: the paper's numbers do not belong beside them
    baselines = [run for kind in ("single-task", "multi-task") for run in runs if run.kind == kind]
    baseline = next((run for run in baselines if all(_is_base(run.metrics.get(task.name)) for task in dataset)), None)
    everything = {**scores, **trivial, **paper}
    gains = {name: _gain(values, dataset, baseline) for name, values in {**scores, **trivial}.items()}
    gains |= {name: values.get("delta_m") for name, values in paper.items()}
    shown = [_row(name, values, dataset, gains[name]) for name, values in everything.items()]
    best = _best(list(scores.values()), dataset)
    over = "There is no baseline among the runs, so no delta_m."
    if baseline is not None:
        others = [run for run in runs if run is not baseline]
        told = others if len(others) <= _TOLD else []
        over = f"The multi-task gain, delta_m, is the mean of the tasks' relative gains over {_called(baseline)}."
        over += "".join(f" {_outcome(run, dataset, baseline)}" for run in told)
    elif baselines:
        over = f"{_called(baselines[0])} has no metric, or 0, in some of the tasks, so there is no delta_m over it."
    if paper:
        over += " In the paper's rows it is the paper's own, over its single-task baseline."
    note = f"Higher is better where the heading has ↑, lower where ↓; the best run is bold. {over}"
    if not paper:
        note += f" The paper has no results on {dataset.name}, so none of its numbers stand here."
    meanings = [_METRICS[task.metric] for task in dataset if task.metric in _METRICS]
    parts: list[Markup | str] = [
        note,
        " ".join(dict.fromkeys(meanings)),
        table(shown, caption=f"{dataset.name}: metrics{_images(runs)}", best=best),
    ]
    if len({_measured_on(run) for run in runs} - {None}) > 1:
        parts.insert(
            0, missing(f"{dataset.name}: runs were measured on different images; do not compare their numbers.")
        )
    complete = {
        name: values
        for name, values in {**scores, **paper}.items()
        if all(isfinite(values.get(task.name, nan)) for task in dataset)
    }
    if len(complete) > 1 and len(dataset) > 2:
        shares = _shares(complete, dataset)
        chart = radar(
            [task_title(task) for task in dataset], shares, title=f"Metrics on {dataset.name} as shares of the best"
        )
        parts.append(
            figure(
                chart,
                f"{dataset.name}: each task's metric as a share of the best run's (Figure 3), errors the other way "
                "round; outside is better. The rings divide the range that is written below in four.",
            )
        )
    return parts


def _called(run: ReportedRun) -> str:
    """`name (kind)`, or the name where it says the kind."""
    return run.name if run.name == run.kind else f"{run.name} ({run.kind})"


def _outcome(run: ReportedRun, dataset: Dataset, baseline: ReportedRun) -> str:
    """A run against the baseline in one sentence."""
    gain = _gain(run.metrics, dataset, baseline)
    if gain is None or not isfinite(gain):
        return f"{_called(run)} was not measured on all tasks."
    better = sum(
        (run.metrics[task.name] < baseline.metrics[task.name]) == task.lower_is_better
        for task in dataset
        if run.metrics[task.name] != baseline.metrics[task.name]
    )
    how = f"{number(abs(gain), 3)} % {'ahead of' if gain > 0 else 'behind'}" if gain else "level with"
    return f"{_called(run)} is {how} it, better at {better} of {len(dataset)} tasks."


def _is_base(value: float | None) -> bool:
    """Whether a gain over it exists."""
    return value is not None and isfinite(value) and value != 0


def _measured_on(run: ReportedRun) -> str | None:
    """The images of its evaluation, by the digest of their names; None where it does not say."""
    found = (run.evaluation or {}).get("of")
    images = found.get("images") if isinstance(found, Mapping) else None
    return images if isinstance(images, str) else None


def _images(runs: Sequence[ReportedRun]) -> str:
    """`, on 24 held-out images`, where all say one number."""
    found = [(run.evaluation or {}).get("evaluation") for run in runs]
    counts = [each.get("images") if isinstance(each, Mapping) else None for each in found]
    count = counts[0] if all(each == counts[0] for each in counts) else None
    return f", on {count:,} held-out images" if isinstance(count, int) else ""


def _row(name: str, values: Mapping[str, float], dataset: Dataset, gain: float | None) -> dict[str, object]:
    row: dict[str, object] = {"": name}
    for task in dataset:
        arrow = "↓" if task.lower_is_better else "↑"
        row[f"{task.name} {task.metric} {arrow}"] = number(values.get(task.name))
    row["delta_m % ↑"] = number(gain, 3)
    return row


def _gain(values: Mapping[str, float], dataset: Dataset, baseline: ReportedRun | None) -> float | None:
    try:
        return delta_m(dataset, values, baseline.metrics).value if baseline is not None else None
    except SakError:
        return None


def _best(scores: Sequence[Mapping[str, float]], dataset: Dataset) -> dict[str, int]:
    """Heading -> the row of the best run."""
    best = {}
    for task in dataset:
        found = [(values.get(task.name, nan), place) for place, values in enumerate(scores)]
        have = [each for each in found if isfinite(each[0])]
        if len(have) > 1:
            arrow = "↓" if task.lower_is_better else "↑"
            best[f"{task.name} {task.metric} {arrow}"] = (min(have) if task.lower_is_better else max(have))[1]
    return best


def _shares(scores: Mapping[str, Mapping[str, float]], dataset: Dataset) -> dict[str, list[float]]:
    """Every metric as a share of the best, errors by their inverse."""
    shares: dict[str, list[float]] = {name: [] for name in scores}
    for task in dataset:
        values = {name: each[task.name] for name, each in scores.items()}
        best = min(values.values()) if task.lower_is_better else max(values.values())
        for name, value in values.items():
            share = (best / value if value else 1.0) if task.lower_is_better else (value / best if best else 1.0)
            shares[name].append(share)
    return shares


def predictions(runs: Sequence[ReportedRun]) -> Markup:
    """The panels that evaluation drew."""
    title = "Predictions beside labels"
    found = []
    for run in runs:
        path = run.place / "figures" / "predictions.png"
        if path.is_file() and path.stat().st_size <= _LARGEST_PICTURE:
            data = path.read_bytes()
            if data.startswith(PNG):
                shown = picture(data, f"Labels and predictions of {run.name}")
                scrolled = f'<div class="scroll" tabindex="0" role="region" aria-label="Pictures">{shown.text}</div>'
                caption = f"{run.name}: of each image the labels, and below them the predictions."
                found.append(figure(Markup(scrolled), caption))
    if not found:
        return section(
            "predictions", title, missing("Left out: no run has figures/predictions.png (sak-cli evaluate draws it).")
        )
    return section("predictions", title, *found)
