"""How a search runs and ends: seeds, batches, budget, time, Ctrl-C, records."""

import itertools

import pytest
import torch

from tests.toy_search import pools, run
from tests.toys import ToyPrior, ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import TfgenError
from tfgen.search import SearchSettings

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
    first, again, other = (
        pools(run(tokenizer=ToyTokenizer(50, 3), seed=seed, beam=2, candidates=5))
        for seed in (7, 7, 8)
    )
    assert first == again != other


def test_a_search_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(beam=2, candidates=2, prior=ToyPrior(), prior_strength=1.0)
    assert torch.equal(torch.rand(4), expected)


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


class Clock(ToyTokenizer):
    """A tokenizer whose passes take a second each, on the clock that it is itself."""

    now = 0.0

    def __call__(self):
        return self.now

    def decode(self, tokens):
        self.now += 1.0
        return super().decode(tokens)


def on_the_clock(monkeypatch, time_limit, **more):
    clock = Clock(100, 4)
    monkeypatch.setattr("time.perf_counter", clock)
    options = {"beam": 4, "candidates": 16, "time_limit": time_limit} | more
    return run(tokenizer=clock, **options), clock.now


def test_a_search_that_has_the_time_is_as_without_a_limit(monkeypatch):
    limited, seconds = on_the_clock(monkeypatch, 20)
    assert pools(limited) == pools(run(tokenizer=ToyTokenizer(100, 4), beam=4, candidates=16))
    assert seconds == 16 and limited.stopped == "done"


@pytest.mark.parametrize("time_limit", [6, 8, 10, 12, 14])
@pytest.mark.parametrize("options", [{}, {"search": "lookahead", "rollouts": 2}])
def test_a_search_is_planned_so_that_all_steps_happen_within_the_time(
    monkeypatch, time_limit, options
):
    result, seconds = on_the_clock(monkeypatch, time_limit, **options)
    assert [step.length for step in result.steps] == [1, 2, 3, 4]
    assert result.stopped == "done" and seconds <= time_limit
    assert result.seconds == seconds == result.accounts.decode_seconds


def test_what_an_atlas_knows_takes_no_time_and_all_of_it_is_looked_at(monkeypatch):
    class Everything:
        """Knows all one-token prefixes of the toy whose embeddings are its tokens."""

        def get(self, tokens):
            known = torch.full((len(tokens),), tokens.shape[1] == 1)
            return known, tokens.float()

    class Embedding(ToyVerifier):
        def embed(self, images):
            return self.tokenizer.encode(images).float()

        def score_embeddings(self, embeddings, target):
            rows = [tuple(t for t in row if t >= 0) for row in embeddings.long().tolist()]
            return torch.tensor([rugged(row) for row in rows])

    verifier = Embedding(ToyTokenizer(100, 4), rugged)
    options = {"verifier": verifier, "atlas": Everything()}
    result, seconds = on_the_clock(monkeypatch, 10, **options)
    assert [len(step.pool.tokens) for step in result.steps][0] == 100
    assert result.accounts.cached == 100 and result.steps[0].decodes == 0
    assert [step.length for step in result.steps] == [1, 2, 3, 4]
    assert result.stopped == "done" and seconds <= 10


@pytest.mark.parametrize(("time_limit", "seconds"), [(0.5, 1), (1, 1), (2.9, 2), (3, 3)])
def test_out_of_time_a_search_ends_with_the_best_so_far(monkeypatch, time_limit, seconds):
    result, taken = on_the_clock(monkeypatch, time_limit)
    assert taken == seconds  # not before the first pass; never beyond the one that is running
    assert result.stopped == "time" and not result.interrupted
    assert result.score == max(step.best_score for step in result.steps)


def test_best_of_n_draws_for_as_long_as_there_is_time(monkeypatch):
    result, seconds = on_the_clock(monkeypatch, 5, search="best-of-n", samples=10**4)
    assert (seconds, result.decodes, result.stopped) == (5, 80, "time")


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


# records


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
