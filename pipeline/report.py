"""One page to look at: what runs were made of, what they learnt, what they gain, and what their cache cost."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.reporting.cache_parts import caches
from pipeline.reporting.map_parts import maps
from pipeline.reporting.metric_parts import metrics, predictions
from pipeline.reporting.overview_parts import overview
from pipeline.reporting.page import page
from pipeline.reporting.runs import find_runs, find_studies
from pipeline.reporting.study_parts import studies
from pipeline.reporting.training_parts import curves, gates, similarity
from pipeline.storage.errors import explain
from pipeline.storage.local import replace_durably
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
    """Write the page; what a run does not have is left out and said there. UsageError where a place is no run."""
    runs = find_runs(config.runs)
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, str(config.out.parent)) from error
    say(f"{len(runs)} runs: {', '.join(run.name for run in runs)}")
    sections = [
        ("runs", "Runs", overview(runs)),
        ("metrics", "Metrics", metrics(runs)),
        ("studies", "Ablations", studies(find_studies(config.runs))),
        ("rep-sim", "Similarity", similarity(runs)),
        ("maps", "Feature maps", maps(runs, wanted=config.maps)),
        ("predictions", "Predictions", predictions(runs)),
        ("gates", "Gates", gates(runs)),
        ("curves", "Curves", curves(runs)),
        ("cache", "Cache", caches(runs)),
    ]
    counts = Counter(run.stage for run in runs)
    trained = ", ".join(f"{count} {stage}" for stage, count in counts.items())
    summary = (
        "One student is distilled from several frozen teachers whose features are cached (stage distill), then "
        f"fine-tuned for dense prediction (stage finetune). Runs on this page: {trained}."
    )
    text = page(config.title, summary, sections, __version__)
    replace_durably(config.out, text.encode(errors="replace"))  # JSON may hold halves of surrogate pairs
    return config.out
