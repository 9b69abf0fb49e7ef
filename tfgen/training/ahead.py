"""What a step of training needs, drawn ahead of time by other processes, for a device that is
faster than one process can draw."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeVar

import torch

from tfgen.errors import TfgenError
from tfgen.training.stopping import signalled

T = TypeVar("T")

MOST_WORKERS = 12


def workers_beside(device: torch.device | str) -> int:
    """How many processes should draw for a model on this device: none for one on the CPU."""
    if torch.device(device).type == "cpu":
        return 0
    return max(0, min(MOST_WORKERS, (os.cpu_count() or 1) - 2))


def ahead(
    draw: Callable[[int], T], steps: Iterable[int], last: int, workers: int
) -> Iterator[tuple[int, T]]:
    """Each step with what `draw` gives for it, drawn by `workers` processes ahead of time, up to
    the step before `last`; 0: drawn here, when it is due. It is the same either way.

    draw: of the step alone, on the CPU; gives plain Python values and NumPy arrays, which travel
    through a pipe (shared memory, which tensors travel by, is scarce in containers).
    """
    if not workers or "fork" not in multiprocessing.get_all_start_methods():
        yield from ((step, draw(step)) for step in steps)
        return
    context = multiprocessing.get_context("fork")  # the processes have the world already
    with ProcessPoolExecutor(workers, context, _drawing, (draw,)) as pool:
        waiting: deque[Future] = deque()
        following = None
        try:
            for step in steps:
                following = step if following is None else following
                with suppress(BrokenProcessPool):  # `_result` tells of it
                    while following < last and len(waiting) < 2 * workers:
                        waiting.append(pool.submit(_drawn, following))
                        following += 1
                yield step, _result(waiting.popleft(), step, draw) if waiting else draw(step)
        finally:
            pool.shutdown(cancel_futures=True)


def _result(future: Future, step: int, draw: Callable[[int], T]) -> T:
    """What was drawn for a step. Where its process has died, because a signal to stop went to all
    processes, it is drawn here; else raises TfgenError."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        if signalled():
            return draw(step)
        raise TfgenError(
            "A process that draws what training needs has died, perhaps for lack of memory: the "
            "same command goes on from what was saved last."
        ) from error


_draw: Callable[[int], object]  # of a process of `ahead`


def _drawing(draw: Callable[[int], object]) -> None:
    global _draw
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # they end with the process they draw for
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool ends them
    torch.set_num_threads(1)
    _draw = draw


def _drawn(step: int) -> object:
    return _draw(step)
