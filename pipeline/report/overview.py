"""What was run with what: runs, their settings, the studies they belong to, and the caches they read."""

import csv
import os
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from pipeline.cache.folder import split_overlay
from pipeline.cache.tools.inventory import ls, stats
from pipeline.report.charts import number, scatter
from pipeline.report.runs import RESULTS, ReportedRun, listing, mapping, one_line
from pipeline.settings import flattened
from pipeline.train.run import differences
from sak.errors import SakError

MOST_SETTINGS, MOST_ROWS, MOST_EXTRACTIONS = 60, 200, 8
NO_RUN = ("teacher:", "teachers:", "random:")  # what --init says of no run, beside imagenet

Row = dict[str, object]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


def overview(runs: Sequence[ReportedRun]) -> list[Row]:
    """A line a run."""
    return [
        {
            "run": run.name,
            "stage": run.stage,
            "kind": run.kind,
            "starts from": starts_from(run, runs),
            "trained on": _data(run),
            "teachers": _teachers(run),
            "student": _student(run),
            "steps": _steps(run),
            "state": _state(run),
            "images/s": number(run.speed, 3),
            "hardware": _hardware(run),
        }
        for run in runs
    ]


def settings(runs: Sequence[ReportedRun]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """By title: all settings of a stage's first run; of its others what differs from that."""
    shown = []
    for run in runs:
        base = next(first for first in runs if first.stage == run.stage)
        if base is run:
            title, values = f"{run.name}: all settings", list(flattened(run.config))
        else:
            title = f"{run.name}: what differs from {base.name}"
            values = [(name, now) for name, _, now in differences(base.config, run.config)]
        shown.append((title, values[:MOST_SETTINGS]))
    return shown


def starts_from(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    """The run of this page whose weights it took; else what its settings say."""
    init = run.config.get("init")
    if not isinstance(init, str) or init == "imagenet":
        return str(mapping(mapping(run.config.get("recipe")).get("student")).get("weights") or "-")
    if init.startswith(NO_RUN):
        return init
    path = Path(init)
    path = path.parents[1] if path.parent.name == "checkpoints" else path
    distilled = [start for start in runs if start is not run and start.stage == "distill"]
    beside = [start for start in distilled if start.directory.resolve().parent == run.directory.resolve().parent]
    for candidates, moved in ((distilled, False), (beside, True)):
        same = [start.name for start in candidates if _is_at(start, path, moved=moved)]
        if len(same) == 1:
            return same[0]
    return path.name or init


def _is_at(run: ReportedRun, path: Path, *, moved: bool) -> bool:
    """Whether a run is the one at `path`; `moved`: it may lie elsewhere by now, with the run that names it."""
    parts = run.directory.resolve().parts
    # os.path's, which is False for a name too long to be a file's, where Path's fails
    if path.is_absolute() and (not moved or os.path.exists(path)):  # noqa: PTH110
        return parts == path.parts
    last = path.parts[-2:] if moved else path.parts
    return len(last) >= (1 if moved else 2) and parts[-len(last) :] == last


def _data(run: ReportedRun) -> str:
    if run.dataset is not None:
        count = run.reads.get("images")
        return f"{run.dataset}, {count} images" if count is not None else run.dataset
    samples, views = listing(run.reads.get("samples")), run.reads.get("views")
    count = f"{samples[0]:,} images" if samples and isinstance(samples[0], int) else "?"
    return f"cache, {count}, {views} view{'' if views == 1 else 's'}" if views is not None else "?"


def _teachers(run: ReportedRun) -> str:
    teachers = run.about.get("teachers") or mapping(run.about.get("student")).get("teachers")
    listed = teachers if isinstance(teachers, list | Mapping) else []
    names = [pair[0] if isinstance(pair, list) and pair else pair for pair in listed]  # pairs, or names
    return ", ".join(_teacher(run, str(name)) for name in names) or "none"


def _teacher(run: ReportedRun, name: str) -> str:
    """`clip (demo/clip)`, where the run knows the model, and RANDOM where its weights are."""
    sources = (run.live, mapping(run.about.get("teachers")))
    model = next(filter(None, (mapping(source.get(name)).get("model") for source in sources)), None)
    return f"{name}{f' ({model})' if model else ''}{' RANDOM' if name in run.random else ''}"


def _student(run: ReportedRun) -> str:
    student = run.about.get("student")
    if not isinstance(student, Mapping):
        return "frozen teacher" if run.about.get("probe") else "-"
    stem = student.get("stem")
    if isinstance(stem, Mapping):
        stem = f"ViT {stem.get('width', '?')} wide, {stem.get('depth', '?')} deep"
    return f"{stem}{'' if student.get('adapters', True) else ', no adapter paths'}"


def _steps(run: ReportedRun) -> str:
    steps = [line["step"] for line in run.lines if isinstance(line.get("step"), int)]
    return f"{max(steps):,}" if steps else "-"


def _state(run: ReportedRun) -> str:
    if not run.sessions or "ended" not in run.sessions[-1]:
        return "not ended"
    count = "" if len(run.sessions) == 1 else f", {len(run.sessions)} sessions"
    return ("stopped" if run.sessions[-1].get("stopped") else "done") + count


def _hardware(run: ReportedRun) -> str:
    if not run.sessions:
        return "-"
    torch = mapping(run.sessions[-1].get("packages")).get("torch", "?")
    return f"{run.config.get('device', '?')}, torch {torch}"


def studies(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Those of the directories that an ablation wrote its tables into."""
    return [_study(directory) for directory in directories if (directory / RESULTS).is_file()]


def _study(directory: Path) -> dict[str, Any]:
    """A study's table, mean and standard deviation over seeds, and what its bytes buy as a chart."""
    path = directory / RESULTS
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        return {"problem": f"{directory}: {RESULTS} cannot be read ({one_line(error)})"}
    shown = rows[:MOST_ROWS]
    points = [(_row_name(row), (_value(row.get("bytes_per_image")), _value(row.get("rep_sim")))) for row in shown]
    points = [(name, point) for name, point in points if all(map(isfinite, point))]
    return {
        "name": directory.name,
        "path": path,
        "rows": [_study_row(row) for row in shown],
        "left_out": len(rows) - len(shown),
        "chart": len({x for _, (x, _) in points}) > 2
        and scatter(
            points,
            title=f"rep_sim against bytes an image, {directory.name}",
            caption=f"{directory.name}: what the cache's bytes buy; 0 bytes is a run with live teachers.",
            x="bytes an image",
            y="rep_sim",
        ),
    }


def _row_name(row: Mapping[str, str]) -> str:
    return f"{row.get('row', '')} RANDOM" if row.get("random") else row.get("row", "")


def _study_row(row: Mapping[str, str]) -> Row:
    shown: Row = {"row": _row_name(row)}
    for name, value in row.items():
        if name in ("row", "keys", "seeds", "random") or name is None or name.endswith(" std"):
            continue
        spread, mean = row.get(f"{name} std"), _cell(value)
        shown[name] = f"{mean} ± {_cell(spread, 2)}" if spread and mean and name != "bytes_per_image" else mean
    return {**shown, "seeds": row.get("seeds", "")}


def _value(text: str | None) -> float:
    """A cell as a number; nan where it holds none."""
    try:
        return float(text or nan)
    except ValueError:
        return nan


def _cell(text: str | None, digits: int = 4) -> str:
    """A number shortened; other text as it is."""
    try:
        return number(float(text or nan), digits)
    except ValueError:
        return text or ""


class Block(BaseModel):
    """A block that an extraction wrote."""

    teachers: list[str]


class Extraction(BaseModel):
    """What is shown of the report that an extraction left in its cache."""

    started: str
    status: str
    images: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    nbytes: dict[str, Count]
    blocks: list[Block]

    @property
    def teachers(self) -> list[str]:
        """Those whose features it wrote."""
        return sorted({name for block in self.blocks for name in block.teachers})

    @property
    def rate(self) -> float | None:
        """Images a second."""
        return self.images / self.seconds if self.seconds else None


def caches(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Every cache that a run names, with the columns that the runs read."""
    paths = dict.fromkeys(str(run.reads["cache"]) for run in runs if run.reads.get("cache"))
    read = {column for run in runs for column in run.columns}
    return [_cache(path, read) for path in paths]


def _cache(path: str, read: set[str]) -> dict[str, Any]:
    """What it weighs, how faithful it is, and what filling it took, as far as reports of that lie there."""
    try:
        columns = [column for column in ls(path) if column.name in read or not read]
        names = {column.name for column in columns}
        levels = [level for level in stats(path) if level.name in names and level.summary.get("samples")]
        reports = [report for layer in split_overlay(path) for report in Path(layer, "reports").glob("*.json")]
    except (SakError, OSError, ValueError) as error:  # no path has a zero byte or half a character
        return {"problem": f"{path} is not here any more: {error}"}
    reports.sort(key=lambda report: report.name)
    return {
        "name": Path(path).name,
        "columns": columns,
        "levels": levels,
        "extractions": [(report.name, _extraction(report)) for report in reports[-MOST_EXTRACTIONS:]],
        "reports": len(reports),
    }


def _extraction(path: Path) -> Extraction | None:
    try:
        return Extraction.model_validate_json(path.read_bytes())
    except (OSError, ValueError):  # a ValidationError is a ValueError
        return None
