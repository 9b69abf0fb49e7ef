"""Crossover: after the search, its best prefixes take runs of tokens from other pictures.

A prior proposes token by token, and a new object takes several tokens, of which the first alone
gain nothing. A picture that already shows the object has them all, and where a code is ordered,
mostly in one run: two objects, or an object and a background, that were never seen together, are
put together by one exchange.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.search.forecasting import Promising
from tfgen.search.plan import REFINED
from tfgen.search.trail import DONORS, Trail

PHASE = "crossover"
TRIES = 4
"""Children that are drawn, for each that is wanted: some come up twice, or are their parent."""


def cross_over(trail: Trail) -> None:
    """Exchange runs of tokens.

        donors = the beam, and of all pictures in the prior's bank the DONORS that score best by
                 their stored embeddings, and as many that fit each part of the prompt
        `crossover` times:
            pool = the beam, and `beam` * `candidates` children: one of the REFINED best prefixes,
                   with the tokens from a to b, both drawn, of a donor
            beam = the `beam` best of the pool

    It ends earlier where `patience` rounds in a row found nothing better. With a forecast, any
    prefix of the beam may be the one, and of more children the most promising are decoded. Tokens
    given as `start` stay. At λ = 0, or where the prior has no bank, the donors are the beam.

    Source: two-point crossover (Holland, "Adaptation in Natural and Artificial Systems", 1975).
    """
    done, held = sum(step.phase == PHASE for step in trail.steps), None
    while done < trail.settings.crossover and not stalled(trail):
        share = trail.share()
        with trail.evaluator.accounts.timed("propose"):
            held = _held(trail, trail.beam.shape[1]) if held is None else held
            children, parents = _children(trail, held, trail.settings.forecast * share)
        chosen = Promising(trail, children, share)
        parents = torch.cat([torch.arange(len(trail.beam)), parents[chosen.rows]])
        trail.rank(chosen.pool(before=trail.beam), parents=parents, phase=PHASE)
        done += 1
    trail.skip(PHASE, trail.settings.crossover - done)


def stalled(trail: Trail) -> bool:
    """Whether the last `patience` rounds found nothing better than what was there before them."""
    patience = trail.settings.patience
    rounds = [place for place, step in enumerate(trail.steps) if step.phase == PHASE]
    if not patience or len(rounds) < patience:
        return False
    scores = [step.best_score for step in trail.steps]
    first, end = rounds[-patience], rounds[-1] + 1
    return max(scores[first:end]) <= max(scores[:first])


def _children(trail: Trail, held: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Int64[N, k], distinct, none of which is in the beam, and Int64[N], each one's parent in it;
    N is what is wanted, or less where there are not as many. held: of the bank, Int64[D, k]."""
    beam, start = trail.beam.cpu(), trail.start.shape[1]
    donors = torch.cat([beam, held])
    length, count = beam.shape[1], TRIES * wanted
    best = len(beam) if trail.settings.forecast > 1 else min(REFINED, len(beam))

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=trail.generator)

    mothers, fathers = draw(best), draw(len(donors))
    # Two different cuts of the places between tokens, ends included.
    places = length - start + 1
    first = draw(places)
    second = (first + 1 + draw(places - 1)) % places
    a, b = start + torch.minimum(first, second), start + torch.maximum(first, second)
    at = torch.arange(length)
    given = (at >= a[:, None]) & (at < b[:, None])
    children = torch.where(given, donors[fathers], beam[mothers])
    seen = set(map(tuple, beam.tolist()))
    rows = []
    for row, child in enumerate(map(tuple, children.tolist())):
        if child not in seen and len(rows) < wanted:
            seen.add(child)
            rows.append(row)
    return children[rows].to(trail.beam.device), mothers[rows]


def _held(trail: Trail, length: int) -> Tensor:
    """Of the pictures that the prior holds those that fit best, cut to this length; none at λ = 0,
    at which a prior is not asked."""
    if not (trail.settings.prior_strength and trail.prior.held):
        return torch.zeros(0, length, dtype=torch.int64)
    donors = [trail.nearest(DONORS)]
    for part in range(1, 1 + trail.target.parts):

        def fit(embeddings: Tensor, part: int = part) -> Tensor:
            return trail.verifier.similarities(embeddings, trail.target)[:, part]

        donors.append(trail.prior.nearest(DONORS, fit))
    return torch.cat(donors)[:, :length].cpu()
