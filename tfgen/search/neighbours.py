"""After the search: the prompt's nearest pictures of the prior's bank compete with what was found.

A search that starts from nothing spends its first hundred decodes on what a bank knows already: a
whole picture that is nearly right, whose embedding is stored, so that finding it takes none.
"""

from __future__ import annotations

import torch

from tfgen.search.trail import Trail

PHASE = "neighbours"


def add_neighbours(trail: Trail) -> None:
    """Score the pictures that the prior holds and that fit best; the better ones join the beam.

        pool = the beam, and of all pictures in the bank the `neighbours` that score best by their
               stored embeddings, cut to the beam's length, if they begin with the given tokens
        beam = the `beam` best of the pool

    It is the idea of the atlas for whole sequences. Ours.
    """
    count = trail.settings.neighbours
    if not count or any(step.phase == PHASE for step in trail.steps):
        return
    with trail.evaluator.accounts.timed("propose"):
        nearest = trail.nearest(count).to(trail.beam.device)
        tokens = nearest[:, : trail.beam.shape[1]]  # [N, k]
        begun = tokens[:, None, : trail.start.shape[1]] == trail.start  # [N, starts, k]
        tokens = tokens[begun.all(dim=2).any(dim=1)]
    trail.rank(torch.cat([trail.beam, tokens[: trail.share()]]), phase=PHASE)
