"""Charts as inline SVG: their colours are the page's variables, so they follow light and dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, floor, isfinite, log10, pi, sin

from pipeline.reporting.html import Markup, escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 40
COLOURS = 8

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve by its name; `points` as (x, y)."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class _Axis:
    """From values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        step = _round_step((self.high - self.low) / 6)
        first = floor(self.low / step)
        found = [(first + number) * step for number in range(12)]
        return [tick for tick in found if self.low - 1e-12 <= tick <= self.high + 1e-12]


def _round_step(rough: float) -> float:
    size = 10 ** floor(log10(rough))
    return next(step * size for step in (1, 2, 5, 10) if step * size >= rough * 0.999)


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    margin = (high - low) * 0.04
    return _Axis(low - margin, high + margin, start, end)


def line_chart(lines: Sequence[Line], *, title: str, x: str, y: str, marks: bool = False) -> Markup:
    """Curves over a common axis, with a legend below; empty where no line has a finite point."""
    known = [Line(each.name, [point for point in each.points if all(map(isfinite, point))]) for each in lines]
    known = [each for each in known if each.points]
    if not known:
        return Markup("")
    across = _axis([point[0] for each in known for point in each.points], LEFT, WIDTH - RIGHT)
    up = _axis([point[1] for each in known for point in each.points], HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, x, y)]
    for place, each in enumerate(known):
        colour = f"var(--c{place % COLOURS})"
        path = " ".join(f"{across(px):.1f},{up(py):.1f}" for px, py in each.points)
        dash = ' stroke-dasharray="6 3"' if place >= COLOURS else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if marks or len(each.points) < 3:
            parts += [
                f'<circle cx="{across(px):.1f}" cy="{up(py):.1f}" r="3.5" fill="{colour}"/>' for px, py in each.points
            ]
    return Markup(f"{_svg(''.join(parts), title, WIDTH, HEIGHT)}{_legend([each.name for each in known])}")


def scatter(points: Sequence[tuple[str, float, float]], *, title: str, x: str, y: str) -> Markup:
    """Named points."""
    known = [point for point in points if isfinite(point[1]) and isfinite(point[2])]
    if not known:
        return Markup("")
    across = _axis([point[1] for point in known], LEFT, WIDTH - RIGHT - 70)
    up = _axis([point[2] for point in known], HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, x, y)]
    for place, (name, px, py) in enumerate(known):
        left, top = across(px), up(py)
        lift = -7 if place % 2 == 0 else 14
        parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4.5" fill="var(--c0)"/>')
        parts.append(f'<text x="{left + 6:.1f}" y="{top + lift:.1f}" class="label">{escape(name)}</text>')
    return Markup(_svg("".join(parts), title, WIDTH, HEIGHT))


def _grid(across: _Axis, up: _Axis, x: str, y: str) -> str:
    parts = []
    for tick in up.ticks():
        place = up(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" class="tick" text-anchor="end">{_tick(tick)}</text>')
    for tick in across.ticks():
        place = across(tick)
        parts.append(
            f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" class="tick" text-anchor="middle">{_tick(tick)}</text>'
        )
    base = HEIGHT - BOTTOM
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" class="axis"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" class="tick" text-anchor="middle">{escape(x)}</text>'
    )
    middle = (TOP + base) / 2
    parts.append(
        f'<text x="12" y="{middle}" class="tick" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(y)}</text>"
    )
    return "".join(parts)


def _tick(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.4g}"


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, title: str) -> Markup:
    """Every value written into its cell, shaded by its size between 0 and the largest."""
    cell_w, cell_h = 62, 30
    left = 16 + 7 * max(len(row) for row in rows)
    width, height = left + cell_w * len(columns) + 8, 30 + cell_h * len(rows) + 6
    largest = max((value for row in values for value in row if isfinite(value)), default=1.0) or 1.0
    parts = [
        f'<text x="{left + cell_w * (place + 0.5):.0f}" y="20" class="tick" text-anchor="middle">{escape(name)}</text>'
        for place, name in enumerate(columns)
    ]
    for down, (name, row) in enumerate(zip(rows, values, strict=True)):
        top = 30 + cell_h * down
        parts.append(f'<text x="{left - 8}" y="{top + 20}" class="tick" text-anchor="end">{escape(name)}</text>')
        for place, value in enumerate(row):
            x, share = left + cell_w * place, max(0.0, value / largest)
            parts.append(
                f'<rect x="{x + 1}" y="{top + 1}" width="{cell_w - 2}" height="{cell_h - 2}" rx="3" class="cell" '
                f'fill-opacity="{0.08 + 0.82 * share:.3f}"/>'
                f'<text x="{x + cell_w / 2}" y="{top + 20}" text-anchor="middle" '
                f'class="{"over" if share > 0.78 else "under"}">{value:.2f}</text>'
            )
    return Markup(_svg("".join(parts), title, width, height))


def radar(axes: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str) -> Markup:
    """One closed line a series over the axes; values are shares of each axis's best, and the centre is said."""
    wide, high, radius = 460, 330, 120
    across, down = wide / 2, 158
    lowest = min((value for values in series.values() for value in values), default=0.0)
    centre = max(0.0, floor((lowest - 0.1) * 10) / 10)
    turns = [(-pi / 2) + 2 * pi * place / len(axes) for place in range(len(axes))]

    def place_of(turn: float, share: float) -> str:
        reach = radius * max(0.0, (share - centre) / (1 - centre))
        return f"{across + reach * cos(turn):.1f},{down + reach * sin(turn):.1f}"

    parts = []
    for ring in range(1, 5):
        share = centre + (1 - centre) * ring / 4
        parts.append(f'<polygon points="{" ".join(place_of(turn, share) for turn in turns)}" class="ring"/>')
    for turn, name in zip(turns, axes, strict=True):
        x, y = across + (radius + 16) * cos(turn), down + (radius + 16) * sin(turn)
        side = "middle" if abs(cos(turn)) < 0.3 else "start" if cos(turn) > 0 else "end"
        parts.append(
            f'<line x1="{across}" y1="{down}" x2="{across + radius * cos(turn):.1f}" '
            f'y2="{down + radius * sin(turn):.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" class="tick" text-anchor="{side}">{escape(name)}</text>')
    for number, values in enumerate(series.values()):
        points = " ".join(place_of(turn, share) for turn, share in zip(turns, values, strict=True))
        colour = f"var(--c{number % COLOURS})"
        parts.append(
            f'<polygon points="{points}" fill="{colour}" fill-opacity="0.10" stroke="{colour}" stroke-width="2"/>'
        )
    parts.append(
        f'<text x="{across}" y="{high - 8}" class="tick" text-anchor="middle">'
        f"centre {100 * centre:.0f} %, edge 100 % of the best</text>"
    )
    return Markup(f"{_svg(''.join(parts), title, wide, high)}{_legend(list(series))}")


def _svg(inner: str, title: str, width: int, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{inner}</svg>"
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2 and not any(names):
        return ""
    entries = "".join(
        f'<li><span class="swatch" style="background:var(--c{place % COLOURS})"></span>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{entries}</ul>'
