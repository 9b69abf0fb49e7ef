"""What a search tells: the pool of each step, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tfgen.search.accounts import Accounts
from tfgen.search.settings import SearchSettings

Stopped = Literal["done", "budget", "time", "interrupt"]


@dataclass(frozen=True)
class Pool:
    """The candidates of one step, distinct unless drawn with replacement, best first. On the CPU.

    A candidate is ranked by its own picture or, in a lookahead, by those of its rollouts.
    """

    tokens: Tensor  # Int64[N, length]
    scores: Tensor  # Float32[N], what they are ranked by
    verifier_scores: Tensor  # Float32[N]
    parents: Tensor  # Int64[N], rows of the previous step's pool; -1: a start prefix
    kept: Tensor  # Int64[B], the rows that became the beam, best first
    rollouts: Tensor | None = None  # Int64[N, M, l], whose pictures were scored
    rollout_scores: Tensor | None = None  # Float32[N, M], what they would be ranked by; NaN: none


@dataclass(frozen=True)
class Step:
    """What one step of a search did. `decodes` and `seconds` count from the start of the search."""

    index: int  # from 1
    phase: str  # "search", "complete", ...
    length: int  # of the candidates
    decodes: int
    seconds: float
    best_score: float  # of the pictures of this step, which may be below an earlier step's
    best_verifier_score: float
    best_tokens: Tensor  # Int64[k], that picture's; longer than `length` where it is a rollout's
    pool: Pool
    partial: bool = False  # the search was stopped before all candidates were scored


@dataclass(frozen=True)
class SearchResult:
    """The best prefix that a search ever saw, or what its picture was encoded again as, and how
    it went.

    `tokens` are those of the picture that has `score`. In a lookahead that may be a rollout: it was
    decoded and scored like any prefix, so it counts as one.
    """

    tokens: Tensor  # Int64[k], on the CPU
    score: float  # what it was ranked by: verifier_score + prior_weight * typicality
    verifier_score: float
    steps: list[Step]
    accounts: Accounts
    seconds: float
    stopped: Stopped
    settings: SearchSettings

    @property
    def decodes(self) -> int:
        """Decodes in full."""
        return self.accounts.decodes

    @property
    def interrupted(self) -> bool:
        """Ctrl-C ended the search early."""
        return self.stopped == "interrupt"
