"""Drawing ahead, by processes that may die."""

from __future__ import annotations

import os
import signal

import pytest

from tfgen.errors import TfgenError
from tfgen.training import stopping
from tfgen.training.ahead import ahead

PARENT = os.getpid()


def fatal(step: int) -> int:
    """A number; a process that draws the fourth one dies."""
    if step == 3 and os.getpid() != PARENT:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * step


def test_it_is_the_same_with_processes_and_without() -> None:
    def draw(step: int) -> int:
        return step * step

    for workers in (0, 2):
        assert list(ahead(draw, range(7), 7, workers)) == [(i, i * i) for i in range(7)]


def test_a_process_that_died_ends_the_training_with_a_sentence() -> None:
    with pytest.raises(TfgenError, match="has died, perhaps for lack of memory"):
        list(ahead(fatal, range(9), 9, 2))


def test_where_all_were_asked_to_stop_the_step_is_drawn_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "_signal", signal.SIGTERM)
    assert [value for _, value in ahead(fatal, range(9), 9, 2)] == [10 * i for i in range(9)]
