"""What can be wrong with shards, their index and their images; each is one line."""

from sak.errors import SakError


class ShardError(SakError):
    """The image data cannot be indexed or read; `problems` has a line for each fault found, `shard: member: fault`."""

    def __init__(self, *problems: str) -> None:
        """The message is the first problem and how many more there are."""
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = problems

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, ...]]:
        """Pickles by its problems, so that it crosses process boundaries whole."""
        return ShardError, self.problems


class IndexFileError(SakError):
    """An index file is damaged, is not one, or was written by a newer version."""


class DamagedIndexError(IndexFileError):
    """An index file is not what was written; building it from the images makes it again."""


class StaleIndexError(SakError):
    """The shards changed since they were indexed."""


class BadImage(SakError):  # noqa: N818 - a verdict on a sample, which extraction puts in quarantine and goes on
    """One image cannot be used; `reason` says why."""

    def __init__(self, reason: str) -> None:
        """The message is the reason."""
        super().__init__(reason)
        self.reason = reason


class ReplayError(SakError):
    """A view made again does not have the pixels the teachers saw."""
