"""The tables of studies, as `sak-cli ablate` wrote them."""

import csv
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path

from pipeline.reporting.charts import scatter
from pipeline.reporting.html import Markup, figure, missing, number, section, table

_MOST = 200


def studies(places: Sequence[Path]) -> Markup:
    """A table a study: mean and standard deviation over seeds."""
    if not places:
        return Markup("")
    parts: list[Markup | str] = [
        "Mean ± standard deviation over the seeds; keys and single runs are in the study's folder."
    ]
    for place in places:
        try:
            rows = _read(place / "results.csv")
        except (OSError, ValueError, csv.Error) as error:
            parts.append(missing(f"{place}: results.csv cannot be read ({' '.join(str(error).split())})"))
            continue
        if not rows:
            continue
        parts.append(table([_shown(row) for row in rows[:_MOST]], caption=f"Study {place.name}"))
        if len(rows) > _MOST:
            parts.append(missing(f"Shown are {_MOST} of {len(rows)} rows; all are in {place / 'results.csv'}."))
        points = [(_called(row), _value(row, "bytes_per_image"), _value(row, "rep_sim")) for row in rows[:_MOST]]
        points = [point for point in points if isfinite(point[1]) and isfinite(point[2])]
        if len({x for _, x, _ in points}) > 2:
            chart = scatter(
                points, title=f"rep_sim against bytes an image, {place.name}", x="bytes an image", y="rep_sim"
            )
            parts.append(
                figure(chart, f"{place.name}: what the cache's bytes buy; 0 bytes is a run with live teachers.")
            )
    return section("studies", "Ablations", *parts)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _called(row: dict[str, str]) -> str:
    return f"{row.get('row', '')} RANDOM" if row.get("random") else row.get("row", "")


def _shown(row: dict[str, str]) -> dict[str, object]:
    shown: dict[str, object] = {"row": _called(row)}
    for name, value in row.items():
        if name in ("row", "keys", "seeds", "random") or name is None or name.endswith(" std"):
            continue
        spread = row.get(f"{name} std")
        plain = _number(value)
        shown[name] = f"{plain} ± {_number(spread, 2)}" if spread and plain and name != "bytes_per_image" else plain
    return {**shown, "seeds": row.get("seeds", "")}


def _value(row: dict[str, str], name: str) -> float:
    """A cell as a number; nan where it holds none."""
    try:
        return float(row.get(name) or nan)
    except ValueError:
        return nan


def _number(text: str | None, digits: int = 4) -> str:
    try:
        return number(float(text or "nan"), digits)
    except ValueError:
        return text or ""
