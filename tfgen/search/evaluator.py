"""Decode and score: the only place in a search that does either, and that keeps the accounts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tfgen.errors import TfgenError, whole_number
from tfgen.search.accounts import Accounts
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier

Made = TypeVar("Made")


class Spent(TfgenError):
    """What was allowed is spent: a search ends on it, with the best so far."""


class BudgetExhausted(Spent):
    """All decodes of the budget are made."""


class TimeExhausted(Spent):
    """There is no time for another batch."""


@dataclass(frozen=True)
class Progress:
    """Where a search is, after each batch."""

    step: int  # from 1
    steps: int
    decodes: int  # so far
    best_score: float  # the verifier's, of all pictures so far
    planned: int = 0  # decodes of the whole search, if no candidate comes up twice


class EmbeddingSource(Protocol):
    """Remembers what prefixes look like to a verifier: a cache on disk, or an atlas, which knows
    all prefixes of one token.

    It belongs to one tokenizer, one verifier and, where the decoder draws noise, one seed.
    """

    def get(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Int64[N, k] -> known Bool[N], embeddings Float32[N, d] (any values where not known)."""

    def put(self, tokens: Tensor, embeddings: Tensor) -> None:
        """Remember embeddings Float32[N, d], just computed, of the prefixes Int64[N, k]."""


class Engine(Protocol):
    """Tokens to picture embeddings, a pass at a time: the hot loop, which others may do faster.

    Row i of an embedding is what `verifier.embed(tokenizer.decode(pass))` has in row i, up to
    rounding, and it depends neither on the other rows nor on the other passes of the call.
    """

    name: str
    """Which it is, for the recipe: its rounding may decide which of two near-equals is kept."""

    rows: int
    """Rows of a pass. Fewer, the same in all passes, after the device ran out of memory."""

    passes: int
    """How many passes it likes to be given at a time, so as to have all its cores at work."""

    # An engine may also have `coarse = True`: its rounding shows in a score that is reported, so
    # that of the search's result is computed again without it.

    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """Each Int64[rows, k], k the same in all -> of each, Float32[rows, d] on that device."""

    def draft(self, tokens: Tensor) -> Tensor:
        """`tokenizer.draft`, up to what drafts may differ by: Int64[N, k] -> pictures."""

    def encode_again(self, tokens: Tensor) -> Tensor:
        """`tokenizer.encode_again`: Int64[N, k] -> Int64[N, k]."""


class PlainEngine:
    """One pass after the other through the tokenizer and the verifier."""

    name = "eager"

    def __init__(self, tokenizer: Tokenizer, verifier: Verifier) -> None:
        self.tokenizer, self.verifier = tokenizer, verifier
        self.rows = tokenizer.decode_rows
        self.passes = 1 if tokenizer.device.type == "cpu" else 8

    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        return [self.verifier.embed(self.tokenizer.decode(tokens)) for tokens in passes]

    def draft(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.draft(tokens)

    def encode_again(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.encode_again(tokens)


class Evaluator:
    """Scores prefixes: `score(tokens)` decodes each distinct prefix once and remembers its score.

    A *decode* is one candidate picture decoded and scored. Duplicates and prefixes scored before
    cost none, nor do those that the `atlas` knows; with a `budget`, no more than that many are ever
    made. What the `cache` knows is not decoded either, but is charged to the budget all the same:
    a search finds the same with a full cache as with an empty one, only sooner.

    Scores do not depend on `batch_size`, to the last bit on one device. Networks round differently
    for different numbers of rows (measured on a CPU: every picture of a batch of one differs from
    the same picture in a batch of 16), and one flipped near-tie sends a search elsewhere. Rounding
    scores to a grid does not help: neighbours on two sides of a grid line still flip. So every
    forward pass has the same shape, `engine.rows` rows (by default `tokenizer.decode_rows`), the
    last one filled up by repeating a row; embeddings are scored in the same shape; and which rows
    share a pass follows from the order of the candidates alone. `batch_size` says how many rows go
    to the engine before the host waits for their scores (rounded up to whole passes; by default
    `engine.passes` of them): how often there is progress to see, and how much Ctrl-C loses. Only if
    the device runs out of memory does the shape change: the rows of a pass are halved, and last
    bits may differ from then on.

    `deadline`, on the clock of time.perf_counter: no batch starts that would probably end after it,
    except the very first.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        verifier: Verifier,
        target: Target,
        *,
        batch_size: int | None = None,
        budget: int | None = None,
        deadline: float = math.inf,
        progress: Callable[[Progress], None] | None = None,
        engine: Engine | None = None,
        cache: EmbeddingSource | None = None,
        atlas: EmbeddingSource | None = None,
    ) -> None:
        self.tokenizer, self.verifier, self.target = tokenizer, verifier, target
        self.engine = engine or PlainEngine(tokenizer, verifier)
        self.cache, self.atlas = cache, atlas
        self.rows = self.engine.rows  # of one forward pass
        passes = self.engine.passes
        if batch_size is not None:
            passes = math.ceil(whole_number("batch_size", batch_size, 1) / self.rows)
        self.batch_size = passes * self.rows
        self.budget = None if budget is None else whole_number("budget", budget, 1)
        self.deadline = deadline
        self.progress = progress
        self.accounts = Accounts()
        self.best_score = -torch.inf
        self.step = self.steps = self.planned = 0  # for `progress`; a search sets them
        self._scores: dict[bytes, float] = {}  # by prefix
        self._seen: dict[bytes, Tensor] | None = None  # embeddings by prefix, while they are wanted
        self._news: list[bytes] = []  # the prefixes scored since `news` was last asked
        # If the verifier has embeddings; one that only passes them on may turn out to have none.
        self._embeds = type(verifier).embed is not Verifier.embed
        self._batch_seconds = 0.0  # of the latest batch but the first
        self._passes = 0
        self._warm: tuple[float, int] | None = None  # when the first batch was done, its passes

    @property
    def decodes(self) -> int:
        return self.accounts.decodes

    @property
    def left(self) -> float:
        """Full decodes that the budget still allows; infinite without one."""
        return math.inf if self.budget is None else max(0.0, self.budget - self.accounts.cost)

    @property
    def left_in_time(self) -> float:
        """Decodes that the deadline still allows, if all passes are full, at the rate until now;
        infinite where there is no deadline, and until there have been two batches."""
        if self.deadline == math.inf or self._warm is None:
            return math.inf
        now, (started, before) = time.perf_counter(), self._warm
        made = self._passes - before
        left = max(0.0, self.deadline - now)
        return left * made / (now - started) * self.rows if made else math.inf

    def score(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float32[N] on the CPU, higher is better; -inf where the verifier gave NaN.

        Decodes in the order given. Raises BudgetExhausted after the last decode that the budget
        allows, TimeExhausted when the deadline is near; then, and after Ctrl-C, `known` tells what
        was scored until there.
        """
        keys = _keys(tokens)
        new: dict[bytes, int] = {}  # each unseen prefix and the first row that holds it
        for row, key in enumerate(keys):
            if key not in self._scores:
                new.setdefault(key, row)
        if self.atlas is not None and self._embeds and new:
            self._look_up(self.atlas, tokens, new, rows=len(new))  # one matrix product
        allowed = new
        if self.left < len(new):  # costs of screened pictures are fractions
            allowed = dict(list(new.items())[: int(self.left + 1e-6)])
        spent = len(allowed) < len(new)
        if self.cache is not None and self._embeds and allowed:
            self.accounts.cost += self._look_up(self.cache, tokens, allowed, self.rows)
        todo = list(allowed.items())
        for start in range(0, len(todo), self.batch_size):
            self._check_time()
            started = time.perf_counter()
            batch_keys, rows = zip(*todo[start : start + self.batch_size], strict=True)
            scores = self._in_memory(partial(self._attempt, tokens[list(rows)]))
            self._remember(batch_keys, scores)
            self.accounts.decodes += len(rows)
            self.accounts.cost += len(rows)
            self.accounts.verifier_calls += len(rows) * self.verifier.looks
            now = time.perf_counter()
            if self._warm is None:
                self._warm = (now, self._passes)  # it took longer than others will
            else:
                self._batch_seconds = now - started
            self._report()
        if spent:
            raise BudgetExhausted(f"The budget of {self.budget} decodes is spent.")
        return self.known(tokens)

    def known(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float32[N]: the scores remembered; not-a-number where there is none."""
        return torch.tensor([self._scores.get(key, torch.nan) for key in _keys(tokens)])

    def reported(self, tokens: Tensor, score: float) -> float:
        """The verifier's score of a search's result, Int64[k], as it is told to the user: `score`,
        which the search knows, or, where the engine is coarse, what the models themselves give.
        Like the final picture, that is not charged to the budget."""
        if not getattr(self.engine, "coarse", False):
            return score
        with torch.inference_mode():
            pictures = self.tokenizer.decode(filled(tokens[None], self.tokenizer.decode_rows))
            return float(self.verifier.score(pictures, self.target)[0])

    def encode_again(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Int64[N, k], the first tokens as which the tokenizer encodes the pictures
        of these. Each is charged as a decode; ask `left` before."""
        with self.accounts.timed("decode"), torch.inference_mode():
            written = torch.cat(self.in_parts(tokens, self.engine.encode_again))
        self.accounts.encoded += len(tokens)
        self.accounts.cost += len(tokens)
        return written

    def in_parts(self, tokens: Tensor, work: Callable[[Tensor], Made]) -> list[Made]:
        """What `work` makes of Int64[N, k], `rows` rows at a time; fewer, in this search and in
        those after it with the same engine, once the device runs out of memory. Raises TfgenError
        where there is no memory for a single row."""
        made: list[Made] = []
        start = 0
        while start < len(tokens):
            made.append(self._in_memory(lambda at=start: work(tokens[at : at + self.rows])))
            start += self.rows
        return made

    def account(self, kind: Literal["screened", "gradients"], pictures: int, cost: float) -> None:
        """Charge pictures that were decoded, and shown to the verifier, elsewhere than in `score`.

        cost: of one of them, in full decodes. Ask `left` before the work, as this only counts.
        """
        setattr(self.accounts, kind, getattr(self.accounts, kind) + pictures)
        self.accounts.cost += pictures * cost
        self.accounts.verifier_calls += pictures * self.verifier.looks

    def keep_embeddings(self) -> None:
        """From now on, remember what `embeddings` tells; forget what was remembered until now."""
        self._seen = {}

    def embeddings(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Int64[N, k] -> known Bool[N], and of those known, in order, what the verifier saw,
        Float32[M, d]; on the CPU. Known are those scored since `keep_embeddings`, by a verifier
        that has embeddings."""
        seen = [(self._seen or {}).get(key) for key in _keys(tokens)]
        rows = [row for row in seen if row is not None]
        known = torch.tensor([row is not None for row in seen], dtype=torch.bool)
        return known, torch.stack(rows) if rows else torch.empty(0, 0)

    def news(self) -> list[tuple[list[int], float]]:
        """The prefixes that `score` scored since this was last asked, with their scores."""
        news = [(np.frombuffer(key, np.int32).tolist(), self._scores[key]) for key in self._news]
        self._news.clear()
        return news

    def restore(self, news: Sequence[tuple[Sequence[int], float]]) -> None:
        """Remember scores that `news` told in an earlier run."""
        for tokens, score in news:
            self._scores[np.array(tokens, np.int32).tobytes()] = score
            self.best_score = max(self.best_score, score)

    def _remember(self, keys: Sequence[bytes], scores: Tensor) -> None:
        values = scores.float().where(~scores.isnan(), -torch.inf).tolist()
        self._scores.update(zip(keys, values, strict=True))
        self._news.extend(keys)
        self.best_score = max(self.best_score, *values)

    def _keep(self, tokens: Tensor, seen: list[Tensor]) -> None:
        """seen: the embeddings of the tokens in passes, the last one filled up."""
        if self._seen is not None and self._embeds:
            rows = torch.cat(seen)[: len(tokens)].float().cpu()
            self._seen.update(zip(_keys(tokens), rows, strict=True))

    def _report(self) -> None:
        if self.progress:
            self.progress(
                Progress(self.step, self.steps, self.decodes, self.best_score, self.planned)
            )

    def _check_time(self) -> None:
        now = time.perf_counter()
        late = now >= self.deadline or now + self._batch_seconds > self.deadline
        if self._warm and late:
            raise TimeExhausted("The time is spent.")

    def _look_up(
        self, source: EmbeddingSource, tokens: Tensor, new: dict[bytes, int], rows: int
    ) -> int:
        """Score what a cache or an atlas knows, `rows` at a time, and strike it from `new`; returns
        how many that were."""
        keys, places = list(new), list(new.values())
        with self.accounts.timed("decode"):
            known, embeddings = source.get(tokens[places])
        hits = known.cpu().nonzero()[:, 0].tolist()
        for start in range(0, len(hits), rows):
            part = hits[start : start + rows]
            try:
                with torch.inference_mode():
                    passed = filled(embeddings[part], rows).to(self.tokenizer.device)
                    scores = self._score([passed])[: len(part)]
            except TfgenError:
                if self.decodes:
                    raise
                self._embeds = False  # embeddings are of no use to such a verifier
                return 0
            self._remember([keys[i] for i in part], scores)
            self._keep(tokens[[places[i] for i in part]], [passed])
            for i in part:
                del new[keys[i]]
            self.accounts.cached += len(part)
        if hits:
            self._report()
        return len(hits)

    def _in_memory(self, attempt: Callable[[], Made]) -> Made:
        """What it makes in passes of `rows` rows; fewer, where the device runs out of memory."""
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError as error:
                if self.rows == 1:
                    raise too_little_memory(self.tokenizer) from error
            self.rows = self.engine.rows = fewer_rows(self.rows, self.tokenizer.device)

    @torch.inference_mode()
    def _attempt(self, tokens: Tensor) -> Tensor:
        """Float32[N] on the CPU, in passes of exactly `self.rows` rows."""
        passes = [filled(part, self.rows) for part in tokens.split(self.rows)]
        self._passes += len(passes)
        with self.accounts.timed("decode"):
            seen = self._embed(passes)
            if self.tokenizer.device.type == "cuda":
                torch.cuda.synchronize(self.tokenizer.device)  # the score would wait for it anyway
        scores = self._score(seen)[: len(tokens)]
        self._keep(tokens, seen)
        if self.cache is not None and self._embeds:
            with self.accounts.timed("decode"):
                self.cache.put(tokens, torch.cat(seen)[: len(tokens)].float())
        return scores

    def _embed(self, passes: list[Tensor]) -> list[Tensor]:
        """The embeddings of each pass, or its pictures where the verifier has no embeddings."""
        if self._embeds:
            try:
                return self.engine.embed(passes)
            except TfgenError:
                if self.decodes:
                    raise
                self._embeds = False
        return [self.tokenizer.decode(tokens) for tokens in passes]

    def _score(self, seen: list[Tensor]) -> Tensor:
        with self.accounts.timed("score"):
            score = self.verifier.score_embeddings if self._embeds else self.verifier.score
            return torch.cat([score(part, self.target) for part in seen]).float().cpu()


def fewer_rows(rows: int, device: torch.device) -> int:
    """Half of the rows of a pass for which a device had too little memory, with what torch holds of
    that memory given back. To be called outside the except clause, whose error holds tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return (rows + 1) // 2


def too_little_memory(tokenizer: Tokenizer) -> TfgenError:
    """The error where there is no memory for a pass of one row."""
    return TfgenError(
        f"The device {tokenizer.device} has too little free memory for one picture of "
        f"{tokenizer.name}: free some, or use --device cpu."
    )


def filled(part: Tensor, rows: int) -> Tensor:
    """[N, k], N from 1 to rows -> [rows, k], the last row repeated."""
    return torch.cat([part, part[-1:].expand(rows - len(part), -1)])


def _keys(tokens: Tensor) -> list[bytes]:
    return [row.tobytes() for row in tokens.to("cpu", torch.int32).numpy()]
