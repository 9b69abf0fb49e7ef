"""A benchmark without pictures: python -m tests.toy_benchmark --rows 6 --delay 0.1 -o DIR."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Parser, Report, Row, Task
from tfgen.errors import InputError

QUESTION = "What is the square of the seed?"


def tasks(count: int, weights: str = "a") -> list[Task]:
    settings, more = {"weights": weights}, {"split": "dev"}
    return [Task("square", settings, "a fox", seed, more) for seed in range(count)]


def make(delay: float = 0.0, note: Path | None = None) -> Callable[[Any], dict[str, Any]]:
    """Work that takes a while. `note`: a line for each task that is begun, with the process."""

    def work(item: tuple[Task, Row | None]) -> dict[str, Any]:
        task, row = item
        if note:
            with note.open("a") as file:
                file.write(f"{task.seed} {os.getpid()}\n")
        time.sleep(delay)
        if task.prompt == "a lie":
            raise InputError("The prompt is a lie: say the truth.")
        if task.prompt == "a bug":
            raise ZeroDivisionError("by zero")
        if task.prompt == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": task.seed**2, "renewed": row is not None}

    return work


def report(rows: list[Row], drawn: bool = False) -> Report:
    """`drawn`: with a figure, which takes half a second."""
    rows = sorted(rows, key=lambda row: row["seed"])
    table = [[str(row["seed"]), str(row["square"])] for row in rows]

    def figure(canvas: Any) -> None:
        canvas.subplots().plot([row["seed"] for row in rows], [row["square"] for row in rows])

    return Report(["seed", "square"], table, ["A note."], figure if drawn else None)


def main() -> None:
    parser = Parser(QUESTION, prompts=1, seeds=1)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--note", type=Path)
    args = parser.parse_args()
    harness.run(
        "toy", QUESTION, args, tasks(args.rows), partial(make, args.delay, args.note), report
    )


if __name__ == "__main__":
    sys.exit(harness.command(main))
