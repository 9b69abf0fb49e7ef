"""The journal of a search: what it needs to go on after it was killed, a line a step.

A line is written, and forced to the disk, when its step is done; a line that a kill cut short has
no line feed and is dropped on reading. So each line appears whole or not at all, as a file does
that is written beside another and renamed, and a step costs what it has to tell, not the file so
far.

    {"kind": "header", ...}       as in the trace
    {"kind": "step", ...,         as in the trace, and
     "news": [[[...], 0.5], ...]  prefixes scored in this step, with the verifier's scores,
     "generator": "..."}          the state of the search's generator, in base 64
    {"kind": "end", ...}          as in the trace, unless Ctrl-C ended the search
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from tfgen.errors import InputError, TfgenError

FREE = {"kind", "tfgen", "torch"}  # entries of the header that a resumed run need not share
FREE_SETTINGS = {"batch_size"}  # results do not depend on it


class Journal:
    """The journal of one search, `FOLDER/seed-SEED.jsonl`; the folder is made where there is none.

    steps, end: the lines of an earlier run of the same search, or [] and None.

    One process at a time has it. Raises InputError where another does, and where the file belongs
    to another search, is damaged, or cannot be written.
    """

    def __init__(self, folder: str | PathLike[str], header: Mapping[str, Any]) -> None:
        self.path = Path(folder) / f"seed-{header['seed']}.jsonl"
        self.steps: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None
        header = json.loads(json.dumps(header))  # tuples become lists, as they do in the file
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            with ExitStack() as refused:
                refused.callback(self.close)
                _lock(self._file, self.path)
                lines = self._read()
                if lines:
                    self._check(header, lines[0])
                    self.steps = [line for line in lines[1:] if line["kind"] == "step"]
                    self.end = lines[-1] if lines[-1]["kind"] == "end" else None
                else:
                    self._file.write(json.dumps(header).encode() + b"\n")
                    self._file.flush()
                refused.pop_all()
        except OSError as error:
            raise InputError(
                f"The search cannot be kept in {str(folder)!r} ({error.strerror or error}): "
                "give another folder."
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. Raises TfgenError where it cannot."""
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TfgenError(
                f"The search could not be kept in {str(self.path)!r}: {error.strerror or error}."
            ) from error

    def close(self) -> None:
        """Does not fail where the disk is full: what could not be written was an error before."""
        with suppress(OSError):
            self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        """The lines of an earlier run; what they do not tell to the end is cut off the file."""
        raw = self.path.read_bytes().splitlines(keepends=True)
        if raw and not raw[-1].endswith(b"\n"):  # killed while writing
            raw.pop()
        try:
            lines = [json.loads(line) for line in raw]
            if lines and lines[-1].get("partial"):  # killed between the last step and the end
                lines.pop()
                raw.pop()
            indices = [line["index"] for line in lines if line["kind"] == "step"]
            if lines and lines[0]["kind"] != "header" or indices != [*range(1, len(indices) + 1)]:
                raise ValueError("steps are missing")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{str(self.path)!r} is damaged or no journal of a search: give another folder."
            ) from error
        os.truncate(self.path, sum(map(len, raw)))
        return lines

    def _check(self, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
        differences = list(_differences(_flat(then), _flat(now)))
        if differences:
            raise InputError(
                f"{str(self.path)!r} keeps another search: {', '.join(differences[:4])}; "
                "give another folder, or ask for the same search again."
            )


def _lock(file: IO[bytes], path: Path) -> None:
    """Until the file is closed, or the process ends in whatever way, it is this process's alone."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"Another run keeps its search in {str(path)!r} right now: wait until it has ended, or "
            "give another folder."
        ) from None
    except OSError:  # some network file systems have no locks
        return


def encode_state(generator: torch.Generator) -> str:
    """The state of a generator, as text."""
    return base64.b64encode(generator.get_state().numpy().tobytes()).decode()


def decode_state(text: str) -> torch.Tensor:
    """What `encode_state` encoded, for `Generator.set_state`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.uint8).copy())


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same, by names that a user knows."""
    flat: dict[str, Any] = {}
    for name, value in header.items():
        if name == "settings":
            flat |= {key: value for key, value in value.items() if key not in FREE_SETTINGS}
        elif isinstance(value, Mapping):
            flat |= {f"{name} {key}": part for key, part in value.items()}
        elif name not in FREE:
            flat[name] = value
    return flat


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    return [
        f"its {name} is {then.get(name)!r}, not {now.get(name)!r}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
