"""Tasks on several processes: the same results, all errors told, nobody left behind."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness import Task
from benchmarks.workers import cores, results
from tests.toy_benchmark import make, tasks
from tfgen.errors import InputError, TfgenError


def items(count: int) -> list[tuple[Task, None]]:
    return [(task, None) for task in tasks(count)]


def squares(count: int) -> dict[int, dict[str, object]]:
    return {i: {"square": i * i, "renewed": False} for i in range(count)}


def processes(note: Path) -> dict[int, int]:
    """Which process did which task."""
    return dict(map(int, line.split()) for line in note.read_text().splitlines())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_one_job_is_this_process(tmp_path: Path) -> None:
    note = tmp_path / "note"
    found = results(partial(make, note=note), items(3), 1)
    assert list(found) == list(squares(3).items())
    assert set(processes(note).values()) == {os.getpid()}


def test_two_jobs_are_two_processes_with_the_same_results(tmp_path: Path) -> None:
    note = tmp_path / "note"
    found = dict(results(partial(make, 0.05, note), items(8), 2))
    assert found == squares(8)
    pids = set(processes(note).values())
    assert len(pids) == 2 and os.getpid() not in pids
    assert all(map(gone, pids))


def test_there_are_no_more_processes_than_tasks(tmp_path: Path) -> None:
    note = tmp_path / "note"
    assert dict(results(partial(make, 0.5, note), items(2), 20)) == squares(2)
    assert len(set(processes(note).values())) == 2


def test_no_tasks_are_no_work() -> None:
    assert list(results(make, [], 2)) == []


def test_an_error_in_a_worker_is_the_callers() -> None:
    lie = Task("square", {}, "a lie", 1)
    with pytest.raises(InputError, match="say the truth"):
        list(results(make, [*items(2), (lie, None)], 2))


def test_a_bug_in_a_worker_comes_with_its_traceback() -> None:
    bug = Task("square", {}, "a bug", 1)
    with pytest.raises(RuntimeError, match="in work\n.*\n*ZeroDivisionError: by zero"):
        list(results(make, [(bug, None), *items(1)], 2))


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    death = Task("square", {}, "death", 1)
    with pytest.raises(TfgenError, match="killed.*fewer --jobs.*kept"):
        list(results(make, [(death, None), *items(1)], 2))


def test_workers_end_when_the_caller_stops_listening(tmp_path: Path) -> None:
    note = tmp_path / "note"
    found = results(partial(make, 0.05, note), items(100), 2)
    next(found)
    started = time.monotonic()
    found.close()
    assert time.monotonic() - started < 2
    assert all(map(gone, set(processes(note).values())))


def test_cores_are_those_that_this_process_may_use() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
