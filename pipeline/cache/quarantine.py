"""The quarantine: bad images that are set aside, and why; kept in the records of the blocks that they are in."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.cache.column import Column


@dataclass(frozen=True)
class Quarantined:
    """A sample that cannot be used: its data set, number, key, the reason, and the columns that found it out."""

    data: str
    sample: int
    key: str
    reason: str
    columns: tuple[str, ...]


def quarantine(columns: Iterable[Column]) -> list[Quarantined]:
    """Every sample that any of the columns has in quarantine, each once, by data set and number."""
    bad: dict[tuple[str, int], tuple[str, str, set[str]]] = {}
    for column in columns:
        for record in column.records.values():
            for absent in record.absent:
                sample = (column.id.data, absent.sample)
                bad.setdefault(sample, (absent.key, absent.reason, set()))[2].add(column.id.name)
    return [
        Quarantined(data, sample, key, reason, tuple(sorted(names)))
        for (data, sample), (key, reason, names) in sorted(bad.items())
    ]
