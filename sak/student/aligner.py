"""What stands between a path and its teacher: the output norm (published code) and the linear aligner."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class PerLevel(nn.ModuleDict):
    """One module per level and teacher, as `<level>.<teacher>`: tokens (B, T, C) -> (B, T, C')."""

    def at(self, level: int, teacher: str, tokens: Tensor) -> Tensor:
        """Apply the module of this level and teacher."""
        return self[str(level)][teacher](tokens)  # type: ignore[index]  # a ModuleDict holds ModuleDicts here


def output_norms(teachers: Sequence[str], levels: Sequence[int], width: int) -> PerLevel:
    """A LayerNorm (eps 1e-5) per teacher and level after the adapter output (published code)."""
    return PerLevel(
        {str(level): nn.ModuleDict({name: nn.LayerNorm(width, eps=1e-5) for name in teachers}) for level in levels}
    )


def linear_aligners(teachers: Mapping[str, int], levels: Sequence[int], width: int) -> PerLevel:
    """A linear map per teacher and level to the teacher's channels; also where the widths are equal."""
    return PerLevel(
        {
            str(level): nn.ModuleDict({name: nn.Linear(width, channels) for name, channels in teachers.items()})
            for level in levels
        }
    )
