"""Beam search over token prefixes."""

from __future__ import annotations

from collections.abc import Callable

from tfgen.priors.base import Prior
from tfgen.search.base import SearchResult, SearchSettings, Step, Trail
from tfgen.search.evaluator import Progress
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier


def beam_search(
    target: Target,
    tokenizer: Tokenizer,
    prior: Prior,
    verifier: Verifier,
    settings: SearchSettings,
    seed: int = 0,
    callback: Callable[[Step], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Grow `beam` prefixes step by step; at each, try `candidates` continuations of every one.

    Source: "(1D) Ordered Tokens Enable Efficient Test-Time Search" (arXiv 2604.15453), beam search,
    and its code, SoTo. Where ours differs:
      - The first step draws beam * candidates proposals, as many as the others. SoTo's draws
        `candidates`, as there is one empty parent; but no step decides more than the one that says
        what the scene is.
      - The best prefix ever seen is returned. SoTo returns the best of the last step, which may be
        worse than an earlier one, as parents do not compete with their children.
      - Candidates are distinct, so that no decode is spent twice; SoTo's uniform prior may repeat
        itself.
      - Equal scores rank by lower tokens, lexicographically; in SoTo, however topk happens to order
        them.

    `callback` is called after each step, `progress` after each batch of decodes. Same seed, same
    tokens, whatever the batch size. Ctrl-C and a spent budget end the search with the best so far.
    """
    trail = Trail(target, tokenizer, prior, verifier, settings, seed, callback, progress)
    beams, candidates = trail.empty, settings.beam * settings.candidates  # beams: [1, 0]
    with trail:
        for length in trail.lengths:
            pool = trail.propose(beams, length, candidates)  # [len(beams) * candidates, length]
            beams = trail.rank(pool)[: settings.beam]  # [beam, length]
            candidates = settings.candidates
    return trail.result()
