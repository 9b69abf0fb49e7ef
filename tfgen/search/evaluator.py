"""Decode and score: the only place in a search that does either, and that keeps the accounts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tfgen.errors import TfgenError, whole_number
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier


class BudgetExhausted(TfgenError):
    """All decodes of the budget are spent: a search ends on it, with the best so far."""


@dataclass(frozen=True)
class Progress:
    """Where a search is, after each batch."""

    step: int  # from 1
    steps: int
    decodes: int  # so far
    best_score: float  # the verifier's, of all pictures so far


class Evaluator:
    """Scores prefixes: `score(tokens)` decodes each distinct prefix once and remembers its score.

    A *decode* is one candidate picture decoded and scored. Duplicates and prefixes scored before
    cost none; with a `budget`, no more than that many are ever made.

    Scores do not depend on `batch_size`, to the last bit on one device. Networks round differently
    for different numbers of rows (measured on a CPU: every picture of a batch of one differs from
    the same picture in a batch of 16), and one flipped near-tie sends a search elsewhere. Rounding
    scores to a grid does not help: neighbours on two sides of a grid line still flip. So every
    forward pass has the same shape, `tokenizer.decode_rows` rows, the last one filled up by
    repeating a row, and which rows share a pass follows from the order of the candidates alone.
    `batch_size` says how many rows go to the device before the host waits for their scores (rounded
    up to whole passes; by default one pass on a CPU, eight elsewhere): how often there is progress
    to see, and how much Ctrl-C loses. Only if the device runs out of memory does the shape change:
    the rows of a pass are halved, and last bits may differ from then on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        verifier: Verifier,
        target: Target,
        *,
        batch_size: int | None = None,
        budget: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.tokenizer, self.verifier, self.target = tokenizer, verifier, target
        self.rows = tokenizer.decode_rows  # of one forward pass
        passes = 1 if tokenizer.device.type == "cpu" else 8
        if batch_size is not None:
            passes = math.ceil(whole_number("batch_size", batch_size, 1) / self.rows)
        self.batch_size = passes * self.rows
        self.budget = None if budget is None else whole_number("budget", budget, 1)
        self.progress = progress
        self.decodes = 0
        self.best_score = -torch.inf
        self.step = self.steps = 0  # for `progress`; a search that knows them sets them
        self._scores: dict[bytes, float] = {}  # by prefix

    def score(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float32[N] on the CPU, higher is better; -inf where the verifier gave NaN.

        Decodes in the order given. Raises BudgetExhausted after the last decode that the budget
        allows; then, and after Ctrl-C, `known` tells what was scored until there.
        """
        keys = _keys(tokens)
        new: dict[bytes, int] = {}  # each unseen prefix and the first row that holds it
        for row, key in enumerate(keys):
            if key not in self._scores:
                new.setdefault(key, row)
        allowed = len(new) if self.budget is None else self.budget - self.decodes
        todo = list(new.items())[:allowed]
        for start in range(0, len(todo), self.batch_size):
            batch_keys, rows = zip(*todo[start : start + self.batch_size], strict=True)
            scores = self._decode_and_score(tokens[list(rows)])
            self._scores.update(zip(batch_keys, scores, strict=True))
            self.decodes += len(rows)
            self.best_score = max(self.best_score, *scores)
            if self.progress:
                self.progress(Progress(self.step, self.steps, self.decodes, self.best_score))
        if len(todo) < len(new):
            raise BudgetExhausted(f"The budget of {self.budget} decodes is spent.")
        return self.known(tokens)

    def known(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float32[N]: the scores remembered; not-a-number where there is none."""
        return torch.tensor([self._scores.get(key, torch.nan) for key in _keys(tokens)])

    def _decode_and_score(self, tokens: Tensor) -> list[float]:
        while True:
            try:
                scores = [self._pass(part) for part in tokens.split(self.rows)]
                scores = torch.cat(scores).float()
                return scores.where(~scores.isnan(), -torch.inf).tolist()
            except torch.OutOfMemoryError as error:
                if self.rows == 1:
                    raise TfgenError(
                        f"The device {self.tokenizer.device} has too little free memory for one "
                        f"picture of {self.tokenizer.name}: free some, or use --device cpu."
                    ) from error
            self.rows = (self.rows + 1) // 2
            if self.tokenizer.device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _pass(self, tokens: Tensor) -> Tensor:
        """One forward pass of exactly `self.rows` rows."""
        n = len(tokens)
        filled = torch.cat([tokens, tokens[-1:].expand(self.rows - n, -1)])
        return self.verifier.score(self.tokenizer.decode(filled), self.target)[:n]


def _keys(tokens: Tensor) -> list[bytes]:
    return [row.tobytes() for row in tokens.to("cpu", torch.int32).numpy()]
