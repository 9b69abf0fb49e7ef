"""Tasks on several processes, one thread each: the results of one process, sooner.

Two processes of one thread beat one process that decodes on two threads, since all else that a
search does (drawing, ranking, the prompt, the judge) is one thread's work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from tfgen.errors import TfgenError

Work = Callable[[Any], Any]


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def results(make: Callable[[], Work], tasks: Sequence[Any], jobs: int) -> Iterator[tuple[int, Any]]:
    """(index, make()(task)) for each task, as they come.

    Each of `jobs` processes calls `make`, which must be picklable, once, then works on one task
    after the other; with one job it is this process. What a task raises ends everything. A process
    whose parent is gone, or was killed, ends after the task in hand.
    """
    if jobs == 1 or len(tasks) == 1:
        work = make()
        for index, task in enumerate(tasks):
            yield index, work(task)
        return
    processes: list[multiprocessing.process.BaseProcess] = []
    try:
        connections = []
        with _interrupts_ignored():  # which the processes inherit
            for _ in range(min(jobs, len(tasks))):
                process, connection = _start(make)
                processes.append(process)
                connections.append(connection)
        yield from _deal(connections, tasks)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _start(make: Callable[[], Work]) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    # Spawned, not forked: CUDA, and torch's threads, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make), daemon=True)
    process.start()
    there.close()  # so that the end of the process ends the connection
    return process, here


def _deal(connections: list[Connection], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    waiting = iter(enumerate(tasks))
    at_work: dict[Connection, int] = {}

    def give(connection: Connection) -> None:
        index, task = next(waiting, (None, None))
        if index is not None:
            connection.send(task)
            at_work[connection] = index

    for connection in connections:
        give(connection)
    while at_work:
        for connection in wait(list(at_work)):
            index = at_work.pop(connection)
            try:
                error, result = connection.recv()
            except (EOFError, ConnectionError) as lost:
                raise TfgenError(
                    "A worker process was killed, perhaps because memory ran out: "
                    "run again with fewer --jobs; what is done is kept."
                ) from lost
            if error is not None:
                raise error
            give(connection)
            yield index, result


def _serve(connection: Connection, make: Callable[[], Work]) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    os.environ["OMP_NUM_THREADS"] = "1"  # should torch come with `make`
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        work = make()
        while True:
            connection.send((None, work(connection.recv())))
    except (EOFError, ConnectionError):
        pass  # the parent is gone, or has no more tasks
    except TfgenError as error:
        connection.send((error, None))
    except Exception:
        connection.send((RuntimeError(f"in a worker process\n{traceback.format_exc()}"), None))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets a Ctrl-C, and may say what it does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
