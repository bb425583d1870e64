"""SIGINT and SIGTERM: the first lets a step of a run end, the second does not wait for it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_HEEDED = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopRequest:
    """A handler that remembers the first signal and raises at the second.

    Attributes:
        number: of the first signal, ``None`` until it comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Stopped(number)
        self.number = number
        # Past Python's stream: the signal may have come while that was being written to.
        os.write(_STDERR, b"\nsphere-bench: stopping after this step; again to abandon it\n")


def stop(number: int, frame: FrameType | None) -> None:
    """The handler that raises at once."""
    raise Stopped(number)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handler`` have the signals that ask a process to end, in the block.

    A signal that the process was started to ignore stays ignored. Only the main thread can have
    handlers; in another nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _HEEDED}
    heeded = [number for number in _HEEDED if before[number] is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number] or signal.SIG_DFL)
