"""Which prefixes to keep. A new search is one file here and one line in `SEARCHES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from tfgen.priors.base import Prior
from tfgen.search.accounts import Accounts
from tfgen.search.beam import beam_search, check_models
from tfgen.search.best_of_n import best_of_n
from tfgen.search.evaluator import EmbeddingSource, Engine, Evaluator, PlainEngine, Progress
from tfgen.search.lookahead import lookahead_search
from tfgen.search.presets import PUBLISHED, SOTO
from tfgen.search.recorder import Recorder, RecordWarning
from tfgen.search.records import Pool, SearchResult, Step, Stopped
from tfgen.search.schedule import prefix_lengths
from tfgen.search.settings import SearchSettings
from tfgen.search.trace import check_trace
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
    *,
    trace: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> SearchResult:
    """Run the search that `settings.search` names.

    Same seed, same tokens, whatever the batch size. A spent budget, spent time and Ctrl-C end it
    with the best so far.

    trace: a file that each step is written to, see `tfgen.search.trace`. resume: a folder in which
    the search is kept after each step; if it has one of these settings, seed and `about` that was
    killed, that goes on where it was, and one that has ended gives its result again. about: what
    the header of both shall say of models and prompt.
    options: see `Trail`. callback is called after each step made, progress after each batch of
    decodes; engine, cache and atlas, see `Evaluator` and `EmbeddingSource`.

    Raises InputError on settings that do not fit the models, before it writes anything, and where
    `resume` keeps another search, is damaged, or is in use by another run.
    """
    trail = Trail(target, tokenizer, prior, verifier, settings, seed, **options)
    check_models(trail)  # before anything is written: a search that is refused leaves no file
    if trace is not None:
        check_trace(trace)
    if trace is None and resume is None:
        return SEARCHES[settings.search](trail)
    header = trail.header() | dict(about or {"prompt": target.prompt})
    recorder = Recorder(header, trace=trace, resume=resume)
    try:
        trail.record(recorder)
        return trail.result() if trail.finished else SEARCHES[settings.search](trail)
    finally:
        recorder.close()


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
    "RecordWarning",
    "SOTO",
    "SearchResult",
    "SearchSettings",
    "Step",
    "Stopped",
    "Trail",
    "beam_search",
    "best_of_n",
    "lookahead_search",
    "prefix_lengths",
    "search",
]
