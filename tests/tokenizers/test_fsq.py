"""The codebook of finite scalar quantisation."""

from __future__ import annotations

import pytest
import torch

from tfgen.tokenizers.fsq import FSQ

LEVELS = [(8, 5, 5, 5), (2, 3), (2,), (3, 2, 7)]


@pytest.fixture(params=LEVELS, ids=str)
def fsq(request: pytest.FixtureRequest) -> FSQ:
    return FSQ(request.param)


def test_every_token_has_a_code_of_its_own_and_comes_back(fsq: FSQ) -> None:
    tokens = torch.arange(fsq.vocab_size)
    codes = fsq.to_codes(tokens)
    assert codes.shape == (fsq.vocab_size, fsq.dim) and codes.dtype == torch.float32
    assert len(codes.unique(dim=0)) == fsq.vocab_size
    assert torch.equal(fsq.to_tokens(codes), tokens)


def test_tokens_of_any_shape_come_back() -> None:
    fsq = FSQ((8, 5, 5, 5))
    tokens = torch.randint(fsq.vocab_size, (3, 4, 2), generator=torch.Generator().manual_seed(0))
    assert fsq.to_codes(tokens).shape == (3, 4, 2, 4)
    assert torch.equal(fsq.to_tokens(fsq.to_codes(tokens)), tokens)


def test_codes_are_an_even_symmetric_grid_from_minus_one_to_one(fsq: FSQ) -> None:
    codes = fsq.to_codes(torch.arange(fsq.vocab_size))
    for component, levels in zip(codes.T, fsq.levels, strict=True):
        assert torch.allclose(component.unique(), torch.linspace(-1, 1, levels), atol=1e-6)


def test_the_first_digit_varies_fastest() -> None:
    """Token 1 differs from token 0 in the first component only, token 8 in the second."""
    fsq = FSQ((8, 5, 5, 5))
    zero, one, eight, forty, last = fsq.to_codes(torch.tensor([0, 1, 8, 40, 999]))
    assert zero.tolist() == [-1, -1, -1, -1]
    assert (one != zero).tolist() == [True, False, False, False]
    assert (eight != zero).tolist() == [False, True, False, False]
    assert (forty != zero).tolist() == [False, False, True, False]
    assert last.tolist() == [1, 1, 1, 1]


def test_quantised_values_lie_on_the_grid_and_stay_there(fsq: FSQ) -> None:
    z = 2 * torch.randn(500, fsq.dim, generator=torch.Generator().manual_seed(1))
    quantised = fsq.quantise(z)
    on_grid = fsq.to_codes(fsq.to_tokens(quantised))
    assert torch.allclose(quantised, on_grid, atol=1e-6)
    tokens = fsq.to_tokens(quantised)
    assert tokens.min() >= 0 and tokens.max() < fsq.vocab_size


def test_every_level_is_reached_by_as_much_of_the_bounded_range(fsq: FSQ) -> None:
    bounded = torch.linspace(-0.9999, 0.9999, 4001)
    z = torch.atanh(bounded)[:, None].expand(-1, fsq.dim)
    digits = (fsq.quantise(z) + 1) / 2 * (torch.tensor(fsq.levels) - 1)
    for component, levels in zip(digits.round().long().T, fsq.levels, strict=True):
        share = torch.bincount(component, minlength=levels) / len(component)
        assert torch.allclose(share, torch.full((levels,), 1 / levels), atol=2e-3)
        assert (component.diff() >= 0).all()  # a larger value is never a lower level


@pytest.mark.parametrize("z", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_extreme_values_are_the_outermost_levels(fsq: FSQ, z: float) -> None:
    token = fsq.to_tokens(fsq.quantise(torch.full((1, fsq.dim), z)))
    assert 0 <= token < fsq.vocab_size
    if z:
        assert token == (0 if z < 0 else fsq.vocab_size - 1)


def test_gradients_pass_straight_through_the_rounding(fsq: FSQ) -> None:
    z = torch.randn(20, fsq.dim, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weights = torch.randn(20, fsq.dim, generator=torch.Generator().manual_seed(3))
    (fsq.quantise(z) * weights).sum().backward()
    expected = weights * (1 - torch.tanh(z.detach()) ** 2)
    assert torch.allclose(z.grad, expected, atol=1e-6)


def test_half_precision_input_is_quantised_in_full() -> None:
    fsq = FSQ((8, 5))
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert fsq.quantise(z).dtype == torch.float32
    assert torch.equal(fsq.to_tokens(fsq.quantise(z)), fsq.to_tokens(fsq.quantise(z.float())))


@pytest.mark.parametrize("levels", [(), (1,), (5, 1), (0, 3)])
def test_impossible_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="each >= 2"):
        FSQ(levels)
