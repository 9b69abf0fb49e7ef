"""What the commands of training share: their arguments, their configs, and how they end."""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from tfgen import hub
from tfgen.errors import InputError, TfgenError, finite_number, unknown
from tfgen.training import stopping
from tfgen.training.settings import Settings
from tfgen.training.stopping import OUT_OF_TIME

P = ParamSpec("P")


def load_config(
    path: str | Path, overrides: list[str], settings: Settings | None = None
) -> dict[str, Any]:
    """A JSON config with `key=value` overrides (values in JSON; bare words are strings).

    settings: what it is to hold. Raises InputError where there is no such config, it has no such
    setting, or they are not right.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no config {str(path)!r}.")
    config = hub.read_json(Path(path))
    known = {*config, *(settings.names if settings else ())}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"{item!r} changes no setting of a config: write key=value.")
        if key not in known:
            raise unknown("setting", key, sorted(known))
        try:
            config[key] = json.loads(value)
        except json.JSONDecodeError:
            config[key] = value
    if settings:
        settings.check(config, str(path))
    return config


def arguments(doc: str, run: str) -> argparse.ArgumentParser:
    """A parser with what every training script takes; its first line of help is that of `doc`."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--config", required=True, help="JSON config")
    parser.add_argument("--run", default=run, help="name of the run in the cache folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--until", type=int, help="stop at this step (the schedule stays the config's)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"stop after so many, with a checkpoint and exit code {OUT_OF_TIME}",
    )
    parser.add_argument("overrides", nargs="*", help="key=value settings over the config's")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a command. Raises InputError where its --device is not here."""
    args = parser.parse_args()
    check_device(args.device)
    return args


def world_arguments(parser: argparse.ArgumentParser, tier: str) -> None:
    """Which world a command without a config draws its scenes from; tier: the default."""
    parser.add_argument("--tier", default=tier)
    parser.add_argument(
        "--free", type=float, default=0.0, help="share of scenes whose objects stand anywhere"
    )


def shown_by(bar: tqdm) -> Callable[[int, int], None]:
    """A progress that moves a bar, and ends the work where a signal asked for it: to be called
    once a part of it is saved."""
    timer = stopping.Timer(None)

    def progress(done: int, total: int) -> None:
        bar.update(done - bar.n)
        timer(done, total)

    return progress


def deadline_in(minutes: float | None) -> float | None:
    """The moment, on time.monotonic's clock, that is so many minutes from now; None: never. Raises
    InputError where that is no number from 0 up."""
    if minutes is None:
        return None
    return time.monotonic() + 60 * finite_number("--minutes", minutes, 0)


def check_device(name: str) -> None:
    """Raises InputError where torch knows no such device, or it is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"There is no device {name!r} to train on: give cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device here: give --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"There is no device {name!r}: the last one here is cuda:{count - 1}.")


@contextmanager
def told_errors() -> Iterator[None]:
    """In the body, bad input and failures are told in a sentence, and end the program with their
    exit code; so does a signal to stop, which a training waits with until it has saved its state.
    """
    try:
        with stopping.at_signals():
            yield
    except TfgenError as error:
        _end(f"error: {error}", error.exit_code)
    except (OSError, SafetensorError) as error:
        _end(f"error: a file could not be read or written ({error}).", 1)
    except KeyboardInterrupt:
        _end("Stopped at once: the same command goes on from what was saved last.", 130)


def _end(sentence: str, code: int) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(code) from None


def command_line(main: Callable[P, None]) -> Callable[P, None]:
    """A command's function, with `told_errors`."""

    @functools.wraps(main)
    def told(*args: P.args, **options: P.kwargs) -> None:
        with told_errors():
            try:
                main(*args, **options)
            except stopping.TimeUp as up:
                if stopping.signalled():
                    print(stopping.SAVED, file=sys.stderr)
                raise SystemExit(exit_code()) from up

    return told


def exit_code() -> int:
    """Of a call that did not come to its end, with what it did saved."""
    return 130 if stopping.signalled() == signal.SIGINT else OUT_OF_TIME
