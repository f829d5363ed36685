"""How an extraction goes: where the cache, the images and the workers are; nothing here decides bytes of a column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache.lease import SECONDS
from pipeline.cluster import ClusterConfig
from pipeline.progress import Update
from pipeline.settings import Overrides
from sak.errors import UsageError

Say = Callable[[str], None]
MAX_BAD = 0.001


def quiet(message: str) -> None:
    """Say nothing."""
    del message


def no_progress(done: int, total: int, note: str = "") -> None:
    """Show nothing."""
    del done, total, note


@dataclass(frozen=True)
class Voice:
    """How a stage speaks: `say` a line, and show `progress` in images."""

    say: Say = quiet
    progress: Update = no_progress


@dataclass(frozen=True)
class ExtractConfig:
    """One extraction.

    `spec`: the cache spec's YAML, with `overrides` as `--set` takes them. `data`: see `find_images`. `cache`: a folder
    or URL, or `rw:ro`. `teachers`: some of the spec's, None for all. `views`: how many views there shall be. `limit`:
    only the first samples. `max_bad`: the share of samples that may be unusable before the run stops. `dry_run` stops
    after saying what would be done. `ignore_space` starts although the disk seems too small.
    """

    spec: str | Path
    data: str
    cache: str
    teachers: Sequence[str] | None = None
    views: int = 1
    batch_size: int = 32
    limit: int | None = None
    max_bad: float = MAX_BAD
    dry_run: bool = False
    ignore_space: bool = False
    overrides: Overrides = ()
    lease_seconds: float = SECONDS
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("views", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad is a share of the samples between 0 and 1, got {self.max_bad}")
