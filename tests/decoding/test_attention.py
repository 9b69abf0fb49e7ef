"""The attention kernel against float64: in Triton's interpreter without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.tokenizers.flextok_checks import FOLDER
from tfgen.decoding import attention as attention_module
from tfgen.decoding.attention import (
    Tile,
    norm_attention,
    norm_attention_reference,
    norm_attention_triton,
)
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.kernels import attention
from tfgen.decoding.triton_support import triton
from tfgen.tokenizers.flextok import FlexTok

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = [torch.float16]
if DEVICE.type == "cuda":
    HALVES.append(torch.bfloat16)  # the interpreter cannot multiply it
needs_triton = pytest.mark.skipif(triton is None, reason="there is no Triton to check kernels with")
SHAPES = [(1, 16, 1, 16), (2, 70, 3, 20), (1, 64, 2, 64), (2, 130, 2, 64), (3, 31, 4, 7)]
"""Samples, tokens, heads, features of a head: also such as no tile fits."""
CASES = [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, *HALVES)]
CASES.remove(((2, 130, 2, 64), torch.float32))  # which takes ptxas 40 seconds


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.Generator().manual_seed(sum(shape))
    return (3 * torch.randn(*shape, generator=noise) + 1).to(DEVICE, dtype)


def biases(n: int, tokens: int) -> list[Tensor | None]:
    """None; one for all; each sample's own; and one that leaves the first key alone."""
    lonely = torch.full((1, tokens), -1e4, device=DEVICE)
    lonely[:, 0] = 0
    return [None, randn(1, tokens), randn(n, tokens), lonely]


@needs_triton
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_the_kernel_is_attention_over_normed_queries_and_keys(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    n, tokens, heads, dim = shape
    qkv = randn(n, tokens, 3 * heads * dim, dtype=dtype)
    close = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for bias in biases(n, tokens):
        wide = None if bias is None else bias.double()
        expected = norm_attention_reference(qkv.double(), heads, wide, 0.125)
        found = norm_attention_triton(qkv, heads, bias, 0.125)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=close, rtol=close)


@needs_triton
@pytest.mark.parametrize("tile", [Tile(128, warps=8), Tile(16, stages=1)], ids=str)
def test_how_it_is_cut_does_not_change_the_result(tile: Tile) -> None:
    qkv, bias = randn(2, 70, 3 * 3 * 20), randn(2, 70)
    expected = norm_attention_reference(qkv.double(), 3, bias.double(), 0.2)
    found = norm_attention_triton(qkv, 3, bias, 0.2, tile)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


@needs_triton
def test_a_key_of_no_weight_changes_nothing() -> None:
    qkv, bias = randn(2, 66, 3 * 2 * 16), torch.zeros(1, 66, device=DEVICE)
    bias[:, 60:] = -1e4
    found = norm_attention_triton(qkv, 2, bias, 0.2)[:, :60]
    expected = norm_attention_triton(qkv[:, :60], 2, None, 0.2)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@needs_triton
def test_without_samples_or_tokens_there_is_nothing_to_do() -> None:
    assert norm_attention_triton(randn(0, 5, 48), 2, None, 1.0).shape == (0, 5, 16)
    assert norm_attention_triton(randn(2, 0, 48), 2, None, 1.0).shape == (2, 0, 16)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Kernels run, as they do on a GPU: the dtypes that the attention kernel was given."""
    dtypes: list[torch.dtype] = []

    def spy(qkv: Tensor, *rest) -> Tensor:
        dtypes.append(qkv.dtype)
        return norm_attention_triton(qkv, *rest)

    monkeypatch.setattr(attention_module, "fused", lambda x: triton is not None)
    monkeypatch.setattr(attention_module, "norm_attention_triton", spy)
    return dtypes


@needs_triton
@pytest.mark.parametrize("dtype", HALVES)
def test_it_is_what_norms_and_pytorchs_attention_give(
    dtype: torch.dtype, launched: list[torch.dtype]
) -> None:
    qkv = randn(2, 19, 3 * 4 * 8, dtype=dtype)
    close = {torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for bias in biases(2, 19)[:3]:
        found, expected = (f(qkv, 4, bias, 0.3) for f in (norm_attention, attention))
        torch.testing.assert_close(found, expected, atol=close, rtol=close)
    assert launched == [dtype] * 3


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 19, 96), torch.float32), ((1, 400, 48), torch.float16)], ids=str
)
def test_what_does_not_fit_one_program_is_pytorchs(
    shape: tuple[int, int, int], dtype: torch.dtype, launched: list[torch.dtype]
) -> None:
    qkv = randn(*shape, dtype=dtype)
    assert torch.equal(norm_attention(qkv, 2, None, 0.3), attention(qkv, 2, None, 0.3))
    assert launched == []


@needs_triton
@pytest.mark.parametrize("dtype", HALVES)
def test_a_decoder_takes_either(dtype: torch.dtype, launched: list[torch.dtype]) -> None:
    tokenizer = FlexTok.from_pretrained(FOLDER, DEVICE)
    tokenizer.decoder.blocks.to(dtype)
    fused = FusedFlexTok.of(tokenizer)
    tokens = torch.randint(fused.vocab_size, (2, 3), generator=torch.Generator().manual_seed(0))
    latents = []
    for attend in (attention, norm_attention):
        fused.fused = copy.copy(fused.fused)
        fused.fused.attend = attend
        latents.append(fused.decode_latents(tokens.to(DEVICE), steps=2))
    close = 0.1 if dtype == torch.bfloat16 else 1e-2
    torch.testing.assert_close(*latents, atol=close, rtol=close)
    assert set(launched) == {dtype}
