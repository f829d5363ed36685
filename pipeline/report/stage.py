"""One page to look at: what runs were made of, what they learnt, what they gain, and what their cache cost."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.charts import render
from pipeline.report.maps import feature_maps, predictions
from pipeline.report.overview import caches, overview, settings, studies
from pipeline.report.results import curves, gates, metrics, similarity
from pipeline.report.runs import find_runs
from pipeline.storage.local import replace_durably
from pipeline.storage.location import explain
from sak import __version__
from sak.errors import UsageError


@dataclass(frozen=True)
class ReportConfig:
    """Runs, or folders that hold some (a study's among them); where the page goes; `maps` draws feature maps."""

    runs: tuple[Path, ...]
    out: Path = Path("report.html")
    title: str = "Swiss Army Knife: report"
    maps: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse a report of nothing, and one over a file that is there."""
        if not self.runs:
            raise UsageError("name the runs to report on: sak-cli report RUN... --out report.html")
        if self.out.is_dir():
            raise UsageError(f"{self.out} is a folder; give the page a name, such as {self.out / 'report.html'}")
        if self.out.exists() and not self.overwrite:
            raise UsageError(f"{self.out} is there; choose another --out, or replace it with --overwrite")


def write_report(config: ReportConfig, say: Callable[[str], None]) -> Path:
    """Write the page; what a run does not have is left out and said there. UsageError where a directory is no run."""
    runs = find_runs(config.runs)
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, str(config.out.parent)) from error
    say(f"{len(runs)} runs: {', '.join(run.name for run in runs)}")
    page = render(
        title=config.title,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        stages=Counter(run.stage for run in runs),
        runs=runs,
        overview=overview(runs),
        settings=settings(runs),
        metrics=metrics(runs),
        studies=studies(config.runs),
        similarity=similarity(runs),
        maps=feature_maps(runs) if config.maps else None,
        predictions=predictions(runs),
        gates=gates(runs),
        curves=curves(runs),
        caches=caches(runs),
    )
    replace_durably(config.out, page.encode(errors="replace"))  # JSON may hold halves of surrogate pairs
    return config.out
