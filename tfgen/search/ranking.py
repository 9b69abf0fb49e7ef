"""Ranking a pool: which candidates are the best, and which of them become the beam."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tfgen.search.records import Pool
from tfgen.search.settings import SearchSettings


def rank_pool(
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    verifier_scores: Tensor,
    rollouts: Tensor | None,
    settings: SearchSettings,
    limited: bool,
    noise: Tensor | None = None,
) -> Pool:
    """The pool of a step, best first; equal scores rank by lower tokens, lexicographically.

    tokens: Int64[N, length]; parents: Int64[N], rows of the previous pool, or -1; scores and
    verifier_scores: Float32[N, M], of the M pictures of each candidate, not-a-number where not
    scored: a candidate is ranked by those that are, and is out where none is; rollouts: Int64[N, M,
    l], or None where a candidate's picture is its own. limited: settings.max_children holds in this
    step. noise: Float64[N], added to the scores where it is chosen which of the candidates are
    kept, and only there.
    """
    rows = _lexicographic(tokens)
    if settings.distinct:
        rows = rows[_first_of_equals(tokens[rows])]
    rows = rows[~scores[rows].isnan().all(dim=1)]
    ranked = _joined(scores[rows], settings)
    order = ranked.argsort(descending=True, stable=True)
    rows, ranked = rows[order], ranked[order]
    choice = torch.arange(len(rows))
    if noise is not None:
        choice = (ranked + noise[rows]).argsort(descending=True, stable=True)
    most = settings.max_children if limited else None
    kept = choice[_select(parents[rows][choice].tolist(), settings.beam, most)].sort().values
    return Pool(
        tokens[rows],
        ranked,
        _joined(verifier_scores[rows], settings),
        parents[rows],
        kept,
        None if rollouts is None else rollouts[rows],
        None if rollouts is None else scores[rows],
    )


def best_picture(pictures: Tensor, scores: Tensor) -> tuple[int, int]:
    """Of pictures Int64[N, M, l] with scores Float32[N, M], the place of the best that is scored;
    the lower tokens of equals."""
    order = _lexicographic(pictures.flatten(0, 1))
    flat = scores.flatten().nan_to_num(nan=-torch.inf, neginf=-torch.inf)[order]
    best = order[flat.argsort(descending=True, stable=True)[0]]
    return divmod(int(best), scores.shape[1])


def _joined(scores: Tensor, settings: SearchSettings) -> Tensor:
    """Float32[N, M] -> Float32[N]: of a candidate, from those of its pictures that are scored."""
    missing = scores.isnan()
    if settings.rollout_score == "max":
        return scores.masked_fill(missing, -torch.inf).amax(dim=1)
    return torch.where(missing.any(dim=1), scores.nanmean(dim=1), scores.mean(dim=1))


def _lexicographic(tokens: Tensor) -> Tensor:
    """Int64[N, k] -> Int64[N], the rows in lexicographic order; equal ones as they were."""
    return torch.from_numpy(np.lexsort(tokens.numpy().T[::-1]))


def _first_of_equals(tokens: Tensor) -> Tensor:
    """Bool[N]: of rows in order, the first of each run of equal ones."""
    first = torch.ones(len(tokens), dtype=torch.bool)
    first[1:] = (tokens[1:] != tokens[:-1]).any(dim=1)
    return first


def _select(parents: list[int], beam: int, max_children: int | None) -> list[int]:
    """The first `beam` rows, leaving out those whose parent has its `max_children` already."""
    if max_children is None:
        return list(range(min(beam, len(parents))))
    kept, children = [], dict.fromkeys(parents, 0)
    for row, parent in enumerate(parents):
        if len(kept) < beam and children[parent] < max_children:
            kept.append(row)
            children[parent] += 1
    return kept
