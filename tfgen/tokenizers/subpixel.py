"""A 3 x 3 convolution of an enlarged picture, from 2.25 times fewer multiplications.

A 3 x 3 convolution of a picture enlarged twice by repeating pixels sees 2 x 2 different ones.
So each of the four output pixels that one source pixel turns into is a 2 x 2 convolution of the
*small* picture, whose taps are sums of the 3 x 3 kernel's: 16 multiplications a source pixel and
pair of channels in place of 36. Equal up to rounding, zero padding included, and differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def conv_enlarged(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x enlarged twice by repeating pixels): Float[N, I, h, w] -> Float[N, O, 2 h, 2 w].

    `conv` is 3 x 3 with padding 1. The result is channels-last.
    """
    weight = four_phases(conv.weight).contiguous(memory_format=torch.channels_last)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    return interleave(F.conv2d(x, weight, bias, padding=1))


def four_phases(weight: Tensor) -> Tensor:
    """Kernels Float[O, I, 3, 3] for an enlarged picture -> Float[4 O, I, 2, 2] for the small one.

    Outputs are ordered (row phase, column phase, channel). In phase 0 the enlarged rows above, at
    and below an output row are the small rows i - 1, i, i; in phase 1 they are i, i, i + 1.
    """

    def halves(w: Tensor, axis: int) -> list[Tensor]:
        a, b, c = w.unbind(axis)
        return [torch.stack([a, b + c], axis), torch.stack([a + b, c], axis)]

    return torch.cat([phase for rows in halves(weight, 2) for phase in halves(rows, 3)])


def interleave(phases: Tensor) -> Tensor:
    """Float[N, 4 C, h + 1, w + 1] of `four_phases` kernels with padding 1 -> Float[N, C, 2 h, 2 w].

    Phase 0 of source pixel i is the window that starts at i - 1, phase 1 the one that starts at i.
    """
    if torch.is_grad_enabled() and phases.requires_grad:
        return _Interleave.apply(phases)
    return _interleave(phases)


def _interleave(phases: Tensor) -> Tensor:
    n, c, h, w = phases.shape
    c, h, w = c // 4, h - 1, w - 1
    windows = phases.permute(0, 2, 3, 1).unflatten(3, (2, 2, c))
    out = phases.new_empty(n, h, 2, w, 2, c)
    for row in (0, 1):
        for column in (0, 1):
            part = windows[:, row : row + h, column : column + w, row, column]
            out[:, :, row, :, column] = part
    return out.view(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class _Interleave(torch.autograd.Function):
    """`_interleave` with a gradient that is written once. PyTorch's own fills a tensor of zeros for
    each phase and adds them up: a twentieth of a step of the tokenizer's training."""

    @staticmethod
    def forward(ctx: Any, phases: Tensor) -> Tensor:
        return _interleave(phases)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n, c, h, w = gradient.shape
        h, w = h // 2, w // 2
        parts = gradient.permute(0, 2, 3, 1).reshape(n, h, 2, w, 2, c)
        found = gradient.new_empty(n, h + 1, w + 1, 2, 2, c)
        for row in (0, 1):
            for column in (0, 1):
                target = found[:, :, :, row, column]
                target[:, row : row + h, column : column + w] = parts[:, :, row, :, column]
                target[:, h - row * h] = 0  # what no pixel was made of
                target[:, :, w - column * w] = 0
        return found.view(n, h + 1, w + 1, 4 * c).permute(0, 3, 1, 2)
