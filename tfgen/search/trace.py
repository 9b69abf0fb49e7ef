"""The trace of a search: every step's pool as JSON, one object a line, written as the search goes.

The first line is the header, then comes one line a step, and last the end (not where the process
was killed). Every line has a "kind".

    {"kind": "header", "format": 1, "tfgen": "0.1.0", "torch", "device", "prompt", "negative",
     "model": {"name", "fingerprint"}, "verifier": {"name", "fingerprint", "score"},
     "prior": {"name", ...}, "settings": {...}, "seed", "start": [[...]], "lengths": [1, 2, ...]}

    {"kind": "step", "index", "phase", "length", "decodes", "seconds", "best_score",
     "best_verifier_score", "best_tokens", "partial", "accounts": {...}, "notes": {...}, "pool":
        {"tokens": [[...], ...],       N candidates of `length` tokens, best first
         "parents": [...],             N rows of the previous step line's pool; -1: a row of "start"
         "scores": [...],              N, what they are ranked by
         "verifier_scores": [...],     N
         "kept": [...]                 the rows that became the beam, best first
         "rollouts": [[[...], ...]],   only of a lookahead: N x M continuations, and
         "rollout_scores": [[...]]}}   N x M, what each alone would be ranked by; null: none

    {"kind": "end", "stopped", "tokens", "score", "verifier_score", "seconds", "accounts"}

The search tree: row i of step line s has the parent row `parents[i]` of step line s - 1. Phases are
"search" (prefixes grow), "complete" (the beam completed to all tokens) and those of other stages,
such as "refine", where children are as long as their parents. The picture behind a candidate's
score is the one of its tokens or, where there are rollouts, of those. `best_tokens` are those of
the step's best picture. `decodes` and `seconds` count from the start of the search. A step is
`partial` when the search was stopped in it; its pool then has the candidates scored until there, of
which one may have rollouts that were not. A score that is minus infinity (the verifier gave
not-a-number) is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch

from tfgen.errors import InputError, TfgenError
from tfgen.image_io import check_place
from tfgen.search.accounts import Accounts
from tfgen.search.records import Pool, SearchResult, Step

FORMAT = 1


class Trace:
    """Writes the lines of a trace to a file, each at once.

    Raises InputError where the path is of no use, TfgenError where writing fails later.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        check_trace(path)
        self.path = Path(path)
        self._file: IO[str] | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8")
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise TfgenError(
                f"The trace {str(self.path)!r} cannot be written: {error.strerror or error}."
            ) from error

    def close(self) -> None:
        """Does not fail where the disk is full: what could not be written was an error before."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def check_trace(path: str | PathLike[str]) -> None:
    """Find out before a search whether a trace can be written there; raises InputError if not."""
    path = check_place(path)
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(
            f"Cannot write {str(path)!r} ({error.strerror or error}): choose another file."
        ) from error
    if not os.access(path if exists else path.parent, os.W_OK):
        raise InputError(f"Cannot write {str(path)!r}: this is not allowed: choose another file.")


def step_line(step: Step, accounts: Accounts, notes: Mapping[str, Any]) -> dict[str, Any]:
    """A step as its line in the trace."""
    pool: dict[str, Any] = {
        "tokens": step.pool.tokens.tolist(),
        "parents": step.pool.parents.tolist(),
        "scores": _numbers(step.pool.scores.tolist()),
        "verifier_scores": _numbers(step.pool.verifier_scores.tolist()),
        "kept": step.pool.kept.tolist(),
    }
    if step.pool.rollouts is not None:
        pool["rollouts"] = step.pool.rollouts.tolist()
        pool["rollout_scores"] = [_numbers(row) for row in step.pool.rollout_scores.tolist()]
    return {
        "kind": "step",
        "index": step.index,
        "phase": step.phase,
        "length": step.length,
        "decodes": step.decodes,
        "seconds": step.seconds,
        "best_score": _number(step.best_score),
        "best_verifier_score": _number(step.best_verifier_score),
        "best_tokens": step.best_tokens.tolist(),
        "partial": step.partial,
        "accounts": accounts.as_dict(),
        "notes": dict(notes),
        "pool": pool,
    }


def read_step(line: Mapping[str, Any]) -> Step:
    """The step that `step_line` made the line of."""
    told = line["pool"]
    rollouts = told.get("rollouts")
    unknown = math.nan if line["partial"] else -math.inf
    pool = Pool(
        torch.tensor(told["tokens"], dtype=torch.int64).view(-1, line["length"]),
        _tensor(told["scores"]),
        _tensor(told["verifier_scores"]),
        torch.tensor(told["parents"], dtype=torch.int64),
        torch.tensor(told["kept"], dtype=torch.int64),
        None if rollouts is None else torch.tensor(rollouts, dtype=torch.int64),
        None
        if rollouts is None
        else torch.stack([_tensor(row, unknown) for row in told["rollout_scores"]]),
    )
    return Step(
        line["index"],
        line["phase"],
        line["length"],
        line["decodes"],
        line["seconds"],
        _back(line["best_score"]),
        _back(line["best_verifier_score"]),
        torch.tensor(line["best_tokens"], dtype=torch.int64),
        pool,
        line["partial"],
    )


def end_line(result: SearchResult) -> dict[str, Any]:
    """The last line of the trace."""
    return {
        "kind": "end",
        "stopped": result.stopped,
        "tokens": result.tokens.tolist(),
        "score": result.score,
        "verifier_score": result.verifier_score,
        "seconds": result.seconds,
        "accounts": result.accounts.as_dict(),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) or value == -math.inf else value  # JSON knows neither


def _back(value: float | None, unknown: float = -math.inf) -> float:
    return unknown if value is None else value


def _numbers(values: list[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _tensor(values: list[float | None], unknown: float = -math.inf) -> torch.Tensor:
    return torch.tensor([_back(value, unknown) for value in values], dtype=torch.float32)
