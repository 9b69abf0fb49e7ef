"""Ctrl-C ends a search once, and then waits until what was found is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CtrlC:
    """What becomes of Ctrl-C in the body of `ctrl_c_once`."""

    def __init__(self) -> None:
        self.pressed = False
        """Whether it was: raised, or held back."""
        self._held = False

    def hold(self) -> None:
        """From now on it is not raised: `pressed` tells of it."""
        self._held = True

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        waits = self._held or self.pressed
        self.pressed = True
        if not waits:
            raise KeyboardInterrupt


_current: CtrlC | None = None


@contextmanager
def ctrl_c_once() -> Iterator[CtrlC]:
    """In the body, the first Ctrl-C raises KeyboardInterrupt and later ones are held back; where a
    search has ended, all are (`hold_ctrl_c`).

    To be opened once for each search, up to where its picture is saved; then look at `pressed`. One
    within another is that other. In threads other than the main one, and where the program has a
    handler of its own for SIGINT, Ctrl-C stays as it is.
    """
    global _current
    if not _in_main_thread():
        yield CtrlC()
    elif _current is not None:
        yield _current
    elif signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield CtrlC()
    else:
        _current = CtrlC()
        before = signal.signal(signal.SIGINT, _current._handle)
        try:
            yield _current
        finally:
            signal.signal(signal.SIGINT, before)
            _current = None


def hold_ctrl_c() -> None:
    """Within `ctrl_c_once`, hold Ctrl-C back from now on; elsewhere, nothing."""
    if _current is not None and _in_main_thread():
        _current.hold()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
