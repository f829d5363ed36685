"""The report of an extraction: counted while it runs, kept as JSON in the cache, and a summary for the screen."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.cache.records import Absent
from pipeline.extract.job import BlockOutcome, BlockReport
from pipeline.extract.overlap import StageSeconds
from pipeline.extract.plan import ExtractionPlan, gigabytes
from pipeline.progress import duration
from pipeline.storage import Location

_SHOWN = 20


@dataclass(frozen=True)
class ExtractReport:
    """What a run did. `status` is `complete`, `nothing to do`, `dry run`, or why it stopped.

    `bad` are the samples without features, of this run and of those before; `nbytes` what was written by teacher.
    `place` is where the report lies as JSON, None where none was written.
    """

    status: str
    started: str
    seconds: float = 0.0
    images: int = 0
    nbytes: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[BlockReport, ...] = ()
    stages: StageSeconds = field(default_factory=StageSeconds)
    bad: tuple[Absent, ...] = ()
    workers: int = 0
    surroundings: Mapping[str, object] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    place: str | None = None

    @property
    def rate(self) -> float:
        """Images per second over the whole run, all teachers together."""
        return self.images / self.seconds if self.seconds else 0.0

    def to_json(self) -> str:
        """The report as JSON."""
        document = asdict(self) | {"images_per_second": self.rate, "shares": self.stages.shares()}
        return json.dumps(document, indent=1)

    def to_text(self) -> str:
        """A summary for the screen."""
        lines = [self.status]
        if self.blocks:
            lines.append(
                f"{self.images:,} images in {duration(self.seconds)}, {self.rate:,.1f} images/s; {self.stages.note()}"
            )
            written = ", ".join(f"{name} {gigabytes(count)}" for name, count in self.nbytes.items())
            lines.append(f"Written: {written}")
        if self.bad:
            lines += [f"{len(self.bad)} images cannot be used:", *bad_lines(self.bad)]
        if self.place:
            lines.append(f"Report: {self.place}")
        return "\n".join(lines)


def bad_lines(bad: tuple[Absent, ...]) -> list[str]:
    """The first of them with their reasons, one a line."""
    more = [f"  and {len(bad) - _SHOWN} more, see the report"] if len(bad) > _SHOWN else []
    return [f"  {image.key}: {image.reason}" for image in bad[:_SHOWN]] + more


class Tally:
    """Counts a run's outcomes; `bad` begins with what earlier runs had put in quarantine."""

    def __init__(self, plan: ExtractionPlan, bad: tuple[Absent, ...]) -> None:
        self.plan = plan
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._bad = {image.sample: image for image in bad}
        self._blocks: list[BlockReport] = []
        self._bytes = dict.fromkeys(plan.teachers, 0)
        self.attempted = 0
        self.images = 0
        self.stages = StageSeconds()

    def add(self, outcome: BlockOutcome) -> None:
        """Count a job that is through, or a part of one."""
        self._bad |= {image.sample: image for image in outcome.absent}
        self.stages += outcome.report.stages
        if not outcome.held:
            self.attempted += len(outcome.job.samples)
        for name, count in outcome.nbytes.items():
            self._bytes[name] += count
        if outcome.nbytes:
            self.images += outcome.report.images
            self._blocks.append(outcome.report)

    @property
    def bad(self) -> tuple[Absent, ...]:
        """Unusable samples, by number."""
        return tuple(self._bad[sample] for sample in sorted(self._bad))

    def report(self, status: str, **more: Any) -> ExtractReport:
        """What was counted so far."""
        return ExtractReport(
            status=status,
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 3),
            images=self.images,
            nbytes={name: count for name, count in self._bytes.items() if count},
            blocks=tuple(self._blocks),
            stages=self.stages,
            bad=self.bad,
            **more,
        )


def write_report(report: ExtractReport, location: Location, run_id: str) -> ExtractReport:
    """Keep a report in the cache; returns it with its place."""
    path = f"reports/{report.started.replace(':', '').replace('+0000', 'Z')}-{run_id}.json"
    placed = replace(report, place=location.at(path))
    location.write_bytes(path, (placed.to_json() + "\n").encode())
    return placed
