"""Runs a search on the toys, of which the right answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from tests.toys import ToyTokenizer, ToyVerifier, rugged
from tfgen.priors import Prior, UniformPrior
from tfgen.search import SearchResult, SearchSettings, search
from tfgen.verifiers.base import Verifier

Score = Callable[[tuple[int, ...]], float]
OPTIONS = "callback progress engine cache atlas forecaster trace resume about".split()


def run(
    function: Score = rugged,
    *,
    tokenizer: ToyTokenizer | None = None,
    prior: Prior | None = None,
    verifier: Verifier | None = None,
    seed: int = 0,
    **more: Any,
) -> SearchResult:
    """A search of prefixes scored with `function`; more: OPTIONS of `search`, else settings."""
    tokenizer = tokenizer or ToyTokenizer(5, 3)
    verifier = verifier or ToyVerifier(tokenizer, function)
    prior = prior or UniformPrior(tokenizer.vocab_size, tokenizer.num_tokens)
    options = {name: more.pop(name) for name in OPTIONS if name in more}
    target = verifier.prepare("a toy")
    return search(target, tokenizer, prior, verifier, SearchSettings(**more), seed, **options)


def brute_force(function: Score, vocab_size: int, lengths: Iterable[int]) -> tuple[int, ...]:
    """The best of all prefixes of these lengths."""
    prefixes = (itertools.product(range(vocab_size), repeat=length) for length in lengths)
    return max(itertools.chain(*prefixes), key=function)


def pools(result: SearchResult) -> list[list[list[int]]]:
    """The tokens of each step's pool."""
    return [step.pool.tokens.tolist() for step in result.steps]
