"""The decoder through the kernels against the reference's arrays, and against the eager decoder."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tokenizers.flextok_checks import (
    FOLDER,
    GROUPS,
    VECTORS,
    VELOCITY,
    check_latents,
    check_pictures,
    close,
    model,
    prefixes,
    write_checkpoint,
)
from tfgen.decoding import flextok_step, kernels, sampling_kernels
from tfgen.decoding.flextok_step import FusedDecoder, FusedFlexTok, _fused_once
from tfgen.decoding.triton_support import triton
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_model import from_patches, to_patches


def fused(collapse: bool = True, **options) -> FusedFlexTok:
    return FusedFlexTok.of(model(collapse, **options))


@pytest.mark.parametrize("collapse", [True, False])
def test_latents_match_reference_vectors(collapse: bool) -> None:
    check_latents(fused(collapse), GROUPS[:2])


def test_pictures_match_reference_vectors() -> None:
    check_pictures(fused())


@torch.no_grad()
def both_velocities(tokenizer: FusedFlexTok, group: list[int], i: int) -> tuple[Tensor, Tensor]:
    """Conditional and unconditional velocity of these samples at the vectors' i-th time, computed
    as one batch."""
    x, (tokens, lengths) = VECTORS["vel_x"][group], prefixes(group)
    rows, bias = tokenizer._registers(tokens, lengths)
    latents = to_patches(x, tokenizer.config.patch)
    modulation = tokenizer.decoder.modulation(VECTORS["vel_t"][i : i + 1])
    out = tokenizer.fused(torch.cat([latents, latents]), rows, bias, modulation)
    return from_patches(out, tokenizer.config.latent_shape, tokenizer.config.patch).chunk(2)


@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("group", [[0, 1, 2, 3, 4], [0, 2], [3]])
def test_velocities_match_reference_vectors(group: list[int], collapse: bool) -> None:
    tokenizer = fused(collapse)
    for i in range(4):
        conditional, unconditional = both_velocities(tokenizer, group, i)
        close(conditional, "vel_cond", VELOCITY, (i, group))
        close(unconditional, "vel_uncond", VELOCITY, (i, group))


def test_a_single_null_token_matches_reference_vectors(tmp_path: Path) -> None:
    def config(told: dict) -> None:
        dropout = told["decoder"]["module_dict"]["dec_latent_dropout"]
        dropout["replace_with_single_token"] = True

    tokenizer = FusedFlexTok.from_pretrained(write_checkpoint(tmp_path / "single", config=config))
    assert tokenizer.config.single_null_token
    _, unconditional = both_velocities(tokenizer, [0, 1, 2, 3, 4], 1)
    close(unconditional, "vel_uncond_single_token", VELOCITY)


@pytest.mark.skipif(
    triton is None or torch.cuda.is_available(), reason="needs Triton's interpreter"
)  # test_cuda does it on a GPU
def test_the_kernels_themselves_match_reference_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernels, sampling_kernels):  # as if on a GPU
        monkeypatch.setattr(module, "fused", lambda x: True)
    conditional, unconditional = both_velocities(fused(), [0], 1)
    close(conditional, "vel_cond", VELOCITY, (1, [0]))
    close(unconditional, "vel_uncond", VELOCITY, (1, [0]))


# Mistakes that the vectors must find


def no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.norm_heads
    monkeypatch.setattr(
        kernels, "norm_heads", lambda qkv, heads, bias, scale: right(qkv, heads, None, scale)
    )


def one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flextok_step.norm_modulate
    monkeypatch.setattr(
        flextok_step,
        "norm_modulate",
        lambda x, shift, scale, patches, dtype: right(x, shift, scale, x.shape[1], dtype),
    )


def swapped_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flextok_step.swiglu
    monkeypatch.setattr(flextok_step, "swiglu", lambda u: right(u.roll(u.shape[-1] // 2, -1)))


@pytest.mark.parametrize("mistake", [no_bias, one_group, swapped_halves])
def test_a_mistake_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        close(both_velocities(fused(), [0, 1], 1)[0], "vel_cond", VELOCITY, (1, [0, 1]))


# As the tokenizer it stands for


def test_it_decodes_what_the_tokenizer_it_is_of_decodes() -> None:
    tokenizer = model().with_sampling(steps=3, guidance=4.0).for_seed(5)
    tokens = torch.tensor([[11, 63_999, 0], [40_000, 5, 123]])
    found = FusedFlexTok.of(tokenizer)
    assert (found.decode(tokens) - tokenizer.decode(tokens)).abs().max() < 1e-5
    other = found.for_seed(6).with_sampling(steps=2, guidance=1.0)
    assert isinstance(other, FusedFlexTok)
    eager = tokenizer.for_seed(6).with_sampling(steps=2, guidance=1.0)
    assert (other.decode(tokens) - eager.decode(tokens)).abs().max() < 1e-5


def test_weights_are_packed_once_a_decoder_and_go_with_it() -> None:
    tokenizer = FlexTok.from_pretrained(FOLDER)
    first, second = FusedFlexTok.of(tokenizer), FusedFlexTok.of(tokenizer.for_seed(3))
    assert first.fused is second.fused
    other = copy.copy(tokenizer.decoder)
    assert _fused_once(other, torch.float32).decoder is other
    gone = weakref.ref(tokenizer.decoder), weakref.ref(first.fused)
    del tokenizer, first, second, other
    gc.collect()
    assert [found() for found in gone] == [None, None]


def test_the_first_unconditional_evaluation_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations: list[int] = []
    right = FusedDecoder.__call__

    def spy(self, x, *rest):
        evaluations.append(len(x))
        return right(self, x, *rest)

    monkeypatch.setattr(FusedDecoder, "__call__", spy)
    tokenizer = fused().with_sampling(steps=3)
    tokens = torch.tensor([[1], [2], [3]])
    tokenizer.decode_latents(tokens, steps=3)
    assert evaluations == [3, 6, 6]  # at the tokenizer's own noise it is known
    evaluations.clear()
    tokenizer.decode_latents(tokens, VECTORS["noise"][:1], steps=3)
    assert evaluations == [4, 6, 6]
    evaluations.clear()
    tokenizer.decode_latents(tokens, VECTORS["noise"][:3], steps=3)
    assert evaluations == [6, 6, 6]
    evaluations.clear()
    tokenizer.decode_latents(tokens, steps=2, guidance=1.0)
    assert evaluations == [3, 3]


def test_half_precision_stays_near_the_eager_half_precision() -> None:
    tokens = torch.tensor([[11, 63_999, 0]])
    eager = model(dtype=torch.bfloat16)
    exact = model().decode_latents(tokens, steps=2)
    errors = [
        (tokenizer.decode_latents(tokens, steps=2) - exact).abs().mean()
        for tokenizer in (
            eager,
            FusedFlexTok.of(eager),
            FusedFlexTok.of(eager, residual=torch.bfloat16),
        )
    ]
    assert 0 < errors[0]
    assert errors[1] < 2 * errors[0]
    assert errors[2] < 4 * errors[0]


def test_gradients_still_pass_through_the_eager_decoder() -> None:
    tokenizer = fused().with_sampling(steps=2)
    codes = tokenizer.embed(torch.tensor([[11, 63_999]])).requires_grad_()
    tokenizer.decode_embeddings(codes).mean().backward()
    assert codes.grad.abs().sum() > 0


def test_the_packed_weights_are_padded_to_whole_tiles() -> None:
    decoder = FusedDecoder(model().decoder)
    hidden = model().config.decoder.hidden
    assert hidden % 64 != 0
    assert all(block.down.shape[1] % 64 == 0 for block in decoder.blocks)
    assert isinstance(fused(), FlexTok)
