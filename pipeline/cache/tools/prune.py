"""`cache prune`: plan which columns to remove, show it, then do it. Columns that a writer is at work on are spared."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, CacheFolder, ColumnPath
from pipeline.cache.lease import Leases
from pipeline.cache.manifest import MANIFEST
from pipeline.storage import Location
from sak.errors import SakError, UsageError, nearest

_DAY = 86_400.0


@dataclass(frozen=True)
class PruneCandidate:
    """A column that may go: where, its bytes and files, when it last changed, and why it stays where it is spared.

    `needed_by`: columns of the same name that stay and count on samples that lie elsewhere, perhaps in this one.
    """

    name: str
    data: str
    nbytes: int
    files: int
    modified: float | None
    random: bool = False
    spared: str | None = None
    needed_by: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PrunePlan:
    """What `prune` would remove from a cache, and what it would spare."""

    cache: str
    remove: tuple[PruneCandidate, ...]
    spare: tuple[PruneCandidate, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that would be freed."""
        return sum(candidate.nbytes for candidate in self.remove)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"nbytes": self.nbytes}


def plan_prune(
    place: str | Path | Cache,
    *,
    names: Sequence[str] | None = None,
    older_than_days: float | None = None,
    unused_by: Sequence[str | Path] | None = None,
) -> PrunePlan:
    """Columns of the foremost folder that meet every condition given; at least one must be.

    `names` are `<teacher>-<key>`, the first letters of one suffice; `older_than_days` since the last change;
    `unused_by` are run directories, or folders of them: columns that no `run.json` there names. UsageError for a name
    that no column has, and for a folder without any run.
    """
    if names is None and older_than_days is None and unused_by is None:
        raise UsageError("prune what? Give names of columns, an age, or the runs whose columns to keep")
    folder = Cache.open(place).top
    places = list(folder.columns())
    wanted = set(places) if names is None else {each for name in names for each in _named(name, places, folder)}
    used = None if unused_by is None else _used_names(unused_by)
    remove, spare = [], []
    for column in sorted(wanted, key=lambda each: each.path):
        if used is not None and column.name in used:
            continue
        candidate = _candidate(folder, column)
        young = older_than_days is not None and not _is_older(candidate, older_than_days)
        if candidate.spared:
            spare.append(candidate)
        elif not young:
            remove.append(candidate)
    gone = {(each.name, each.data) for each in remove}
    stay = [each for each in places if (each.name, each.data) not in gone]
    told = tuple(replace(each, needed_by=_relying(folder, each, stay)) for each in remove)
    return PrunePlan(str(folder.location), told, tuple(spare))


def prune(plan: PrunePlan) -> int:
    """Remove what `plan` says, but for columns that a writer has taken up since; returns the bytes freed.

    The records go first and the manifest last: a column that is cut off half-way holds no block that counts.
    """
    folder = CacheFolder.open(plan.cache)
    freed = 0
    for candidate in plan.remove:
        location = folder.at(ColumnPath(candidate.name, candidate.data))
        if _writers(location):
            continue
        for part in ("records", "views", "data", "leases"):
            location.delete_tree(part)
        location.delete(MANIFEST)
        location.delete_tree("")
        if not folder.location.list(f"columns/{candidate.name}"):
            folder.location.delete_tree(f"columns/{candidate.name}")
        freed += candidate.nbytes
    return freed


def _named(name: str, places: Sequence[ColumnPath], folder: CacheFolder) -> list[ColumnPath]:
    exact = [place for place in places if place.name == name]
    found = exact or [place for place in places if place.name.startswith(name)]
    names = sorted({place.name for place in found})
    if not names:
        raise UsageError(f"{folder.location}: no column {name!r}{nearest(name, {place.name for place in places})}")
    if len(names) > 1:
        raise UsageError(f"{folder.location}: {name!r} means {', '.join(names)}; spell out the key")
    return found


def _candidate(folder: CacheFolder, place: ColumnPath) -> PruneCandidate:
    entries = list(folder.at(place).walk())
    times = [entry.modified for entry in entries if entry.modified is not None]
    writers = _writers(folder.at(place))
    return PruneCandidate(
        name=place.name,
        data=place.data,
        nbytes=sum(entry.bytes for entry in entries),
        files=len(entries),
        modified=max(times, default=None),
        random=_is_random(folder, place),
        spared=f"in use: {len(writers)} blocks are being written" if writers else None,
    )


def _relying(folder: CacheFolder, candidate: PruneCandidate, stay: Sequence[ColumnPath]) -> tuple[str, ...]:
    """Larger data sets' columns leave out what another column held when they were extracted."""
    relying = []
    for place in stay:
        with suppress(SakError):  # of a damaged column nothing is known
            if place.name == candidate.name and any(
                record.elsewhere for record in Column.open(folder, place).records.values()
            ):
                relying.append(place.path)
    return tuple(relying)


def _is_random(folder: CacheFolder, place: ColumnPath) -> bool:
    with suppress(SakError):  # a column whose manifest is damaged may be pruned like any other
        return folder.manifest(place).random
    return False


def _writers(location: Location) -> list[str]:
    return Leases(location / "leases").held()


def _is_older(candidate: PruneCandidate, days: float) -> bool:
    return candidate.modified is not None and time.time() - candidate.modified >= days * _DAY


def _used_names(folders: Sequence[str | Path]) -> set[str]:
    """Every word of every `run.json` under the folders that could be a column's name."""
    used: set[str] = set()
    for folder in folders:
        runs = list(Path(folder).rglob("run.json"))
        if not runs:
            raise UsageError(f"{folder}: no run here (no run.json), so nothing says what is used; give runs' folders")
        for run in runs:
            used |= {part for text in _texts(_read_run(run)) for part in text.split("/")}
    return used


def _read_run(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SakError(f"{path}: damaged, so what it uses is not known; mend or remove that run first") from error


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
