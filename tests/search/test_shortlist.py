"""The shortlist: part of a step's candidates drawn, the others chosen from the whole codebook."""

import pytest
import torch

from tests.toy_search import pools, run
from tests.toys import GridTokenizer, GridVerifier, ToyPrior, ToyTokenizer
from tfgen.errors import InputError, TfgenError
from tfgen.search import Evaluator, shortlist
from tfgen.verifiers.base import Verifier

GOAL = torch.tensor([[0.3, -0.9], [-0.6, 0.2], [0.8, 0.7]])  # the best code vector of each position


def near_the_goal(points):
    """[N, 3, 2] -> [N]: a valley; where the prefix is over, points are zero."""
    return -(points - GOAL).square().sum(dim=(1, 2))


def best_tokens(side=10):
    codes = GridTokenizer(side).code_embeddings()
    return torch.cdist(GOAL, codes).argmin(dim=1).tolist()


def grid(function=near_the_goal, *, tokenizer=None, verifier=None, **options):
    options = {"beam": 2, "candidates": 8, "shortlist": 6} | options
    tokenizer = tokenizer or GridTokenizer(10, 3)
    return run(tokenizer=tokenizer, verifier=verifier or GridVerifier(function), **options)


class Unembedded(GridVerifier):
    """Scores pictures only."""

    embed = Verifier.embed
    score_embeddings = Verifier.score_embeddings

    def score(self, images, target):
        return self.function(GridVerifier.embed(self, images).unflatten(1, (-1, 2)))


# what is found


@pytest.mark.parametrize(("by", "candidates"), [("surrogate", 8), ("gradient", 32)])
def test_where_scores_vary_smoothly_few_decodes_find_the_best_of_a_million(by, candidates):
    result = grid(shortlist_by=by, candidates=candidates, shortlist=candidates * 3 // 4)
    assert result.tokens.tolist() == best_tokens()
    assert grid(shortlist=0, candidates=candidates).score < result.score


def test_a_verifier_without_embeddings_will_do():
    result = grid(verifier=Unembedded(near_the_goal), candidates=16, shortlist=12)
    assert result.tokens.tolist() == best_tokens()


def test_steps_of_several_tokens_have_a_shortlist_too():
    plain = grid(schedule="2,3", candidates=64, shortlist=0)
    listed = grid(schedule="2,3", candidates=64, shortlist=48)
    assert [step.length for step in listed.steps] == [2, 3]
    assert listed.score > plain.score + 0.05


def test_the_choice_is_over_all_prefixes_together():
    good, bad = best_tokens()[0], 99 - best_tokens()[0]
    result = grid(start=[[good], [bad]], candidates=16, shortlist=12, first_step="candidates")
    first = result.steps[0].pool.tokens[:, 0].tolist()
    assert (first.count(bad), first.count(good)) == (4, 4 + 2 * 12)


def test_codes_that_the_prior_never_draws_are_chosen_all_the_same():
    tokenizer, prior = GridTokenizer(10, 3), ToyPrior(100, 3)
    prior.table = torch.full((101, 100), -50.0)
    prior.table[:, 50:] = 0.0
    prior.table = prior.table.log_softmax(dim=1)
    assert best_tokens()[0] < 50
    options = {"tokenizer": tokenizer, "prior": prior, "prior_strength": 1.0}
    assert grid(**options).tokens.tolist() == best_tokens()
    assert all(token >= 50 for token in grid(**options, shortlist=0).tokens.tolist())


def test_the_prior_has_its_weight_in_the_choice():
    prior = ToyPrior(100, 3)
    lines = {}
    for weight in (0.0, 3.0):
        result = grid(prior=prior, prior_weight=weight, typicality=False, candidates=16)
        lines[weight] = prior.sequence_log_prob(result.steps[0].pool.tokens).median()
    assert lines[3.0] > lines[0.0] + 0.5


def test_of_more_sequences_than_can_be_ranked_the_prior_draws_those_that_are(monkeypatch):
    monkeypatch.setattr(shortlist, "SCOUTED", 30)
    drawn, listed = (set(map(tuple, pools(grid(candidates=15, shortlist=n))[0])) for n in (0, 10))
    assert listed == drawn


# an estimate that errs


def test_a_gradient_that_lies_wastes_decodes_and_wins_nothing():
    def rippled(points):  # at the codes, the ripple has no height and a slope away from the goal
        slope = torch.sign(points.detach() - GOAL)
        return near_the_goal(points) + 100 * (slope * (points - points.detach())).sum(dim=(1, 2))

    lied_to = grid(rippled, shortlist_by="gradient", candidates=32, shortlist=24)
    first = lied_to.steps[0]
    true = near_the_goal(torch.nn.functional.pad(
        GridTokenizer(10, 3).embed(first.pool.tokens), (0, 0, 0, 2)
    ))  # fmt: skip
    torch.testing.assert_close(first.pool.verifier_scores, true)
    drawn = grid(rippled, shortlist=0, candidates=32).steps[0].pool.tokens[:, 0].tolist()
    assert first.best_tokens.item() in drawn  # none that was chosen came out on top
    assert grid(shortlist_by="gradient", candidates=32).score > lied_to.score + 0.05


def test_scores_that_are_not_numbers_are_nothing_to_go_by():
    def half(points):
        return near_the_goal(points).where(points[:, 0, 0] > -0.5, torch.nan)

    assert grid(half, candidates=16, shortlist=12).tokens.tolist() == best_tokens()
    with pytest.raises(TfgenError, match="gave no picture a usable score"):
        grid(lambda points: near_the_goal(points) * torch.nan)


# what it costs


@pytest.mark.parametrize("by", ["surrogate", "gradient"])
def test_a_beam_costs_its_candidates_whichever_way_they_come_about(by):
    result = grid(shortlist_by=by, beam=4, candidates=16, shortlist=8)
    accounts = result.accounts
    assert accounts.cost == 3 * 4 * 16
    assert accounts.gradients == (3 * 4 * 2 if by == "gradient" else 0)
    assert accounts.cost == accounts.decodes + 3 * accounts.gradients
    assert accounts.verifier_calls == accounts.decodes + accounts.gradients


@pytest.mark.parametrize("by", ["surrogate", "gradient"])
@pytest.mark.parametrize("budget", [1, 5, 23, 50, 95])
def test_the_budget_is_never_exceeded(by, budget):
    result = grid(shortlist_by=by, beam=2, candidates=24, shortlist=12, budget=budget)
    assert 0 < result.accounts.cost <= budget


def test_without_a_shortlist_it_is_plain_beam_search():
    plain = grid(shortlist=0)
    assert pools(grid(shortlist=0, shortlist_by="gradient")) == pools(plain)
    assert pools(grid(shortlist=1)) != pools(plain)


def test_some_candidates_are_drawn_however_long_the_shortlist():
    assert grid(shortlist=1000).tokens.tolist() == best_tokens()
    assert grid(beam=1, candidates=1, shortlist=1000).decodes == 3


@pytest.mark.parametrize(("candidates", "chosen"), [(1, 0), (2, 8)])
def test_one_of_each_parent_is_drawn_however_few_its_candidates(candidates, chosen):
    result = grid(beam=8, candidates=candidates, shortlist=candidates, first_step="candidates",
                  start=[[token] for token in range(8)], tokens=2)  # fmt: skip
    pool = result.steps[0].pool
    assert len(pool.tokens) == 8 * candidates
    assert pool.tokens[:, 0].unique().tolist() == list(range(8))
    plain = grid(beam=8, candidates=candidates, shortlist=0, first_step="candidates",
                 start=[[token] for token in range(8)], tokens=2)  # fmt: skip
    drawn = set(map(tuple, pools(plain)[0]))
    assert len(set(map(tuple, pools(result)[0])) - drawn) <= chosen


@pytest.mark.parametrize(("candidates", "shortlist", "drawn"), [(8, 6, 4), (8, 8, 2), (2, 1, 2)])
def test_where_enough_are_drawn_the_rest_is_chosen(candidates, shortlist, drawn, monkeypatch):
    rounds = []
    score = Evaluator.score

    def watch(self, tokens):
        rounds.append(len(tokens))
        return score(self, tokens)

    monkeypatch.setattr(Evaluator, "score", watch)
    grid(candidates=candidates, shortlist=shortlist, tokens=2, first_step="candidates",
         start=[[0], [1]], schedule="2")  # fmt: skip
    assert rounds[0] == drawn and sum(rounds) == 2 * candidates


# seeds, batches, interruptions


@pytest.mark.parametrize("by", ["surrogate", "gradient"])
def test_results_do_not_depend_on_the_batch_size(by):
    first, other = (
        pools(grid(shortlist_by=by, candidates=16, batch_size=size)) for size in (None, 100)
    )
    assert first == other


def test_same_seed_same_search_other_seed_other_search():
    first, again, other = (pools(grid(seed=seed)) for seed in (7, 7, 8))
    assert first == again != other


def test_ctrl_c_in_a_later_round_keeps_what_the_earlier_ones_scored():
    def interrupt(progress):
        if progress.decodes > 16 * 5:
            raise KeyboardInterrupt

    result = grid(beam=4, candidates=32, shortlist=24, progress=interrupt)
    whole = grid(beam=4, candidates=32, shortlist=24)
    assert result.interrupted and result.steps[0].partial
    assert len(result.steps[0].pool.tokens) == result.decodes
    assert set(map(tuple, pools(result)[0])) < set(map(tuple, pools(whole)[0]))


# what cannot have one


def test_a_tokenizer_without_code_embeddings_is_refused():
    with pytest.raises(InputError, match="the tokenizer toy has none"):
        run(tokenizer=ToyTokenizer(5, 3), beam=2, candidates=2, shortlist=1)


@pytest.mark.parametrize("what", ["decoder", "verifier"])
def test_a_gradient_needs_a_differentiable_decoder_and_verifier(what, monkeypatch):
    tokenizer, verifier = GridTokenizer(10, 3), GridVerifier(near_the_goal)
    if what == "decoder":
        tokenizer.decode_embeddings = super(ToyTokenizer, tokenizer).decode_embeddings
        tokenizer.decode = lambda tokens: GridTokenizer(10, 3).decode(tokens)
    else:
        monkeypatch.setattr(verifier, "function", lambda points: near_the_goal(points.detach()))
    with pytest.raises(InputError, match="has no gradient: use the shortlist by 'surrogate'"):
        grid(tokenizer=tokenizer, verifier=verifier, shortlist_by="gradient")
    assert grid(tokenizer=tokenizer, verifier=verifier).tokens.tolist() == best_tokens()
