"""Lookahead search: a beam search that ranks candidates by where they lead."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from tfgen.search.beam import grow
from tfgen.search.records import SearchResult
from tfgen.search.trail import Trail


def lookahead_search(trail: Trail) -> SearchResult:
    """Beam search whose candidates are ranked by the pictures of their rollouts.

        beam = {the empty prefix}
        for each length of the schedule:
            pool = for each prefix of the beam, `candidates` continuations to that length
            for each candidate, `rollouts` times:
                draw `lookahead` more tokens from p^λ (or take the most probable), and score that
            beam = the `beam` candidates whose rollouts have the best mean (or best) score
        return the best picture ever seen

    Source: "(1D) Ordered Tokens Enable Efficient Test-Time Search" (arXiv 2604.15453), lookahead
    search, and its code, SoTo, which has one rollout a candidate, greedy. The beam keeps the
    candidates as they are, without what their rollouts added.

    Rollouts draw from a generator of their own, so that the beam's draws are those of a plain beam
    search: with a lookahead of 0 this is beam search exactly. The best picture ever seen may be a
    rollout's; the result then has all tokens that the picture shows. (SoTo's pictures show tokens
    that its result does not have.)
    """
    return grow(trail, partial(roll_out, trail))


def roll_out(trail: Trail, pool: Tensor) -> Tensor | None:
    """Int64[N, k] -> Int64[N, M, l], rollouts of each candidate; None in a step without any."""
    step = len(trail.steps)
    length, many = trail.plan.reach(step), trail.plan.rollouts(step)
    if length == pool.shape[1]:
        return None
    repeated = pool.repeat_interleave(many, dim=0)  # [N * M, k]
    longer = trail.complete(repeated, length, trail.settings.rollout, "rollout")
    return longer.view(len(pool), many, length)
