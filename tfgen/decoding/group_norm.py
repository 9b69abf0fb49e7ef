"""GroupNorm with modulation and SiLU, of channels-last tensors and without copies of them.

PyTorch's GroupNorm on CUDA reads a sample's channels one after the other: of a channels-last
tensor, as convolutions like them best, it makes a copy first and another of its result, and the
activation is one more pass. Here two passes over the tensor as it lies do all of it. Both read rows
of pixels with all channels, which are adjacent; what a group is, only the small step between knows:

    moments    of each channel in each part of a sample: mean, and the sum of squares about it
    merge      of a group's channels and parts, by the formula of Chan, Golub and LeVeque (1979),
               into what each channel is multiplied by and what is added
    apply      to all pixels

All compute in float32. No sum of squares about zero is ever made, so a large common offset costs
no precision. How a sample is divided depends on its size alone, and so does every rounding.

Bytes are told for N samples of P pixels of C channels, with e bytes an element.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl, warps

_PART = 2**14  # elements of a sample that one program takes the moments of, at least
_PARTS = 64  # of a sample, at most
_MOMENTS_BLOCK, _APPLY_BLOCK = 4096, 8192  # elements that one program holds


def group_norm(
    x: Tensor,
    groups: int,
    affine: tuple[Tensor, Tensor] | None = None,
    style: Tensor | None = None,
    *,
    offset: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    """act((GN(x + offset) * weight + bias) * (1 + scale) + shift): Float[N, C, ...] -> the same,
    which is channels-last where kernels run.

    affine: weight and bias, Float[C] each. style: scales and then shifts, Float[N, 2 C] or with
    further axes of 1. offset: Float[C], such as the bias of a convolution that was left out; None
    is 0. silu: whether act is SiLU; else it is nothing. Moves 3 N P C e bytes: two reads and a
    write. Where a gradient is asked for it is PyTorch's own.
    """
    if not fused(x) or (torch.is_grad_enabled() and x.requires_grad):
        return group_norm_reference(x, groups, affine, style, offset=offset, eps=eps, silu=silu)
    return group_norm_triton(x, groups, affine, style, offset=offset, eps=eps, silu=silu)


def group_norm_reference(
    x: Tensor,
    groups: int,
    affine: tuple[Tensor, Tensor] | None = None,
    style: Tensor | None = None,
    *,
    offset: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    if offset is not None:
        x = x + offset[(...,) + (None,) * (x.dim() - 2)].to(x.dtype)
    x = F.group_norm(x, groups, *(affine or (None, None)), eps)
    if style is not None:
        style = style.flatten(1)[(...,) + (None,) * (x.dim() - 2)].to(x.dtype)
        scale, shift = style.chunk(2, dim=1)
        x = torch.addcmul(shift, x, 1 + scale)
    return F.silu(x) if silu else x


def group_norm_triton(
    x: Tensor,
    groups: int,
    affine: tuple[Tensor, Tensor] | None = None,
    style: Tensor | None = None,
    *,
    offset: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels cannot be divided into {groups} groups")
    rows = x.movedim(1, -1).contiguous()  # of a channels-last tensor, a view
    out = torch.empty_like(rows)
    if x.numel():
        mean, squares, part = channel_moments_triton(rows)
        table = merged_moments_triton(
            mean, squares, rows[0, ..., 0].numel(), part, groups, affine, style, eps, offset
        )
        _apply(rows, table, out, silu)
    return out.movedim(-1, 1)


# Moments of channels


def channel_moments_triton(rows: Tensor) -> tuple[Tensor, Tensor, int]:
    """Float[N, ..., C] -> mean and sum of squares about it, Float32[N, parts, C] each, of each
    part of a sample, and how many pixels a part has; the last may have fewer.

        mean = mean + (x - mean) / k,    squares = squares + (x - old mean) (x - mean)

    over the k-th of every ROWS pixels (Welford), and then merged. Moves N P C e bytes, and 8 for
    each channel of each part.
    """
    n, channels = len(rows), rows.shape[-1]
    pixels = rows[0, ..., 0].numel()
    parts = min(_PARTS, -(-pixels * channels // _PART), pixels)
    part = -(-pixels // parts)
    parts = -(-pixels // part)  # none is empty
    mean, squares = torch.empty(2, n, parts, channels, dtype=torch.float32, device=rows.device)
    block = next_power_of_2(channels)
    height = min(max(1, _MOMENTS_BLOCK // block), next_power_of_2(part))
    _channel_moments_kernel[(n, parts)](
        rows,
        mean,
        squares,
        pixels,
        channels,
        part,
        ROWS=height,
        BLOCK=block,
        num_warps=warps(height * block),
    )
    return mean, squares, part


def channel_moments_reference(rows: Tensor, part: int) -> tuple[Tensor, Tensor]:
    """As `channel_moments_triton`, in the dtype of rows, for parts of that many pixels."""
    parts = rows.flatten(1, -2).split(part, dim=1)
    mean = torch.stack([some.mean(1) for some in parts], dim=1)
    squares = torch.stack([some.var(1, correction=0) * some.shape[1] for some in parts], dim=1)
    return mean, squares


@jit
def _channel_moments_kernel(
    x, mean, squares, pixels, channels, part, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: all channels of one part of a sample, ROWS pixels at a time."""
    sample = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1)
    first = at * part
    count = tl.minimum(part, pixels - first)
    row = tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    there = c < channels
    start = x + (sample * pixels + first) * channels
    centre = tl.zeros([ROWS, BLOCK], tl.float32)
    spread = tl.zeros([ROWS, BLOCK], tl.float32)
    seen = 0.0
    for step in range(0, count, ROWS):
        pixel = step + row
        inside = (pixel < count)[:, None] & there[None, :]
        place = pixel[:, None] * channels + c[None, :]
        value = tl.load(start + place, mask=inside, other=0.0).to(tl.float32)
        seen += 1.0
        delta = tl.where(inside, value - centre, 0.0)
        centre += delta * (1.0 / seen)
        spread += delta * (value - centre)
    counts = ((count - row + ROWS - 1) // ROWS).to(tl.float32)[:, None]  # of each row, perhaps 0
    middle = tl.sum(counts * centre, axis=0) / count
    away = centre - middle[None, :]
    total = tl.sum(spread + counts * away * away, axis=0)
    place = (sample * tl.num_programs(1) + at) * channels + c
    tl.store(mean + place, middle, mask=there)
    tl.store(squares + place, total, mask=there)


# Merged into what is done to each channel


def merged_moments_triton(
    mean: Tensor,
    squares: Tensor,
    pixels: int,
    part: int,
    groups: int,
    affine: tuple[Tensor, Tensor] | None,
    style: Tensor | None,
    eps: float,
    offset: Tensor | None = None,
) -> Tensor:
    """Moments Float32[N, parts, C] each, of parts of `part` of the `pixels` -> Float32[N, 3, C]:
    the group's mean m, less the channel's offset, and f and s of each channel with (x - m) f + s
    the result.

        m = sum of n_i m_i / n,    variance = (sum of squares_i + n_i (m_i - m)^2) / n
        f = weight (1 + scale) / sqrt(variance + eps),    s = bias (1 + scale) + shift

    over the n_i pixels of each channel and part of a group. Moves N C (8 parts + 12) bytes.
    """
    n, parts, channels = mean.shape
    table = torch.empty(n, 3, channels, dtype=torch.float32, device=mean.device)
    weight, bias = affine or (mean, mean)
    if style is not None:
        style = style.flatten(1)
        style = style if style.stride(1) == 1 else style.contiguous()
    size = channels // groups
    split_block, block = next_power_of_2(parts), next_power_of_2(size)
    _merged_moments_kernel[(n, groups)](
        mean,
        squares,
        table,
        weight,
        bias,
        mean if style is None else style,
        mean if offset is None else offset,
        pixels,
        part,
        parts,
        channels,
        size,
        0 if style is None else style.stride(0),
        eps,
        AFFINE=affine is not None,
        STYLE=style is not None,
        OFFSET=offset is not None,
        PARTS=split_block,
        BLOCK=block,
        num_warps=warps(split_block * block),
    )
    return table


def merged_moments_reference(
    mean: Tensor,
    squares: Tensor,
    pixels: int,
    part: int,
    groups: int,
    affine: tuple[Tensor, Tensor] | None,
    style: Tensor | None,
    eps: float,
    offset: Tensor | None = None,
) -> Tensor:
    channels = mean.shape[2]
    first = torch.arange(mean.shape[1], device=mean.device) * part
    counts = (pixels - first).clamp(max=part).to(mean)[:, None, None]  # [parts, 1, 1]
    total = pixels * (channels // groups)
    if offset is not None:
        mean = mean + offset
    mean, squares = (t.unflatten(2, (groups, -1)) for t in (mean, squares))
    centre = (counts * mean).sum((1, 3), keepdim=True) / total
    spread = (squares + counts * (mean - centre).square()).sum((1, 3), keepdim=True) / total
    centre, spread = (
        t[:, 0].expand(-1, -1, channels // groups).flatten(1) for t in (centre, spread)
    )
    factor = (spread + eps).rsqrt()
    shift = torch.zeros_like(factor)
    if offset is not None:
        centre = centre - offset
    if affine is not None:
        factor, shift = factor * affine[0], shift + affine[1]
    if style is not None:
        scale, more = style.flatten(1).chunk(2, dim=1)
        factor, shift = factor * (1 + scale), shift * (1 + scale) + more
    return torch.stack([centre, factor, shift], dim=1)


@jit
def _merged_moments_kernel(
    mean,
    squares,
    table,
    weight,
    bias,
    style,
    offset,
    pixels,
    part,
    parts,
    channels,
    size,
    style_stride,
    eps,
    AFFINE: tl.constexpr,
    STYLE: tl.constexpr,
    OFFSET: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: one group of a sample."""
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    at = tl.arange(0, PARTS)[:, None]
    i = tl.arange(0, BLOCK)
    inside = (at < parts) & (i < size)[None, :]
    place = (sample * parts + at) * channels + group * size + i[None, :]
    there = i < size
    c = group * size + i
    lacking = tl.zeros([BLOCK], tl.float32)
    if OFFSET:
        lacking += tl.load(offset + c, mask=there, other=0.0).to(tl.float32)
    middle = tl.load(mean + place, mask=inside, other=0.0) + lacking[None, :]
    spread = tl.load(squares + place, mask=inside, other=0.0)
    share = tl.where(inside, tl.minimum(part, pixels - at * part), 0).to(tl.float32)
    share = share / pixels / size
    centre = tl.sum(tl.sum(share * middle, axis=1), axis=0)
    away = middle - centre
    squared = spread / pixels / size + share * away * away
    variance = tl.sum(tl.sum(squared, axis=1), axis=0)
    factor = tl.zeros([BLOCK], tl.float32) + tl.rsqrt(variance + eps)
    shift = tl.zeros([BLOCK], tl.float32)
    if AFFINE:
        factor *= tl.load(weight + c, mask=there, other=0.0).to(tl.float32)
        shift += tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    if STYLE:
        own = style + sample * style_stride + c
        scale = 1.0 + tl.load(own, mask=there, other=0.0).to(tl.float32)
        factor *= scale
        shift = shift * scale + tl.load(own + channels, mask=there, other=0.0).to(tl.float32)
    row = table + sample * 3 * channels + c
    tl.store(row, centre - lacking, mask=there)
    tl.store(row + channels, factor, mask=there)
    tl.store(row + 2 * channels, shift, mask=there)


# Applied


def _apply(rows: Tensor, table: Tensor, out: Tensor, silu: bool) -> None:
    """act((x - m) f + s) of rows Float[N, ..., C], m, f and s from a table Float32[N, 3, C], into
    `out`. Moves 2 N P C e bytes; a sample's table is read again by each program, from the cache."""
    n, channels = len(rows), rows.shape[-1]
    pixels = rows[0, ..., 0].numel()
    block = next_power_of_2(channels)
    height = min(max(1, _APPLY_BLOCK // block), next_power_of_2(pixels))
    blocks = -(-pixels // height)
    _apply_norm_kernel[(n * blocks,)](
        rows,
        out,
        table,
        pixels,
        channels,
        blocks,
        SILU=silu,
        ROWS=height,
        BLOCK=block,
        num_warps=warps(height * block),
    )


@jit
def _apply_norm_kernel(
    x,
    out,
    table,
    pixels,
    channels,
    blocks,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: all channels of ROWS pixels of a sample."""
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * ROWS
    row = tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    there = c < channels
    inside = (first + row < pixels)[:, None] & there[None, :]
    start = (sample * pixels + first) * channels
    place = row[:, None] * channels + c[None, :]
    value = tl.load(x + start + place, mask=inside, other=0.0).to(tl.float32)
    own = table + sample * 3 * channels + c
    centre = tl.load(own, mask=there, other=0.0)
    factor = tl.load(own + channels, mask=there, other=0.0)
    shift = tl.load(own + 2 * channels, mask=there, other=0.0)
    value = (value - centre[None, :]) * factor[None, :] + shift[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + start + place, value.to(out.dtype.element_ty), mask=inside)


# In networks


class FusedGroupNorm(nn.Module):
    """A GroupNorm, and perhaps the SiLU after it, through `group_norm`."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.norm, self.silu = norm, silu

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        affine = (norm.weight, norm.bias) if norm.affine else None
        return group_norm(x, norm.num_groups, affine, eps=norm.eps, silu=self.silu)


def with_fused_norms(network: nn.Module) -> nn.Module:
    """The same network, which shares all weights, with each GroupNorm through `group_norm`, and
    with it the SiLU right after it in an `nn.Sequential`. A network without a GroupNorm is returned
    as it is, and so are those parts of any that have none."""
    if isinstance(network, nn.GroupNorm):
        return FusedGroupNorm(network, silu=False)
    children = {
        name: None if child is None else with_fused_norms(child)
        for name, child in network._modules.items()
    }
    if all(child is network._modules[name] for name, child in children.items()):
        return network
    if isinstance(network, nn.Sequential):
        for name, after in pairwise(network._modules):
            norm = network._modules[name]
            if isinstance(norm, nn.GroupNorm) and isinstance(network._modules[after], nn.SiLU):
                children[name], children[after] = FusedGroupNorm(norm, silu=True), nn.Identity()
    found = copy.copy(network)
    found._modules = children
    return found
