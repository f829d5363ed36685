"""`sak-cli cache plan`: what a cache will take and cost, and when it will have paid for itself. Arithmetic alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from operator import ge, mul, truediv
from typing import Any, TypeVar

from pipeline.cache.spec import CacheSpec, EncodingSpec, TeacherSpec
from pipeline.cache.tools.sizes import ColumnSize, column_sizes, step_ratio
from pipeline.tables import human_bytes, text_table
from sak.errors import UsageError
from sak.teachers.recipe import TeacherFacts

Known = TypeVar("Known")

_METADATA_FILES = 12


@dataclass(frozen=True)
class Rates:
    """What was measured or is assumed of the machines; None where nobody said.

    Attributes:
        images_per_second: extraction, all teachers together.
        training_images_per_second: the training that will read, with features at hand; B at 384 on one GPU makes 850.
        read_bytes_per_second: random reading of samples from the disk that will hold the cache.
        gpu_hour_price, tb_month_price: money for one GPU for an hour, and for 1e12 bytes kept for a month.
        epochs: of one distillation run; the paper's is 30.
        free_bytes: room where the cache will lie.
    """

    images_per_second: float | None = None
    training_images_per_second: float = 850.0
    read_bytes_per_second: float | None = None
    gpu_hour_price: float | None = None
    tb_month_price: float | None = None
    epochs: int = 30
    free_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is not positive (free room may be 0)."""
        for name, value in asdict(self).items():
            if value is not None and (value < 0 or (value == 0 and name not in ("free_bytes", "tb_month_price"))):
                raise UsageError(f"{name.replace('_', '-')} must be positive, got {value}")


@dataclass(frozen=True)
class Alternative:
    """Another way to keep the same teachers: what to change, bytes of a sample and view, and what it loses."""

    change: str
    bytes_per_image: float
    total_bytes: float
    loses: str


@dataclass(frozen=True)
class CachePlan:
    """All that `cache plan` says. Bytes are decimal: a TB is 1e12. None where a rate or price was not given.

    Attributes:
        bytes_per_image: on disk, of one sample and view.
        read_bytes_per_image: what training reads of a sample: checksums and indices are not counted.
        total_bytes: of `samples` in `views` views.
        files: how many files; an estimate to one file a block and array.
        needed_read_rate: bytes per second at `training_images_per_second`.
        keeps_up: whether the disk reads that fast.
        hours, extraction_money: of one GPU's time (or of whatever machine makes `images_per_second`).
        storage_money: for a month.
        live_step_ratio: a training step with live teachers over one without, by floating-point operations of a B
            student and the teachers.
        break_even_epochs, break_even_runs: after how much training extraction has paid for itself; None where reading
            is so slow that it never does.
        fits: whether it fits in the free room.
        alternatives: the cheapest two, cheaper than this.
    """

    columns: tuple[ColumnSize, ...]
    samples: int
    views: int
    codec: str
    format: str
    block: int
    rates: Rates
    bytes_per_image: float
    read_bytes_per_image: int
    total_bytes: float
    files: int
    needed_read_rate: float
    keeps_up: bool | None
    hours: float | None
    extraction_money: float | None
    storage_money: float | None
    live_step_ratio: float
    break_even_epochs: float | None
    break_even_runs: float | None
    fits: bool | None
    alternatives: tuple[Alternative, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON's own types, sizes of each teacher and level among them."""
        document = asdict(self)
        for column, size in zip(document["columns"], self.columns, strict=True):
            column["levels"] = {str(level): count for level, count in size.levels.items()}
            column["bytes_per_image"] = size.total
            column["total_bytes"] = size.total * self.samples * self.views
        return document


def plan(
    spec: CacheSpec,
    samples: int,
    views: int = 1,
    *,
    facts: Mapping[str, TeacherFacts] | None = None,
    rates: Rates | None = None,
) -> CachePlan:
    """What caching `samples` images in `views` views takes; `spec` as `load_spec` gives it.

    `facts` replaces what the teacher registry says, by teacher name. UsageError for counts that are not positive.
    """
    if samples < 1 or views < 1:
        raise UsageError(f"samples and views must be at least 1, got {samples} and {views}")
    rates = rates or Rates()
    known = {name: (facts or {}).get(name) or spec.facts(name, f"teachers.{name}") for name in spec.teachers}
    columns = column_sizes(spec, known)
    per_image, payload = sum(column.total for column in columns), sum(column.payload for column in columns)
    total = per_image * samples * views
    read_rate = payload * rates.training_images_per_second
    hours = _if_known(lambda rate: samples * views / rate / 3600, rates.images_per_second)
    ratio = step_ratio(spec, known)
    epochs = _break_even(rates, payload, ratio, views)
    return CachePlan(
        columns=columns,
        samples=samples,
        views=views,
        codec=spec.codec,
        format=spec.format,
        block=spec.samples_per_block,
        rates=rates,
        bytes_per_image=per_image,
        read_bytes_per_image=payload,
        total_bytes=total,
        files=_files(spec, columns, samples, views),
        needed_read_rate=read_rate,
        keeps_up=_if_known(ge, rates.read_bytes_per_second, read_rate),
        hours=hours,
        extraction_money=_if_known(mul, hours, rates.gpu_hour_price),
        storage_money=_if_known(mul, total / 1e12, rates.tb_month_price),
        live_step_ratio=ratio,
        break_even_epochs=epochs,
        break_even_runs=_if_known(truediv, epochs, rates.epochs),
        fits=_if_known(ge, rates.free_bytes, total),
        alternatives=_alternatives(spec, known, samples * views, per_image),
    )


def _files(spec: CacheSpec, columns: tuple[ColumnSize, ...], samples: int, views: int) -> int:
    """Data files (zarr: one for each array; webdataset: a tar and its index), a record and views for each block."""
    blocks = ceil(samples / spec.samples_per_block) * views
    data = [2 if spec.format == "webdataset" else column.arrays for column in columns]
    return sum(blocks * (count + 2) + _METADATA_FILES for count in data)


def _break_even(rates: Rates, payload: int, ratio: float, views: int) -> float | None:
    """Epochs until time saved in training equals the time of extraction; None where nothing is saved.

    Live teachers are taken to cost in training what extraction costs; where its rate is not known, what `ratio` says.
    """
    step = 1 / rates.training_images_per_second
    teachers = 1 / rates.images_per_second if rates.images_per_second else (ratio - 1) * step
    reading = payload / rates.read_bytes_per_second if rates.read_bytes_per_second else 0.0
    saved = step + teachers - max(step, reading)
    return views * teachers / saved if saved > 0 else None


def _alternatives(
    spec: CacheSpec, facts: Mapping[str, TeacherFacts], images: int, per_image: float
) -> tuple[Alternative, ...]:
    """The two that take least of those that take less than `per_image`."""
    smaller: dict[float, Alternative] = {}
    for change, (alter, loses) in _CHANGES.items():
        teachers = {name: alter(teacher, facts[name]) for name, teacher in spec.teachers.items()}
        columns = column_sizes(spec.model_copy(update={"teachers": teachers}), facts)
        size = sum(column.total for column in columns)
        if size < per_image * 0.999:
            smaller.setdefault(size, Alternative(change, size, size * images, loses))
    return tuple(smaller[size] for size in sorted(smaller)[:2])


def _stored_as(kind: str, pca: int | None = None) -> Callable[[TeacherSpec, TeacherFacts], TeacherSpec]:
    """Every teacher projected and encoded so; PCA only where it leaves something out."""

    def alter(teacher: TeacherSpec, facts: TeacherFacts) -> TeacherSpec:
        fitting = pca if pca is not None and pca < facts.width else None
        return teacher.model_copy(
            update={"grid": "projection", "encoding": EncodingSpec.model_validate({"kind": kind, "pca": fitting})}
        )

    return alter


_COMPONENTS = "what 256 principal components leave out: calibrate on a small --limit and read `cache stats`"
_CHANGES: dict[str, tuple[Callable[[TeacherSpec, TeacherFacts], TeacherSpec], str]] = {
    "every grid projected, float16": (_stored_as("float16"), "the left-over beyond the student's grid"),
    "every grid projected, int8": (_stored_as("int8"), "0.7 % of the standardised features"),
    "every grid projected, int4": (_stored_as("int4"), "10 % of the standardised features"),
    "every grid projected, int8, PCA 256": (_stored_as("int8", 256), _COMPONENTS),
    "every grid projected, int4, PCA 256": (_stored_as("int4", 256), f"10 %, and {_COMPONENTS}"),
}


def _if_known(operation: Callable[..., Known], *values: float | None) -> Known | None:
    """`operation` of the values; None where one of them is not known."""
    return None if None in values else operation(*values)


def plan_text(plan: CachePlan) -> str:
    """The plan as `sak-cli cache plan` prints it: a table of columns, then a line for each thing that follows."""
    return "\n".join([text_table(_rows(plan)), "", *_size(plan), *_reading(plan), *_cost(plan), *_others(plan)])


def _rows(plan: CachePlan) -> list[dict[str, object]]:
    return [
        {
            "teacher": column.teacher + (" (RANDOM)" if column.random else ""),
            "grid": "{}x{}".format(*column.grid)
            + ("" if column.reduction == "native" else " to {}x{}".format(*column.stored_grid)),
            "kept": column.reduction,
            "encoding": column.encoding,
            "width": column.width,
            "levels": ", ".join(map(str, column.levels)),
            "a level": human_bytes(column.payload / len(column.levels)),
            "an image": human_bytes(column.total),
            "all": human_bytes(column.total * plan.samples * plan.views),
        }
        for column in plan.columns
    ]


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
