import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.toy_search import brute_force, pools, run
from tests.toys import ToyPrior, ToyTokenizer, rugged
from tfgen.search.plan import ROUND


def draw(n=None, **options):
    return run(search="best-of-n", samples=n, **options)


def places(tokens, vocab_size):
    """Each row's place in lexicographic order."""
    return (tokens * vocab_size ** torch.arange(tokens.shape[1]).flip(0)).sum(1).numpy()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_one_sample_is_a_draw_from_the_tempered_prior(strength):
    prior, tokenizer = ToyPrior(3, 2), ToyTokenizer(3, 2)
    tokens = torch.stack(
        [
            draw(1, prior=prior, tokenizer=tokenizer, prior_strength=strength, seed=seed).tokens
            for seed in range(250)
        ]
    )
    tempered = ToyPrior(3, 2)
    tempered.table = (strength * prior.table).log_softmax(dim=1)
    p = tempered.sequence_log_prob(tokenizer.all_prefixes(2)).sum(dim=1).double().exp().numpy()
    seen = np.bincount(places(tokens, 3), minlength=9)
    assert chisquare(seen, 250 * p / p.sum()).pvalue > 0.001
    if strength == 0:
        assert np.allclose(p, 1 / 9)


def test_one_sample_is_what_the_prior_draws():
    prior = ToyPrior(50, 4)
    result = draw(1, prior=prior, tokenizer=ToyTokenizer(50, 4), prior_strength=1.0, seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = prior.complete(torch.empty(1, 0, dtype=torch.int64), 4, 1.0, generator)
    assert torch.equal(result.tokens, drawn[0])
    assert result.decodes == 1


def test_the_best_of_the_samples_is_the_result():
    result = draw(40, tokenizer=ToyTokenizer(50, 4))
    (step,) = result.steps
    assert len(step.pool.tokens) == result.decodes == 40
    assert tuple(result.tokens.tolist()) == max(map(tuple, step.pool.tokens.tolist()), key=rugged)
    assert step.pool.parents.unique().tolist() == [-1]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_samples_are_distinct_within_a_round_and_between_rounds(strength):
    n = ROUND + 100
    options = {"prior": ToyPrior(20, 3), "tokenizer": ToyTokenizer(20, 3)}
    result = draw(n, prior_strength=strength, **options)
    assert [len(step.pool.tokens) for step in result.steps] == [ROUND, 100]
    every = torch.cat([step.pool.tokens for step in result.steps])
    assert len(every.unique(dim=0)) == n == result.decodes


@pytest.mark.parametrize("n", [125, 1000])
def test_more_samples_than_there_are_sequences_are_brute_force(n):
    result = draw(n)
    assert tuple(result.tokens.tolist()) == brute_force(rugged, 5, [3])
    assert result.decodes == 125 and result.stopped == "done"


def test_a_prior_that_brings_nothing_new_ends_the_search():
    prior = ToyPrior(5, 3)
    result = draw(100, prior=prior, prior_strength=1e4)
    assert 1 <= result.decodes < 10 and result.stopped == "done"


def test_with_replacement_a_sequence_may_come_twice():
    result = draw(300, distinct=False)
    pool = result.steps[0].pool.tokens
    assert len(pool) == 300 and result.decodes == len(pool.unique(dim=0)) < 125


def test_by_default_it_draws_what_a_beam_search_would():
    options = {"tokenizer": ToyTokenizer(50, 4), "beam": 3, "candidates": 7}
    assert draw(**options).decodes == run(**options).decodes == 3 * 7 * 4


def test_samples_start_from_the_given_tokens():
    starts = [[1, 2], [3, 4]]
    pool = draw(10, tokenizer=ToyTokenizer(9, 5), start=starts, tokens=4).steps[0].pool
    assert pool.tokens.shape == (10, 4)
    assert pool.tokens[:, :2].unique(dim=0).tolist() == starts


@pytest.mark.parametrize("budget", [1, 16, 37, ROUND, ROUND + 1])
def test_the_budget_is_spent_to_the_last_decode(budget):
    result = draw(ROUND + 200, tokenizer=ToyTokenizer(50, 4), budget=budget)
    assert result.decodes == budget and result.stopped == "budget"


@pytest.mark.parametrize("batch_size", [1, 1000])
def test_samples_do_not_depend_on_the_batch_size(batch_size):
    tokenizer = ToyTokenizer(50, 4, rounds_by_rows=True)
    results = [draw(100, tokenizer=tokenizer, batch_size=size) for size in (None, batch_size)]
    assert pools(results[0]) == pools(results[1])
