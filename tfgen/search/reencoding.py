"""Re-encoding: at the end the tokenizer reads the best pictures, and writes them down again.

A verifier says whether a picture shows what was asked for, and pictures score alike that differ in
what it never learned to mind: a colour half right, a face that is gone, a smear in the sky. An
encoder has only ever read pictures of its world, so what it writes decodes to such.
"""

from __future__ import annotations

import torch

from tfgen.search.plan import ENCODED
from tfgen.search.trail import REENCODED, Trail


def reencode(trail: Trail) -> None:
    """Encode the pictures of the best prefixes, and score what these tokens decode to.

        pool = encode(decode(prefix)), cut to its length, of the `reencode` best of the beam
        the result is the best of the pool, if it scores at most `reencode_loss` less than the best
        prefix ever seen (`Trail.result`)

    A wrong reading scores far lower, so that of several prefixes those win that were read right.
    Tokens given as `start` stay. Ours.
    """
    wanted = trail.settings.reencode
    if not wanted or any(step.phase == REENCODED for step in trail.steps):
        return
    count = min(wanted, len(trail.beam), trail.share() // ENCODED)
    if not count:
        return
    prefixes, start = trail.beam[:count], trail.start.shape[1]
    written = trail.evaluator.encode_again(prefixes)
    tokens = torch.cat([prefixes[:, :start], written[:, start:]], dim=1)
    trail.rank(tokens, parents=torch.arange(count), phase=REENCODED)
