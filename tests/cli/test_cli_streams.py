"""Standard output and error that are closed, full, or read by nobody: what is found is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from tests.cli.running import FILE, PROMPT, Run, files
from tfgen_cli import main

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def full() -> TextIO:
    return open("/dev/full", "w", buffering=1)  # noqa: SIM115


def unread() -> TextIO:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def closed() -> TextIO:
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


@pytest.fixture(params=["full", "unread", "closed", "none"])
def broken(request: pytest.FixtureRequest) -> Iterator[TextIO | None]:
    if request.param == "full" and not FULL.exists():
        pytest.skip("there is no /dev/full")
    make = {"full": full, "unread": unread, "closed": closed, "none": lambda: None}
    stream = make[request.param]()
    yield stream
    if stream is not None:
        stream.close()


def test_a_broken_stderr_costs_nothing_but_the_messages(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, broken: TextIO | None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", broken)
        done = run("a fizz fox", "--json", "--num-images", "2")  # with a warning and a bar
    told = json.loads(done.out)
    assert done.code == 0
    assert told["paths"] == files() == ["a-fizz-fox-1.png", "a-fizz-fox-2.png"]
    assert set(told["warnings"]) == {"It does not know the word 'fizz'."}


def test_an_error_that_nobody_can_read_keeps_its_exit_code(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, broken: TextIO | None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", broken)
        done = run(PROMPT, "--beam", "0")
    assert (done.code, done.out) == (2, "")


def test_without_a_stdout_the_picture_is_written_all_the_same(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        done = run(PROMPT, "--json")
    assert done.code == 0 and files() == [FILE]


def test_stderr_is_as_it_was_after_a_command(run: Callable[..., Run]) -> None:
    before = sys.stderr
    main(["--version"])
    assert sys.stderr is before


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """With streams that are buffered, as they usually are."""
    tfgen = f"env -u PYTHONUNBUFFERED {sys.executable} -m tfgen_cli"
    return subprocess.run(
        ["sh", "-c", command.replace("tfgen", tfgen, 1)], capture_output=True, text=True, timeout=60
    )


@needs_full
def test_the_exit_code_is_ours_and_not_pythons_for_a_stream_it_cannot_flush(in_tmp: Path) -> None:
    assert shell("tfgen --beam 4 2>/dev/full").returncode == 2
    full = shell("tfgen models >/dev/full")
    assert full.returncode == 1
    assert full.stderr == "Error: Standard output cannot be written: No space left on device.\n"


def test_closed_streams_take_no_message_of_the_other(in_tmp: Path) -> None:
    done = shell("tfgen --beam 4 2>&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert shell("tfgen models >&-").returncode == 0
