"""docs/errors.md: every message is one that the code can say."""

import ast
import re

import pytest

from tests.docs.pages import ROOT, page

STANDS_FOR_ANYTHING = re.compile(r"\b(?:REPOSITORY|FOLDER|MODEL|NAME|VIEW|ADDRESS|TASKS|TASK|CLASS|N|2)\b")
ROWS = [line for line in page("errors.md").splitlines() if line.startswith("| `")]
MESSAGES = [message for line in ROWS for message in re.findall(r"`([^`]*)`", line.split(" | ")[0])]


@pytest.fixture(scope="module")
def said() -> str:
    """All literal text of the source; \0 where a value is filled in."""
    found = []
    for path in (*ROOT.glob("sak/**/*.py"), *ROOT.glob("pipeline/**/*.py"), ROOT / "cli.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_there_are_many():
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_it(said, message):
    parts = STANDS_FOR_ANYTHING.split(message)
    assert re.search("\0".join(re.escape(part) for part in parts), said), message
