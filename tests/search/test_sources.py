"""Searches with an atlas, which makes the first step exhaustive, and with a cache on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys import GridTokenizer, GridVerifier
from tfgen.atlas import Atlas
from tfgen.cache import EmbeddingCache
from tfgen.priors import Prior, UniformPrior
from tfgen.search import EmbeddingSource, SearchResult, SearchSettings, search

SIDE, TOKENS = 10, 3
CODES = torch.arange(SIDE * SIDE)[:, None]


def rugged(points: Tensor) -> Tensor:
    """Float32[N, TOKENS, 2] -> Float32[N]: a different score for every prefix."""
    weights = torch.tensor([[12.9898, 78.233], [39.346, 11.135], [83.155, 53.11]])
    return torch.sin((points * weights).sum(dim=(1, 2))) * 43758.5453 % 1


def models() -> tuple[GridTokenizer, GridVerifier]:
    return GridTokenizer(SIDE, TOKENS), GridVerifier(rugged)


def exact_atlas() -> Atlas:
    """One that does not round, so that searches with and without it can be compared."""
    tokenizer, verifier = models()
    return Atlas(verifier.embed(tokenizer.decode(CODES)), {})


def run(
    atlas: Atlas | None = None,
    *,
    cache: EmbeddingSource | None = None,
    seed: int = 0,
    prior: Prior | None = None,
    **settings: Any,
) -> SearchResult:
    tokenizer, verifier = models()
    return search(
        verifier.prepare("a toy"),
        tokenizer,
        prior or UniformPrior(SIDE * SIDE, TOKENS),
        verifier,
        SearchSettings(**{"beam": 4, "candidates": 6, **settings}),
        seed,
        atlas=atlas,
        cache=cache,
    )


def first_pool(result: SearchResult) -> set[int]:
    return set(result.steps[0].pool.tokens[:, 0].tolist())


# atlas


def test_the_first_step_looks_at_the_whole_codebook_at_no_decode() -> None:
    result = run(exact_atlas())
    assert first_pool(result) == set(range(100))
    assert result.steps[0].decodes == 0
    assert (result.decodes, result.accounts.cached) == (2 * 24, 100)
    scores = rugged(exact_atlas().embeddings.unflatten(1, (-1, 2)))
    assert result.steps[0].best_tokens.tolist() == [int(scores.argmax())]
    assert result.steps[0].best_score == pytest.approx(float(scores.max()))


def test_it_finds_what_a_search_finds_that_decodes_the_whole_codebook() -> None:
    with_atlas = run(exact_atlas(), beam=10, candidates=10)
    without = run(beam=10, candidates=10)  # its first step draws 100 of 100
    assert [step.pool.tokens.tolist() for step in with_atlas.steps] == [
        step.pool.tokens.tolist() for step in without.steps
    ]
    assert with_atlas.score == without.score
    assert without.decodes - with_atlas.decodes == 100


def test_the_prior_has_its_say_in_the_exhaustive_step() -> None:
    class Prefers7(UniformPrior):
        def typicality(self, tokens: Tensor) -> Tensor:
            return (tokens[:, 0] == 7).float()

    result = run(exact_atlas(), prior=Prefers7(100, TOKENS), prior_weight=5.0)
    assert result.steps[0].best_tokens.tolist() == [7]


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "2,3"},
        {"start": [3]},
        {"search": "best-of-n", "samples": 24},
        {"search": "lookahead", "lookahead": 1},
        {"distinct": False},
    ],
    ids=str,
)
def test_where_the_first_step_is_no_plain_one_token_step_it_draws(options: dict[str, Any]) -> None:
    assert len(run(exact_atlas(), **options).steps[0].pool.tokens) <= 24


def test_an_atlas_that_is_not_wanted_is_not_looked_at() -> None:
    tokenizer, verifier = models()
    settings = SearchSettings(beam=4, candidates=6, atlas=False)
    args = (verifier.prepare("a toy"), tokenizer, UniformPrior(100, TOKENS), verifier, settings)
    result = search(*args, atlas=exact_atlas())
    assert (result.decodes, result.accounts.cached) == (3 * 24, 0)


def test_a_lookahead_of_nothing_is_exhaustive_too() -> None:
    assert len(first_pool(run(exact_atlas(), search="lookahead", lookahead=0))) == 100


def test_a_budget_goes_to_the_other_steps() -> None:
    result = run(exact_atlas(), budget=30)
    decodes = [step.decodes for step in result.steps]
    assert decodes[0] == 0 and 12 <= decodes[1] <= 15 and decodes[2] <= 30
    assert first_pool(result) == set(range(100))


def test_a_search_with_the_atlas_can_be_taken_up_again(tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        if step.index == 2:
            raise RuntimeError("killed")

    tokenizer, verifier = models()
    target, prior = verifier.prepare("a toy"), UniformPrior(100, TOKENS)
    args = (target, tokenizer, prior, verifier, SearchSettings(beam=4, candidates=6))
    with pytest.raises(RuntimeError):
        search(*args, atlas=exact_atlas(), resume=tmp_path, callback=stop)
    resumed = search(*args, atlas=exact_atlas(), resume=tmp_path)
    whole = run(exact_atlas())
    assert resumed.tokens.tolist() == whole.tokens.tolist()
    assert resumed.decodes == whole.decodes


# cache


def told(result: SearchResult) -> list[Any]:
    """All that a search found, scores to the last bit."""
    return [
        (step.pool.tokens.tolist(), step.pool.scores.tolist(), step.pool.kept.tolist())
        for step in result.steps
    ]


@pytest.mark.parametrize("budget", [None, 40])
def test_a_full_cache_changes_nothing_but_the_decodes(tmp_path: Path, budget: int | None) -> None:
    without = run(budget=budget)
    with EmbeddingCache(tmp_path, {}) as cache:
        first, second = run(cache=cache, budget=budget), run(cache=cache, budget=budget)
    assert told(without) == told(first) == told(second)
    assert (first.decodes, first.accounts.cached) == (without.decodes, 0)
    assert (second.decodes, second.accounts.cached) == (0, without.decodes)
    assert without.accounts.cost == second.accounts.cost == without.decodes


def test_what_one_search_decoded_another_finds_in_the_cache(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path, {}) as cache:
        run(cache=cache, beam=10, candidates=10)  # all 100 one-token prefixes
        result = run(cache=cache, seed=1)
    assert result.steps[0].decodes == 0
    assert len(result.steps[0].pool.tokens) == 24  # a cache, however full, is no atlas
    assert result.accounts.cached >= 24


def test_a_damaged_cache_changes_nothing(tmp_path: Path) -> None:
    class Broken:
        """As an `EmbeddingCache` is once its file has failed."""

        def get(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(tokens), dtype=torch.bool), torch.zeros(len(tokens), 0)

        def put(self, tokens: Tensor, embeddings: Tensor) -> None:
            pass

    broken: EmbeddingSource = Broken()
    assert told(run(cache=broken)) == told(run())
