"""From a command's flags to its recipe: the file `config`, `--set` lines over it, the command's own flags over both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import Config, load_settings
from sak.errors import UsageError

LENGTHS = ("epochs", "steps")
TRAINING = ("batch_size", "precision", "seed")


def recipe_and_rest(
    kind: type[Config], flags: Mapping[str, Any], also: Mapping[str, Sequence[str]] | None = None
) -> tuple[Config, dict[str, Any]]:
    """The recipe that the flags `config`, `overrides` and those of the training ask for, and all flags that are left.

    `also` names further flags and the recipe's settings, by dotted names, that each stands for. A flag that is None
    was not given; paths become text, as `config.yaml` has them. UsageError, one line, where anything is wrong.
    """
    given = {
        name: str(value) if isinstance(value, Path) else value for name, value in flags.items() if value is not None
    }
    file, overrides = given.pop("config", None), given.pop("overrides", ())
    length = {name: given.pop(name) for name in LENGTHS if name in given}
    if len(length) > 1:
        raise UsageError("give --epochs or --steps, one of them")
    settings = {f"training.{name}": length.get(name) for name in LENGTHS if length}  # the one replaces the other
    settings |= {f"training.{name}": given.pop(name) for name in TRAINING if name in given}
    for flag, names in (also or {}).items():
        if flag in given:
            settings |= dict.fromkeys(names, given.pop(flag))
    return load_settings(kind, Path(file) if file is not None else None, overrides, settings), given
