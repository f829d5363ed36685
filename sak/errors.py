"""The errors this project raises for its users: one line that says what, where and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class SakError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(SakError):
    """A flag, a configuration or an argument is wrong; nothing was started (exit code 2)."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to `name`, or lists them all: `; did you mean 'clip'?`."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
