"""Best-of-n: whole sequences, drawn independently; the best is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.search.plan import ROUND
from tfgen.search.records import SearchResult
from tfgen.search.trail import Trail

PATIENCE = 20  # how often a round is drawn before it does with the new sequences it has
FEW = 64  # sequences that a repeated draw has at least


def best_of_n(trail: Trail) -> SearchResult:
    """Draw n sequences from p^λ and keep the one whose picture scores best.

        repeat n times:
            draw all tokens from p^λ, one after the other; again, if they were drawn before
            decode and score them
        return the best

    Source: the baseline of "(1D) Ordered Tokens Enable Efficient Test-Time Search" (arXiv
    2604.15453). With n = 1 it is plain sampling. Sequences are distinct: drawing again what was
    drawn before is sampling without replacement, exactly. Where there are at most n sequences, all
    of them are tried; where p^λ is so sharp that it hardly brings new ones, fewer than n.

    They are drawn in rounds of `plan.ROUND`; a round is a step of the records.
    """
    distinct, length = trail.settings.distinct, trail.lengths[-1]
    there_are = len(trail.start) * trail.tokenizer.vocab_size ** (length - trail.start.shape[1])
    samples = min(trail.plan.samples, there_are) if distinct else trail.plan.samples
    with trail:
        while missing := samples - sum(len(step.pool.tokens) for step in trail.steps):
            if distinct and samples == there_are:
                pool = trail.propose(trail.start, length, there_are)
            else:
                pool = draw(trail, min(ROUND, missing))
            if not len(pool):
                break
            trail.rank(pool, parents=torch.full((len(pool),), -1))
    return trail.result()


def draw(trail: Trail, count: int) -> Tensor:
    """Int64[n, length]: `count` sequences; if they must be distinct, new ones, perhaps fewer."""
    found: list[Tensor] = []
    seen: set[tuple[int, ...]] = set()
    for attempt in range(PATIENCE):
        many = max(count, FEW) if attempt else count
        rows = trail.start[torch.arange(many) % len(trail.start)]
        drawn = trail.complete(rows, trail.lengths[-1], "sample")
        if not trail.settings.distinct:
            return drawn
        old = ~trail.evaluator.known(drawn).isnan()
        for row, tokens, is_old in zip(drawn, drawn.tolist(), old.tolist(), strict=True):
            if len(found) < count and not is_old and tuple(tokens) not in seen:
                found.append(row)
                seen.add(tuple(tokens))
        if len(found) == count:
            break
    return torch.stack(found) if found else trail.start[:0]
