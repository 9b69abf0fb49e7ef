"""Standard output and error, which may be closed, full, or a pipe that nobody reads any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tfgen.errors import TfgenError


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
        try:
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Required:
    """A text stream of which it is told, as TfgenError, that it cannot be written; BrokenPipeError
    where nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            silence(self._stream)
            if isinstance(error, BrokenPipeError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise TfgenError(f"Standard output cannot be written: {reason}.") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def careful() -> Iterator[None]:
    """In here sys.stdout and sys.stderr are there, and what cannot be written to stderr is dropped,
    and to stdout is one sentence.

    Python has None for a stream that was closed before it started, and what is printed to None
    goes to standard output.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Required(sys.stdout), BestEffort(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def silence(stream: TextIO) -> None:
    """Whatever else goes to the stream, and what is still in its buffer, is dropped: else Python
    would try once more at its end, and exit with a code of its own."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # it has no file behind it
        pass
