"""Forecasts: more candidates are drawn than decoded, and the most promising are decoded."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from tests.toy_search import pools, run
from tests.toys import GridTokenizer, GridVerifier, HoldingPrior
from tfgen.errors import InputError
from tfgen.search import SearchResult, SearchSettings
from tfgen.search.forecasting import CONTROL

GOAL = torch.tensor([[0.3, -0.2], [-0.7, 0.6], [0.1, 0.9]])


def near_the_goal(places: Tensor) -> Tensor:
    return -(places - GOAL).square().sum(dim=(1, 2))


class Foretelling:
    """Foretells embeddings of a grid's pictures, but for so much noise."""

    def __init__(self, tokenizer: GridTokenizer, noise: float = 0.0) -> None:
        self.tokenizer, self.noise, self.asked = tokenizer, noise, []

    def embed(self, tokens: Tensor) -> Tensor:
        self.asked.append(tokens)
        seen = GridVerifier(near_the_goal).embed(
            self.tokenizer.decode_embeddings(self.tokenizer.embed(tokens))
        )
        generator = torch.Generator().manual_seed(int(tokens.sum()))
        return seen + self.noise * torch.randn(seen.shape, generator=generator)


def grid(noise: float = 0.0, told: bool = True, **options: object) -> SearchResult:
    tokenizer = GridTokenizer()
    options = {"beam": 2, "candidates": 8, "forecast": 6} | options
    verifier = GridVerifier(near_the_goal)
    forecaster = Foretelling(tokenizer, noise) if told else None
    return run(tokenizer=tokenizer, verifier=verifier, forecaster=forecaster, **options)


def test_good_forecasts_find_more_at_the_same_decodes():
    plain = [grid(seed=seed, forecast=1) for seed in range(8)]
    told = [grid(seed=seed) for seed in range(8)]
    assert [a.decodes for a in plain] == [b.decodes for b in told]
    better = [b.score - a.score for a, b in zip(plain, told, strict=True)]
    assert min(better) > -0.05 and sum(better) / 8 > 0.05


def test_scores_are_those_of_decodes_whatever_was_foretold():
    tokenizer = GridTokenizer()
    for step in grid(noise=10.0).steps:
        images = tokenizer.decode(step.pool.tokens)
        verifier = GridVerifier(near_the_goal)
        true = verifier.score(images, verifier.prepare("a toy"))
        torch.testing.assert_close(step.pool.verifier_scores, true)


def test_the_most_promising_are_decoded_and_some_of_the_others():
    tokenizer = GridTokenizer()
    forecaster = Foretelling(tokenizer)
    verifier = GridVerifier(near_the_goal)
    result = run(
        tokenizer=tokenizer,
        verifier=verifier,
        forecaster=forecaster,
        beam=2,
        candidates=16,
        forecast=3,
    )
    assert result.accounts.foretold == sum(map(len, forecaster.asked)) == 3 * 3 * 32
    best, target = 32 - int(CONTROL * 32), verifier.prepare("a toy")
    for asked, step in zip(forecaster.asked[:3], result.steps, strict=True):
        foretold = verifier.score_embeddings(forecaster.embed(asked), target)
        decoded = step.pool.tokens
        scores = verifier.score_embeddings(forecaster.embed(decoded), target)
        order = foretold.sort(descending=True).values
        assert len(decoded) == 32
        torch.testing.assert_close(scores[:best], order[:best])
        control = scores[best:]
        assert control.max() <= order[best - 1] + 1e-6
        assert control.min() < order[32]  # drawn, not the next


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0.99, 1.01), (1e3, -0.7, 0.7)])
def test_how_well_forecasts_rank_is_noted(tmp_path, noise, low, high):
    trace = tmp_path / "trace.jsonl"
    grid(noise, candidates=40, forecast=3, trace=trace)
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    notes = lines[-2]["notes"]["forecast"]
    assert [note["length"] for note in notes] == [1, 2, 3][-len(notes) :]
    assert all(note["foretold"] > note["decoded"] == 80 for note in notes)
    mean = sum(note["rank_correlation"] for note in notes) / len(notes)
    assert low < mean < high


def test_children_of_a_crossover_are_chosen_too():
    tokenizer = GridTokenizer()
    held = torch.randint(100, (20, 3), generator=torch.Generator().manual_seed(0))
    options = {"crossover": 2, "prior_strength": 1.0, "tokens": 3}
    scores = []
    for forecast in (1, 8):
        results = [
            run(
                tokenizer=tokenizer,
                verifier=GridVerifier(near_the_goal),
                prior=HoldingPrior(held, 100),
                forecaster=Foretelling(tokenizer),
                beam=4,
                candidates=4,
                forecast=forecast,
                seed=seed,
                **options,
            )
            for seed in range(8)
        ]
        crossed = [step for r in results for step in r.steps if step.phase == "crossover"]
        assert len(crossed) == 16
        for step in crossed:
            assert len(step.pool.parents) == len(step.pool.tokens) <= 4 + 16
        scores.append(sum(r.score for r in results) / 8)
    assert scores[1] > scores[0]


def test_the_same_seed_finds_the_same_whatever_the_batch_size():
    assert pools(grid(batch_size=3)) == pools(grid(batch_size=100))


def test_a_run_is_taken_up_with_the_same_end(tmp_path):
    whole = grid(resume=tmp_path / "whole")

    def stop(step):
        if step.index == 2:
            raise KeyboardInterrupt

    grid(resume=tmp_path / "part", callback=stop)
    assert pools(grid(resume=tmp_path / "part")) == pools(whole)


def test_forecasts_may_choose_in_a_crossover_alone():
    """The steps before are those without a forecast, draw by draw."""
    tokenizer = GridTokenizer()
    held = torch.randint(100, (20, 3), generator=torch.Generator().manual_seed(0))

    def crossed(**options):
        return run(
            tokenizer=tokenizer,
            verifier=GridVerifier(near_the_goal),
            prior=HoldingPrior(held, 100),
            forecaster=Foretelling(tokenizer),
            **{"beam": 4, "candidates": 4, "crossover": 2, "prior_strength": 1.0} | options,
        )

    plain, found = crossed(), crossed(forecast=8, forecast_in="crossover")
    everywhere = crossed(forecast=8)
    assert pools(found)[:3] == pools(plain)[:3] != pools(everywhere)[:3]
    assert pools(found)[3] != pools(plain)[3]
    assert 0 < found.accounts.foretold < everywhere.accounts.foretold


def test_one_is_no_forecast():
    assert pools(grid(forecast=1)) == pools(grid(forecast=1, told=False))
    assert grid(forecast=1).accounts.foretold == 0


def test_it_says_what_is_missing():
    with pytest.raises(InputError, match="use forecast 1, or train a forecaster"):
        grid(told=False)
    for other in ({"screen": True}, {"shortlist": 4}, {"distinct": False}):
        with pytest.raises(InputError, match="with forecast 1"):
            SearchSettings(forecast=2, **other)
    with pytest.raises(InputError, match="forecast must be a whole number from 1"):
        SearchSettings(forecast=0)
    with pytest.raises(InputError, match="forecast means nothing to the search 'best-of-n'"):
        SearchSettings(search="best-of-n", forecast=2)
