"""`cache verify`: whether a cache is what its records say; `deep` reads and decodes every byte."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.column_check import ColumnCheck, Problem
from pipeline.cache.folder import Cache, CacheFolder, ColumnPlace
from pipeline.cache.manifest import data_name
from pipeline.cache.sealed import unseal
from sak.errors import SakError


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found; `missing` counts blocks of begun views that are not there yet."""

    cache: str
    deep: bool
    columns: int
    blocks: int
    samples: int
    nbytes: int
    missing: int
    problems: tuple[Problem, ...]
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; a cache that is not complete may be sound."""
        return not self.problems

    @property
    def damaged_blocks(self) -> tuple[tuple[ColumnPlace, int, int], ...]:
        """(column, view, block) of every block that must be extracted again."""
        found = {
            (ColumnPlace(each.column, each.data), each.view, each.block)
            for each in self.problems
            if each.column and each.data and each.view is not None and each.block is not None
        }
        return tuple(sorted(found, key=lambda each: (each[0].path, each[1], each[2])))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sound": self.sound}


def verify(
    place: str | Path | Cache, *, deep: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Look at every column of every folder of a cache; damage is listed, never raised.

    Shallow: manifests, records, calibrations, the existence, size and index of every file. Deep: every byte against its
    digest, and every sample decoded to finite numbers. `progress` is told (blocks done, blocks known).
    """
    started = time.perf_counter()
    cache = Cache.open(place)
    problems: list[Problem] = []
    columns, checks = 0, []
    for layer in cache.layers:
        problems += [*_index_problems(layer), *_identity_problems(layer)]
        for column_place in layer.columns():
            columns += 1
            check = ColumnCheck(layer, column_place, deep=deep)
            problems += check.column_problems()
            checks.append(check)
    known = sum(len(check.records) for check in checks)
    done = 0
    for check in checks:
        for record in check.records:
            problems += check.block_problems(record)
            done += 1
            if progress is not None:
                progress(done, known)
    records = [record for check in checks for record in check.records]
    return Verification(
        cache=str(cache),
        deep=deep,
        columns=columns,
        blocks=len(records),
        samples=sum(len(record.samples) for record in records),
        nbytes=sum(record.nbytes for record in records),
        missing=sum(check.missing for check in checks),
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
    )


def _index_problems(folder: CacheFolder) -> Iterator[Problem]:
    for name in folder.data_keys():
        file = folder.index_path(name)
        try:
            key = folder.index(name).data_key()
        except SakError as error:
            yield Problem(file, str(error).removeprefix(f"{file}: "))
            continue
        if data_name(key) != name:
            yield Problem(file, f"the index of other data, {data_name(key)}; extract with the right data again")


def _identity_problems(folder: CacheFolder) -> Iterator[Problem]:
    """Remembered digests of weights: a damaged one would stop the next extraction."""
    for name in folder.location.list("identities"):
        path = f"identities/{name}"
        try:
            unseal(folder.location.read_bytes(path), folder.location.at(path))
        except SakError:
            yield Problem(folder.location.at(path), "damaged; the next extraction reads the weights again")
