"""Refinement: after the search, single tokens are chosen again with all others held fixed."""

import itertools

import pytest
import torch

from tests.toy_search import pools, run
from tests.toys import GridTokenizer, GridVerifier, ToyPrior, ToyTokenizer, rugged
from tfgen.errors import InputError

GOAL = (4, 0, 2)


def misleading(tokens):
    """The first tokens that look best are wrong, as the whole sequence shows."""
    if len(tokens) < 3:
        return -float(sum(abs(token - 1) for token in tokens))
    return 10.0 - sum(abs(token - goal) for token, goal in zip(tokens, GOAL, strict=True))


def refining(result):
    return [step for step in result.steps if step.phase == "refine"]


# what is found


def test_one_sweep_puts_right_what_the_search_could_not_know():
    options = {"beam": 1, "candidates": 5}
    assert run(misleading, **options).tokens.tolist() == [1, 1, 2]
    assert run(misleading, **options, refine=1).tokens.tolist() == list(GOAL)


def test_with_a_shortlist_few_decodes_a_token_are_enough():
    goal = torch.tensor([[0.3, -0.9], [-0.6, 0.2], [0.8, 0.7]])

    def shown_late(points):  # until the last token is there, only the first one's sign is seen
        whole = points[:, 2].ne(0).any(dim=1)
        close = -(points - goal).square().sum(dim=(1, 2))
        return close.where(whole, -9.0 - (points[:, 0] + goal[0]).square().sum(dim=1))

    options = {"tokenizer": GridTokenizer(10, 3), "verifier": GridVerifier(shown_late)}
    options |= {"beam": 2, "candidates": 10, "shortlist": 7}
    best = torch.cdist(goal, GridTokenizer(10, 3).code_embeddings()).argmin(dim=1).tolist()
    assert run(**options).tokens.tolist() != best
    assert run(**options, refine=2).tokens.tolist() == best


def test_refining_never_makes_the_result_worse():
    for seed in range(5):
        plain = run(beam=2, candidates=2, seed=seed)
        refined = run(beam=2, candidates=2, seed=seed, refine=2)
        assert pools(refined)[:3] == pools(plain)
        assert refined.score >= plain.score


def test_it_follows_a_lookahead_and_a_completion_too():
    options = {"prior": ToyPrior(), "prior_strength": 1.0, "beam": 2, "candidates": 4}
    result = run(misleading, **options, search="lookahead", tokens=2, complete="sample", refine=1)
    phases = [step.phase for step in result.steps]
    assert phases == ["search", "search", "complete", "refine", "refine", "refine"]
    assert result.tokens.tolist() == list(GOAL)


# which tokens


def test_a_sweep_visits_every_position_once_and_changes_it_alone():
    result = run(tokenizer=ToyTokenizer(20, 4), beam=3, candidates=6, refine=2)
    visited = []
    for before, step in itertools.pairwise([result.steps[3], *refining(result)]):
        beam = before.pool.tokens[before.pool.kept]
        rows = {tuple(row) for row in beam.tolist()}
        changes = [
            (row != parent).nonzero()[:, 0].tolist()
            for row in step.pool.tokens
            if tuple(row.tolist()) not in rows
            for parent in [min(beam, key=lambda parent: int((row != parent).sum()))]
        ]
        assert len(changes) >= 6
        (position,) = set(map(tuple, changes))
        visited += position
    assert sorted(visited[:4]) == sorted(visited[4:]) == [0, 1, 2, 3]
    assert visited[:4] != [0, 1, 2, 3] or visited[4:] != [0, 1, 2, 3]


def test_parents_are_known_so_that_the_tree_can_be_drawn():
    result = run(tokenizer=ToyTokenizer(20, 4), beam=3, candidates=6, refine=1)
    for before, step in itertools.pairwise(result.steps[3:]):
        parents = before.pool.tokens[step.pool.parents]
        assert (step.pool.parents >= 0).all()
        assert ((step.pool.tokens != parents).sum(dim=1) <= 1).all()


def test_given_tokens_stay():
    result = run(misleading, start=[3], beam=2, candidates=5, refine=2)
    assert len(refining(result)) == 2 * 2
    assert result.tokens.tolist() == [3, *GOAL[1:]]


def test_only_the_best_few_prefixes_are_refined():
    result = run(tokenizer=ToyTokenizer(20, 4), beam=10, candidates=6, refine=1)
    for before, step in itertools.pairwise(result.steps[3:]):
        parents = before.pool.tokens[step.pool.parents]
        (position,) = (step.pool.tokens != parents).any(dim=0).nonzero()[0].tolist()
        beam = before.pool.tokens[before.pool.kept]
        others = [
            tuple(row)
            for row in torch.cat([beam[:, :position], beam[:, position + 1 :]], 1).tolist()
        ]
        best = list(dict.fromkeys(others))[:4]
        assert 24 <= len(step.pool.tokens) <= 10 + 24  # a draw may be in the beam already
        refined = step.pool.parents[(parents != step.pool.tokens).any(dim=1)]
        assert {others[before.pool.kept.tolist().index(row)] for row in refined.tolist()} == set(
            best
        )


# annealing


def test_a_temperature_keeps_worse_ones_for_a_while():
    options = {"tokenizer": ToyTokenizer(20, 4), "beam": 3, "candidates": 6, "refine": 3}
    cold, warm = run(**options), run(**options, anneal=0.5)
    assert all(step.pool.kept.tolist() == [0, 1, 2] for step in refining(cold))
    kept = [step.pool.kept.tolist() for step in refining(warm)]
    assert sum(rows != [0, 1, 2] for rows in kept) > 6
    assert all(rows == sorted(set(rows)) and len(rows) == 3 for rows in kept)
    assert kept[-1] == [0, 1, 2]  # the last step is at temperature 0
    assert warm.score == max(step.best_score for step in warm.steps)


def test_the_hotter_the_more_is_kept_that_is_worse():
    def mean_rank(temperature):
        options = {"tokenizer": ToyTokenizer(20, 4), "beam": 3, "candidates": 6, "refine": 5}
        steps = refining(run(**options, anneal=temperature))
        return torch.stack([step.pool.kept.float().mean() for step in steps]).mean()

    assert mean_rank(0.0) < mean_rank(0.1) < mean_rank(10.0)


def test_a_temperature_without_a_refinement_is_refused():
    with pytest.raises(InputError, match="anneal is the temperature of a refinement"):
        run(beam=2, candidates=2, anneal=0.5)


# accounts, seeds, interruptions


def test_the_budget_is_shared_out_between_search_and_refinement():
    options = {"tokenizer": ToyTokenizer(50, 3), "beam": 4, "candidates": 8, "refine": 2}
    full = run(**options)
    assert full.decodes <= 3 * 32 + 6 * 32
    half = run(**options, budget=144)
    assert len(half.steps) == len(full.steps) == 3 + 6
    assert half.steps[2].decodes <= 48 and 100 < half.decodes <= 144


def test_results_do_not_depend_on_the_batch_size():
    options = {"prior": ToyPrior(50, 3), "prior_strength": 1.0, "beam": 3, "candidates": 11}
    first, other = (
        pools(
            run(
                tokenizer=ToyTokenizer(50, 3, rounds_by_rows=True),
                batch_size=size,
                refine=2,
                **options,
            )
        )
        for size in (None, 100)
    )
    assert first == other


@pytest.mark.parametrize("shortlist", [0, 6])
def test_a_refinement_that_was_cut_short_goes_on_as_if_it_had_not_been(tmp_path, shortlist):
    def go(**more):
        tokenizer = GridTokenizer(10, 3)
        verifier = GridVerifier(lambda points: points.sin().prod(dim=1).sum(dim=1))
        options = {"beam": 3, "candidates": 8, "refine": 2, "anneal": 0.3, "shortlist": shortlist}
        return run(
            tokenizer=tokenizer, verifier=verifier, about={"prompt": "a toy"}, **options, **more
        )

    class Killed(Exception):
        pass

    def die(step):
        if step.index in (2, 5, 6, 8):  # once each: steps taken up are not called back
            raise Killed

    for _ in range(4):
        with pytest.raises(Killed):
            go(resume=tmp_path, callback=die)
    resumed, whole = go(resume=tmp_path), go()
    assert pools(resumed) == pools(whole)
    assert resumed.decodes == whole.decodes
    assert resumed.tokens.tolist() == whole.tokens.tolist()


def test_ctrl_c_in_a_refinement_keeps_the_best_so_far():
    def interrupt(progress):
        if progress.step > 4:
            raise KeyboardInterrupt

    result = run(rugged, beam=2, candidates=4, refine=1, progress=interrupt)
    assert result.interrupted and result.steps[-1].phase == "refine"
    assert result.score == max(step.best_score for step in result.steps)
