"""What stands between a path and its teacher: the output norm (published code) and the linear aligner."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class PerLevel(nn.ModuleDict):
    """One module per level and teacher, as `<level>.<teacher>`: tokens (B, T, C) -> (B, T, C')."""

    def at(self, level: int, teacher: str, tokens: Tensor) -> Tensor:
        """Apply the module of this level and teacher."""
        return self[str(level)][teacher](tokens)  # type: ignore[index]  # a ModuleDict holds ModuleDicts here

    def forward(self, tokens: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Teacher -> tokens by level, through its modules; where there are no modules they stay as they are."""
        if not self:
            return {teacher: list(of_levels) for teacher, of_levels in tokens.items()}
        return {
            teacher: [self.at(int(level), teacher, x) for level, x in zip(self, of_levels, strict=True)]
            for teacher, of_levels in tokens.items()
        }


def output_norms(teachers: Sequence[str], levels: Mapping[int, int]) -> PerLevel:
    """A LayerNorm (eps 1e-5) per teacher and level after the adapter output (published code); `levels` by width."""
    return PerLevel(
        {
            str(level): nn.ModuleDict({name: nn.LayerNorm(width, eps=1e-5) for name in teachers})
            for level, width in levels.items()
        }
    )


def linear_aligners(teachers: Mapping[str, int], levels: Mapping[int, int]) -> PerLevel:
    """A linear map per teacher and level, level -> width, to the teacher's channels; also where widths are equal."""
    return PerLevel(
        {
            str(level): nn.ModuleDict({name: nn.Linear(width, channels) for name, channels in teachers.items()})
            for level, width in levels.items()
        }
    )
