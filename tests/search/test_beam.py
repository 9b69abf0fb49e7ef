import itertools

import pytest
import torch

from tests.toys import ToyPrior, ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import InputError, TfgenError
from tfgen.priors import UniformPrior
from tfgen.search import SearchSettings, search


def run(function=rugged, *, tokenizer=None, prior=None, seed=0, callback=None, progress=None, **s):
    tokenizer = tokenizer or ToyTokenizer(5, 3)
    verifier = ToyVerifier(tokenizer, function)
    prior = prior or UniformPrior(tokenizer.vocab_size, tokenizer.num_tokens)
    target = verifier.prepare("a toy")
    settings = SearchSettings(**s)
    return search(
        target, tokenizer, prior, verifier, settings, seed, callback=callback, progress=progress
    )


def brute_force(function, vocab_size, lengths):
    prefixes = (itertools.product(range(vocab_size), repeat=k) for k in lengths)
    return max(itertools.chain(*prefixes), key=function)


# what is found


def test_a_beam_as_wide_as_the_codebook_finds_the_optimum():
    result = run(beam=5**3, candidates=5)
    assert tuple(result.tokens.tolist()) == brute_force(rugged, 5, (1, 2, 3))
    assert result.decodes == 5 + 25 + 125


@pytest.mark.parametrize("schedule", ["geometric", "linear:2", "3", [1, 3]])
def test_so_it_does_in_steps_of_several_tokens(schedule):
    result = run(beam=5**3, candidates=5**3, schedule=schedule)
    lengths = [step.length for step in result.steps]
    assert tuple(result.tokens.tolist()) == brute_force(rugged, 5, lengths)


def test_beam_of_one_with_all_candidates_is_greedy():
    result = run(beam=1, candidates=5)
    greedy = ()
    for step in result.steps:
        greedy = max((greedy + (token,) for token in range(5)), key=rugged)
        assert tuple(step.best_tokens.tolist()) == greedy


def test_the_best_prefix_ever_is_kept_when_later_steps_are_worse():
    result = run(lambda tokens: 1.0 if tokens == (3,) else -len(tokens) / 10, beam=2, candidates=5)
    assert result.tokens.tolist() == [3]
    assert result.score == 1.0
    assert [step.best_score for step in result.steps] == pytest.approx([1.0, -0.2, -0.3])


def test_the_first_step_draws_as_many_candidates_as_the_others():
    result = run(tokenizer=ToyTokenizer(100, 3), beam=4, candidates=6)
    assert [len(step.pool.tokens) for step in result.steps] == [24, 24, 24]


def test_candidates_are_distinct_and_extend_the_beams_kept():
    result = run(tokenizer=ToyTokenizer(20, 4), beam=3, candidates=7, schedule="1,3,4")
    for before, after in itertools.pairwise(result.steps):
        kept = set(map(tuple, before.pool.tokens[:3].tolist()))
        parents = set(map(tuple, after.pool.tokens[:, : before.length].tolist()))
        assert parents == kept
        assert len(after.pool.tokens.unique(dim=0)) == len(after.pool.tokens) == 21


def test_branching_on_the_last_token_shares_the_others():
    pool = run(tokenizer=ToyTokenizer(20, 4), beam=1, candidates=9, tokens=3, schedule="3",
               branch="last").steps[0].pool  # fmt: skip
    assert len(pool.tokens[:, :2].unique(dim=0)) == 1
    assert len(pool.tokens[:, 2].unique()) == 9


def test_equal_scores_rank_by_lower_tokens():
    result = run(lambda tokens: float(tokens[0] >= 2), beam=125, candidates=5)
    assert result.tokens.tolist() == [2]
    last = result.steps[-1].pool.tokens.tolist()
    assert last == sorted(last, key=lambda tokens: (tokens[0] < 2, tokens))


def test_tokens_is_how_far_the_search_goes():
    assert [step.length for step in run(beam=2, candidates=2, tokens=2).steps] == [1, 2]


# seeds and batches


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_results_do_not_depend_on_the_batch_size(batch_size):
    options = {"beam": 3, "candidates": 11, "prior_strength": 1.0, "prior_weight": 0.1}
    results = [
        run(
            tokenizer=ToyTokenizer(50, 3, rounds_by_rows=True),
            prior=ToyPrior(50, 3),
            batch_size=size,
            **options,
        )
        for size in (None, batch_size)
    ]
    for one, other in zip(results[0].steps, results[1].steps, strict=True):
        assert torch.equal(one.pool.tokens, other.pool.tokens)
        assert torch.equal(one.pool.scores, other.pool.scores)


def test_out_of_memory_does_not_change_the_result():
    options = {"beam": 3, "candidates": 11}
    small = run(tokenizer=ToyTokenizer(50, 3, max_rows=3), **options)
    assert torch.equal(small.tokens, run(tokenizer=ToyTokenizer(50, 3), **options).tokens)


def test_same_seed_same_search_other_seed_other_search():
    def pools(seed):
        steps = run(tokenizer=ToyTokenizer(50, 3), seed=seed, beam=2, candidates=5).steps
        return [step.pool.tokens.tolist() for step in steps]

    assert pools(7) == pools(7)
    assert pools(7) != pools(8)


def test_a_search_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(beam=2, candidates=2, prior=ToyPrior(), prior_strength=1.0)
    assert torch.equal(torch.rand(4), expected)


# the prior


def test_at_strength_zero_the_prior_changes_nothing():
    options = {"tokenizer": ToyTokenizer(50, 3), "beam": 2, "candidates": 5}
    pools = [run(prior=p, **options).steps[-1].pool for p in (ToyPrior(50, 3), UniformPrior(50, 3))]
    assert torch.equal(pools[0].tokens, pools[1].tokens)


@pytest.mark.parametrize("typicality", [True, False])
def test_the_prior_weight_adds_typicality_or_likelihood_to_the_score(typicality):
    prior = ToyPrior()
    options = {"prior_weight": 0.25, "typicality": typicality}
    result = run(prior=prior, beam=125, candidates=5, **options)
    for step in result.steps:
        mean = prior.sequence_log_prob(step.pool.tokens).mean(dim=1)
        term = -(mean + 1.0).abs() if typicality else mean
        torch.testing.assert_close(step.pool.scores, step.pool.verifier_scores + 0.25 * term)
        assert step.pool.scores.tolist() == sorted(step.pool.scores.tolist(), reverse=True)
    assert result.verifier_score == pytest.approx(rugged(tuple(result.tokens.tolist())))
    assert result.score == max(step.best_score for step in result.steps)


def test_a_prior_for_another_codebook_is_refused():
    with pytest.raises(InputError, match="3 tokens of a codebook of 6, .* 3 of 5"):
        run(prior=UniformPrior(6, 3), beam=1, candidates=1)
    with pytest.raises(InputError, match="2 tokens of a codebook of 5"):
        run(prior=UniformPrior(5, 2), beam=1, candidates=1)
    assert run(prior=UniformPrior(5, 2), beam=1, candidates=1, tokens=2).decodes == 2


# stopping early


@pytest.mark.parametrize("budget", [1, 2, 4, 5, 6, 17, 30, 31, 54, 55, 10**6])
def test_the_budget_is_never_exceeded_and_the_best_so_far_is_returned(budget):
    seen = []

    def function(tokens):
        seen.append(tokens)
        return rugged(tokens)

    result = run(function, beam=5, candidates=5, budget=budget)
    assert result.decodes <= budget
    assert tuple(result.tokens.tolist()) == max(dict.fromkeys(seen), key=rugged)
    assert result.steps[-1].decodes == result.decodes
    assert result.stopped == ("budget" if budget < 3 else "done")


@pytest.mark.parametrize("budget", [3, 4, 17, 30, 54])
def test_a_search_is_planned_so_that_all_steps_happen_within_the_budget(budget):
    result = run(beam=5, candidates=5, budget=budget)
    assert [step.length for step in result.steps] == [1, 2, 3]
    assert budget - 2 * 5 < result.decodes <= budget  # over is what cannot be shared out evenly


def test_a_budget_that_is_just_enough_changes_nothing():
    assert torch.equal(
        run(beam=5, candidates=5, budget=55).tokens, run(beam=5, candidates=5).tokens
    )


def test_ctrl_c_in_mid_search_returns_the_best_so_far():
    def interrupt(progress):
        if progress.decodes >= 30:
            raise KeyboardInterrupt

    tokenizer = ToyTokenizer(50, 3)
    result = run(tokenizer=tokenizer, beam=2, candidates=24, batch_size=16, progress=interrupt)
    assert result.interrupted
    assert result.decodes == 32
    decoded = {tuple(row) for batch in tokenizer.batches for row in batch.tolist()}
    assert tuple(result.tokens.tolist()) == max(decoded, key=rugged)


@pytest.mark.parametrize("place", ["decode", "callback", "propose"])
def test_wherever_ctrl_c_falls_what_was_scored_is_kept(place, monkeypatch):
    prior, tokenizer, callback = ToyPrior(), ToyTokenizer(), None
    calls = itertools.count()

    def interrupt_second(function):
        def wrapped(*args, **kwargs):
            if next(calls) == 1:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return wrapped

    if place == "decode":
        monkeypatch.setattr(tokenizer, "decode", interrupt_second(tokenizer.decode))
    elif place == "propose":
        monkeypatch.setattr(prior, "propose", interrupt_second(prior.propose))
    else:
        callback = interrupt_second(lambda step: None)
    result = run(tokenizer=tokenizer, prior=prior, callback=callback, beam=5, candidates=5)
    assert result.interrupted
    greatest = max(result.steps, key=lambda step: step.best_score)
    assert torch.equal(result.tokens, greatest.best_tokens)


def test_ctrl_c_before_anything_was_scored_is_passed_on(monkeypatch):
    tokenizer = ToyTokenizer()

    def decode(tokens):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "decode", decode)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer=tokenizer, beam=2, candidates=2)


def test_other_failures_are_not_swallowed():
    def function(tokens):
        if len(tokens) == 2:
            raise ZeroDivisionError
        return 0.0

    with pytest.raises(ZeroDivisionError):
        run(function, beam=2, candidates=2)


def test_a_verifier_without_one_usable_score_is_a_clear_failure():
    with pytest.raises(TfgenError, match="verifier toy gave no picture a usable score"):
        run(lambda tokens: float("nan"), beam=2, candidates=2)


# records and settings


def test_a_step_is_recorded_and_reported_after_each_length():
    seen = []
    result = run(beam=5, candidates=5, callback=seen.append)
    assert seen == result.steps
    assert [(s.index, s.length, s.decodes) for s in seen] == [(1, 1, 5), (2, 2, 30), (3, 3, 55)]
    assert sorted(s.seconds for s in seen) == [s.seconds for s in seen]
    assert result.seconds >= seen[-1].seconds
    assert result.settings == SearchSettings(beam=5, candidates=5)


def test_progress_says_which_step_of_how_many():
    seen = []
    run(beam=5, candidates=5, progress=seen.append)
    assert [(p.step, p.steps, p.decodes) for p in seen] == [
        (1, 3, 5), (2, 3, 21), (2, 3, 30), (3, 3, 46), (3, 3, 55)
    ]  # fmt: skip
    assert seen[-1].best_score == max(p.best_score for p in seen)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"beam": 0}, "beam must be a whole number from 1 up, not 0"),
        ({"beam": 2.5}, "beam must be a whole number from 1 up, not 2.5"),
        ({"beam": "wide"}, "beam must be a whole number from 1 up, not 'wide'"),
        ({"candidates": -1}, "candidates must be a whole number from 1 up, not -1"),
        ({"tokens": 0}, "tokens must be a whole number from 1 up, not 0"),
        ({"tokens": 4}, "tokens must be a whole number from 1 to 3, not 4"),
        ({"budget": 0}, "budget must be a whole number from 1 up, not 0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 up, not 0"),
        ({"prior_strength": -0.5}, "prior_strength must be a finite number from 0 up, not -0.5"),
        ({"prior_strength": float("nan")}, "prior_strength must be a finite number"),
        ({"prior_weight": float("inf")}, "prior_weight must be a finite number"),
        ({"prior_weight": "much"}, "prior_weight must be a finite number from 0 up, not 'much'"),
        ({"schedule": "geometirc"}, "did you mean 'geometric'"),
        ({"branch": "lats"}, "There is no branch 'lats'; did you mean 'last'?"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting, complaint):
    with pytest.raises(InputError) as error:
        run(**setting)
    assert complaint in str(error.value)


def test_an_unknown_search_is_refused_with_the_known_names():
    with pytest.raises(InputError, match="There is no search 'baem'; did you mean 'beam'?"):
        run(search="baem")
