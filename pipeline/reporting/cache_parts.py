"""The caches that runs read: what they weigh, how faithful they are, and what they save."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from pipeline.cache.folder import split_overlay
from pipeline.cache.inventory import ls, stats
from pipeline.reporting.html import Markup, missing, number, section, table
from pipeline.reporting.runs import ReportedRun
from pipeline.tables import human_bytes
from sak.errors import SakError

_EXTRACTIONS = 8
_HEADS = ("extraction of", "teachers", "ended", "images", "seconds", "images/s", "written")

_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Block(BaseModel):
    teachers: list[str]


class _Extraction(BaseModel):
    """What is shown of the report that an extraction left in its cache."""

    started: str
    status: str
    images: _Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    nbytes: dict[str, _Count]
    blocks: list[_Block]

    def row(self) -> dict[str, object]:
        """Of the table of extractions."""
        teachers = sorted({name for block in self.blocks for name in block.teachers})
        rate = number(self.images / self.seconds, 3) if self.seconds else "-"
        told = (self.started[:16].replace("T", " "), ", ".join(teachers), self.status, f"{self.images:,}")
        written = human_bytes(sum(self.nbytes.values()))
        return dict(zip(_HEADS, (*told, f"{self.seconds:,.0f}", rate, written), strict=True))


def caches(runs: Sequence[ReportedRun]) -> Markup:
    """Every cache that a run names, with the columns that the runs read."""
    title = "The feature cache: size, fidelity, cost"
    places = dict.fromkeys(str(run.reads["cache"]) for run in runs if run.reads.get("cache"))
    if not places:
        return section("cache", title, missing("Left out: no run of this report read a cache."))
    columns = [run.reads.get("columns") for run in runs]
    read = {
        str(column).split("/")[1]
        for each in columns
        for column in (each if isinstance(each, list) else ())
        if str(column).count("/")
    }
    parts: list[Markup | str] = [
        "A teacher looks at every view of an image once; its features are kept, and distillation reads them instead of "
        "running it. A column is one teacher's features in one encoding, at some levels (blocks of its network). "
        "Fidelity is the cosine of an image's whole map as it is read back with the one that was encoded (the mean and "
        "the lowest of all images), and the relative error once all channels have one scale; what is lost where a map "
        "is brought to a smaller grid is in neither. Token norm is the mean length of a patch's feature."
    ]
    for place in places:
        try:
            parts += _cache(place, read)
        except (SakError, OSError, ValueError) as error:  # no path has a zero byte or half a character
            parts.append(missing(f"{place} is not here any more: {error}"))
    return section("cache", title, *parts, _cost(runs))


def _cache(place: str, read: set[str]) -> list[Markup | str]:
    columns = [each for each in ls(place) if each.name in read or not read]
    sizes = [
        {
            "column": f"{each.name} RANDOM" if each.random else each.name,
            "model": each.model,
            "encoding": each.encoding,
            "grid": "{}x{}".format(*each.grid),
            "views": each.views,
            "images": f"{each.samples:,}",
            "size": human_bytes(each.nbytes),
            "an image": human_bytes(each.nbytes / each.samples) if each.samples else "-",
        }
        for each in columns
    ]
    total = sum(each.nbytes for each in columns)
    names = {each.name for each in columns}
    fidelity = [
        {
            "column": each.name,
            "level": each.level,
            "encoding": each.encoding,
            "mean cosine": f"{each.summary['cosine']:.5f}",
            "lowest": f"{each.summary['cosine_min']:.5f}",
            "relative error": f"{each.summary['relative_error']:.4f}",
            "token norm": number(float(each.summary["token_norm"])),
        }
        for each in stats(place)
        if each.name in names and each.summary.get("samples")
    ]
    return [
        _extractions(place),
        table(
            sizes,
            caption=f"{Path(place).name}: columns that the runs read, {human_bytes(total)} in all",
            left=("model", "encoding"),
        ),
        table(fidelity, caption=f"{Path(place).name}: fidelity by column and level", left=("encoding",)),
    ]


def _extractions(place: str) -> Markup:
    """What it took to fill the cache, by the reports that extractions left there; nothing for one that is remote."""
    rows = []
    layers = [Path(each) for each in split_overlay(place)]
    paths = sorted((path for each in layers for path in (each / "reports").glob("*.json")), key=lambda path: path.name)
    for path in paths[-_EXTRACTIONS:]:
        try:
            rows.append(_Extraction.model_validate_json(path.read_bytes()).row())
        except (OSError, ValueError):  # a ValidationError is a ValueError
            rows.append({**dict.fromkeys(_HEADS, "-"), "extraction of": f"{path.name} cannot be read"})
    last = f", the last {_EXTRACTIONS} of {len(paths)}" if len(paths) > _EXTRACTIONS else ""
    return table(rows, caption=f"{Path(place).name}: what its extractions took{last}", left=("teachers", "ended"))


def _cost(runs: Sequence[ReportedRun]) -> Markup:
    """Images a second, with and without teachers."""
    rows = []
    for run in runs:
        if run.images_per_second is not None:
            live = run.reads.get("live")
            rows.append(
                {
                    "run": run.name,
                    "stage": run.stage,
                    "teachers run live": ", ".join(map(str, live)) if isinstance(live, Mapping) and live else "none",
                    "images/s": number(run.images_per_second, 3),
                    "time spent waiting for data": "-" if run.data_wait is None else f"{100 * run.data_wait:.0f} %",
                }
            )
    return table(
        rows, caption="What training took, with the teachers that ran beside it", left=("stage", "teachers run live")
    )
