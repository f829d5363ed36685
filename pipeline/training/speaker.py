"""What a run says: measurements into its files and trackers, progress and warnings to the user; by one process."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from pipeline.training.protocols import Hooks
from pipeline.training.run import RunDirectory
from pipeline.training.window import WAIT_WORTH_TELLING


class Speaker:
    """Silent on all processes but the main one."""

    def __init__(self, run: RunDirectory, hooks: Hooks, accelerator: Accelerator) -> None:
        self._run, self._hooks, self._accelerator = run, hooks, accelerator
        self._first = self._total = self._lines = 0
        self._note = ""
        self._warned = False

    def begin(self, step: int, total: int) -> None:
        """The loop starts at `step`; progress counts from there, so that its rate is this session's."""
        self._first, self._total = step, total
        if self._accelerator.is_main_process:
            self._run.log(f"from step {step} to {total} on {self._accelerator.num_processes} x "
                          f"{self._accelerator.device.type}")  # fmt: skip

    def tell(self, step: int, values: Mapping[str, Any]) -> None:
        """Measurements after a step: into `metrics.jsonl`, `train.log` and the trackers."""
        if not self._accelerator.is_main_process:
            return
        self._run.record({"step": step, **values})
        numbers = {name: value for name, value in values.items() if not isinstance(value, bool)}
        self._run.log(", ".join([f"step {step}", *(f"{name} {value:.6g}" for name, value in numbers.items())]))
        if self._accelerator.trackers:
            self._accelerator.log(numbers, step=step)
        if "data_wait" in values:
            self._lines += 1
            self._note = (
                f"step {step}, loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s, "
                f"data wait {100 * values['data_wait']:.0f} %"
            )
            self._warn(values["data_wait"])

    def say(self, line: str) -> None:
        """A line for the user, into `train.log` too."""
        if not self._accelerator.is_main_process:
            return
        self._run.log(line)
        if self._hooks.say is not None:
            self._hooks.say(line)

    def show(self, step: int) -> None:
        """Progress, with the last measurements."""
        if self._hooks.progress is not None and self._accelerator.is_main_process:
            self._hooks.progress(step - self._first, self._total - self._first, self._note)

    def _warn(self, share: float) -> None:
        """Once a session, and not of its first line, in which threads and processes are still starting."""
        if self._warned or self._lines < 2 or share <= WAIT_WORTH_TELLING:
            return
        self._warned = True
        remedy = f": {self._hooks.remedy()}" if self._hooks.remedy is not None else ""
        self.say(f"warning: {100 * share:.0f} % of the time is spent waiting for data{remedy}")
