"""Beam search over token prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor

from tfgen.search.completion import complete_beam
from tfgen.search.crossover import cross_over
from tfgen.search.forecasting import Promising, check_forecast
from tfgen.search.neighbours import add_neighbours
from tfgen.search.records import SearchResult
from tfgen.search.reencoding import reencode
from tfgen.search.refinement import refine
from tfgen.search.screening import check_screening, screened
from tfgen.search.shortlist import check_shortlist, shortlisted
from tfgen.search.trail import Trail


def beam_search(trail: Trail) -> SearchResult:
    """Grow `beam` prefixes step by step; at each, try `candidates` continuations of every one.

        beam = {the empty prefix}
        for each length of the schedule:
            pool = for each prefix of the beam, `candidates` continuations to that length
            beam = the `beam` best of the pool
        return the best prefix ever seen

    With a shortlist, some of the candidates are drawn from the prior, and the others chosen; with a
    screening, they are the best of more that were looked at as drafts; with a forecast, of more
    that were judged by their tokens.

    Source: "(1D) Ordered Tokens Enable Efficient Test-Time Search" (arXiv 2604.15453), beam search,
    and its code, SoTo. Where ours differs, unless the settings say otherwise (presets.SOTO does):
      - The first step draws beam * candidates proposals, as many as the others. SoTo's draws
        `candidates`, as there is one empty parent; but no step decides more than the one that says
        what the scene is. (first_step)
      - The best prefix ever seen is returned. SoTo returns the best of the last step, which may be
        worse than an earlier one, as parents do not compete with their children. (keep)
      - Candidates are distinct, so that no decode is spent twice; SoTo's uniform prior may repeat
        itself. (distinct)
      - Equal scores rank by lower tokens, lexicographically; in SoTo, however topk happens to order
        them.
    """
    return grow(trail, lambda pool: None)


def check_models(trail: Trail) -> None:
    """InputError where the models cannot have what the settings ask for."""
    if trail.settings.shortlist:
        check_shortlist(trail)
    if trail.settings.screen:
        check_screening(trail)
    if trail.settings.forecast > 1:
        check_forecast(trail)


def grow(trail: Trail, roll_out: Callable[[Tensor], Tensor | None]) -> SearchResult:
    """The loop of beam search. roll_out: from a pool Int64[N, k] the continuations Int64[N, M, l]
    whose pictures it is ranked by; None for its own pictures."""
    with trail:
        for length in trail.ahead():
            pool = candidates(trail, length)
            trail.rank(pool, rollouts=roll_out(pool))
        add_neighbours(trail)
        cross_over(trail)
        complete_beam(trail)
        refine(trail)
        reencode(trail)
    return trail.result()


def candidates(trail: Trail, length: int) -> Tensor | Iterable[Tensor]:
    """The pool of a step to this length, Int64[N, length], or its rounds."""
    prefixes, count = trail.parents(length)  # [B, k]
    draw = partial(trail.propose, prefixes, length)
    if trail.exhaustive and not trail.steps:
        return draw(count)  # all there are
    if trail.settings.shortlist:
        return shortlisted(trail, draw, len(prefixes), slice(prefixes.shape[1], length), count)
    if trail.settings.screen:
        return screened(trail, draw, len(prefixes), count)
    if trail.settings.forecast > 1 and trail.settings.forecast_in == "all":
        many = draw(trail.settings.forecast * count)
        return Promising(trail, many, len(prefixes) * count).pool()
    return draw(count)
