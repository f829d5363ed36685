"""Stopping a run from outside: Ctrl-C and SIGTERM ask, the loop saves and stops, all ranks at the same step."""

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Catches the first SIGINT or SIGTERM while its block runs; a second SIGINT interrupts at once.

    Outside the main thread signals cannot be caught, and nothing is.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    @property
    def wanted(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
