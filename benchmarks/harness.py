"""What all benchmarks share: rows on disk that survive anything, and a report made of them.

A benchmark lists its `Task`s, says how one is done, and how rows become a table and a figure; `run`
does the rest. Rows lie in DIR/NAME.jsonl, each written and synced as soon as it is there, so that a
kill loses at most the tasks in work, and the same command goes on where it was. Beside it lie the
table, NAME.md, and the figure, NAME.png. Nothing in this file knows of pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn

from tqdm import tqdm

from tfgen.errors import InputError, TfgenError, whole_number

from .workers import Work, cores, results

KEY = ("method", "settings", "prompt", "seed")
INTERRUPTED = 130
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One row to make. These four are its key: a row with the same is this task, done.

    settings: all that the result depends on besides, down to the fingerprints of the models.
    """

    method: str
    settings: dict[str, Any]
    prompt: str
    seed: int
    more: dict[str, Any] = field(default_factory=dict)
    """What else the row says, and the work needs to know, that follows from the key."""

    @property
    def key(self) -> str:
        return row_key({name: getattr(self, name) for name in KEY})

    def row(self, values: dict[str, Any]) -> Row:
        return {name: getattr(self, name) for name in KEY} | self.more | values


@dataclass(frozen=True)
class Report:
    """What rows come to. notes: paragraphs; `figure` draws on an empty matplotlib Figure."""

    columns: Sequence[str]
    table: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    figure: Callable[[Any], None] | None = None


class Interrupted(TfgenError):
    """Ctrl-C."""

    exit_code = INTERRUPTED


class Parser(argparse.ArgumentParser):
    """Its errors are sentences. Has the options that every benchmark has."""

    def __init__(
        self, question: str, prompts: int, seeds: int, full: tuple[int | None, int] = (None, 3)
    ) -> None:
        """prompts, seeds: how many there are by default, in a run of at most ten minutes; full:
        with --full, where None is all prompts."""
        super().__init__(description=question, allow_abbrev=False)
        add = self.add_argument
        add("-o", "--output", type=Path, default=Path("results"), metavar="DIR",
            help="where rows, table and figure go (default: results)")  # fmt: skip
        add("--prompts", type=int, metavar="N", help=f"prompts, in all (default: {prompts})")
        add("--seeds", type=int, metavar="N", help=f"seeds 0 to N - 1 (default: {seeds})")
        long = f"{full[0] or 'all'} prompts and {full[1]} seed{'s' if full[1] > 1 else ''}"
        add("--full", action="store_true", help=f"the long version: {long}")
        add("--jobs", type=int, metavar="N",
            help="processes, one thread each (default: one a core; one on a GPU)")  # fmt: skip
        add("--report", action="store_true", help="no new rows: table and figure of those there")
        add("-q", "--quiet", action="store_true", help="print only the table and errors")
        self.defaults, self.full = (prompts, seeds), full

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:].rstrip('.')}: see {self.prog} --help.")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        found = super().parse_args(*args, **kwargs)
        prompts, seeds = self.full if found.full else self.defaults
        found.prompts = prompts if found.prompts is None else found.prompts
        found.seeds = seeds if found.seeds is None else found.seeds
        for name in ("prompts", "seeds", "jobs"):
            if getattr(found, name) is not None:
                whole_number(f"--{name}", getattr(found, name), 1)
        return found


class Results:
    """The rows of a benchmark: a file of JSON lines that is only ever appended to.

    A line that a kill cut off is dropped. Of several rows with one key the last counts. Lines with
    "run" tell what the rows below them were made by. Only one process at a time may have it open.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or begins it. Raises InputError where that cannot be."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise InputError(
                f"Cannot write {str(path)!r} ({error.strerror or error}): choose another --output."
            ) from error
        _lock(self._file, path)
        self._file.seek(0)
        whole, newline, torn = self._file.read().rpartition(b"\n")
        if torn:
            self._file.truncate(len(whole) + len(newline))
        self.rows: dict[str, Row] = {}
        self.runs: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                value = json.loads(line)
                if "run" in value:
                    self.runs.append(value["run"])
                else:
                    self._keep(value)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"Line {number} of {str(path)!r} is no row of a benchmark: move the file away, "
                    "or choose another --output."
                ) from error

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self, record: dict[str, Any]) -> None:
        """Say what the rows to come are made by."""
        self.runs.append(record)
        self._append({"run": record})

    def add(self, row: Row) -> None:
        """Keep a row, on the disk before this returns."""
        self._keep(row)
        self._append(row)

    def _keep(self, row: Row) -> None:
        key = row_key(row)
        self.rows.pop(key, None)  # so that the rows are in the order of the last that count
        self.rows[key] = row

    def _append(self, value: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TfgenError(
                f"Could not write {str(self.path)!r}: {error.strerror or error}; all rows before "
                "this one are kept."
            ) from error


def row_key(row: Row) -> str:
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def current(rows: Iterable[Row], group: Callable[[Row], Hashable]) -> list[Row]:
    """The rows of each group that have the settings of the group's latest row.

    Rows that were made with other weights, or other defaults, stay in the file, but do not mix.
    """
    keyed = [(group(row), json.dumps(row["settings"], sort_keys=True), row) for row in rows]
    latest = {key: settings for key, settings, _ in keyed}
    return [row for key, settings, row in keyed if settings == latest[key]]


def run(
    name: str,
    question: str,
    args: argparse.Namespace,
    tasks: Sequence[Task],
    make: Callable[[], Work],
    report: Callable[[list[Row]], Report],
    stale: Callable[[Row], bool] = lambda row: False,
) -> list[Row]:
    """Do the tasks that are not done yet, write the report, and return all rows.

    make(): what a worker process calls once, picklable; it returns the work, (task, row) -> values
    of the task's row. `row` is None, or the row of the task that is there but `stale`, for the work
    to bring up to date. The order in which tasks are done changes no row.
    """
    with Results(args.output / f"{name}.jsonl") as kept:
        todo = []
        for task in [] if args.report else tasks:
            row = kept.rows.get(task.key)
            if row is None or stale(row):
                todo.append((task, row))
        if todo:
            kept.begin(record(args))
            _work(kept, args, len(tasks), todo, make)
        rows = list(kept.rows.values())
        if not rows:
            raise InputError(f"There are no rows in {str(kept.path)!r} to report on.")
        text = write_report(args.output / name, question, report(rows), kept.runs, args.quiet)
    print(text)
    return rows


def _work(
    kept: Results,
    args: argparse.Namespace,
    total: int,
    todo: Sequence[tuple[Task, Row | None]],
    make: Callable[[], Work],
) -> None:
    bar = tqdm(
        total=total,
        initial=total - len(todo),
        unit=" rows",
        disable=args.quiet,
        dynamic_ncols=True,
        smoothing=0,
    )
    try:
        with bar:
            for index, values in results(make, todo, args.jobs or cores()):
                kept.add(todo[index][0].row(values))
                bar.update()
    except KeyboardInterrupt as error:
        done = total - sum(task.key not in kept.rows for task, _ in todo)
        raise Interrupted(
            f"Stopped by Ctrl-C with {done} of {total} rows in {str(kept.path)!r}: "
            "the same command goes on from there."
        ) from error


def record(args: argparse.Namespace) -> dict[str, Any]:
    """What a result was made by: command, date, machine, versions."""
    program = sys.argv[0]
    if program.endswith(".py"):
        program = f"python -m benchmarks.{Path(program).stem}"
    torch = sys.modules.get("torch")  # a benchmark that has not loaded it uses no GPU
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    packages = ("tfgen", "torch", "numpy")
    return {
        "command": " ".join([program, shlex.join(sys.argv[1:])]).strip(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu(), "cores": cores(), "gpu": gpu, "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
            "commit": _commit(),
        },
        "jobs": args.jobs or cores(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout, where this is one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_report(
    stem: Path, question: str, report: Report, runs: Sequence[dict[str, Any]], quiet: bool = True
) -> str:
    """Write STEM.md and STEM.png, whole or not at all; returns the table with its notes."""
    table = "\n\n".join([markdown(report.columns, report.table), *report.notes])
    made = [
        f"- `{run['command']}`, {run['date']}, {run['machine']['gpu'] or run['machine']['cpu']}, "
        f"{run['machine']['cores']} cores, {run['jobs']} processes; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
        for run in runs
    ]
    page = stem.with_suffix(".md")
    picture = f"\n![{stem.name}]({stem.name}.png)\n" if report.figure else ""
    text = f"# {question}\n\n{table}\n{picture}\nMade by\n\n" + "\n".join(made) + "\n"
    write_whole(page, text.encode())
    written = [page]
    if report.figure and save_figure(stem.with_suffix(".png"), report.figure):
        written.append(stem.with_suffix(".png"))
    if not quiet:
        print(f"Written: {', '.join(map(str, written))}", file=sys.stderr)
    return table


def save_figure(path: Path, draw: Callable[[Any], None]) -> bool:
    """Draw a PNG; without matplotlib, say what to install instead, and return False."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(
            f"Warning: {path} needs matplotlib: pip install matplotlib, then the same command "
            "with --report.",
            file=sys.stderr,
        )
        return False
    from io import BytesIO

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    draw(figure)
    data = BytesIO()
    figure.savefig(data, format="png")
    write_whole(path, data.getvalue())
    return True


def write_whole(path: Path, data: bytes) -> None:
    """The file appears whole or not at all. Raises TfgenError where it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise TfgenError(f"Could not write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def markdown(columns: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *table]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def command(main: Callable[[], None]) -> int:
    """Run a benchmark alone, as `tfgen bench` does: errors are a sentence and an exit code."""
    try:
        main()
    except TfgenError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Error: Stopped by Ctrl-C before there was a new row.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl  # not on Windows
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"Another run is writing {str(path)!r}: wait for it, or choose another --output."
        ) from error
