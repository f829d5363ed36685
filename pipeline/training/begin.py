"""How a run begins: anew, over another, or where it stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.training.run import RunDirectory
from sak.errors import UsageError


@dataclass(frozen=True)
class Start:
    """How a run begins: anew, over another, or where it stopped (`force`: although the configuration changed)."""

    resume: bool = False
    overwrite: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse to go on with what is to be replaced."""
        if self.resume and self.overwrite:
            raise UsageError("--resume goes on with a run, --overwrite replaces it: give one of them")


ANEW = Start()


def open_run(
    out: Path, settings: Mapping[str, Any], reads: Mapping[str, Any] | None, accelerator: Accelerator, start: Start
) -> RunDirectory:
    """The run's directory, made or checked by the main process before any other uses it; see `RunDirectory.resume`."""
    run = RunDirectory(out)
    if accelerator.is_main_process:
        run = (
            RunDirectory.resume(out, settings, force=start.force, reads=reads)
            if start.resume
            else RunDirectory.create(out, settings, overwrite=start.overwrite)
        )
    accelerator.wait_for_everyone()
    return run
