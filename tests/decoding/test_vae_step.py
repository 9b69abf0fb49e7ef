"""The VAE's decoder through the kernels: in Triton's interpreter without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.tokenizers.flextok_checks import model
from tfgen.decoding import group_norm, vae_step
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.triton_support import triton
from tfgen.decoding.vae_step import (
    FusedResnet,
    FusedVAEDecoder,
    add_branches_reference,
    add_branches_triton,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(triton is None, reason="there is no Triton to check kernels with")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=noise).to(DEVICE, dtype)


@needs_triton
@pytest.mark.parametrize("enlarge", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 7, 3, 5), (3, 130, 9, 2), (0, 4, 2, 2)], ids=str
)
def test_the_sum_of_a_block(shape: tuple[int, int, int, int], enlarge: int) -> None:
    x, bias = randn(*shape), randn(shape[1])
    for dtype in (torch.float32, torch.bfloat16):
        one = x.to(dtype).contiguous(memory_format=torch.channels_last)
        other = randn(*shape, seed=1, dtype=dtype)  # not channels-last
        found = add_branches_triton(one, other, bias, enlarge)
        wide = (one.double(), other.double(), bias.double())
        expected = add_branches_reference(*wide, enlarge)
        assert found.dtype == dtype and found.shape == expected.shape
        assert found.is_contiguous(memory_format=torch.channels_last)
        close = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(found.double(), expected, atol=close, rtol=close)


def test_an_enlarged_pixel_is_written_side_by_side() -> None:
    x = torch.arange(4.0).view(1, 1, 2, 2)
    found = add_branches_reference(x, torch.zeros_like(x), torch.tensor([10.0]), 2)
    rows = [[10, 10, 11, 11], [10, 10, 11, 11], [12, 12, 13, 13], [12, 12, 13, 13]]
    assert found[0, 0].tolist() == rows


def decoders() -> tuple[nn.Module, FusedVAEDecoder]:
    """diffusers' with biases that matter, and the same through the kernels."""
    eager = copy.deepcopy(model().vae.vae.decoder).to(DEVICE)
    with torch.no_grad():
        for i, layer in enumerate(m for m in eager.modules() if isinstance(m, nn.Conv2d)):
            layer.bias += 0.3 * randn(len(layer.bias), seed=i)
    return eager, FusedVAEDecoder(eager)


def test_every_weight_of_the_decoder_is_used_and_shared() -> None:
    eager, fused = decoders()
    mine = {id(p) for p in fused.parameters()}
    shortcuts = [m.conv_shortcut for m in eager.modules() if getattr(m, "conv_shortcut", None)]
    assert shortcuts  # whose blocks carry the bias of the convolution before
    folded = {id(m.bias) for m in shortcuts}
    assert {id(p) for p in eager.parameters()} == mine | folded
    assert (
        sum(block.offset is not None for block in fused.body if isinstance(block, FusedResnet)) == 4
    )


def test_it_decodes_as_diffusers_does() -> None:
    eager, fused = decoders()
    for shape in ((2, 6, 6), (1, 3, 5)):
        latents = randn(shape[0], model().config.channels, *shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(fused(latents), eager(latents), atol=2e-5, rtol=0)


@needs_triton
def test_it_decodes_so_through_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (group_norm, vae_step):
        monkeypatch.setattr(module, "fused", lambda x: True)
    eager, fused = decoders()
    latents = randn(2, model().config.channels, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(fused(latents), eager(latents), atol=1e-4, rtol=0)


@needs_triton
def test_gradients_pass_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (group_norm, vae_step):
        monkeypatch.setattr(module, "fused", lambda x: True)
    eager, fused = decoders()
    gradients = []
    for decoder in (eager, fused):
        latents = randn(1, model().config.channels, 3, 5).requires_grad_()
        decoder(latents).square().sum().backward()
        gradients.append(latents.grad)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_only_the_fused_tokenizer_has_it() -> None:
    eager = model()
    fused = FusedFlexTok.of(eager)
    assert isinstance(fused.vae.vae.decoder, FusedVAEDecoder)
    assert not isinstance(eager.vae.vae.decoder, FusedVAEDecoder)
    assert fused.vae.vae.encoder is eager.vae.vae.encoder
    latents = torch.randn(2, *eager.config.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = eager.vae.decode(latents)
        torch.testing.assert_close(fused.vae.decode(latents), expected, atol=1e-5, rtol=0)
