import itertools

import pytest
import torch

from tests.toy_search import brute_force, pools, run
from tests.toys import ToyPrior, ToyTokenizer, rugged
from tfgen.search import SearchSettings


def look(function=rugged, **options):
    return run(function, search="lookahead", **options)


@pytest.mark.parametrize("options", [{"lookahead": 0}, {"lookahead_steps": 0, "rollouts": 3}])
def test_a_lookahead_of_nothing_is_beam_search(options):
    settings = {"tokenizer": ToyTokenizer(50, 4), "beam": 3, "candidates": 7, "prior_weight": 0.1}
    beam, lookahead = run(**settings), look(**settings, **options)
    assert pools(beam) == pools(lookahead)
    assert torch.equal(beam.tokens, lookahead.tokens) and beam.score == lookahead.score
    assert beam.decodes == lookahead.decodes
    assert all(step.pool.rollouts is None for step in lookahead.steps)


@pytest.mark.parametrize("options", [{}, {"rollouts": 3}, {"lookahead": 1}])
def test_rollouts_leave_the_draws_of_the_beam_as_they_are(options):
    # Where all pictures are equally good, lower tokens are kept, whatever the rollouts are.
    settings = {"tokenizer": ToyTokenizer(50, 4), "prior": ToyPrior(50, 4), "prior_strength": 1.0}
    settings |= {"beam": 3, "candidates": 7, "function": lambda tokens: 0.0}
    assert pools(run(**settings)) == pools(look(**settings, **options))


def test_rollouts_extend_their_candidates_and_are_what_is_scored():
    tokenizer = ToyTokenizer(9, 6)
    result = look(tokenizer=tokenizer, beam=3, candidates=4, lookahead=2, rollouts=3)
    assert [step.pool.tokens.shape[1] for step in result.steps] == [1, 2, 3, 4, 5, 6]
    for step, longer in zip(result.steps[:-1], [3, 4, 5, 6, 6], strict=True):
        rollouts = step.pool.rollouts  # [N, 3, longer]
        assert rollouts.shape[1:] == (3, longer)
        same = rollouts[:, :, : step.length] == step.pool.tokens[:, None]
        assert same.all()
        expected = [[rugged(tuple(row)) for row in rows] for rows in rollouts.tolist()]
        torch.testing.assert_close(step.pool.rollout_scores, torch.tensor(expected))
    assert result.steps[-1].pool.rollouts is None  # at the end there is nothing to look ahead to
    shown = {len(row) for batch in tokenizer.batches for row in batch.tolist()}
    assert shown == {3, 4, 5, 6}  # no candidate's own picture was decoded before the end


@pytest.mark.parametrize(("how", "joined"), [("mean", torch.mean), ("max", torch.amax)])
def test_candidates_rank_by_the_mean_or_the_best_of_their_rollouts(how, joined):
    result = look(tokenizer=ToyTokenizer(9, 4), beam=3, candidates=4, rollouts=4, rollout_score=how)
    for step in result.steps[:-1]:
        torch.testing.assert_close(step.pool.scores, joined(step.pool.rollout_scores, dim=1))
        assert step.pool.scores.tolist() == sorted(step.pool.scores.tolist(), reverse=True)


def test_rollouts_rank_by_where_a_candidate_leads():
    # 0 looks best by itself, but only what starts with 3 ends well.
    def function(tokens):
        return float(tokens[0] == 0) if len(tokens) == 1 else 2.0 * (tokens[0] == 3)

    assert run(function, beam=1, candidates=5, tokens=2).tokens.tolist() == [0]
    assert look(function, beam=1, candidates=5, tokens=2).tokens[0] == 3


@pytest.mark.parametrize("end", ["end", -1, None, 99])
def test_a_rollout_to_the_end_stops_at_the_last_token_of_the_search(end):
    result = look(tokenizer=ToyTokenizer(9, 6), beam=2, candidates=3, tokens=4, lookahead=end)
    assert [step.pool.rollouts.shape[2] for step in result.steps[:-1]] == [4, 4, 4]


def test_greedy_rollouts_take_the_most_probable_tokens():
    prior = ToyPrior(9, 5)
    options = {"prior": prior, "prior_strength": 1.0, "tokenizer": ToyTokenizer(9, 5)}
    result = look(beam=2, candidates=3, rollout="greedy", lookahead=2, **options)
    for step in result.steps[:-1]:
        for rollout in step.pool.rollouts[:, 0].tolist():
            for before, after in itertools.pairwise(rollout[step.length - 1 :]):
                assert after == prior.table[before].argmax()


def test_sampled_rollouts_follow_the_prior():
    prior = ToyPrior(3, 2)
    options = {"prior": prior, "prior_strength": 2.0, "tokenizer": ToyTokenizer(3, 2)}
    first = look(beam=1, candidates=3, rollouts=3000, **options).steps[0].pool
    for token, rollouts in zip(first.tokens[:, 0], first.rollouts[:, :, 1], strict=True):
        share = rollouts.bincount(minlength=3) / 3000
        expected = (2.0 * prior.table[token]).softmax(0)
        torch.testing.assert_close(share, expected, atol=0.04, rtol=0)


def test_only_the_first_steps_look_ahead_where_so_wanted():
    result = look(tokenizer=ToyTokenizer(9, 4), beam=2, candidates=3, lookahead_steps=2)
    assert [step.pool.rollouts is not None for step in result.steps] == [True, True, False, False]


def test_the_result_may_be_a_rollout_and_has_all_tokens_that_its_picture_shows():
    best = (2, 4, 1)

    def function(tokens):
        return 1.0 if tokens == best else -len(tokens) / 10

    result = look(function, beam=5, candidates=5, lookahead_steps=1, rollouts=200)
    assert result.steps[0].best_tokens.tolist() == list(best) == result.tokens.tolist()
    assert result.steps[0].length == 1 and result.score == result.steps[0].best_score == 1.0
    assert result.score > result.steps[0].pool.scores.max()  # a candidate's is the mean of many


@pytest.mark.parametrize("options", [{}, {"rollouts": 4}, {"lookahead": 1, "rollouts": 2}])
def test_the_score_is_the_best_of_all_pictures_decoded(options):
    tokenizer = ToyTokenizer(9, 4)
    result = look(tokenizer=tokenizer, beam=2, candidates=3, **options)
    decoded = {tuple(row) for batch in tokenizer.batches for row in batch.tolist()}
    assert tuple(result.tokens.tolist()) == max(decoded, key=rugged)
    assert result.decodes == len(decoded)


def test_with_every_candidate_and_rollouts_enough_it_finds_the_optimum_at_the_first_step():
    result = look(beam=1, candidates=5, tokens=3, rollouts=500)
    assert tuple(result.steps[0].best_tokens.tolist()) == brute_force(rugged, 5, [3])


@pytest.mark.parametrize("budget", [7, 40, 100, 151])
def test_rollouts_are_decodes_and_stay_within_the_budget(budget):
    options = {"tokenizer": ToyTokenizer(50, 4), "beam": 3, "candidates": 5, "rollouts": 4}
    free = look(**options).decodes
    result = look(budget=budget, **options)
    assert budget < free and result.decodes <= budget
    if budget >= 40:
        assert [step.length for step in result.steps] == [1, 2, 3, 4]
        assert result.stopped == "done"


@pytest.mark.parametrize("batch_size", [1, 1000])
def test_lookahead_does_not_depend_on_the_batch_size(batch_size):
    options = {"prior": ToyPrior(50, 4), "prior_strength": 1.0, "rollouts": 3, "beam": 3}
    options["tokenizer"] = ToyTokenizer(50, 4, rounds_by_rows=True)
    results = [look(batch_size=size, candidates=5, **options) for size in (None, batch_size)]
    assert pools(results[0]) == pools(results[1])
    assert results[0].score == results[1].score


def test_ctrl_c_between_the_rollouts_keeps_the_best_picture():
    def interrupt(progress):
        if progress.decodes >= 30:
            raise KeyboardInterrupt

    tokenizer = ToyTokenizer(50, 4)
    options = {"beam": 2, "candidates": 6, "rollouts": 5, "batch_size": 16}
    result = look(tokenizer=tokenizer, progress=interrupt, **options)
    assert result.interrupted and result.decodes == 32
    decoded = {tuple(row) for batch in tokenizer.batches for row in batch.tolist()}
    assert tuple(result.tokens.tolist()) == max(decoded, key=rugged)
    pool = result.steps[0].pool
    assert len(pool.tokens) == 7  # 32 pictures, of the last candidate two of five
    assert pool.rollout_scores.isnan().sum() == 3 and not pool.scores.isnan().any()


@pytest.mark.parametrize(("how", "joined"), [("mean", torch.nanmean), ("max", torch.amax)])
def test_a_candidate_is_ranked_by_those_of_its_rollouts_that_are_scored(how, joined):
    options = {"tokenizer": ToyTokenizer(50, 4), "beam": 2, "candidates": 2, "rollouts": 4}
    result = look(budget=2, rollout_score=how, **options)
    pool = result.steps[0].pool
    assert result.decodes == 2 and pool.rollout_scores.isnan().sum() == 2
    scored = pool.rollout_scores[:, :2] if how == "max" else pool.rollout_scores
    torch.testing.assert_close(pool.scores, joined(scored, dim=1))
    assert result.tokens.tolist() in pool.rollouts[0].tolist()


def test_it_says_what_it_searched_with():
    assert look(beam=2, lookahead="end").settings == SearchSettings(
        search="lookahead", beam=2, lookahead="end"
    )
