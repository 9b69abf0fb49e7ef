"""Forecasts: more candidates are drawn than can be decoded, and the most promising are decoded.

As a screening does by drafts, but by a network that foretells the verifier's embedding of a picture
from its tokens alone (`tfgen.forecaster`): that costs no decode, so a step can look at many more
candidates. It is surrogate-assisted search (Jin, "Surrogate-assisted evolutionary computation",
2011): the surrogate preselects, and only what was decoded counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tfgen.errors import InputError
from tfgen.search.screening import rank_correlation
from tfgen.search.trail import Trail

CONTROL = 1 / 8
"""Of those decoded, the share that is drawn at random from the others, whatever was foretold: it
keeps what the forecaster is blind to, and measures how well it ranks."""
NOTE = "forecast"
_ROWS = 4096  # candidates at a time


def check_forecast(trail: Trail) -> None:
    """InputError where a search has no forecaster that its settings ask for."""
    if trail.forecaster is None:
        raise InputError(
            f"Nothing foretells what {trail.verifier.name} sees in pictures of "
            f"{trail.tokenizer.name}: use forecast 1, or train a forecaster "
            "(python -m tfgen.training.forecast)."
        )


class Promising:
    """Which of the candidates of a step, Int64[N, k], are decoded.

    rows: Int64[at most count], of the candidates: the best by their forecasts, then the control,
    drawn from the others. All of them where there are not more.
    """

    def __init__(self, trail: Trail, candidates: Tensor, count: int) -> None:
        self.trail, self.candidates = trail, candidates
        self.rows = torch.arange(len(candidates))
        self.control, self.foretold = self.rows[:0], torch.zeros(0)
        if len(candidates) <= count:
            return
        accounts = trail.evaluator.accounts
        with accounts.timed("propose"):
            told = [_foretell(trail, part) for part in candidates.split(_ROWS)]
            scores, foretold = (torch.cat(column) for column in zip(*told, strict=True))
            accounts.foretold += len(candidates)
            order = foretold.argsort(descending=True, stable=True)
            drawn = int(CONTROL * count)
            others = order[count - drawn :]
            shuffled = torch.randperm(len(others), generator=trail.generator)
            self.control = others[shuffled[:drawn]]
            self.rows = torch.cat([order[: count - drawn], self.control])
            self.foretold = scores[self.control]

    def pool(self, before: Tensor | None = None) -> Iterator[Tensor]:
        """For `Trail.rank`: `before` and the candidates chosen; when they are scored, how well the
        forecasts ranked the control goes into the notes."""
        chosen = self.candidates[self.rows.to(self.candidates.device)]
        yield chosen if before is None else torch.cat([before, chosen])
        if len(self.rows) == len(self.candidates):
            return
        decoded = self.trail.evaluator.known(self.candidates[self.control])
        self.trail.notes.setdefault(NOTE, []).append(
            {
                "length": self.candidates.shape[1],
                "foretold": len(self.candidates),
                "decoded": len(self.rows),
                "rank_correlation": rank_correlation(self.foretold, decoded),
            }
        )


def _foretell(trail: Trail, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The verifier's score that is foretold of each, and what it is ranked by: Float32[N] each."""
    seen = trail.forecaster.embed(candidates)
    scores = trail.verifier.score_embeddings(seen, trail.target).float().cpu()
    scores = scores.nan_to_num(nan=-torch.inf)
    return scores, scores + trail.prior_term(candidates)
