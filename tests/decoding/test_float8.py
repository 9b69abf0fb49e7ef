"""Products in FP8 against what they stand for, and drafts that are made with them."""

from __future__ import annotations

import pytest
import torch

from tests.tokenizers.flextok_checks import model
from tests.toys import GridVerifier
from tfgen.decoding import float8
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.float8 import (
    FLOAT8,
    Float8Weight,
    float8_linear,
    quantise_rows_reference,
    quantise_rows_triton,
    scaled_product,
    scaled_product_reference,
)
from tfgen.decoding.kernel_engine import KernelEngine, KernelEngines
from tfgen.decoding.triton_support import triton, why_no_float8
from tfgen.search.screening import rank_correlation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_float8 = pytest.mark.skipif(
    DEVICE.type == "cuda" and why_no_float8(DEVICE) is not None, reason="this GPU has no FP8"
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_keep_three_bits_of_mantissa_whatever_their_size() -> None:
    x = randn(4, 33) * torch.tensor([1.0, 1e4, 1e-4, 0.0])[:, None]
    values, scale = quantise_rows_reference(x)
    assert values.dtype == FLOAT8
    assert values.float().abs().amax(1).tolist() == [448, 448, 448, 0]
    small = x.abs().amax(1, keepdim=True) / 448 * 2**-6  # below it, numbers are subnormal
    error = (values.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, small / 16) * 1.001).all()


@needs_float8
@pytest.mark.skipif(triton is None, reason="there is no Triton to check kernels with")
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 7), (2, 64), (5, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_finds_each_rows_scale_and_values(rows: int, n: int, dtype: torch.dtype) -> None:
    """On numbers that FP8 holds exactly: Triton's interpreter does not round others as GPUs do (it
    loses the carry of a mantissa)."""
    grid = randn(rows, n).clamp(-4, 4).to(FLOAT8).float()
    grid[:, 0] = 448 * torch.tensor([1.0, -1.0])[torch.arange(rows) % 2]
    size = 2.0 ** torch.arange(-3, rows - 3)[:, None]
    values, scale = quantise_rows_triton((grid * size).to(DEVICE, dtype))
    assert torch.equal(scale.cpu(), size)
    assert torch.equal(values.float().cpu(), grid)


@needs_float8
def test_the_device_multiplies_as_the_reference_does() -> None:
    x, weight = randn(32, 64).to(DEVICE), Float8Weight.of(randn(48, 64, seed=1).to(DEVICE) * 0.1)
    values, scale = quantise_rows_reference(x)
    expected = scaled_product_reference(values, scale, weight)
    torch.testing.assert_close(
        scaled_product(values, scale, weight).float(), expected, atol=1e-2, rtol=1e-2
    )  # rounded to bfloat16


def test_a_product_is_near_the_exact_one_and_of_one_row_alone() -> None:
    x, weight = randn(2, 3, 64), randn(48, 64, seed=1)
    packed = Float8Weight.of(weight)
    found, exact = float8_linear(x, packed), x @ weight.T
    assert found.shape == exact.shape and found.dtype == x.dtype
    assert 1e-3 < (found - exact).abs().mean() / exact.std() < 0.05
    other = x.clone()
    other[1] *= 1000
    torch.testing.assert_close(float8_linear(other, packed)[0], found[0], atol=1e-5, rtol=1e-5)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(64_000, (8, 3), generator=torch.Generator().manual_seed(3))


def test_a_flextok_in_float8_ranks_pictures_about_as_itself(tokens: torch.Tensor) -> None:
    tokenizer = FusedFlexTok.of(model()).with_sampling(steps=2)
    exact, rounded = (t.decode_latents(tokens, steps=2) for t in (tokenizer, tokenizer.in_float8()))
    assert 1e-3 < (rounded - exact).abs().mean() / exact.std() < 0.3
    direction = randn(1, *exact.shape[1:], seed=7)  # in the place of a verifier
    scores = [(latents * direction).sum((1, 2, 3)) for latents in (exact, rounded)]
    assert rank_correlation(*scores) > 0.8


def test_only_drafts_are_in_float8_and_only_where_they_are_asked_for(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    right = float8.quantise_rows
    monkeypatch.setattr(float8, "quantise_rows", lambda x: calls.append(1) or right(x))
    verifier = GridVerifier(lambda points: points.sum((1, 2)))
    for asked in (False, True):
        make = KernelEngines(asked)
        engine = make(model().with_sampling(steps=2), verifier)
        assert engine.name == ("kernels-fp8" if asked else "kernels")
        assert isinstance(engine, KernelEngine)
        engine.embed([tokens[:2]])
        assert not calls
        exact = model().draft(tokens[:2])
        assert (engine.draft(tokens[:2]) - exact).abs().max() < (0.1 if asked else 1e-5)
        assert bool(calls) is asked
