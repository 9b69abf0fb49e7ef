"""GroupNorm's kernels against float64: in Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.toy_world import tokenizer_model
from tfgen.decoding import group_norm as module
from tfgen.decoding.group_norm import (
    FusedGroupNorm,
    channel_moments_reference,
    channel_moments_triton,
    group_norm,
    group_norm_reference,
    group_norm_triton,
    merged_moments_reference,
    merged_moments_triton,
    with_fused_norms,
)
from tfgen.decoding.sprites_step import FusedPainter, with_fused_painters
from tfgen.decoding.triton_support import triton
from tfgen.verifiers.sprites_tower import SpritesTower

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {"atol": 3e-5, "rtol": 3e-5}
HALF = {"atol": 3e-2, "rtol": 1e-2}  # of results rounded to bfloat16
DTYPES = [torch.float32, torch.bfloat16]
needs_triton = pytest.mark.skipif(triton is None, reason="there is no Triton to check kernels with")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=noise).to(DEVICE, dtype)


def pictures(*shape: int, dtype: torch.dtype = torch.float32, **options: int) -> Tensor:
    return randn(*shape, dtype=dtype, **options).contiguous(memory_format=torch.channels_last)


def exact(x: Tensor, groups: int, affine, style: Tensor | None, eps: float, silu: bool) -> Tensor:
    """In float64, by PyTorch."""
    affine = affine and tuple(t.double() for t in affine)
    y = F.group_norm(x.double(), groups, *(affine or (None, None)), eps)
    if style is not None:
        scale, shift = style.double().view(*style.shape[:2], 1, 1).chunk(2, dim=1)
        y = y * (1 + scale) + shift
    return F.silu(y) if silu else y


def close(found: Tensor, expected: Tensor, tolerance: dict[str, float] = CLOSE) -> None:
    torch.testing.assert_close(found.double(), expected, **tolerance)


SHAPES = [  # N, C, height, width, groups
    (1, 8, 1, 1, 4),
    (2, 48, 5, 7, 8),
    (3, 96, 3, 3, 8),
    (1, 192, 4, 4, 8),
    (2, 32, 33, 29, 32),
    (1, 128, 17, 40, 32),
    (2, 64, 9, 2, 1),
    (1, 7, 70, 71, 7),
    (2, 320, 13, 11, 32),
]


KINDS = ["plain", "both", "affine", "style"]


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", range(len(SHAPES)))
def test_norm_modulation_and_activation(which: int, dtype: torch.dtype) -> None:
    kind = KINDS[(which + 2 * (dtype == torch.bfloat16)) % 4]  # compiling takes a GPU's time
    shape = SHAPES[which]
    *shape, groups = shape
    n, channels = shape[:2]
    x = pictures(*shape, dtype=dtype) * 2 + 1
    affine = style = None
    if kind in ("affine", "both"):
        affine = (randn(channels, dtype=dtype), randn(channels, seed=1, dtype=dtype))
    if kind in ("style", "both"):
        style = randn(n, 3 * channels, dtype=dtype)[:, channels:, None, None]  # as styles are split
    silu = kind != "affine"
    found = group_norm_triton(x, groups, affine, style, eps=1e-6, silu=silu)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = CLOSE if dtype == torch.float32 else HALF
    close(found, exact(x, groups, affine, style, 1e-6, silu), tolerance)


@needs_triton
@pytest.mark.parametrize("offset", [1e3, -3e4])
def test_a_large_common_offset_costs_no_precision(offset: float) -> None:
    """The mean of squares minus the square of the mean would be off by as much as the variance. Of
    a mean, float32 keeps 1e-7 of the offset, and that is all that is lost."""
    x = pictures(2, 48, 37, 31) + offset
    tolerance = {"atol": 4e-7 * abs(offset), "rtol": 1e-4}
    close(group_norm_triton(x, 8), exact(x, 8, None, None, 1e-5, False), tolerance)


@needs_triton
def test_channels_of_a_group_with_means_far_apart() -> None:
    x = pictures(1, 16, 21, 20) + 100 * torch.arange(16, device=DEVICE)[:, None, None]
    x[:, :, 7:] += 50  # and parts of a picture
    close(group_norm_triton(x, 2), exact(x, 2, None, None, 1e-5, False))


@needs_triton
def test_a_constant_picture_has_no_norm_but_epsilon() -> None:
    x = torch.full((2, 16, 5, 5), 7.0, device=DEVICE)
    shift = randn(16)
    found = group_norm_triton(x, 4, (torch.ones_like(shift), shift))
    close(found, shift.double()[:, None, None].expand(2, 16, 5, 5))


@needs_triton
def test_what_is_not_channels_last_and_what_is_empty() -> None:
    x = randn(2, 24, 5, 6)
    close(group_norm_triton(x, 8), exact(x, 8, None, None, 1e-5, False))
    assert group_norm_triton(x[:0], 8).shape == (0, 24, 5, 6)
    rows = randn(2, 30, 24)  # as an attention has them: pixels, channels
    found = group_norm_triton(rows.mT, 8)
    close(found, F.group_norm(rows.mT.double(), 8))
    assert found.mT.is_contiguous()
    with pytest.raises(ValueError, match="24 channels cannot be divided into 7 groups"):
        group_norm_triton(x, 7)


@needs_triton
@pytest.mark.parametrize("shape", [(2, 48, 5, 7), (1, 96, 61, 60), (3, 8, 1, 1)])
def test_moments_of_parts_and_what_they_merge_into(shape: tuple[int, ...]) -> None:
    rows = pictures(*shape).movedim(1, -1) + 3
    n, channels, pixels = shape[0], shape[1], shape[2] * shape[3]
    mean, squares, part = channel_moments_triton(rows)
    assert mean.shape == squares.shape == (n, -(-pixels // part), channels)
    right = channel_moments_reference(rows.double(), part)
    for found, expected in zip((mean, squares), right, strict=True):
        close(found, expected, {"atol": 1e-3, "rtol": 1e-5})
    affine, style = (randn(channels), randn(channels, seed=1)), randn(n, 2 * channels)
    rest = pixels, part, 8
    wide = tuple(t.double() for t in affine)
    for offset in (None, randn(channels, seed=2)):
        found = merged_moments_triton(mean, squares, *rest, affine, style, 1e-5, offset)
        more = None if offset is None else offset.double()
        close(found, merged_moments_reference(*right, *rest, wide, style.double(), 1e-5, more))


@needs_triton
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_an_offset_is_as_if_it_had_been_added_before(scale: float) -> None:
    x, offset = pictures(2, 48, 9, 5), scale * randn(48, seed=7)
    affine = (randn(48), randn(48, seed=1))
    whole = x + offset[:, None, None]
    tolerance = {"atol": 3e-5 * scale, "rtol": 3e-5}
    found = group_norm_triton(x, 8, affine, offset=offset, silu=True)
    close(found, exact(whole, 8, affine, None, 1e-5, True), tolerance)
    close(group_norm_reference(x, 8, affine, offset=offset), group_norm(whole, 8, affine).double())
    half = group_norm_triton(x, 8, offset=offset.bfloat16())
    assert not torch.equal(half, group_norm_triton(x, 8))


@needs_triton
def test_rounding_does_not_depend_on_the_batch() -> None:
    x = pictures(5, 48, 24, 24)
    whole = group_norm_triton(x, 8, silu=True)
    assert torch.equal(group_norm_triton(x[3:4], 8, silu=True), whole[3:4])


def test_the_reference_is_what_pytorch_does_step_by_step() -> None:
    x = randn(2, 16, 5, 3)
    affine, style = (randn(16), randn(16, seed=1)), randn(2, 32)
    found = group_norm_reference(x, 4, affine, style, silu=True)
    close(found, exact(x, 4, affine, style, 1e-5, True))


def test_a_gradient_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fused", lambda x: True)
    x = randn(1, 8, 4, 4).requires_grad_()
    group_norm(x, 4, silu=True).sum().backward()
    assert x.grad.abs().max() > 0


# In networks


def test_norms_are_replaced_in_a_copy_that_shares_weights() -> None:
    tower = SpritesTower(5)
    found = with_fused_norms(tower)
    assert [type(m) for m in tower.convs[1]] == [nn.GroupNorm, nn.SiLU]
    assert [type(m) for m in found.convs[1]] == [FusedGroupNorm, nn.Identity]
    assert found.convs[1][0].silu and found.convs[1][0].norm is tower.convs[1][0]
    assert found.convs[0] is tower.convs[0] and found.hidden is tower.hidden
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), tower(x))  # on a CPU, bit for bit


def test_a_network_without_group_norms_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4), nn.SiLU())
    assert with_fused_norms(network) is network


def test_a_norm_without_its_own_activation_stays_alone() -> None:
    shared = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.SiLU())
    found = with_fused_norms(shared)
    assert not found[0].silu and found[1:] is not None and isinstance(found[2], nn.SiLU)


@needs_triton
def test_painters_through_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fused", lambda x: True)
    sprites = tokenizer_model().to(DEVICE)
    slots = randn(3, sprites.object.seed.in_features)
    with torch.no_grad():
        fused = with_fused_painters(sprites)
        assert isinstance(fused.object, FusedPainter)
        assert not isinstance(sprites.object, FusedPainter)
        torch.testing.assert_close(
            fused.canvases(slots), sprites.canvases(slots), atol=1e-4, rtol=0
        )
