"""The decoder of FlexTok's VAE with fewer passes over memory.

What is done differently from diffusers' `Decoder`, besides its norms (`group_norm`): PyTorch adds
the bias of a convolution in a pass of its own, and diffusers divides the sum of a block by one.
Here a bias is added by whatever comes next: a norm that knows of it (`group_norm`'s `offset`), or
the sum of a block's two branches, which may also write each pixel four times, where an enlargement
follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.decoding.group_norm import group_norm, with_fused_norms
from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl, warps

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import Decoder
    from diffusers.models.resnet import ResnetBlock2D

_BLOCK = 8192  # elements that one program holds


# The sum of a block


def add_branches(x: Tensor, branch: Tensor, bias: Tensor, enlarge: int = 1) -> Tensor:
    """x + branch + bias, each pixel `enlarge` times high and wide: Float[N, C, H, W], the same, and
    Float[C] -> Float[N, C, enlarge H, enlarge W], channels-last where the kernel runs.

    Adds in float32. Moves (2 + enlarge^2) N C H W e bytes. Where a gradient is asked for it is
    PyTorch's own.
    """
    differentiable = torch.is_grad_enabled() and (x.requires_grad or branch.requires_grad)
    if not fused(x) or differentiable:
        return add_branches_reference(x, branch, bias, enlarge)
    return add_branches_triton(x, branch, bias, enlarge)


def add_branches_reference(x: Tensor, branch: Tensor, bias: Tensor, enlarge: int = 1) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    total = (x.to(wide) + branch.to(wide) + bias[:, None, None].to(wide)).to(x.dtype)
    return total if enlarge == 1 else F.interpolate(total, scale_factor=enlarge, mode="nearest")


def add_branches_triton(x: Tensor, branch: Tensor, bias: Tensor, enlarge: int = 1) -> Tensor:
    n, channels, height, width = x.shape
    rows, others = (t.movedim(1, -1).contiguous() for t in (x, branch))
    shape = (n, enlarge * height, enlarge * width, channels)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    pixels, block = n * height * width, next_power_of_2(channels)
    many = min(max(1, _BLOCK // block), next_power_of_2(pixels))
    if out.numel():
        _add_branches_kernel[(-(-pixels // many),)](
            rows,
            others,
            bias,
            out,
            pixels,
            channels,
            width,
            ENLARGE=enlarge,
            ROWS=many,
            BLOCK=block,
            num_warps=warps(many * block),
        )
    return out.movedim(-1, 1)


@jit
def _add_branches_kernel(
    x,
    branch,
    bias,
    out,
    pixels,
    channels,
    width,
    ENLARGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: all channels of ROWS pixels, of whichever sample."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    there = c < channels
    inside = (pixel < pixels)[:, None] & there[None, :]
    place = pixel[:, None] * channels + c[None, :]
    total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + c, mask=there, other=0.0).to(tl.float32)[None, :]
    total = total.to(out.dtype.element_ty)
    # Rows of pixels follow each other through all samples, and so do the enlarged ones.
    corner = (pixel // width) * ENLARGE * width * ENLARGE + (pixel % width) * ENLARGE
    for down in tl.static_range(ENLARGE):
        for right in tl.static_range(ENLARGE):
            target = corner + down * width * ENLARGE + right
            tl.store(out + target[:, None] * channels + c[None, :], total, mask=inside)


# The network


class Unbiased(nn.Module):
    """A convolution without its bias, which whatever comes next must add."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


class FusedResnet(nn.Module):
    """A block of two convolutions; shares the weights of diffusers' block.

    offset: Float[C], what its input still lacks, the bias of the convolution before, or None.
    enlarge: how often each pixel of the result is written, down and to the right.
    """

    bias: Tensor

    def __init__(self, block: ResnetBlock2D, offset: Tensor | None = None, enlarge: int = 1):
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2 = Unbiased(block.conv1), Unbiased(block.conv2)
        self.offset, self.enlarge = offset, enlarge
        shortcut = block.conv_shortcut
        self.shortcut = nn.Identity() if shortcut is None else Unbiased(shortcut)
        with torch.no_grad():
            bias = block.conv2.bias.float()
            if offset is not None:  # the shortcut's result lacks it, too
                passed = offset.float()
                bias = bias + (
                    passed if shortcut is None else shortcut.weight[..., 0, 0].float() @ passed
                )
            if shortcut is not None:
                bias = bias + shortcut.bias.float()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_activated(self.norm1, x, self.offset))
        h = self.conv2(_activated(self.norm2, h, self.conv1.conv.bias))
        return add_branches(self.shortcut(x), h, self.bias, self.enlarge)


class FusedVAEDecoder(nn.Module):
    """diffusers' `Decoder` of up-blocks without attention, as a FlexTok has it; shares its weights.

    Latents Float[N, C, H, W] -> pictures Float[N, 3, 8 H, 8 W], in channels-last.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        first, *others = decoder.mid_block.resnets
        body = [Unbiased(decoder.conv_in), FusedResnet(first, decoder.conv_in.bias)]
        for attention, block in zip(decoder.mid_block.attentions, others, strict=True):
            body += [with_fused_norms(attention), FusedResnet(block)]
        before: Tensor | None = None
        for up in decoder.up_blocks:
            *blocks, last = up.resnets
            for block in blocks:
                body.append(FusedResnet(block, before))
                before = None
            if up.upsamplers is None:
                body.append(FusedResnet(last))
            else:
                conv = up.upsamplers[0].conv
                body += [FusedResnet(last, enlarge=2), Unbiased(conv)]
                before = conv.bias
        self.body = nn.Sequential(*body)
        self.norm_out, self.conv_out = decoder.conv_norm_out, decoder.conv_out

    def forward(self, latents: Tensor) -> Tensor:
        return self.conv_out(_activated(self.norm_out, self.body(latents), None))


def _activated(norm: nn.GroupNorm, x: Tensor, offset: Tensor | None) -> Tensor:
    affine = (norm.weight, norm.bias)
    return group_norm(x, norm.num_groups, affine, offset=offset, eps=norm.eps, silu=True)
