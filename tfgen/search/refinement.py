"""Refinement: after the search, single tokens of its best prefixes are chosen again.

A beam search decides each token by what the picture looks like before the later ones are there, and
never comes back to it. Refinement does: coordinate search, or, with a temperature, annealing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tfgen.search.plan import REFINED
from tfgen.search.shortlist import shortlisted
from tfgen.search.trail import Trail

PHASE = "refine"


def refine(trail: Trail) -> None:
    """Choose single tokens of the best prefixes again, all others held fixed.

        `refine` times:
            for each position, in random order:
                pool = the beam, and of its REFINED best prefixes that differ elsewhere
                       `candidates` copies each, with another token at that position, drawn from
                       p^λ given all their other tokens
                beam = the `beam` best of the pool

    With a shortlist, some of the tokens are drawn and the others chosen, as in the search before.
    With `anneal`, a temperature T, the beam is drawn from the pool without replacement, in
    proportion to exp(score / T), where T falls to 0 linearly. Tokens given as `start` stay.

    Source: Gibbs sampling and simulated annealing (Geman and Geman, 1984), here of several states,
    which compete; coordinate search at temperature 0.
    """
    settings, start, length = trail.settings, trail.start.shape[1], trail.beam.shape[1]
    positions = length - start
    steps = settings.refine * positions
    while (done := sum(step.phase == PHASE for step in trail.steps)) < steps:
        if done % positions == 0:
            order = torch.randperm(positions, generator=trail.generator) + start
            trail.notes["positions"] = order.tolist()
        position = trail.notes["positions"][done % positions]
        share = trail.share()
        templates = _distinct(trail.beam, position)[: min(REFINED, share)]
        trail.rank(
            _pool(trail, templates, position, share // len(templates)),
            phase=PHASE,
            position=position,
            temperature=settings.anneal * (1 - (done + 1) / steps),
        )


def _distinct(beam: Tensor, position: int) -> Tensor:
    """The rows of Int64[B, k] without those that differ from an earlier one at `position` only."""
    rows: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(beam.tolist()):
        rows.setdefault((*row[:position], *row[position + 1 :]), index)
    return beam[list(rows.values())]


def _pool(trail: Trail, templates: Tensor, position: int, count: int) -> Iterator[Tensor]:
    yield trail.beam

    def draw(count: int) -> Tensor:
        strength, generator = trail.settings.prior_strength, trail.generator
        with trail.evaluator.accounts.timed("propose"):
            drawn = trail.prior.propose_at(templates, position, count, strength, generator)
        return drawn.flatten(0, 1)  # [len(templates) * C, k]

    if trail.settings.shortlist:
        new = slice(position, position + 1)
        yield from shortlisted(trail, draw, len(templates), new, count)
    else:
        yield draw(count)
