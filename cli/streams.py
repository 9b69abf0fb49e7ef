"""Standard output and error, which may be closed, full, or a pipe that nobody reads any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class BestEffort:
    """A text stream that drops what it cannot write: a bar or a warning that nobody can see must
    not cost what a search finds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: the stream was closed
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        flushed(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def careful() -> Iterator[None]:
    """In here sys.stdout and sys.stderr are there, and what cannot be written to stderr is dropped.

    Python has None for a stream that was closed before it started, and what is printed to None
    goes to standard output.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    before, sys.stderr = sys.stderr, BestEffort(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = before


def flushed(stream: TextIO) -> bool:
    """Flush a stream; False where that fails, and then it is silenced."""
    try:
        stream.flush()
    except (OSError, ValueError):
        silence(stream)
        return False
    return True


def silence(stream: TextIO) -> None:
    """Whatever else goes to the stream, and what is still in its buffer, is dropped: else Python
    would try once more at its end, and exit with a code of its own."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # it has no file behind it
        pass
