"""Which prefixes to keep. A new search is one file here and one line in `SEARCHES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfgen.priors.base import Prior
from tfgen.search.accounts import Accounts
from tfgen.search.beam import beam_search
from tfgen.search.best_of_n import best_of_n
from tfgen.search.evaluator import EmbeddingSource, Engine, Evaluator, PlainEngine, Progress
from tfgen.search.lookahead import lookahead_search
from tfgen.search.presets import PUBLISHED, SOTO
from tfgen.search.records import Pool, SearchResult, Step
from tfgen.search.schedule import prefix_lengths
from tfgen.search.settings import SearchSettings
from tfgen.search.trail import Trail
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier

SEARCHES: dict[str, Callable[[Trail], SearchResult]] = {
    "beam": beam_search,
    "lookahead": lookahead_search,
    "best-of-n": best_of_n,
}


def search(
    target: Target,
    tokenizer: Tokenizer,
    prior: Prior,
    verifier: Verifier,
    settings: SearchSettings,
    seed: int = 0,
    **options: Any,
) -> SearchResult:
    """Run the search that `settings.search` names.

    Same seed, same tokens, whatever the batch size. A spent budget, spent time and Ctrl-C end it
    with the best so far.

    options: see `Trail`. callback is called after each step, progress after each batch of decodes;
    engine and cache, see `Evaluator`; trace, see `Trace`.
    """
    trail = Trail(target, tokenizer, prior, verifier, settings, seed, **options)
    return SEARCHES[settings.search](trail)


__all__ = [
    "SEARCHES",
    "Accounts",
    "EmbeddingSource",
    "Engine",
    "Evaluator",
    "PUBLISHED",
    "PlainEngine",
    "Pool",
    "Progress",
    "SOTO",
    "SearchResult",
    "SearchSettings",
    "Step",
    "Trail",
    "beam_search",
    "best_of_n",
    "lookahead_search",
    "prefix_lengths",
    "search",
]
