"""Drawing from a prior: what `Prior` does once for all of them."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.toys import ToyPrior, ToyTokenizer
from tfgen.priors import UniformPrior

EMPTY = torch.empty(1, 0, dtype=torch.int64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sequence_p(prior, length, strength=1.0):
    """p^λ, renormalised at each token, of every sequence in lexicographic order."""
    tokens = ToyTokenizer(prior.vocab_size, length).all_prefixes(length)
    tempered = ToyPrior(prior.vocab_size, length)
    tempered.table = (strength * prior.table).log_softmax(dim=1)
    return tempered.sequence_log_prob(tokens).sum(dim=1).double().exp().numpy()


def index(tokens, vocab_size):
    """Each row's place in lexicographic order."""
    return (tokens * vocab_size ** torch.arange(tokens.shape[-1]).flip(0)).sum(-1).numpy()


def fits(observed, p):
    """Chi-squared: were these indices drawn with probabilities p?"""
    counts = np.bincount(observed, minlength=len(p))
    return chisquare(counts, counts.sum() * p / p.sum()).pvalue > 0.001


@pytest.mark.parametrize("new_tokens", [1, 2])
@pytest.mark.parametrize("branch", ["all", "last"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_one_proposal_is_a_draw_from_the_tempered_prior(strength, branch, new_tokens):
    prior = ToyPrior(4, 2)
    drawn = prior.propose(EMPTY.expand(4000, 0), 1, strength, generator(), new_tokens, branch)
    assert drawn.shape == (4000, 1, new_tokens)
    p = sequence_p(prior, new_tokens, strength)
    assert fits(index(drawn[:, 0], 4), p)
    assert not fits(index(drawn[:, 0], 4), sequence_p(prior, new_tokens, strength + 0.5))


@pytest.mark.parametrize("new_tokens", [1, 2])
def test_several_proposals_are_drawn_without_replacement(new_tokens):
    # The second draw has probability p_j / (1 - p_i) once i is gone.
    prior = ToyPrior(3, 2, seed=1)
    drawn = prior.propose(EMPTY.expand(4000, 0), 2, 1.0, generator(), new_tokens)
    p = sequence_p(prior, new_tokens)
    n = len(p)
    pairs = np.outer(p, p) / (1 - p[:, None]) * (1 - np.eye(n))
    first, second = (index(drawn[:, i], 3) for i in (0, 1))
    possible = np.flatnonzero(pairs.ravel() * 4000 > 5)  # chi-squared needs some in each cell
    seen = np.bincount(first * n + second, minlength=n * n)
    assert seen[np.arange(n) * (n + 1)].sum() == 0
    seen, expected = seen[possible], 4000 * pairs.ravel()[possible]
    rest = 4000 - expected.sum()
    if rest > 1:
        seen, expected = np.append(seen, 4000 - seen.sum()), np.append(expected, rest)
    assert chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 0.001


@pytest.mark.parametrize("vocab_size", [3, 300])
def test_at_strength_zero_every_sequence_is_equally_likely(vocab_size):
    prior = ToyPrior(vocab_size, 2)
    drawn = prior.propose(EMPTY.expand(500, 0), 8, 0.0, generator(), new_tokens=2)
    for column in (drawn[..., 0], drawn[..., 1]):
        assert fits(column.flatten().numpy(), np.ones(vocab_size))


@pytest.mark.parametrize("new_tokens", [1, 3])
@pytest.mark.parametrize("branch", ["all", "last"])
def test_at_strength_zero_the_draws_are_the_same_whatever_the_prior(new_tokens, branch):
    prefixes = torch.tensor([[1], [7]])
    partial = ToyPrior(30, 4)
    partial.table[:, 15:] = -torch.inf
    draws = [
        prior.propose(prefixes, 20, 0.0, generator(5), new_tokens, branch)
        for prior in (ToyPrior(30, 4), partial, UniformPrior(30, 4))
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("new_tokens", "branch"), [(1, "all"), (2, "all"), (2, "last")])
def test_no_proposal_is_repeated(new_tokens, branch, strength):
    prefixes = torch.randint(20, (5, 1), generator=generator())
    drawn = ToyPrior(20, 3).propose(prefixes, 15, strength, generator(), new_tokens, branch)
    assert drawn.shape == (5, 15, new_tokens)
    assert all(len(set(map(tuple, beam))) == 15 for beam in drawn.tolist())


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(
    ("new_tokens", "branch", "total"), [(1, "all", 5), (3, "all", 125), (3, "last", 5)]
)
def test_asking_for_more_than_there_are_gives_all(new_tokens, branch, total, strength):
    drawn = ToyPrior(5, 3).propose(EMPTY, 1000, strength, generator(), new_tokens, branch)
    assert len(set(map(tuple, drawn[0].tolist()))) == drawn.shape[1] == total


def test_a_large_strength_proposes_the_most_probable_first():
    prior = ToyPrior(6, 2)
    drawn = prior.propose(torch.tensor([[0], [3]]), 6, 1e4, generator())
    assert torch.equal(drawn[..., 0], prior.table[[0, 3]].argsort(descending=True))
    pairs = prior.propose(EMPTY, 4, 1e4, generator(), new_tokens=2)[0]
    first = prior.table[-1].argmax()
    assert pairs[0].tolist() == [first, prior.table[first].argmax()]


@pytest.mark.parametrize("new_tokens", [1, 2])
def test_tokens_of_probability_zero_come_last(new_tokens):
    prior = ToyPrior(6, 2)
    prior.table[:, 4:] = -torch.inf
    drawn = prior.propose(EMPTY, 36, 1.0, generator(), new_tokens)[0]
    possible = 4**new_tokens
    assert (drawn[:possible] < 4).all()
    assert len(drawn.unique(dim=0)) == 6**new_tokens


def test_completing_draws_from_the_prior_and_keeps_the_prefix():
    prior = ToyPrior(4, 3)
    whole = prior.complete(torch.full((4000, 1), 2), 3, 1.0, generator())
    assert whole.shape == (4000, 3)
    assert (whole[:, 0] == 2).all()
    assert fits(whole[:, 1].numpy(), prior.table[2].exp().double().numpy())
    prefixes = torch.tensor([[2]])
    assert torch.equal(prior.complete(prefixes, 1, 1.0, generator()), prefixes)


def test_sequence_log_prob_is_that_of_each_token_given_its_past():
    prior = ToyPrior(4, 3)
    expected = [[prior.table[-1, 2], prior.table[2, 0], prior.table[0, 0]]]
    assert torch.equal(prior.sequence_log_prob(torch.tensor([[2, 0, 0]])), torch.tensor(expected))


def test_typicality_is_the_distance_from_what_true_pictures_have():
    prior = ToyPrior(4, 3)
    tokens = ToyTokenizer(4, 3).all_prefixes(2)
    mean = prior.sequence_log_prob(tokens).mean(dim=1)
    torch.testing.assert_close(prior.typicality(tokens), -(mean - -1.0).abs())


def test_the_uniform_prior_is_uniform():
    prior = UniformPrior(7, 3)
    for length in range(3):
        log_p = prior.log_probs(torch.zeros(2, length, dtype=torch.int64))
        torch.testing.assert_close(log_p.exp(), torch.full((2, 7), 1 / 7))
    assert prior.expected_log_prob(3) == pytest.approx(-np.log(7))
    tokens = torch.tensor([[0, 6, 3]])
    torch.testing.assert_close(prior.sequence_log_prob(tokens).exp(), torch.full((1, 3), 1 / 7))
    torch.testing.assert_close(prior.typicality(tokens), torch.zeros(1))


@pytest.mark.parametrize("new_tokens", [1, 2])
@pytest.mark.parametrize("branch", ["all", "last"])
def test_strength_makes_no_difference_to_the_uniform_prior(branch, new_tokens):
    prior, prefixes = UniformPrior(9, 3), torch.tensor([[1], [7]])
    draws = [prior.propose(prefixes, 5, x, generator(), new_tokens, branch) for x in (0.0, 1.0)]
    assert torch.equal(*draws)


def test_proposals_do_not_depend_on_the_number_of_threads():
    prior, threads = ToyPrior(2000, 2), torch.get_num_threads()
    prefixes = torch.arange(8)[:, None]
    try:
        draws = []
        for n in (1, 2):
            torch.set_num_threads(n)
            draws.append(prior.propose(prefixes, 32, 1.0, generator()))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*draws)


# ---- one token again, given those on both sides


def test_a_token_is_drawn_again_given_those_on_both_sides():
    prior, sequence, position = ToyPrior(5, 3), torch.tensor([[1, 2, 4]]), 1
    others = [0, 1, 3, 4]
    rows = sequence.repeat(4, 1)
    rows[:, position] = torch.tensor(others)
    for strength in (0.0, 1.0, 2.0):
        log_p = strength * prior.sequence_log_prob(rows).double().sum(dim=1)
        expected = 4000 * log_p.softmax(dim=0)
        drawn = prior.propose_at(sequence.repeat(4000, 1), position, 1, strength, generator())
        assert drawn.shape == (4000, 1, 3)
        counts = drawn[:, 0, position].bincount(minlength=5)
        assert counts[2] == 0  # the token that is there is not drawn
        assert chisquare(counts[others].numpy(), expected.numpy()).pvalue > 1e-3
        assert torch.equal(drawn[:, 0, [0, 2]], sequence[:, [0, 2]].expand(4000, -1))


def test_all_other_tokens_are_drawn_where_as_many_are_asked_for():
    tokens = torch.tensor([[1, 2, 4], [0, 0, 0]])
    drawn = ToyPrior(5, 3).propose_at(tokens, 2, 99, 1.0, generator())
    assert drawn[:, :, 2].sort(dim=1).values.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_of_a_large_codebook_the_tokens_that_lead_are_weighed_by_what_follows(monkeypatch):
    monkeypatch.setattr("tfgen.priors.base.WEIGHED", 1)
    prior = ToyPrior(50, 3)
    drawn = prior.propose_at(torch.tensor([[1, 2, 4]]), 1, 6, 1.0, generator())[0, :, 1].tolist()
    leading = prior.propose(torch.tensor([[1]]), 6, 1.0, generator())[0, :, 0].tolist()
    assert sorted(drawn) == sorted(leading) and drawn != leading
