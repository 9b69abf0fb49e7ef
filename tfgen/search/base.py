"""What all searches share: settings, records, and `Trail`, which keeps the best prefix seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError, finite_number, unknown, whole_number
from tfgen.priors.base import BRANCHES, Prior
from tfgen.search.evaluator import BudgetExhausted, Evaluator, Progress
from tfgen.search.schedule import prefix_lengths
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier


@dataclass(frozen=True)
class SearchSettings:
    """What to search with. Raises InputError on a value outside its range."""

    beam: int = 16
    """Beam width: prefixes kept after each step. From 1."""

    candidates: int = 32
    """Candidates per beam and step. From 1; more than there are continuations means all of them."""

    tokens: int | None = None
    """Search prefixes of up to this many tokens. 1 to the tokenizer's num_tokens; None is that."""

    schedule: str | Sequence[int] = "one"
    """Prefix length after each step; see `prefix_lengths`."""

    branch: Literal["all", "last"] = "all"
    """In a step of several tokens, a beam's candidates differ in "all" of them or in the "last"."""

    prior_strength: float = 0.0
    """λ: candidates are drawn from p^λ. From 0, which is uniform; 1 is the prior."""

    prior_weight: float = 0.0
    """w: prefixes are ranked by verifier score + w * typicality. From 0."""

    typicality: bool = True
    """False: rank by verifier score + w * mean log p instead."""

    budget: int | None = None
    """At most this many decodes. From 1; None is no limit."""

    batch_size: int | None = None
    """See `Evaluator`; results do not depend on it. From 1; None chooses."""

    def __post_init__(self) -> None:
        for name in ("beam", "candidates"):
            whole_number(name, getattr(self, name), 1)
        for name in ("tokens", "budget", "batch_size"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        for name in ("prior_strength", "prior_weight"):
            finite_number(name, getattr(self, name), 0)
        if self.branch not in BRANCHES:
            raise unknown("branch", self.branch, BRANCHES)


@dataclass(frozen=True)
class Pool:
    """The distinct candidates of one step, best first. On the CPU."""

    tokens: Tensor  # Int64[N, length]
    scores: Tensor  # Float32[N], what they are ranked by
    verifier_scores: Tensor  # Float32[N]


@dataclass(frozen=True)
class Step:
    """What one step of a search did. `decodes` and `seconds` count from the start of the search."""

    index: int  # from 1
    length: int  # of the prefixes
    decodes: int
    seconds: float
    best_score: float  # of this step's pool, which may be below an earlier step's
    best_tokens: Tensor  # Int64[length]
    pool: Pool


@dataclass(frozen=True)
class SearchResult:
    """The best prefix that a search ever saw, and how it went."""

    tokens: Tensor  # Int64[k], on the CPU
    score: float  # what it was ranked by: verifier_score + prior_weight * typicality
    verifier_score: float
    steps: list[Step]
    decodes: int
    seconds: float
    stopped: Literal["done", "budget", "interrupt"]
    settings: SearchSettings

    @property
    def interrupted(self) -> bool:
        """Ctrl-C ended the search early."""
        return self.stopped == "interrupt"


class Trail:
    """One run of a search: draws and ranks candidates, records steps, keeps the best prefix seen.

    As a context manager it ends the search quietly, with the best so far, when the budget is spent
    or on Ctrl-C; a Ctrl-C before anything was scored propagates.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Tokenizer,
        prior: Prior,
        verifier: Verifier,
        settings: SearchSettings,
        seed: int,
        callback: Callable[[Step], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.started = time.perf_counter()
        limit = tokenizer.num_tokens
        if settings.tokens is not None:
            limit = whole_number("tokens", settings.tokens, 1, limit)
        self.lengths = prefix_lengths(settings.schedule, limit)
        if prior.vocab_size != tokenizer.vocab_size or prior.num_tokens < self.lengths[-1]:
            raise InputError(
                f"The prior {prior.name} is for {prior.num_tokens} tokens of a codebook of "
                f"{prior.vocab_size}, but the search needs {self.lengths[-1]} of "
                f"{tokenizer.vocab_size}: use the prior that belongs to the model, or uniform."
            )
        self.prior, self.settings, self.callback = prior, settings, callback
        self.evaluator = Evaluator(
            tokenizer,
            verifier,
            target,
            batch_size=settings.batch_size,
            budget=settings.budget,
            progress=progress,
        )
        self.evaluator.steps = len(self.lengths)
        self.generator = torch.Generator().manual_seed(whole_number("seed", seed, 0, 2**63 - 1))
        self.empty = torch.empty(1, 0, dtype=torch.int64, device=tokenizer.device)
        self.steps: list[Step] = []
        self.stopped: Literal["done", "budget", "interrupt"] = "done"
        self._best: tuple[float, float, Tensor] | None = None  # score, verifier score, tokens

    def __enter__(self) -> Trail:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(error, BudgetExhausted):
            self.stopped = "budget"
        if isinstance(error, KeyboardInterrupt):
            self.stopped = "interrupt"
        return self._best is not None and self.stopped != "done"

    def propose(self, prefixes: Tensor, length: int, count: int) -> Tensor:
        """Int64[B, k] -> Int64[B * count, length]: `count` continuations of each prefix."""
        new = self.prior.propose(  # [B, C, length - k]
            prefixes,
            count,
            self.settings.prior_strength,
            self.generator,
            length - prefixes.shape[1],
            self.settings.branch,
        )
        parents = prefixes[:, None].expand(-1, new.shape[1], -1)
        return torch.cat([parents, new], dim=2).flatten(0, 1)

    def rank(self, tokens: Tensor) -> Tensor:
        """Score the prefixes: Int64[N, k] -> Int64[M, k], the distinct ones, best first."""
        self.evaluator.step = len(self.steps) + 1
        try:
            self.evaluator.score(tokens)
        except (BudgetExhausted, KeyboardInterrupt):
            self._record(tokens)
            raise
        return self._record(tokens).to(tokens.device)

    def _record(self, tokens: Tensor) -> Tensor:
        verifier_scores = self.evaluator.known(tokens)
        scored = ~verifier_scores.isnan()
        if not scored.any():
            return tokens[:0].cpu()
        # unique rows come in lexicographic order, which a stable sort keeps among equal scores
        rows, first = np.unique(tokens.cpu().numpy()[scored.numpy()], axis=0, return_index=True)
        distinct, verifier_scores = torch.from_numpy(rows), verifier_scores[scored][first]
        scores = verifier_scores + self._prior_term(distinct)
        order = scores.argsort(descending=True, stable=True)
        pool = Pool(distinct[order], scores[order], verifier_scores[order])

        score, best = float(pool.scores[0]), pool.tokens[0]
        if self._best is None or score > self._best[0]:
            self._best = (score, float(pool.verifier_scores[0]), best)
        step = Step(
            len(self.steps) + 1,
            tokens.shape[1],
            self.evaluator.decodes,
            time.perf_counter() - self.started,
            score,
            best,
            pool,
        )
        self.steps.append(step)
        if self.callback:
            self.callback(step)
        return pool.tokens

    def _prior_term(self, tokens: Tensor) -> Tensor | float:
        if self.settings.prior_weight == 0:
            return 0.0
        if self.settings.typicality:
            term = self.prior.typicality(tokens)
        else:
            term = self.prior.sequence_log_prob(tokens).mean(dim=1)
        return self.settings.prior_weight * term.cpu()

    def result(self) -> SearchResult:
        if self._best is None or self._best[0] == -torch.inf:
            raise TfgenError(
                f"The verifier {self.evaluator.verifier.name} gave no picture a usable score: "
                "check its weights, or use another verifier."
            )
        score, verifier_score, tokens = self._best
        return SearchResult(
            tokens,
            score,
            verifier_score,
            self.steps,
            self.evaluator.decodes,
            time.perf_counter() - self.started,
            self.stopped,
            self.settings,
        )
