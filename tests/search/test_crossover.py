"""Crossover: the best prefixes take runs of tokens from each other and from held pictures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.toy_search import run
from tests.toys import HoldingPrior, ToyPrior, ToyTokenizer, rugged
from tfgen.errors import InputError
from tfgen.search import SearchResult
from tfgen.search import crossover as module
from tfgen.search.plan import REFINED
from tfgen.search.settings import SearchSettings

LENGTH, VOCAB = 6, 20
GOAL = (3, 1, 4, 1, 5, 9)
HELD = torch.tensor([[7, 7, 4, 1, 7, 7], [3, 1, 8, 8, 8, 8], [6, 6, 6, 6, 5, 9], [2] * 6])
"""Each holds two tokens of the goal, in one run."""


def runs(tokens: tuple[int, ...]) -> float:
    """How many of the goal's three pairs are whole: one token of a pair gains nothing."""
    pairs = zip(range(0, LENGTH, 2), range(2, LENGTH + 1, 2), strict=True)
    return float(sum(tuple(tokens[a:b]) == GOAL[a:b] for a, b in pairs))


def crossed(**options: object) -> SearchResult:
    options = {"beam": 4, "candidates": 10, "prior_strength": 1.0, "seed": 1} | options
    return run(
        runs, tokenizer=ToyTokenizer(VOCAB, LENGTH), prior=HoldingPrior(HELD, VOCAB), **options
    )


def crossing(result: SearchResult) -> list:
    return [step for step in result.steps if step.phase == "crossover"]


def test_what_two_pictures_show_is_put_together():
    assert crossed().score < 2
    found = crossed(crossover=6)
    assert found.score == 3 and tuple(found.tokens.tolist()) == GOAL


def test_it_ends_where_patience_does():
    """The goal cannot be passed: after it was found so many rounds find nothing better."""
    whole, patient = crossed(crossover=12), crossed(crossover=12, patience=3)
    found = next(i for i, step in enumerate(crossing(whole)) if step.best_score == 3)
    assert len(crossing(patient)) == found + 1 + 3 < 12 == len(crossing(whole))
    assert patient.tokens.tolist() == whole.tokens.tolist() == list(GOAL)
    assert patient.decodes < whole.decodes
    rounds = [step.best_score for step in crossing(patient)]
    assert rounds == [step.best_score for step in crossing(whole)][: len(rounds)]


def test_what_patience_leaves_is_there_for_what_follows():
    options = {"crossover": 12, "refine": 1, "tokens": LENGTH}
    whole = crossed(**options, budget=300)
    patient = crossed(**options, budget=300, patience=1)
    refined = [result.decodes - crossing(result)[-1].decodes for result in (whole, patient)]
    assert len(crossing(patient)) < 12 and refined[1] > refined[0]
    assert patient.decodes <= 300
    assert sum(step.phase == "refine" for step in patient.steps) == LENGTH


def test_a_child_is_a_good_prefix_with_a_run_of_a_donors_tokens():
    result = crossed(crossover=2)
    steps = crossing(result)
    assert len(steps) == 2
    for before, step in zip([result.steps[-3], steps[0]], steps, strict=True):
        beam = before.pool.tokens[before.pool.kept]
        donors = torch.cat([beam, HELD]).tolist()
        rows = list(map(tuple, beam.tolist()))
        tokens = list(map(tuple, step.pool.tokens.tolist()))
        assert len(set(tokens)) == len(tokens) == len(beam) + 40
        for child, parent in zip(tokens, step.pool.parents.tolist(), strict=True):
            mother = tuple(before.pool.tokens[parent].tolist())
            if child in rows:
                assert mother == child
                continue
            assert mother in rows[:REFINED]
            assert any(
                child == (*mother[:a], *donor[a:b], *mother[b:])
                for donor in donors
                for a in range(LENGTH)
                for b in range(a + 1, LENGTH + 1)
            )


def test_it_costs_what_it_says_and_never_makes_the_result_worse():
    for seed in range(4):
        plain, found = crossed(seed=seed), crossed(seed=seed, crossover=1)
        assert found.score >= plain.score
        assert plain.decodes + 30 < found.decodes <= plain.decodes + 40  # some were seen before
        assert found.steps[-1].pool.tokens.shape == (44, LENGTH)


def test_a_budget_leaves_it_its_share():
    result = crossed(crossover=2, budget=100)
    assert len(crossing(result)) == 2 and 80 <= result.decodes <= 100


def test_without_a_bank_or_at_strength_0_the_beam_exchanges_among_itself():
    for prior, strength in ((ToyPrior(VOCAB, LENGTH), 1.0), (HoldingPrior(HELD, VOCAB), 0.0)):
        options = {"beam": 5, "candidates": 8, "prior_strength": strength, "crossover": 1}
        options |= {"max_children": 1}  # or all of the beam has the same first tokens
        result = run(rugged, tokenizer=ToyTokenizer(VOCAB, LENGTH), prior=prior, **options)
        before, step = result.steps[-2:]
        beam = before.pool.tokens[before.pool.kept]
        assert len(step.pool.tokens) > len(beam)
        for position, column in enumerate(step.pool.tokens.T):
            assert set(column.tolist()) <= set(beam[:, position].tolist())


def test_tokens_that_are_given_stay_and_shorter_searches_are_crossed_too():
    result = crossed(crossover=1, start=[9, 9], tokens=5)
    assert result.steps[-1].phase == "crossover"
    assert result.steps[-1].pool.tokens.shape[1] == 5
    assert (result.steps[-1].pool.tokens[:, :2] == 9).all()


def test_it_comes_after_the_neighbours_and_before_completion_and_refinement():
    result = crossed(tokens=4, neighbours=2, crossover=1, complete="sample", refine=1)
    phases = [step.phase for step in result.steps]
    assert phases == ["search"] * 4 + ["neighbours", "crossover", "complete"] + 6 * ["refine"]


def test_one_prefix_of_one_token_has_only_what_the_donors_show():
    result = crossed(beam=1, tokens=1, crossover=1)
    assert set(result.steps[-1].pool.tokens[:, 0].tolist()) <= {
        *result.steps[-2].pool.tokens[:1, 0].tolist(),
        *HELD[:, 0].tolist(),
    }


def test_the_same_seed_crosses_alike_whatever_the_batch_size():
    one, other = crossed(crossover=2, batch_size=3), crossed(crossover=2, batch_size=50)
    for a, b in zip(one.steps, other.steps, strict=True):
        assert torch.equal(a.pool.tokens, b.pool.tokens)


@pytest.mark.parametrize("rounds", [-1, 1.5])
def test_a_number_of_rounds_that_is_none_is_refused(rounds: object):
    with pytest.raises(InputError, match="crossover"):
        SearchSettings(crossover=rounds)


def test_independent_draws_are_not_crossed():
    with pytest.raises(InputError, match="crossover means nothing to the search 'best-of-n'"):
        SearchSettings(search="best-of-n", crossover=1)


def test_donors_fit_the_whole_prompt_or_a_part_of_it(monkeypatch) -> None:
    """Of three held pictures one scores best, one fits the first part, one the second."""
    monkeypatch.setattr(module, "DONORS", 1)
    columns = torch.tensor([[0.1, 0, 9], [0.2, 9, 0], [0.3, 0, 0]])  # whole, and two parts

    class Verifier:
        def score_embeddings(self, embeddings, target):
            return columns[:, 0]

        def similarities(self, embeddings, target):
            return columns

    class Prior(HoldingPrior):
        def nearest(self, count, score):
            return self.pictures[score(torch.eye(3)).topk(count).indices]

    prior, verifier = Prior(HELD[:3], VOCAB), Verifier()
    trail = SimpleNamespace(
        settings=SearchSettings(prior_strength=1.0, crossover=1),
        prior=prior,
        verifier=verifier,
        target=SimpleNamespace(parts=2),
        nearest=lambda count: prior.nearest(count, lambda e: verifier.score_embeddings(e, None)),
    )
    assert module._held(trail, 4).tolist() == HELD[[2, 1, 0], :4].tolist()
    trail.target.parts = 0
    assert module._held(trail, 4).tolist() == HELD[[2], :4].tolist()
