"""The pages under test: README and docs/, and what of them is code."""

import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "cache_specs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_INDENTED = re.compile(r"\n\n((?: {4,}.*\n|\n+(?= {4}))+)")


def page(name: str) -> str:
    """The text of a page of docs/, or of README.md."""
    return (ROOT / name if name == "README.md" else ROOT / "docs" / name).read_text()


def code_blocks(text: str) -> list[str]:
    """The indented blocks of a page, dedented."""
    return [dedent(each) for each in _INDENTED.findall(text)]


def block_with(text: str, words: str) -> str:
    """The one block that holds `words`."""
    (found,) = [each for each in code_blocks(text) if words in each]
    return found
