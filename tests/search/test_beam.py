import itertools

import pytest
import torch
from scipy.stats import chisquare

from tests.toy_search import brute_force, pools, run
from tests.toys import ToyPrior, ToyTokenizer, rugged
from tfgen.errors import InputError
from tfgen.priors import UniformPrior

# what is found


def test_a_beam_and_candidates_as_many_as_the_codebook_find_the_best_pair():
    result = run(beam=5, candidates=5, tokens=2)
    assert tuple(result.tokens.tolist()) == brute_force(rugged, 5, (1, 2))
    assert result.decodes == 5 + 25


def test_a_beam_as_wide_as_there_are_prefixes_finds_the_optimum():
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


def test_as_in_soto_the_first_step_may_draw_only_the_candidates_of_one():
    result = run(
        tokenizer=ToyTokenizer(100, 3), beam=4, candidates=6, first_step="candidates", tokens=2
    )
    assert [len(step.pool.tokens) for step in result.steps] == [6, 24]


def test_as_in_soto_the_best_of_the_last_step_may_be_the_result():
    def function(tokens):
        return 1.0 if tokens == (3,) else -len(tokens) / 10 - tokens[-1] / 100

    result = run(function, beam=2, candidates=5, keep="last")
    assert result.tokens.tolist() == result.steps[-1].best_tokens.tolist()
    assert result.score == pytest.approx(-0.3)


def test_the_best_ever_never_falls():
    for seed in range(5):
        result = run(tokenizer=ToyTokenizer(50, 6), seed=seed, beam=3, candidates=4)
        best = list(itertools.accumulate((step.best_score for step in result.steps), max))
        assert result.score == best[-1] == max(step.best_score for step in result.steps)
        assert min(step.best_score for step in result.steps) < best[-1]  # some step was worse


@pytest.mark.parametrize("max_children", [1, 2, 3])
def test_no_parent_has_more_than_so_many_children_in_a_beam(max_children):
    def favours_the_first(tokens):
        return 10.0 * (tokens[0] == 0) + rugged(tokens)

    options = {"beam": 4, "candidates": 5, "tokens": 3}
    free = run(favours_the_first, **options)
    limited = run(favours_the_first, max_children=max_children, **options)
    assert len(limited.steps[0].pool.kept) == 4  # children of the empty prefix are not limited
    for step in limited.steps[1:]:
        parents = step.pool.parents[step.pool.kept].tolist()
        assert max(parents.count(parent) for parent in parents) <= max_children
    parents = free.steps[1].pool.parents[free.steps[1].pool.kept]
    assert len(parents.unique()) == 1  # without the limit, one parent takes all places
    kept = limited.steps[1].pool.kept.tolist()
    assert kept == sorted(kept) and kept[0] == 0  # the best are kept, best first


def test_parents_are_rows_of_the_pool_before():
    result = run(tokenizer=ToyTokenizer(20, 4), beam=3, candidates=7, schedule="1,3,4")
    assert result.steps[0].pool.parents.unique().tolist() == [-1]
    for before, after in itertools.pairwise(result.steps):
        assert set(after.pool.parents.tolist()) == set(before.pool.kept.tolist()) == {0, 1, 2}
        prefixes = before.pool.tokens[after.pool.parents]
        assert torch.equal(after.pool.tokens[:, : before.length], prefixes)


# repeats


def test_drawn_with_replacement_a_pool_may_hold_a_prefix_twice_but_decodes_it_once():
    result = run(beam=2, candidates=10, distinct=False)
    assert [len(step.pool.tokens) for step in result.steps] == [20, 20, 20]
    distinct = [len(step.pool.tokens.unique(dim=0)) for step in result.steps]
    assert max(distinct) <= 10 and result.decodes == sum(distinct)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_drawn_with_replacement_candidates_are_independent_draws(strength):
    prior = ToyPrior(4, 2)
    pool = run(
        tokenizer=ToyTokenizer(4, 2), prior=prior, beam=1, candidates=4000, distinct=False,
        prior_strength=strength, tokens=1,
    ).steps[0].pool  # fmt: skip
    seen = pool.tokens[:, 0].bincount(minlength=4).numpy()
    expected = (strength * prior.table[-1]).double().softmax(0).numpy()
    assert chisquare(seen, 4000 * expected).pvalue > 0.001


# from given tokens


def test_all_candidates_begin_with_the_given_tokens():
    result = run(tokenizer=ToyTokenizer(9, 8), beam=2, candidates=4, start=[7, 7, 2])
    assert [step.length for step in result.steps] == [4, 5, 6, 7, 8]
    for step in result.steps:
        assert torch.equal(step.pool.tokens[:, :3].unique(dim=0), torch.tensor([[7, 7, 2]]))


@pytest.mark.parametrize(
    ("schedule", "lengths"), [("geometric", [8]), ("linear:3", [6, 8]), ("2,4,5,7", [5, 7])]
)
def test_given_tokens_do_not_shift_the_schedule(schedule, lengths):
    result = run(tokenizer=ToyTokenizer(9, 8), beam=2, start=[1, 0, 1, 0], schedule=schedule)
    assert [step.length for step in result.steps] == lengths


def test_a_search_may_start_from_several_prefixes():
    starts = [[1], [4], [2]]
    result = run(tokenizer=ToyTokenizer(9, 3), beam=6, candidates=4, start=starts)
    first = result.steps[0].pool
    assert len(first.tokens) == 6 * 4
    assert first.tokens[:, 0].unique().tolist() == [1, 2, 4]


def test_a_start_that_leaves_nothing_to_search_for_is_refused():
    with pytest.raises(InputError, match="start has 3 tokens and the schedule ends at 2"):
        run(beam=2, start=[1, 2, 3], tokens=2)


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ([[1], [2, 3]], "several different ones of the same length"),
        ([[1], [1]], "several different ones of the same length"),
        ([], "start is one prefix"),
        ([1.5], "A token of start must be a whole number from 0 up, not 1.5"),
        ([-1], "from 0 up, not -1"),
        ([5], "Token 5 is not in the codebook of toy"),
        ([0] * 4, "decodes 1 to 3 tokens, not 4"),
    ],
)
def test_a_start_that_is_no_prefix_is_refused(start, complaint):
    with pytest.raises(InputError) as error:
        run(start=start)
    assert complaint in str(error.value)


# completion


@pytest.mark.parametrize("how", ["greedy", "sample"])
def test_the_last_beam_is_completed_and_the_better_is_kept(how):
    prior, tokenizer = ToyPrior(5, 6), ToyTokenizer(5, 6)
    options = {"prior": prior, "tokenizer": tokenizer, "beam": 3, "candidates": 5, "tokens": 2}
    plain = run(prior_strength=1.0, **options)
    result = run(prior_strength=1.0, complete=how, **options)
    assert pools(plain) == pools(result)[:2]
    last = result.steps[-1]
    assert (last.phase, last.length, len(last.pool.tokens)) == ("complete", 6, 3)
    beam = plain.steps[-1].pool.tokens[:3]
    assert torch.equal(beam[last.pool.parents], last.pool.tokens[:, :2])
    assert last.pool.scores.tolist() == pytest.approx(
        [rugged(tuple(tokens)) for tokens in last.pool.tokens.tolist()]
    )
    assert result.score == max(plain.score, last.best_score)
    if how == "greedy":
        for tokens in last.pool.tokens.tolist():
            for before, after in itertools.pairwise(tokens[1:]):
                assert after == prior.table[before].argmax()


def test_nothing_is_completed_that_is_whole_already():
    assert [step.phase for step in run(beam=2, complete="sample").steps] == ["search"] * 3


def test_what_is_not_completed_takes_no_share_of_what_follows():
    options = {"tokenizer": ToyTokenizer(20, 4), "beam": 4, "candidates": 4, "crossover": 1}
    options |= {"refine": 1, "reencode": 3, "budget": 60}
    completed, plain = run(complete="sample", **options), run(**options)
    assert pools(completed) == pools(plain)
    assert completed.accounts.cost == plain.accounts.cost


def test_a_greedy_completion_needs_a_prior():
    for options in ({}, {"prior": ToyPrior()}):
        with pytest.raises(InputError, match="at prior strength 0"):
            run(complete="greedy", **options)


# the prior


def test_at_strength_zero_the_prior_changes_nothing():
    options = {"tokenizer": ToyTokenizer(50, 3), "beam": 2, "candidates": 5}
    results = [run(prior=prior, **options) for prior in (ToyPrior(50, 3), UniformPrior(50, 3))]
    assert pools(results[0]) == pools(results[1])


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
