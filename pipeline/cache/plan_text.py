"""A plan as lines for a person."""

from collections.abc import Iterator

from pipeline.cache.plan import CachePlan
from pipeline.tables import human_bytes, text_table


def plan_text(plan: CachePlan) -> str:
    """The plan as `sak-cli cache plan` prints it: a table of columns, then a line for each thing that follows."""
    return "\n".join([text_table(list(_rows(plan))), "", *_size(plan), *_reading(plan), *_cost(plan), *_others(plan)])


def _rows(plan: CachePlan) -> Iterator[dict[str, object]]:
    for column in plan.columns:
        (height, width), (rows, columns) = column.grid, column.stored_grid
        levels = ", ".join(str(level) for level in column.levels)
        yield {
            "teacher": column.teacher + (" (RANDOM)" if column.random else ""),
            "grid": f"{height}x{width}" if column.reduction == "native" else f"{height}x{width} to {rows}x{columns}",
            "kept": column.reduction,
            "encoding": column.encoding,
            "width": column.width,
            "levels": levels,
            "a level": human_bytes(column.payload / len(column.levels)),
            "an image": human_bytes(column.total),
            "all": human_bytes(column.total * plan.samples * plan.views),
        }


def _size(plan: CachePlan) -> Iterator[str]:
    views = "1 view" if plan.views == 1 else f"{plan.views} views"
    yield (
        f"{human_bytes(plan.total_bytes)} for {plan.samples:,} images in {views}: {human_bytes(plan.bytes_per_image)} "
        f"an image and view, about {plan.files:,} files ({plan.format}, codec {plan.codec}, blocks of {plan.block:,})"
    )
    if plan.fits is not None and plan.rates.free_bytes is not None:
        room = human_bytes(plan.rates.free_bytes)
        yield f"it fits: {room} are free" if plan.fits else f"IT DOES NOT FIT: {room} are free"


def _reading(plan: CachePlan) -> Iterator[str]:
    rates, need = plan.rates, human_bytes(plan.needed_read_rate)
    line = f"training at {rates.training_images_per_second:,.0f} images/s reads {need}/s"
    if rates.read_bytes_per_second is not None:
        line += f"; measured here, one thread: {human_bytes(rates.read_bytes_per_second)}/s"
        if not plan.keeps_up:
            line += f", TOO SLOW: it would feed {rates.read_bytes_per_second / plan.read_bytes_per_image:,.0f} images/s"
    yield line


def _cost(plan: CachePlan) -> Iterator[str]:
    if plan.hours is not None:
        money = "" if plan.extraction_money is None else f", costs {plan.extraction_money:,.0f}"
        yield f"extraction takes {plan.hours:,.1f} hours at {plan.rates.images_per_second:,.1f} images/s{money}"
    if plan.storage_money is not None:
        yield f"keeping it costs {plan.storage_money:,.0f} a month"
    yield f"a step with live teachers takes {plan.live_step_ratio:.1f} times one without (operations, B student)"
    if plan.break_even_epochs is None:
        yield "reading is so slow that extraction NEVER pays for itself; make the cache smaller or the disk faster"
    elif plan.break_even_runs is not None:
        yield (
            f"extraction has paid for itself after {plan.break_even_epochs:.1f} epochs, "
            f"{plan.break_even_runs:.2f} runs of {plan.rates.epochs} epochs"
        )


def _others(plan: CachePlan) -> Iterator[str]:
    for other in plan.alternatives:
        yield (
            f"cheaper: {other.change}: {human_bytes(other.total_bytes)}, {human_bytes(other.bytes_per_image)} an image "
            f"and view; loses {other.loses}"
        )
