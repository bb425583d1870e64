"""Ctrl-C, SIGTERM and a closed terminal: the first lets a step end, the second does not wait."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Windows has no SIGHUP, which says that the terminal was closed.
_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_STDERR = 2
_STOPPING = b"\nsphere-bench: stopping after this step; again to abandon it\n"


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Abandoned(Stopped):
    """A second signal: what is being made is not waited for."""


class StopRequest:
    """A handler that remembers the first signal and raises at the second.

    Args:
        echo: seconds after the first signal in which others are taken for the same request.
        says: tell the user what is going to happen.

    Attributes:
        number: of the first signal, ``None`` until it comes.
    """

    def __init__(self, echo: float = 0.0, says: bool = True) -> None:
        self.number: int | None = None
        self._echo = echo
        self._says = says
        self._came = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self._came = time.monotonic()
            if self._says:
                # Not through Python's stream: the signal may have come while that was written to.
                with suppress(OSError):  # the terminal may be gone
                    os.write(_STDERR, _STOPPING)
        elif time.monotonic() - self._came >= self._echo:
            raise Abandoned(number)


def stop(number: int, frame: FrameType | None) -> None:
    """The handler that raises at once."""
    raise Stopped(number)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """In the block, ``handler`` gets the signals that ask a process to end.

    A signal that the process was started to ignore (``nohup``) stays ignored. Only the main thread
    can have handlers; in another nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    handled = [number for number in _NUMBERS if before[number] is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number] or signal.SIG_DFL)
