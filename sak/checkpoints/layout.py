"""What the authors' state-dict layout tells about the student in it."""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from sak.errors import SakError, UsageError
from sak.features import default_levels
from sak.student.config import Fusion


class Layout:
    """A state dict of the authors, read for sizes and names; `SakError` where it is none."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.prefix = "backbone." if any(key.startswith("backbone.") for key in state) else ""
        self.state = state
        for needed in ("vit.cls_token", "vit.pos_embed", "vit.blocks.0.norm1.weight"):
            if self.prefix + needed not in state:
                raise SakError(
                    f"not the authors' layout: no {self.prefix}{needed}; its keys begin with "
                    f"{', '.join(list(state)[:3]) or 'nothing'}"
                )

    def _found(self, pattern: str) -> list[tuple[str, ...]]:
        """Groups of the pattern in all keys behind the prefix, each once, in the file's order."""
        compiled = re.compile(re.escape(self.prefix) + pattern)
        matches = (compiled.fullmatch(key) for key in self.state)
        return list(dict.fromkeys(match.groups() for match in matches if match))

    def has(self, part: str) -> bool:
        """Whether there is such a part: tsap, ts_aligners, mor."""
        return any(key.startswith(f"{self.prefix}{part}.") for key in self.state)

    @property
    def width(self) -> int:
        """Channels of the stem."""
        return self.state[self.prefix + "vit.cls_token"].shape[-1]

    @property
    def depth(self) -> int:
        """Blocks of the stem."""
        return len(self._found(r"vit\.blocks\.(\d+)\.norm1\.weight"))

    @property
    def patches(self) -> int:
        """Patches that the position embedding is for."""
        return self.state[self.prefix + "vit.pos_embed"].shape[1] - 1

    def down_ratio(self) -> int:
        """The stem's width over the adapters'; 4 where there are none."""
        keys = [f"{self.prefix}tsap.{name}.0.down.weight" for (name,) in self._paths()]
        if not keys:
            return 4
        hidden = self.state[keys[0]].shape[0]
        if not hidden or self.width % hidden:
            raise SakError(f"{keys[0]} is {tuple(self.state[keys[0]].shape)}: {hidden} do not divide {self.width}")
        return self.width // hidden

    def _paths(self) -> list[tuple[str, ...]]:
        return self._found(r"tsap\.([^.]+)\.0\.down\.weight")

    def levels(self) -> tuple[int, ...] | None:
        """Tapped blocks counted from 1, from the parts that have one module a level."""
        blocks = {int(block) for (block,) in self._found(r"(?:out_norms|ts_aligners|mor)\.(\d+)_.*")}
        return tuple(sorted(block + 1 for block in blocks)) or default_levels(self.depth)

    def teachers_in_file_order(self) -> tuple[str, ...]:
        """Teachers as the file lists them, which in a sorted file is not the order of the experts."""
        named = self._paths() or self._found(r"ts_aligners\.\d+_([^.]+)\.weight")
        return tuple(name for (name,) in named)

    def teachers(self, names: Sequence[str]) -> dict[str, int | None]:
        """The named teachers, which must be the layout's, with their widths."""
        _same_names("teachers", names, self.teachers_in_file_order())
        return {name: self._teacher_width(name) for name in names}

    def _teacher_width(self, name: str) -> int:
        found = self._found(rf"(ts_aligners\.\d+_{re.escape(name)}\.weight)")
        return self.state[self.prefix + found[0][0]].shape[0] if found else self.width

    def tasks(self, names: Sequence[str] | None) -> dict[str, int]:
        """Tasks and their heads' channels; `names`, where given, must be the layout's and give the order."""
        matches = (re.fullmatch(r"heads\.([^.]+)\.last_conv\.weight", key) for key in self.state)
        channels = {match[1]: self.state[match[0]].shape[0] for match in matches if match}
        _same_names("tasks", channels if names is None else names, channels)
        return {name: channels[name] for name in names or channels}

    def fusion(self) -> Fusion:
        """What the heads read: routers where there are any, else the paths' sum, else the stem."""
        if self.has("mor") or not self.tasks(None):
            return "mor"
        return "sum" if self.has("tsap") else "none"


def _same_names(what: str, given: Iterable[str], found: Iterable[str]) -> None:
    given, found = list(given), list(found)
    if sorted(given) != sorted(found):
        raise UsageError(
            f"the state dict has the {what} {', '.join(found) or '(none)'}; got {', '.join(given) or '(none)'}"
        )
