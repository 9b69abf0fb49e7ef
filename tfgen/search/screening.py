"""Screening: more candidates than can be decoded are looked at as drafts, the best are decoded.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) in two rungs: the draft of a picture,
which costs `tokenizer.draft_cost` decodes, and its decode.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tfgen.errors import InputError
from tfgen.search.evaluator import filled
from tfgen.search.shortlist import Draw
from tfgen.search.trail import Trail

LEAST, MOST = 1 / 16, 1 / 2
"""Between these lies the share of the candidates screened that is promoted."""
FIRST = 1 / 4
"""That share before anything is known of how well drafts rank."""
CONTROL = 1 / 8
"""Of those promoted, the share that is drawn at random, whatever their drafts score: by them it is
measured how well drafts rank."""
NOTE = "screening"


def check_screening(trail: Trail) -> None:
    """InputError where the tokenizer of a search has no drafts."""
    if trail.tokenizer.draft_cost is None:
        raise InputError(
            f"Screening looks at drafts first, and the tokenizer {trail.tokenizer.name} has none: "
            "leave out screen, or use another model."
        )


def screened(trail: Trail, draw: Draw, parents: int, count: int) -> Iterator[Tensor]:
    """The candidates of a step that are to be decoded, Int64[n, k].

        draw more candidates from the prior than can be decoded; score their drafts
        yield some at random, and the best of the others
        ask how well the drafts ranked those at random, and next time promote accordingly

    parents: how many prefixes are extended; count: decodes that each may cost, drafts included.

    The share that is promoted is 1 - r, where r is Spearman's rank correlation between the scores
    of drafts and of decodes among those drawn at random in the step before, but within LEAST and
    MOST: all drafts might as well be decoded where they say nothing, and the best one alone would
    do where they say all. Where drafts cost so much that no more candidates could be looked at than
    decoded, all are decoded.

    What each step screened and promoted, and its r, are in the notes.
    """
    cost, notes = trail.tokenizer.draft_cost, trail.notes.setdefault(NOTE, [])
    known = [note["rank_correlation"] for note in notes if note["rank_correlation"] is not None]
    share = min(max(1 - known[-1], LEAST), MOST) if known else FIRST
    many = int(count / (cost + share))
    if many <= count or parents * (count - many * cost) < 1:
        yield draw(count)
        return
    candidates = draw(many)
    drafts = _score_drafts(trail, candidates)
    promoted = int(parents * count - len(candidates) * cost)
    shuffled = torch.randperm(len(candidates), generator=trail.generator)
    control, others = shuffled.split([n := int(CONTROL * promoted), len(candidates) - n])
    ranked = drafts + trail.prior_term(candidates)
    best = others[ranked[others].argsort(descending=True, stable=True)]
    yield candidates[torch.cat([control, best[: promoted - len(control)]])]
    decoded = trail.evaluator.known(candidates[control])
    notes.append(
        {
            "length": candidates.shape[1],
            "screened": len(candidates),
            "promoted": promoted,
            "rank_correlation": rank_correlation(drafts[control], decoded),
        }
    )


def _score_drafts(trail: Trail, tokens: Tensor) -> Tensor:
    """Float32[N] on the CPU: what the verifier gives the drafts of Int64[N, k]."""
    evaluator = trail.evaluator

    def score(part: Tensor) -> Tensor:
        with evaluator.accounts.timed("decode"), torch.inference_mode():
            pictures = evaluator.engine.draft(filled(part, evaluator.rows))
            scores = trail.verifier.score(pictures, trail.target)[: len(part)].float().cpu()
        evaluator.account("screened", len(part), trail.tokenizer.draft_cost)
        return scores

    return torch.cat(evaluator.in_parts(tokens, score)).nan_to_num(nan=-torch.inf)


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's, of two Float[N]; None of fewer than three numbers, or where all are equal."""
    finite = a.isfinite() & b.isfinite()
    ranks = [_ranks(values[finite]) for values in (a, b)]
    if len(ranks[0]) < 3 or any(r.std() == 0 for r in ranks):
        return None
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Float64[N]: the place of each among all; equal ones share the mean of theirs."""
    less = (values[None] < values[:, None]).sum(dim=1)
    equal = (values[None] == values[:, None]).sum(dim=1)
    return less.double() + (equal - 1).double() / 2
