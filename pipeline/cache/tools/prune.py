"""`cache prune`: plan which columns to remove, show it, then do it. Columns that a writer is at work on are spared."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.cache.column import Column
from pipeline.cache.folder import Cache, CacheFolder, ColumnId
from pipeline.cache.lease import Leases
from pipeline.cache.manifest import MANIFEST
from pipeline.cache.tools.inventory import column_cells, column_table
from pipeline.storage import Location
from pipeline.tables import human_bytes
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

    def row(self) -> dict[str, object]:
        """The cells of its line in a table."""
        changed = "" if self.modified is None else datetime.fromtimestamp(self.modified).strftime("%Y-%m-%d %H:%M")
        return column_cells(self.name, self.data, random=self.random) | {
            "files": self.files,
            "size": human_bytes(self.nbytes),
            "last change": changed,
            "": self.spared or "remove",
        }


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

    def to_text(self) -> str:
        """What would go and what is spared, then one line that sums up."""
        rows = [candidate.row() for candidate in (*self.remove, *self.spare)]
        warnings = [
            f"{', '.join(column.needed_by)} left out samples that lie elsewhere, perhaps in {column.name}/"
            f"{column.data}: without it they are missing, and no extraction makes them again; prune both, or keep both"
            for column in self.remove
            if column.needed_by
        ]
        total = f"{len(self.remove)} columns, {human_bytes(self.nbytes)}" if self.remove else "nothing"
        table = [column_table(rows)] if rows else []
        return "\n".join([*table, *warnings, f"to be removed from {self.cache}: {total}"])


def plan_prune(
    cache: str | Path | Cache,
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
    folder = Cache.open(cache).top
    columns = list(folder.columns())
    wanted = set(columns) if names is None else {path for name in names for path in _named(name, columns, folder)}
    used = set() if unused_by is None else _used_names(unused_by)
    unused = sorted((path for path in wanted if path.name not in used), key=lambda path: path.path)
    candidates = {path: _candidate(folder, path) for path in unused}
    remove = {
        path: column
        for path, column in candidates.items()
        if not column.spared and (older_than_days is None or _is_older(column, older_than_days))
    }
    stay = [path for path in columns if path not in remove]
    return PrunePlan(
        cache=str(folder.location),
        remove=tuple(replace(column, needed_by=_relying(folder, path, stay)) for path, column in remove.items()),
        spare=tuple(column for column in candidates.values() if column.spared),
    )


def prune(plan: PrunePlan) -> int:
    """Remove what `plan` says, but for columns that a writer has taken up since; returns the bytes freed.

    The records go first and the manifest last: a column that is cut off half-way holds no block that counts.
    """
    folder = CacheFolder.open(plan.cache)
    freed = 0
    for candidate in plan.remove:
        location = folder.at(ColumnId(candidate.name, candidate.data))
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


def _named(name: str, columns: Sequence[ColumnId], folder: CacheFolder) -> list[ColumnId]:
    """The columns of one name; a whole name goes before those that it is the beginning of."""
    meant = [path for path in columns if path.name == name] or [path for path in columns if path.name.startswith(name)]
    names = sorted({path.name for path in meant})
    if not names:
        raise UsageError(f"{folder.location}: no column {name!r}{nearest(name, {path.name for path in columns})}")
    if len(names) > 1:
        raise UsageError(f"{folder.location}: {name!r} means {', '.join(names)}; spell out the key")
    return meant


def _candidate(folder: CacheFolder, path: ColumnId) -> PruneCandidate:
    entries = list(folder.at(path).walk())
    writers = _writers(folder.at(path))
    random = False
    with suppress(SakError):  # a column whose manifest is damaged may be pruned like any other
        random = folder.manifest(path).random
    return PruneCandidate(
        name=path.name,
        data=path.data,
        nbytes=sum(entry.bytes for entry in entries),
        files=len(entries),
        modified=max((entry.modified for entry in entries if entry.modified is not None), default=None),
        random=random,
        spared=f"in use: {len(writers)} blocks are being written" if writers else None,
    )


def _relying(folder: CacheFolder, candidate: ColumnId, stay: Sequence[ColumnId]) -> tuple[str, ...]:
    """Larger data sets' columns leave out what another column held when they were extracted."""
    relying = []
    for path in stay:
        with suppress(SakError):  # of a damaged column nothing is known
            if path.name == candidate.name and any(
                record.elsewhere for record in Column.open(folder, path).records.values()
            ):
                relying.append(path.path)
    return tuple(relying)


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
        used.update(part for run in runs for text in _texts(_read_run(run)) for part in text.split("/"))
    return used


def _read_run(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SakError(f"{path}: damaged, so what it uses is not known; mend or remove that run first") from error


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON document, but for its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
