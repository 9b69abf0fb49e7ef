"""Which prefixes to keep. A new search is one file here and one line in `SEARCHES`."""

from collections.abc import Callable
from typing import Any

from tfgen.errors import unknown
from tfgen.search.base import Pool, SearchResult, SearchSettings, Step
from tfgen.search.beam import beam_search
from tfgen.search.evaluator import Evaluator, Progress
from tfgen.search.schedule import prefix_lengths

SEARCHES: dict[str, Callable[..., SearchResult]] = {
    "beam": beam_search,
}


def search(name: str, *args: Any, **kwargs: Any) -> SearchResult:
    """Run the search called `name` with the arguments of `beam_search`."""
    if name not in SEARCHES:
        raise unknown("search", name, SEARCHES)
    return SEARCHES[name](*args, **kwargs)


__all__ = [
    "SEARCHES",
    "Evaluator",
    "Pool",
    "Progress",
    "SearchResult",
    "SearchSettings",
    "Step",
    "beam_search",
    "prefix_lengths",
    "search",
]
