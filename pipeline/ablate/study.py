"""A study: a base recipe for every stage, and rows or axes that change any of its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from pipeline.ablate.stage_settings import Settings, merged
from pipeline.settings import Frozen, parse_override, parse_settings, read_yaml
from pipeline.tables import paper_table
from sak.errors import UsageError, nearest

STAGES = ("extract", "held_out", "distill", "finetune", "evaluate")
TRAINED = ("distill", "finetune")

Changes = Mapping[str, Any]


class AssumedRates(Frozen):
    """Images a second of each stage, for the plan's estimate where nothing was measured; `basis` says who says so."""

    extract: float | None = Field(default=None, gt=0)
    distill: float | None = Field(default=None, gt=0)
    finetune: float | None = Field(default=None, gt=0)
    evaluate: float | None = Field(default=None, gt=0)
    basis: str = "the study's rates"


class Study(Frozen):
    """What `sak-cli ablate` reads.

    `extract` and `held_out` are the caches for training and for rep_sim, `distill`, `finetune` and `evaluate` the
    stages; each is the base of every run. `rows` name changes of them, by dotted names; `axes` are further changes,
    each with its values, all combined with each other and with every row, but not with those `apart`. `oracles` are
    rows made of others: of each task the best of them. `seeds` go to the stages in `seeded`. `baseline` is the row that
    delta_m is taken over, `paper` the paper's table to set beside, `plot` a column or an axis to plot the first of the
    `columns` against.
    """

    title: str = ""
    paper: str | None = None
    device: str | None = None
    baseline: str | None = None
    plot: str | None = None
    columns: tuple[str, ...] | None = None
    extract: dict[str, Any] | None = None
    held_out: dict[str, Any] | None = None
    distill: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)
    apart: dict[str, dict[str, Any]] = Field(default_factory=dict)
    axes: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    oracles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    seeded: tuple[str, ...] | None = None
    rates: AssumedRates = AssumedRates()

    @field_validator("rows", "apart", mode="before")
    @classmethod
    def _plain_rows(cls, rows: Any) -> Any:
        """A row that changes nothing may be empty."""
        return {str(name): changes or {} for name, changes in rows.items()} if isinstance(rows, Mapping) else rows

    @model_validator(mode="after")
    def _makes_sense(self) -> "Study":
        """Something is trained, seeds reach a training, no axis, oracle or list of seeds is empty or repeats itself."""
        if self.distill is None and self.finetune is None:
            raise ValueError("a study trains something: give it a section distill, finetune or both")
        for stage in self.seeded or ():
            if stage not in TRAINED:
                raise ValueError(f"seeded: {stage!r} draws nothing{nearest(stage, TRAINED)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names one twice")
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axes.{axis} is empty")
        for oracle, rows in self.oracles.items():
            if not rows or len(set(rows)) != len(rows):
                raise ValueError(f"oracles.{oracle}: {list(rows)} is empty or names a row twice")
        if self.paper is not None:
            paper_table(self.paper)
        return self

    @property
    def base(self) -> Settings:
        """Stage -> its base, of those that the study has."""
        return {stage: getattr(self, stage) for stage in STAGES if getattr(self, stage) is not None}

    def seeded_stages(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Where a row's seeds go: as asked, else to the last stage that it trains."""
        trained = [stage for stage in TRAINED if is_on(settings, stage)]
        wanted = self.seeded if self.seeded is not None else trained[-1:]
        return tuple(stage for stage in wanted if stage in trained)


def is_on(settings: Mapping[str, Any], stage: str) -> bool:
    """Whether a stage is run: it is there and not `off`; one without settings of its own takes the defaults."""
    return isinstance(settings.get(stage), Mapping)


@dataclass(frozen=True)
class StudyRow:
    """One line of the table before its seeds: a name, its part from `rows`, the axes' labels, all stages' settings."""

    name: str
    series: str
    labels: Mapping[str, str]
    settings: Settings


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study; `overrides` are `a.b=value` lines that change its base. UsageError, one line."""
    document, source = read_yaml(path, "a study"), str(path)
    changes = dict(map(parse_override, overrides))
    for name in changes:
        _check_name(name, f"{source}: --set", (*STAGES, *Study.model_fields))
        section = name.partition(".")[0]
        if section != name and section not in STAGES:
            raise UsageError(f"{source}: --set {name}: of {section} the whole can be set, not a part")
    base = {name: value for name, value in document.items() if name in STAGES}
    # only stages are merged: what a row or an axis is called may hold dots
    changed = {**document, **merged(_switched(base, source), _switched(changes, f"{source}: --set"))}
    on = {name: value for name, value in changed.items() if not (name in STAGES and value is False)}
    return parse_settings(Study, on, source)


def _switched(changes: Changes, source: str) -> Settings:
    """Changes with each stage as settings or False: one that is `on`, or named with nothing, takes what is there."""
    for name, value in changes.items():
        if name in STAGES and not isinstance(value, Mapping | bool | None):
            raise UsageError(f"{source}: {name} is {value!r}; give it settings, or say on or off")
    return {name: {} if name in STAGES and value in (None, True) else value for name, value in changes.items()}


def make_rows(study: Study, source: str) -> list[StudyRow]:
    """Every combination of a row and the axes' values; UsageError names an unknown stage and the nearest one."""
    choices = [[(axis, *choice) for choice in _labelled(values)] for axis, values in study.axes.items()]
    crossed = study.rows if study.rows or study.apart else {"": {}}
    combined = [(*row, combination) for row in crossed.items() for combination in product(*choices)]
    combined += [(*row, ()) for row in study.apart.items()]
    rows = [_row(study, name, changes, combination, source) for name, changes, combination in combined]
    names = [row.name for row in rows]
    titles = [*names, *study.oracles]
    repeated = next((title for title in titles if titles.count(title) > 1), None)
    if repeated is not None:
        raise UsageError(f"{source}: two rows are called {repeated!r}; give the axis's values names")
    referred = [("baseline", study.baseline)] if study.baseline is not None else []
    referred += [(f"oracles.{oracle}", name) for oracle, parts in study.oracles.items() for name in parts]
    for setting, name in referred:
        if name not in names:
            raise UsageError(f"{source}: {setting}: there is no row {name!r}{nearest(name, names)}")
    return rows


def _row(
    study: Study, name: str, changes: Changes, combination: Sequence[tuple[str, str, Any]], source: str
) -> StudyRow:
    """One row with one value of every axis, each as (axis, label, value)."""
    by_axes = {axis: value for axis, _, value in combination}
    labels = {axis: label for axis, label, _ in combination}
    where = f"{source}: {name or 'axes'}"
    for setting in (*changes, *by_axes):
        _check_name(setting, where, STAGES)
    title = ", ".join(part for part in (name, *labels.values()) if part) or "base"
    return StudyRow(title, name, labels, merged(study.base, _switched(changes, where), _switched(by_axes, where)))


def _check_name(name: str, where: str, known: Sequence[str]) -> None:
    """UsageError unless a dotted name begins with something known."""
    first = name.partition(".")[0]
    if first not in known:
        raise UsageError(f"{where}: {name}: there is no stage {first!r}{nearest(first, known)}")


def _labelled(values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(label, value) of an axis."""
    if isinstance(values, Mapping):
        return [(str(label), value) for label, value in values.items()]
    return [(_label(value), value) for value in values]


def _label(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(str, value))
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
