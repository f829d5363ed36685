"""Tables for a terminal: columns sized to their content, numbers to the right, the same text in a pipe."""

from collections.abc import Mapping, Sequence

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def text_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys, the keys as headings; an empty sequence gives an empty text."""
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    right = [all(isinstance(row[name], int | float) for row in rows) for name in columns]
    widths = [max(len(name), *(len(line[place]) for line in cells)) for place, name in enumerate(columns)]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *(line(values) for values in cells)])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def human_bytes(count: float) -> str:
    """Decimal units, three digits: 999 B, 1.02 kB, 42.5 TB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.3g} {UNITS[unit]}"
