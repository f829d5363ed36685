"""Bits of HTML. Everything that comes from a file goes through `escape`: a run's text is not trusted."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape
from math import isnan

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already; all other text is escaped where it is put in."""

    text: str


def escape(value: object) -> str:
    """A value as text in an element or in a quoted attribute."""
    return value.text if isinstance(value, Markup) else _escape(str(value), quote=True)


def number(value: object, digits: int = 4) -> str:
    """A number for a table, whole where its digits end before the point; a dash where there is none."""
    if not isinstance(value, float | int) or isnan(value):
        return "-"
    text = f"{value:#,.{digits}g}".rstrip(".") if value else "0"
    return f"{value:,.0f}" if "e+" in text else text


def table(
    rows: Sequence[Mapping[str, object]],
    *,
    caption: str,
    left: Sequence[str] = (),
    best: Mapping[str, int] | None = None,
) -> Markup:
    """Rows of equal keys; columns are right-aligned but the first and those `left`; `best` marks a row of a column."""
    if not rows:
        return Markup("")
    names = list(rows[0])
    plain = {names[0], *left}
    heads = "".join(f'<th scope="col"{_side(name, plain)}>{escape(name)}</th>' for name in names)
    body = []
    for place, row in enumerate(rows):
        cells = [f'<th scope="row">{escape(row[names[0]])}</th>']
        for name in names[1:]:
            text = escape(row[name])
            marked = f"<strong>{text}</strong>" if (best or {}).get(name) == place else text
            cells.append(f"<td{_side(name, plain)}>{marked}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _side(name: str, plain: set[str]) -> str:
    return ' class="text"' if name in plain else ""


def figure(content: Markup, caption: str) -> Markup:
    """A picture with what it shows."""
    return Markup(f"<figure>{content.text}<figcaption>{escape(caption)}</figcaption></figure>")


def picture(png: bytes, alternative: str, *, width: int | None = None, pixelated: bool = False) -> Markup:
    """A PNG in the page itself."""
    if not png.startswith(PNG):
        raise ValueError("a picture of the page is a PNG")
    data = base64.b64encode(png).decode("ascii")
    wide = f' width="{width}"' if width is not None else ""
    how = ' class="pixels"' if pixelated else ""
    return Markup(f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}"{wide}{how}>')


def section(identifier: str, title: str, *parts: Markup | str, level: int = 2) -> Markup:
    """A part of the page with its heading; text is a paragraph."""
    inner = "".join(part.text if isinstance(part, Markup) else f"<p>{escape(part)}</p>" for part in parts if part)
    return Markup(f'<section id="{escape(identifier)}"><h{level}>{escape(title)}</h{level}>{inner}</section>')


def missing(text: str) -> Markup:
    """What is left out, and why."""
    return Markup(f'<p class="missing">{escape(text)}</p>')


def joined(*parts: Markup) -> Markup:
    """One after another."""
    return Markup("".join(part.text for part in parts))
