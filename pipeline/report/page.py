"""The page's document: what the template is given to write numbers and pictures with."""

from base64 import b64encode
from importlib.resources import files
from math import isnan

from jinja2 import Environment, StrictUndefined

from pipeline.tables import human_bytes

PNG = b"\x89PNG\r\n\x1a\n"


def number(value: object, digits: int = 4) -> str:
    """A number for a table, whole where its digits end before the point; a dash where there is none."""
    if not isinstance(value, float | int) or isnan(value):
        return "-"
    text = f"{value:#,.{digits}g}".rstrip(".") if value else "0"
    return f"{value:,.0f}" if "e+" in text else text


def data_url(png: bytes) -> str:
    """A PNG as the address of an image that is in the page itself."""
    if not png.startswith(PNG):
        raise ValueError("a picture of the page is a PNG")
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def render(**content: object) -> str:
    """The document. What runs say is not trusted: all that is put into the template is escaped but our own charts."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "human_bytes": human_bytes}
    source = files("pipeline.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(content)
