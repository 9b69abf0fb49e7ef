"""The script for a lent GPU: what it runs and brings back, with stand-ins for its programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "on_gpu.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
PYTHON = """#!{python}
import json, os, sys
here, args = {here!r}, sys.argv[1:]
with open(here + "/calls", "a") as file:
    print(*args[1:], file=file)
if args[0] == "-":
    os.execv(sys.executable, [sys.executable, *args])
elif args[0] == "-c":
    sys.exit(os.environ.get("MISSING"))
elif args[1] == "benchmarks.attention_throughput":
    rows = json.loads(os.environ["ROWS"])
    if rows is None:
        sys.exit("the device is busy")
    name = args[args.index("--name") + 1]
    with open("runs/gpu/" + name + ".json", "w") as file:
        json.dump({{"variants": rows}}, file)
"""
HEAD = "head, {} queries, {} warps, {} stages"
ROWS = [
    {"variant": "sdpa", "microseconds": 500.0, "error": 3e-3},
    {"variant": HEAD.format(64, 8, 3), "microseconds": 300.0, "error": 3e-3},
    {"variant": HEAD.format(128, 8, 2), "microseconds": 250.0, "error": 3e-3},
    {"variant": HEAD.format(64, 4, 2), "microseconds": 100.0, "error": 0.4},
    {"variant": HEAD.format(64, 4, 3), "microseconds": 110.0, "error": float("nan")},
    {"variant": HEAD.format(128, 8, 3), "refused": "out of resource"},
]


def run(folder: Path, rows: Any, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """The script in a folder of its own, and what it called Python with."""
    (folder / "benchmarks").mkdir()
    (folder / "out").mkdir()
    shutil.copy(SCRIPT, folder / "benchmarks")
    programs = {"python3": PYTHON.format(python=sys.executable, here=str(folder))}
    programs |= dict.fromkeys(["timeout", "compute-sanitizer"], "#!/bin/sh\nexit 1\n")
    for name, text in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", str(folder / "benchmarks" / "on_gpu.sh")],
        env={
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "OUT": str(folder / "out"),
            "ROWS": json.dumps(rows),
            **env,
        },
        capture_output=True,
        text=True,
    )
    return done, (folder / "calls").read_text().splitlines()


def tiles(calls: list[str]) -> list[str]:
    return [call.split("--tile ")[1].split(" -o")[0] for call in calls if "--tile" in call]


def test_the_fastest_cut_whose_results_are_right_goes_into_the_decoder(tmp_path: Path) -> None:
    _, calls = run(tmp_path, ROWS)
    assert tiles(calls) == ["128 8 2"] * 2


@pytest.mark.parametrize("rows", [None, ROWS[:1]], ids=["failed", "no head"])
def test_what_fails_stops_nothing_else(rows: Any, tmp_path: Path) -> None:
    done, calls = run(tmp_path, rows)
    assert tiles(calls) == ["64 4 2"] * 2 and done.returncode == 1
    for name in ("memcheck", "tests-attention", "tests"):
        assert f"{name} failed" in done.stdout


def test_all_of_it_comes_back_in_one_file(tmp_path: Path) -> None:
    run(tmp_path, ROWS)
    (only,) = (tmp_path / "out").iterdir()
    with tarfile.open(only) as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"attention_throughput-d12.json", "decoder_throughput-d18-d28.log", "tests.log"} <= names


def test_a_missing_package_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    missing = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'ftfy'"
    done, calls = run(tmp_path, ROWS, MISSING=missing)
    assert done.returncode == 2 and len(calls) == 1
    assert done.stderr == (
        "ModuleNotFoundError: No module named 'ftfy': make .site.txz as the head of "
        "benchmarks/on_gpu.sh says, and carry it.\n"
    )
