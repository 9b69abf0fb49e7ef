"""When a call of a training is to end: its time is up, or it was asked to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

OUT_OF_TIME = 3
"""The exit code of a call whose time was up: the same command goes on."""
SAVED = "Stopped, and what was done is saved: the same command goes on."

_signal: signal.Signals | None = None


class TimeUp(SystemExit):
    """A call's time is over, and what it did is saved: the same command goes on from there.

    done, total: steps; pace: seconds a step, as this call measured them.
    """

    def __init__(self, done: int, total: int, pace: float):
        super().__init__(OUT_OF_TIME)
        self.done, self.total, self.pace = done, total, pace


@contextmanager
def at_signals() -> Iterator[None]:
    """In the body SIGINT and SIGTERM are only noted (see `signalled`), so that a step ends and is
    saved; a second one raises KeyboardInterrupt. Elsewhere than in the main thread they stay as
    they are."""
    global _signal
    _signal = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    global _signal
    if _signal is not None:
        raise KeyboardInterrupt
    _signal = signal.Signals(number)
    told = f"{_signal.name}: ending what is begun, to save it; once more stops at once.\n"
    with suppress(OSError):
        os.write(2, told.encode())  # a print may be under way


def signalled() -> signal.Signals | None:
    """Which signal asked this call to stop, if one did."""
    return _signal


def is_over(deadline: float | None) -> bool:
    """Whether a call is to end: its deadline (time.monotonic) is past, or a signal came."""
    return _signal is not None or (deadline is not None and time.monotonic() >= deadline)


class Timer:
    """Ends work on a table when the call `is_over`: the `progress` to be called, with the rows
    done and all rows, once a part of them is saved. Raises TimeUp, but not for the last part, nor
    for a deadline in the first seconds, in which it gets past the parts of earlier calls."""

    def __init__(self, deadline: float | None, seconds: float = 2.0):
        self.before, self.done = time.monotonic(), 0
        self.deadline = None if deadline is None else max(deadline, self.before + seconds)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if is_over(self.deadline) and done < total:
            raise TimeUp(done, total, (now - self.before) / max(1, done - self.done))
        self.before, self.done = now, done
