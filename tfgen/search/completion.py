"""After the search: the best prefixes completed to all tokens."""

from __future__ import annotations

from tfgen.search.trail import Trail

PHASE = "complete"


def complete_beam(trail: Trail) -> None:
    """Complete the beam to num_tokens, score that, and let the better one win.

        for each prefix of the beam, best first:
            draw the tokens that it lacks from p^λ (or take the most probable); score the picture

    Source: SoTo's complete_after_search. There the completions are scored without what the verifier
    knows of the prompt and replace the prefixes whether or not they are better; here they are
    candidates like all others, and with `keep` "best" they win only if they are.
    """
    how, length = trail.settings.complete, trail.tokenizer.num_tokens
    done = any(step.phase == PHASE for step in trail.steps)
    if how is None or done or trail.beam.shape[1] == length:
        return
    longer = trail.complete(trail.beam[: trail.share()], length, how)
    trail.rank(longer, phase=PHASE)
