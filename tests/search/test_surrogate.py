"""What the Gaussian process behind a shortlist knows of pictures not decoded."""

import torch

from tests.toys import GridTokenizer
from tfgen.search.surrogate import Surrogate

TOKENIZER = GridTokenizer(10, 3)
CODES = torch.arange(100)[:, None]
LAST = slice(2, 3)


def smooth(tokens):
    """Float[N, 2]: two values that vary slowly with all code vectors."""
    points = TOKENIZER.embed(tokens).flatten(1)  # [N, 2 k]
    return torch.stack([points.sum(dim=1).sin(), (points[:, -2] * points[:, -1])], dim=1)


def continuations(*parents):
    """Int64[100 * parents, 3]: each parent with every code of the codebook."""
    return torch.cat([torch.cat([torch.tensor([p]).expand(100, 2), CODES], 1) for p in parents])


def explained(surrogate, tokens, true=smooth):
    """The share of the values' variance that is predicted."""
    error = (surrogate.predict(tokens) - true(tokens)).square().mean()
    return 1 - float(error / (true(tokens) - true(tokens).mean(dim=0)).square().mean())


def test_from_a_few_codes_of_a_prefix_it_predicts_all_others():
    everything = continuations((3, 70))
    some = everything[torch.randperm(100, generator=torch.Generator().manual_seed(0))[:24]]
    surrogate = Surrogate(TOKENIZER, LAST)
    surrogate.fit(some, smooth(some))
    assert explained(surrogate, everything) > 0.95


def test_it_gives_back_what_it_was_fitted_to():
    some = continuations((3, 70))[::9]
    surrogate = Surrogate(TOKENIZER, LAST)
    surrogate.fit(some, smooth(some))
    torch.testing.assert_close(surrogate.predict(some), smooth(some), atol=0.1, rtol=0)


def test_candidates_of_one_prefix_inform_those_of_a_similar_one():
    seen, near, far = (3, 70), (4, 70), (96, 9)
    surrogate = Surrogate(TOKENIZER, LAST)
    surrogate.fit(continuations(seen), smooth(continuations(seen)))
    assert explained(surrogate, continuations(near)) > 0.9
    assert explained(surrogate, continuations(near)) > explained(surrogate, continuations(far))


def test_the_position_may_be_any_and_there_may_be_several():
    generator = torch.Generator().manual_seed(0)
    for new in (slice(0, 1), slice(1, 3)):
        tokens = torch.tensor([[3, 70, 42]]).repeat(200, 1)
        tokens[:, new] = torch.randint(100, tokens[:, new].shape, generator=generator)
        surrogate = Surrogate(TOKENIZER, new)
        surrogate.fit(tokens[:100], smooth(tokens[:100]))
        assert explained(surrogate, tokens[100:]) > 0.8


def test_of_a_single_picture_it_expects_the_same_everywhere():
    surrogate = Surrogate(TOKENIZER, slice(0, 1))
    surrogate.fit(CODES[5:6], torch.tensor([[2.0, -3.0]]))
    assert torch.equal(surrogate.predict(CODES), torch.tensor([[2.0, -3.0]]).expand(100, 2))


def test_predictions_do_not_depend_on_how_many_are_asked_for(monkeypatch):
    monkeypatch.setattr("tfgen.search.surrogate.ROWS", 7)
    surrogate = Surrogate(TOKENIZER, slice(0, 1))
    surrogate.fit(CODES[::3], smooth(CODES[::3]))
    together = surrogate.predict(CODES)
    torch.testing.assert_close(together[40:41], surrogate.predict(CODES[40:41]))
