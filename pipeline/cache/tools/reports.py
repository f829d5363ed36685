"""What the cache tools say on a terminal; each function makes one text of one tool's result."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from pipeline.cache.folder import split_overlay
from pipeline.cache.tools.copy import CopyReport
from pipeline.cache.tools.inventory import ColumnListing, LevelStats, Usage
from pipeline.cache.tools.prune import PruneCandidate, PrunePlan
from pipeline.cache.tools.verify import Problem, Verification
from pipeline.tables import SCREEN, human_bytes, text_table

Found = TypeVar("Found", bound=ColumnListing | Usage | LevelStats)

_DIGITS = 8  # of a data key, which commands take as its beginning


def ls_table(listings: Sequence[ColumnListing]) -> str:
    """A line a column; RANDOM where its teacher knows nothing. Damaged columns stand below."""
    return _damaged_below(listings, _ls_rows)


def _ls_rows(listings: Sequence[ColumnListing]) -> str:
    return text_table(
        [
            {
                "column": _marked(listing.name, listing.random),
                "data": listing.data[:_DIGITS],
                "levels": ",".join(map(str, listing.levels)),
                "grid": "{}x{}".format(*listing.grid)
                + ("" if listing.reduction == "native" else f" {listing.reduction}"),
                "encoding": listing.encoding,
                "format": listing.format if listing.codec == "none" else f"{listing.format} {listing.codec}",
                "views": listing.views,
                "samples": f"{listing.samples:,}/{listing.samples_planned:,}",
                "blocks": f"{listing.blocks:,}/{listing.blocks_planned:,}",
                "bad": listing.quarantined,
                "size": human_bytes(listing.nbytes),
                "writers": listing.writers,
                "model": listing.model,
            }
            for listing in listings
        ],
        width=SCREEN,
        repeat=2,
    )


def du_table(usages: Sequence[Usage]) -> str:
    """A line a column; the encoded arrays by level, as they are before any lossless codec. Damaged columns below."""
    return _damaged_below(usages, _du_rows)


def _du_rows(usages: Sequence[Usage]) -> str:
    return text_table(
        [
            {
                "column": _marked(usage.name, usage.random),
                "data": usage.data[:_DIGITS],
                "files": usage.files,
                "size": human_bytes(usage.nbytes),
                "a sample": human_bytes(usage.per_sample),
                "by level": " ".join(f"{level}:{human_bytes(count)}" for level, count in usage.by_level.items()),
                "of no block": human_bytes(usage.stray),
            }
            for usage in usages
        ],
        width=SCREEN,
        repeat=2,
    )


def stats_table(stats: Sequence[LevelStats]) -> str:
    """A line a level. Damaged columns stand below."""
    return _damaged_below(stats, _stats_rows)


def _stats_rows(stats: Sequence[LevelStats]) -> str:
    return text_table(
        [
            {
                "column": _marked(stat.name, stat.random),
                "data": stat.data[:_DIGITS],
                "level": stat.level,
                "encoding": stat.encoding,
                "samples": stat.summary["samples"],
                "cosine": f"{stat.summary['cosine']:.6f}",
                "least": f"{stat.summary['cosine_min']:.6f}",
                "rel. error": f"{stat.summary['relative_error']:.4f}",
                "left over": f"{100 * stat.summary['leftover_share']:.2f} %",
                "token norm": f"{stat.summary['token_norm']:.4g}",
                "largest": f"{stat.summary['token_norm_max']:.4g}",
                "outlier": f"{stat.summary['deviation_max']:.1f} sd",
            }
            for stat in stats
        ],
        width=SCREEN,
        repeat=2,
    )


def verify_text(found: Verification) -> str:
    """A line a problem, then one line that sums up."""
    looked = f"{found.columns:,} columns, {found.blocks:,} blocks, {human_bytes(found.nbytes)}"
    how = "read and decoded" if found.deep else "looked at (--deep reads them)"
    missing = f"; {found.missing:,} blocks are not there yet" if found.missing else ""
    verdict = "sound" if found.sound else f"problems found, {len(found.problems):,}"
    folders = " or ".join(f"`sak-cli cache repair {each}`" for each in split_overlay(found.cache))
    mend = "" if found.sound else f"; mend it with {folders}"
    return "\n".join([*map(_problem, found.problems), f"{verdict}: {looked} {how}{missing}{mend}"])


def _problem(each: Problem) -> str:
    struck = [] if each.view is None else [f"view {each.view} block {each.block}"]
    struck += [f"sample {each.sample}"] if each.sample else []
    return f"{each.file}: {each.what}" + (f" ({', '.join(struck)})" if struck else "")


def prune_text(plan: PrunePlan) -> str:
    """What would go and what is spared, then one line that sums up."""
    rows = [_candidate(candidate, "remove") for candidate in plan.remove]
    rows += [_candidate(each, each.spared or "") for each in plan.spare]
    warnings = [
        f"{', '.join(each.needed_by)} left out samples that lie elsewhere, perhaps in {each.name}/{each.data}: without "
        "it they are missing, and no extraction makes them again; prune both, or keep both"
        for each in plan.remove
        if each.needed_by
    ]
    total = f"{len(plan.remove)} columns, {human_bytes(plan.nbytes)}" if plan.remove else "nothing"
    return "\n".join(
        [
            *([text_table(rows, width=SCREEN, repeat=2)] if rows else []),
            *warnings,
            f"to be removed from {plan.cache}: {total}",
        ]
    )


def copy_text(report: CopyReport) -> str:
    """One line."""
    left = f", {report.left} left to another writer" if report.left else ""
    return (
        f"{report.copied:,} blocks ({human_bytes(report.nbytes)}) of {report.columns} columns copied to {report.target}"
        f" in {report.seconds:.1f} s; {report.already_there:,} were there{left}"
    )


def _damaged_below(found: Sequence[Found], rows: Callable[[Sequence[Found]], str]) -> str:
    """The table of what is whole, then a line for each damaged column, with its bytes where they are known."""
    damaged = [each for each in found if each.damage]
    whole = [each for each in found if not each.damage]
    lines = [f"{each.name} {each.data[:_DIGITS]}{_size(each)} DAMAGED: {each.damage}" for each in damaged]
    return "\n".join([*([rows(whole)] if whole or not damaged else []), *lines])


def _size(each: ColumnListing | Usage | LevelStats) -> str:
    return f" {human_bytes(each.nbytes)} in {each.files} files" if isinstance(each, Usage) else ""


def _marked(name: str, random: bool) -> str:
    return f"{name} RANDOM" if random else name


def _candidate(each: PruneCandidate, what: str) -> dict[str, object]:
    changed = "" if each.modified is None else datetime.fromtimestamp(each.modified).strftime("%Y-%m-%d %H:%M")
    return {
        "column": _marked(each.name, each.random),
        "data": each.data[:_DIGITS],
        "files": each.files,
        "size": human_bytes(each.nbytes),
        "last change": changed,
        "": what,
    }
