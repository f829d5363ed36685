"""What the cache tools found, as text for a terminal; sizes in decimal units, RANDOM weights always marked."""

from collections.abc import Sequence

from pipeline.cache.copy import CopyReport
from pipeline.cache.inventory import ColumnListing, LevelStats, Usage
from pipeline.cache.prune import PruneCandidate, PrunePlan
from pipeline.cache.verify import Verification
from pipeline.progress import duration
from pipeline.tables import human_bytes, text_table

LISTED = 50


def show_listing(columns: Sequence[ColumnListing]) -> str:
    """One line a column."""
    if not columns:
        return "The cache holds no columns yet."
    rows = [
        {
            "column": column.name,
            "data": column.data,
            "weights": "RANDOM" if column.random else column.weights[:12],
            "levels": ",".join(str(level) for level in column.levels),
            "grid": "{}x{} ".format(*column.grid) + column.reduction,
            "encoding": column.encoding,
            "format": column.format if column.codec == "none" else f"{column.format}, {column.codec}",
            "views": column.views,
            "samples": f"{column.samples:,} of {column.samples_planned:,}",
            "blocks": f"{column.blocks:,} of {column.blocks_planned:,}",
            "unusable": column.quarantined,
            "size": human_bytes(column.nbytes),
        }
        for column in columns
    ]
    writing = [f"{column.name}: {column.writers} blocks are being written now" for column in columns if column.writers]
    return "\n".join([text_table(rows), *writing])


def show_usage(columns: Sequence[Usage]) -> str:
    """Bytes on disk by column and kind, then by level."""
    rows = [
        {
            "column": _marked(column.name, column.random),
            "data": column.data,
            "size": human_bytes(column.nbytes),
            "files": column.files,
            "per sample": human_bytes(column.per_sample),
            **{f"level {level}": human_bytes(count) for level, count in column.by_level.items()},
            "stray": human_bytes(column.stray),
        }
        for column in columns
    ]
    total = f"Total {human_bytes(sum(column.nbytes for column in columns))}"
    return "\n".join([*(text_table([row]) for row in rows), total]) if _differ(rows) else f"{text_table(rows)}\n{total}"


def _differ(rows: Sequence[dict[str, object]]) -> bool:
    return len({tuple(row) for row in rows}) > 1


def show_stats(levels: Sequence[LevelStats]) -> str:
    """Fidelity of every level."""
    rows = [
        {
            "column": _marked(level.name, level.random),
            "data": level.data,
            "level": level.level,
            "encoding": level.encoding,
            **{name.replace("_", " "): value for name, value in level.summary.items()},
        }
        for level in levels
    ]
    return text_table(rows) or "Nothing is recorded yet."


def show_verification(found: Verification) -> str:
    """Every problem, then one line that says whether the cache is sound."""
    lines = []
    for problem in found.problems[:LISTED]:
        where = f" (sample {problem.sample})" if problem.sample else ""
        lines.append(f"{problem.file}{where}: {problem.what}")
    if len(found.problems) > LISTED:
        lines.append(f"and {len(found.problems) - LISTED:,} more; --json lists all")
    depth = "every byte and sample" if found.deep else "records, sizes and indices; --deep looks at every byte"
    lines.append(
        f"{found.columns} columns, {found.blocks:,} blocks, {human_bytes(found.nbytes)}, "
        f"{found.missing:,} blocks not extracted yet; looked at {depth}, {duration(found.seconds)}"
    )
    if found.sound:
        lines.append("Sound.")
    else:
        blocks = len(found.damaged_blocks)
        lines.append(f"{len(found.problems):,} problems in {blocks:,} blocks; mend them with `sak-cli cache repair`.")
    return "\n".join(lines)


def show_prune(plan: PrunePlan) -> str:
    """What would go, and what is spared and why."""
    lines = []
    if plan.remove:
        lines += ["To remove:", text_table([_candidate(each) for each in plan.remove])]
    if plan.spare:
        lines += ["Spared:", *(f"  {each.name}/{each.data}: {each.spared}" for each in plan.spare)]
    return "\n".join([*lines, f"{human_bytes(plan.nbytes)} in {len(plan.remove)} columns"])


def _candidate(each: PruneCandidate) -> dict[str, object]:
    return {"column": each.name, "data": each.data, "size": human_bytes(each.nbytes), "files": each.files}


def show_copy(report: CopyReport) -> str:
    """One line."""
    left = f", {report.left:,} left to another writer: run it again" if report.left else ""
    return (
        f"{report.copied:,} blocks ({human_bytes(report.nbytes)}) of {report.columns} columns copied in "
        f"{duration(report.seconds)}, {report.already_there:,} were there{left}"
    )


def _marked(name: str, random: bool) -> str:
    return f"{name} RANDOM" if random else name
