"""The shortlist: a cheap estimate ranks the whole codebook, and the best of it is decoded.

A step of a plain beam search decodes a few codes of each prefix, drawn from the prior, and never
hears of the others. With a shortlist, some of a step's candidates are still drawn; what they scored
ranks all other codes of all prefixes, and the best of those are the other candidates. Every
candidate is decoded and scored exactly, so an estimate that errs wastes decodes and wins nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.search.gradient import GRADIENT_COST, Expansion, scores_and_gradients
from tfgen.search.surrogate import Surrogate
from tfgen.search.trail import Trail

LEAST_DRAWN = 1 / 8
"""Of a step's candidates, the share that is drawn in any case, and one of each parent at least: an
estimate must know something."""
SCOUTED = 2**14
"""Sequences that are ranked first in a step; where there are more, the prior draws them."""
HOPEFUL = 2**11
"""Of those, the best, which are ranked again each time that more is known."""
ROUNDS = 3
"""The surrogate's choice is scored in so many rounds, each fitted to all before it."""
ANCHORS = 1 / 8
"""Gradients are taken at the best of those drawn: one for so many of a step's decodes."""

Draw = Callable[[int], Tensor]
"""n -> Int64[B * n, k], n distinct candidates of each of B parents, parent by parent, in the order
drawn from the prior; fewer where there are no more."""


def check_shortlist(trail: Trail) -> None:
    """InputError where the models of a search cannot have the shortlist that it asks for."""
    try:
        trail.tokenizer.code_embeddings()
    except TfgenError as error:
        raise InputError(
            f"A shortlist compares codes by their vectors, and the tokenizer {trail.tokenizer.name}"
            " has none: use shortlist 0, or another model."
        ) from error
    if trail.settings.shortlist_by == "gradient":
        code = torch.zeros(1, 1, dtype=torch.int64, device=trail.tokenizer.device)
        try:
            scores_and_gradients(trail, code)
        except (TfgenError, RuntimeError) as error:  # RuntimeError: nothing to go back through
            raise InputError(
                f"The score that {trail.verifier.name} gives pictures of {trail.tokenizer.name} "
                "has no gradient: use the shortlist by 'surrogate', or other models."
            ) from error


def shortlisted(trail: Trail, draw: Draw, parents: int, new: slice, count: int) -> Iterator[Tensor]:
    """The candidates of a step in rounds, Int64[n, k]; each is to be scored before the next.

        yield a few candidates of each parent, drawn from the prior
        repeat: estimate the scores of all others from the candidates scored so far
                yield those with the best estimates

    parents: B, how many there are. new: the positions at which candidates differ from their parent.
    count: decodes that each parent may cost; `shortlist` in `candidates` of these go to the best
    estimates, whosever they are.

    By "surrogate", the estimate is a Gaussian process fitted to the pictures seen (`Surrogate`):
    Bayesian optimisation in batches (arXiv 1807.02811), which here takes the greatest means. By
    "gradient" it is the first-order expansion of the score at the best candidates drawn
    (`Expansion`), in one round; of what a parent may cost, gradients take their share first.
    """
    gradient = trail.settings.shortlist_by == "gradient"
    anchors = int(count * ANCHORS) if gradient else 0
    count -= anchors * GRADIENT_COST
    share = min(trail.settings.shortlist / trail.settings.candidates, 1 - LEAST_DRAWN)
    chosen = 0 if gradient and not anchors else int(parents * count * share)
    each = max(1, count - -(-chosen // parents))  # drawn of each parent
    chosen = min(chosen, parents * (count - each))
    scouts = draw(max(count, SCOUTED // parents))
    scouts = scouts.view(parents, -1, scouts.shape[1])  # [B, M, k]
    draws, others = scouts[:, :each], scouts[:, each:]
    drawn, hopeful = draws.flatten(0, 1), others.flatten(0, 1)
    trail.evaluator.keep_embeddings()
    yield drawn
    seen, rounds = drawn, 1 if gradient else ROUNDS
    for left in range(min(rounds, chosen, len(hopeful)), 0, -1):
        with trail.evaluator.accounts.timed("propose"):
            if gradient:
                expansion = Expansion(trail, _best_drawn(trail, draws, anchors), new)
                estimates = expansion.predict(others).flatten()
            else:
                estimates = _surrogate_scores(trail, seen, hopeful, new)
            if seen is drawn:  # the first round
                first = _best(estimates, max(HOPEFUL, 2 * chosen))
                first = first[trail.evaluator.known(hopeful[first]).isnan()]
                hopeful, estimates = hopeful[first], estimates[first]
                prior_term = trail.prior_term(hopeful)
            order = _best(estimates + prior_term, len(hopeful))
        choice, rest = order[: chosen // left], order[chosen // left :]
        chosen -= len(choice)
        yield hopeful[choice]
        seen = torch.cat([seen, hopeful[choice]])
        hopeful, prior_term = hopeful[rest], prior_term[rest]


def _surrogate_scores(trail: Trail, seen: Tensor, tokens: Tensor, new: slice) -> Tensor:
    """Float32[m] on the CPU: what the verifier probably gives Int64[m, k]; seen: Int64[n, k], some
    candidates scored."""
    surrogate, scores = Surrogate(trail.tokenizer, new), trail.evaluator.known(seen)
    seen, scores = seen.cpu()[scores.isfinite()], scores[scores.isfinite()]
    if len(seen) == 0:
        return torch.zeros(len(tokens))
    known, embeddings = trail.evaluator.embeddings(seen)
    if not known.any():  # the verifier has none
        surrogate.fit(seen, scores[:, None])
        return surrogate.predict(tokens)[:, 0]
    surrogate.fit(seen[known], embeddings)
    with torch.inference_mode():
        expected = surrogate.predict(tokens).to(trail.tokenizer.device)
        scores = trail.verifier.score_embeddings(expected, trail.target)
    return scores.float().cpu().nan_to_num(nan=-torch.inf)


def _best_drawn(trail: Trail, draws: Tensor, count: int) -> Tensor:
    """Int64[B, D, k], candidates scored -> Int64[B, A, k], the best of each parent's."""
    scores = trail.evaluator.known(draws.flatten(0, 1)).view(draws.shape[:2])
    order = scores.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)
    rows = order[:, :count, None].expand(-1, -1, draws.shape[2])
    return draws.gather(1, rows.to(draws.device))


def _best(scores: Tensor, count: int) -> Tensor:
    """The rows of the `count` greatest, the first of equals first."""
    return scores.argsort(descending=True, stable=True)[:count]
