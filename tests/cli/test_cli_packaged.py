"""The command line on the packaged models, in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.cli.running import FILE, PROMPT, files
from tfgen.image_io import load_png


def tfgen_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tfgen_cli", *arguments]


SMALL = ("--device", "cpu", "--beam", "2", "--candidates", "4", "--tokens", "2")


def test_the_packaged_models_from_prompt_to_replay(in_tmp: Path) -> None:
    written = ("--steps-image", "steps.png", "--trace", "run.jsonl")
    command = tfgen_command(PROMPT, *SMALL, "--json", *written)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decodes"] > 0
    assert files() == [FILE, "run.jsonl", "steps.png"]
    command = tfgen_command("tree", "run.jsonl", "--device", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and Path("run-tree.png").is_file(), done.stderr
    command = tfgen_command("replay", FILE, "--device", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "identical" in done.stdout, done.stderr


def test_people_need_not_know_the_worlds_words(in_tmp: Path) -> None:
    command = tfgen_command("a majestic ship on the ocean", *SMALL, "--json", "-o", "ship.png")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    read_as = "a sailboat in the sea"
    assert f"The prompt is read as {read_as!r}, without 'majestic'." in done.stderr
    assert json.loads(done.stdout)["read_as"] == load_png("ship.png")[1]["read_as"] == read_as


def test_a_real_ctrl_c_writes_the_best_so_far(in_tmp: Path) -> None:
    """The bar, on a terminal, tells when the search is under way."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # or it has no room
    command = tfgen_command(PROMPT, "--device", "cpu", "--candidates", "512", "--budget", "5000")
    process = subprocess.Popen(command, stderr=writer, start_new_session=True)
    os.close(writer)
    try:
        seen = read_until(reader, b"step 2/")  # the first is the atlas's, and takes no time
        process.send_signal(signal.SIGINT)
        seen += read_until(reader, b"Stopped by Ctrl-C")
        assert process.wait(timeout=60) == 130, seen.decode()
    finally:
        process.kill()
        os.close(reader)
    assert load_png(FILE)[1]["interrupted"]


def read_until(terminal: int, text: bytes) -> bytes:
    """What the terminal shows until `text` appears, or until the process has ended."""
    seen = b""
    while text not in seen:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
    return seen
