"""Neighbours: whole pictures that the prior holds compete with what the search has found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy_search import run
from tests.toys import GridTokenizer, GridVerifier, ToyPrior
from tfgen.errors import InputError
from tfgen.search import SearchResult
from tfgen.search.settings import SearchSettings

SIDE, LENGTH = 3, 3
GOAL = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]])
BEST = [8, 6, 1]
HELD = torch.tensor([[0, 0, 0], [8, 6, 2], BEST, [4, 4, 4]])


class Holder(ToyPrior):
    """Holds HELD; a picture's embedding is that of the toys' verifier."""

    @property
    def held(self) -> int:
        return len(HELD)

    def nearest(self, count: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        embeddings = GridTokenizer(SIDE, LENGTH).embed(HELD).flatten(1)
        return HELD[score(embeddings).topk(min(count, len(HELD))).indices]


def close(points: Tensor) -> Tensor:
    return -(points - GOAL).square().sum(dim=(1, 2))


def held(**options: Any) -> SearchResult:
    """A narrow search whose prior holds HELD; only strength and width are told by default."""
    options = {"beam": 2, "candidates": 1, "prior_strength": 1.0} | options
    tokenizer = GridTokenizer(SIDE, LENGTH)
    return run(
        tokenizer=tokenizer,
        verifier=GridVerifier(close),
        prior=Holder(SIDE * SIDE, LENGTH),
        **options,
    )


def phases(result: SearchResult) -> list[str]:
    return [step.phase for step in result.steps]


def test_the_best_picture_that_the_prior_holds_wins_if_the_search_found_none_better():
    assert held().tokens.tolist() != BEST
    result = held(neighbours=2)
    assert phases(result) == ["search"] * LENGTH + ["neighbours"]
    pool = result.steps[-1].pool
    assert result.tokens.tolist() == pool.tokens[0].tolist() == BEST
    assert [8, 6, 2] in pool.tokens.tolist() and [4, 4, 4] not in pool.tokens.tolist()
    assert result.accounts.decodes == held().accounts.decodes + 2


def test_they_never_make_the_result_worse_and_cost_what_they_say():
    for count in range(6):
        result = held(neighbours=count)
        assert result.score >= held().score
        assert result.accounts.decodes == held().accounts.decodes + min(count, len(HELD))


def test_they_have_as_many_tokens_as_the_search_and_are_completed_and_refined():
    result = held(neighbours=1, tokens=2)
    assert BEST[:2] in result.steps[-1].pool.tokens.tolist()
    result = held(neighbours=1, tokens=2, complete="sample", refine=1)
    assert phases(result) == ["search", "search", "neighbours", "complete"] + 3 * ["refine"]
    assert result.tokens.tolist()[:2] == BEST[:2]


def test_a_lookahead_has_them_too_and_best_of_n_does_not():
    assert held(neighbours=1, search="lookahead").tokens.tolist() == BEST
    with pytest.raises(InputError, match="neighbours means nothing to the search 'best-of-n'"):
        SearchSettings(search="best-of-n", neighbours=1)


def test_given_tokens_stay_as_they_are():
    result = held(neighbours=4, start=[8])
    assert all(
        step.pool.tokens[:, 0].tolist() == [8] * len(step.pool.tokens) for step in result.steps
    )
    assert result.tokens.tolist() == BEST
    assert held(neighbours=4, start=[3]).tokens.tolist()[0] == 3


@pytest.mark.parametrize("options", [{"prior_strength": 0.0}, {"prior": ToyPrior()}])
def test_without_a_strength_or_a_bank_there_are_none(options: dict[str, Any]):
    result = run(
        **{"prior": Holder(5, 3), "prior_strength": 1.0, "beam": 2, "neighbours": 3} | options
    )
    assert "neighbours" not in phases(result)
    assert result.settings.neighbours == 0


def test_they_are_within_the_budget():
    for budget in range(4, 14):
        result = held(neighbours=4, beam=2, candidates=4, budget=budget)
        assert result.accounts.decodes <= budget
        assert phases(result)[-1] == "neighbours"


def test_a_run_taken_up_again_has_them_once(tmp_path: Path):
    whole = held(neighbours=2, refine=1)

    class Killed(Exception):
        pass

    def kill(after: int) -> Callable[[Any], None]:
        def callback(step: Any) -> None:
            if step.index == after:
                raise Killed

        return callback

    for after in range(1, len(whole.steps) + 1):
        folder = tmp_path / str(after)
        with pytest.raises(Killed):
            held(neighbours=2, refine=1, resume=folder, callback=kill(after))
        again = held(neighbours=2, refine=1, resume=folder)
        assert again.tokens.tolist() == whole.tokens.tolist()
        assert phases(again) == phases(whole)
        assert again.accounts.decodes == whole.accounts.decodes
