"""Screening: drafts of many candidates are looked at, the best of them are decoded."""

import json

import pytest
import torch
from scipy.stats import spearmanr

from tests.toy_search import pools, run
from tests.toys import ToyTokenizer
from tfgen.errors import InputError, TfgenError
from tfgen.search.screening import rank_correlation

GOAL = 137


class Drafting(ToyTokenizer):
    """Drafts show tokens `off` by so many places; they cost a tenth of a decode."""

    draft_cost = 0.1

    def __init__(self, off=0, vocab_size=300, num_tokens=3, **options):
        super().__init__(vocab_size, num_tokens, **options)
        self.off, self.drafted = off, []

    def draft(self, tokens):
        self.drafted.append(tokens)
        generator = torch.Generator().manual_seed(int(tokens.sum()))
        noise = torch.randint(-self.off, self.off + 1, tokens.shape, generator=generator)
        return ToyTokenizer.decode(
            ToyTokenizer(self.vocab_size, self.num_tokens),
            (tokens + noise).clamp(0, self.vocab_size - 1),
        )


def near(tokens):
    return -float(sum(abs(token - GOAL) for token in tokens)) - 500.0 * (3 - len(tokens))


def screening(result_or_trace):
    return json.loads(result_or_trace.read_text().splitlines()[-2])["notes"]["screening"]


def go(off=0, *, tokenizer=None, function=near, **options):
    options = {"beam": 2, "candidates": 20, "screen": True} | options
    return run(function, tokenizer=tokenizer or Drafting(off), **options)


# what is found


def test_good_drafts_find_more_at_the_same_cost():
    scores = [[go(seed=s, screen=screen).score for s in range(10)] for screen in (False, True)]
    assert torch.tensor(scores[1]).mean() > torch.tensor(scores[0]).mean() + 3


def test_scores_are_those_of_decodes():
    for step in go(off=60).steps:
        true = torch.tensor([near(row) for row in step.pool.tokens.tolist()])
        torch.testing.assert_close(step.pool.verifier_scores, true)


def test_the_best_drafts_are_promoted_and_some_at_random():
    tokenizer = Drafting(off=0)
    step = go(tokenizer=tokenizer, beam=4, candidates=40).steps[0]
    drafted = torch.cat([rows for rows in tokenizer.drafted if rows.shape[1] == 1]).unique()
    decoded = step.pool.tokens[:, 0].tolist()
    best = sorted(drafted.tolist(), key=lambda token: abs(token - GOAL))
    promoted = [token in decoded for token in best]
    assert len(decoded) < len(drafted)
    top = promoted.index(False)
    assert top >= 0.85 * len(decoded)
    assert any(promoted[top:])


# how many are promoted


@pytest.mark.parametrize(
    ("off", "low", "high"), [(0, 0.99, 1.01), (60, 0.1, 0.95), (10**6, -0.6, 0.6)]
)
def test_what_drafts_are_worth_is_measured_and_told(off, low, high, tmp_path):
    go(off, beam=8, candidates=60, trace=tmp_path / "trace.jsonl")
    notes = screening(tmp_path / "trace.jsonl")
    assert [note["length"] for note in notes] == [1, 2, 3]
    correlations = [note["rank_correlation"] for note in notes]
    assert low < sum(correlations) / 3 < high


def test_the_better_drafts_rank_the_fewer_are_promoted(tmp_path):
    shares = {}
    for off in (0, 10**6):
        tokenizer = Drafting(off, vocab_size=3000)
        go(tokenizer=tokenizer, beam=8, candidates=60, trace=tmp_path / "trace.jsonl")
        last = screening(tmp_path / "trace.jsonl")[-1]
        shares[off] = last["promoted"] / last["screened"]
    assert shares[0] == pytest.approx(1 / 16, rel=0.1)
    assert shares[10**6] == pytest.approx(1 / 2, rel=0.1)


def test_drafts_that_cost_too_much_are_not_looked_at():
    tokenizer = Drafting()
    tokenizer.draft_cost = 0.9
    assert pools(go(tokenizer=tokenizer)) == pools(go(screen=False))
    assert tokenizer.drafted == []


# what it costs


def test_a_beam_costs_its_candidates_drafts_included():
    tokenizer = Drafting(vocab_size=3000)
    result = go(tokenizer=tokenizer, beam=4, candidates=40)
    accounts = result.accounts
    assert accounts.screened > 2 * accounts.decodes
    assert accounts.cost == pytest.approx(accounts.decodes + 0.1 * accounts.screened)
    assert 3 * 4 * 40 - 6 < accounts.cost <= 3 * 4 * 40
    assert {len(rows) for rows in tokenizer.drafted} == {tokenizer.decode_rows}


@pytest.mark.parametrize("budget", [1, 2, 5, 23, 50, 95])
def test_the_budget_is_never_exceeded(budget):
    result = go(budget=budget)
    assert 0 < result.accounts.cost <= budget + 1e-6


def test_results_do_not_depend_on_the_batch_size():
    first, other = (pools(go(off=9, batch_size=size)) for size in (None, 100))
    assert first == other


def test_a_search_cut_short_goes_on_with_what_it_knew_of_drafts(tmp_path):
    class Killed(Exception):
        pass

    def die(step):
        raise Killed

    options = {"about": {"prompt": "a toy"}, "off": 20}
    for _ in range(3):
        with pytest.raises(Killed):
            go(resume=tmp_path, callback=die, **options)
    assert pools(go(resume=tmp_path, **options)) == pools(go(**options))


def test_drafts_that_do_not_fit_the_memory_are_made_of_fewer_at_a_time():
    class Small(Drafting):
        def draft(self, tokens):
            if len(tokens) > 5:
                raise torch.OutOfMemoryError(f"{len(tokens)} rows are too many")
            return super().draft(tokens)

    tokenizer = Small(off=0)  # drafts of some tokens off differ with the batch
    small, usual = go(tokenizer=tokenizer), go()
    assert pools(small) == pools(usual)
    assert {len(rows) for rows in tokenizer.drafted} == {4}
    assert small.accounts.screened == usual.accounts.screened
    with pytest.raises(TfgenError, match="too little free memory for one picture of toy"):
        go(tokenizer=Drafting(max_rows=0))


# what cannot be screened


def test_a_tokenizer_without_drafts_is_refused():
    with pytest.raises(InputError, match="the tokenizer toy has none: leave out screen"):
        run(beam=2, candidates=2, screen=True)


def test_it_is_a_screening_or_a_shortlist():
    with pytest.raises(InputError, match="use screen with shortlist 0"):
        run(beam=2, candidates=2, screen=True, shortlist=1)


# the rank correlation


def test_the_rank_correlation_is_spearmans_ties_included():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(9, (2, 40), generator=generator).float()
    b += a
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, a.exp()) == pytest.approx(1.0)


def test_of_too_few_or_equal_numbers_there_is_no_rank_correlation():
    assert rank_correlation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) is None
    assert rank_correlation(torch.ones(9), torch.arange(9.0)) is None
    inf = torch.tensor([1.0, 2.0, -torch.inf, 3.0])
    assert rank_correlation(inf, torch.tensor([1.0, 2.0, 9.0, 3.0])) == pytest.approx(1.0)
