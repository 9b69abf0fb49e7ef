"""Rows on disk that survive anything, and the report made of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import harness
from benchmarks.harness import Parser, Results, Row, Task, current, markdown
from tests.toy_benchmark import QUESTION, make, report, tasks
from tfgen.errors import InputError

ROOT = Path(__file__).parents[2]


def arguments(folder: Path, **more: Any) -> Namespace:
    return Namespace(**{"output": folder, "jobs": 1, "report": False, "quiet": True, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[Row]:
    return [line for line in lines(path) if "run" not in line]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[int]]:
    """Runs the toy benchmark for so many rows; returns the seeds it has worked on."""

    def run(count: int, **more: Any) -> list[int]:
        note = tmp_path / "note"
        note.write_text("")
        stale = more.pop("stale", lambda row: False)
        weights = more.pop("weights", "a")
        work, tell = partial(make, 0.0, note), partial(report, drawn=more.pop("drawn", False))
        args = arguments(tmp_path / "out", **more)
        harness.run("toy", QUESTION, args, tasks(count, weights), work, tell, stale)
        return sorted(int(line.split()[0]) for line in note.read_text().splitlines())

    return run


# Rows


def test_a_row_is_its_key_what_follows_from_it_and_the_values(
    run: Callable, tmp_path: Path
) -> None:
    run(1)
    assert rows(tmp_path / "out" / "toy.jsonl") == [
        {
            "method": "square",
            "settings": {"weights": "a"},
            "prompt": "a fox",
            "seed": 0,
            "split": "dev",
            "square": 0,
            "renewed": False,
        }
    ]


def test_what_is_done_is_not_done_again(run: Callable, tmp_path: Path) -> None:
    assert run(3) == [0, 1, 2]
    assert run(5) == [3, 4]
    assert run(5) == []
    assert [row["seed"] for row in rows(tmp_path / "out" / "toy.jsonl")] == [0, 1, 2, 3, 4]


def test_other_settings_are_other_rows(run: Callable, tmp_path: Path) -> None:
    run(2)
    assert run(2, weights="b") == [0, 1]
    assert len(rows(tmp_path / "out" / "toy.jsonl")) == 4


def test_stale_rows_are_brought_up_to_date(run: Callable, tmp_path: Path) -> None:
    run(3)
    assert run(4, stale=lambda row: row["seed"] == 1) == [1, 3]
    with Results(tmp_path / "out" / "toy.jsonl") as kept:
        renewed = {row["seed"]: row["renewed"] for row in kept.rows.values()}
    assert renewed == {0: False, 1: True, 2: False, 3: False}


def test_the_number_of_processes_changes_no_row(run: Callable, tmp_path: Path) -> None:
    run(6)
    one = (tmp_path / "out" / "toy.md").read_text().split("Made by")[0]
    alone = sorted(rows(tmp_path / "out" / "toy.jsonl"), key=lambda row: row["seed"])
    (tmp_path / "out" / "toy.jsonl").unlink()
    assert run(6, jobs=2) == list(range(6))
    both = sorted(rows(tmp_path / "out" / "toy.jsonl"), key=lambda row: row["seed"])
    assert both == alone
    assert (tmp_path / "out" / "toy.md").read_text().split("Made by")[0] == one


def test_a_line_that_was_cut_off_is_dropped(run: Callable, tmp_path: Path) -> None:
    run(3)
    path = tmp_path / "out" / "toy.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert run(3) == [2]
    assert [row["seed"] for row in rows(path)] == [0, 1, 2]


def test_a_file_of_something_else_is_left_alone(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "out" / "toy.jsonl"
    path.parent.mkdir()
    path.write_text('{"tag": "colors"}\n')
    with pytest.raises(InputError, match="Line 1 of .*toy.jsonl' is no row of a benchmark"):
        run(1)
    assert path.read_text() == '{"tag": "colors"}\n'


def test_two_runs_do_not_write_one_file(run: Callable, tmp_path: Path) -> None:
    with Results(tmp_path / "out" / "toy.jsonl"):
        with pytest.raises(InputError, match="Another run is writing"):
            run(1)
    assert run(1) == [0]


def test_an_output_that_cannot_be_is_refused(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="Cannot write .*toy.jsonl.*--output"):
        run(1)


# Kills and Ctrl-C, in processes of their own


def start(folder: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.toy_benchmark", "-o", str(folder), *map(str, options)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_rows(path: Path, count: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and len(path.read_text().splitlines()) > count:  # the first is the run's
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} rows came")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, jobs: int) -> None:
    path, note = tmp_path / "toy.jsonl", tmp_path / "note"
    options = ("--rows", 24, "--delay", 0.03, "--note", note, "--jobs", jobs)
    with start(tmp_path, *options) as process:
        wait_for_rows(path, 5)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    with Results(path) as kept:
        done = len(kept.rows)
    assert 5 <= done < 24
    time.sleep(0.3)  # for workers to find that they are alone
    begun = len(note.read_text().splitlines())
    assert begun <= done + jobs + 1  # that one may have come when the file was read
    with start(tmp_path, *options) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(note.read_text().splitlines()) == begun + 24 - done
    assert [row["square"] for row in sorted(rows(path), key=lambda row: row["seed"])] == [
        i * i for i in range(24)
    ]
    assert "| 23 | 529 |" in out


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_is_one_sentence_and_130(tmp_path: Path, jobs: int) -> None:
    path = tmp_path / "toy.jsonl"
    with start(tmp_path, "--rows", 500, "--delay", 0.02, "--jobs", jobs, "-q") as process:
        wait_for_rows(path, 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("Error: Stopped by Ctrl-C with ")
    assert f"of 500 rows in '{path}': the same command goes on from there." in err
    assert f"with {len(rows(path))} of" in err


def test_ctrl_c_before_any_work_is_a_sentence_too(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert harness.command(main) == 130
    assert capsys.readouterr().err == "Error: Stopped by Ctrl-C before there was a new row.\n"


def test_errors_are_one_sentence_and_2(tmp_path: Path) -> None:
    with start(tmp_path, "--rows", "many") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("Error: Argument --rows: invalid int value: 'many': see ")
    assert err.count("\n") == 1


# The report


def test_the_report_has_table_notes_figure_and_what_it_was_made_by(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/toy.py", "--rows", "3"])
    run(3, drawn=True)
    page = (tmp_path / "out" / "toy.md").read_text()
    table = "| seed | square |\n| --- | --- |\n| 0 | 0 |\n| 1 | 1 |\n| 2 | 4 |\n\nA note."
    assert page.startswith(f"# {QUESTION}\n\n{table}\n\n![toy](toy.png)\n")
    assert capsys.readouterr().out == table + "\n"
    assert "`python -m benchmarks.toy --rows 3`" in page
    with Image.open(tmp_path / "out" / "toy.png") as image:
        assert image.width > 500
    record = lines(tmp_path / "out" / "toy.jsonl")[0]["run"]
    assert record["command"] in page and record["date"] in page
    assert record["machine"]["cpu"] in page and record["machine"]["cores"] >= 1
    assert set(record["versions"]) == {"python", "tfgen", "torch", "numpy", "commit"}
    assert record["versions"]["torch"] in page


def test_every_run_that_did_something_is_told(run: Callable, tmp_path: Path) -> None:
    run(1)
    run(1)
    run(2)
    page = (tmp_path / "out" / "toy.md").read_text()
    assert page.split("Made by\n\n")[1].count("\n") == 2
    assert sum("run" in line for line in lines(tmp_path / "out" / "toy.jsonl")) == 2


def test_a_report_alone_makes_no_rows(run: Callable, tmp_path: Path) -> None:
    run(2)
    (tmp_path / "out" / "toy.md").unlink()
    assert run(5, report=True) == []
    assert "| 1 | 1 |" in (tmp_path / "out" / "toy.md").read_text()


def test_a_report_of_nothing_is_refused(run: Callable) -> None:
    with pytest.raises(InputError, match="no rows in .*toy.jsonl' to report on"):
        run(5, report=True)


def test_without_matplotlib_the_table_is_written_and_the_figure_asked_for(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(2, drawn=True)
    assert "| 1 | 1 |" in (tmp_path / "out" / "toy.md").read_text()
    assert not (tmp_path / "out" / "toy.png").exists()
    assert "pip install matplotlib, then the same command with --report" in capsys.readouterr().err


def test_rows_of_other_weights_do_not_mix() -> None:
    def row(method: str, weights: str, seed: int) -> Row:
        return Task(method, {"weights": weights}, "a fox", seed).row({})

    old, new = row("beam", "a", 0), [row("beam", "b", 0), row("beam", "b", 1)]
    other = row("random", "a", 0)
    found = current([old, other, *new], lambda row: row["method"])
    assert found == [other, *new]


def test_a_table_is_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


# Options


def test_full_may_be_less_than_all_prompts() -> None:
    parser = Parser("Why?", prompts=8, seeds=1, full=(100, 2))
    assert "the long version: 100 prompts and 2 seeds" in parser.format_help()
    args = parser.parse_args(["--full"])
    assert (args.prompts, args.seeds) == (100, 2)


def test_full_is_all_prompts_and_three_seeds_unless_said() -> None:
    parser = Parser("Why?", prompts=8, seeds=1)
    for options, expected in [
        ([], (8, 1)),
        (["--full"], (None, 3)),
        (["--full", "--prompts", "5"], (5, 3)),
        (["--seeds", "2"], (8, 2)),
    ]:
        args = parser.parse_args(options)
        assert (args.prompts, args.seeds) == expected


@pytest.mark.parametrize("option", ["--prompts", "--seeds", "--jobs"])
def test_numbers_are_from_one_up(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} must be a whole number from 1 up, not 0"):
        Parser("Why?", prompts=8, seeds=1).parse_args([option, "0"])
