"""The network of the judge: a small one-stage detector with object centres on a 16 x 16 map.

A residual convolutional backbone halves the picture four times; what the coarse maps know is added
back to the map of stride 4 (a feature pyramid with one output). Every cell of that map says whether
an object is centred there, what it is, its colour, and how far its box reaches (anchor-free, as in
CenterNet, arXiv 1904.07850, and FCOS, arXiv 1904.01355).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels a cell of the map of centres


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the network.

    image_size: side of the pictures it sees; widths: channels at strides 2, 4, 8 and 16; neck:
    channels of the map that the heads read; objects: classes, of which the last is "other" (an
    object that no word of the world names); colours: classes, of which the first is the natural
    coat and the last "mixed" (a part in one colour and a part in another); backgrounds: classes.
    """

    image_size: int = 64
    widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    neck: int = 64
    objects: int = 41
    colours: int = 12
    backgrounds: int = 22


class Answers(NamedTuple):
    """What the network says of N pictures, on a map of h x w cells (logits but for `reach`).

    centre: Float[N, h, w]; objects: Float[N, h, w, objects]; colours: Float[N, h, w, colours];
    reach: Float[N, h, w, 4] from the cell's centre to the box's left, top, right and bottom edge in
    fractions of the picture; background: Float[N, backgrounds].
    """

    centre: Tensor
    objects: Tensor
    colours: Tensor
    reach: Tensor
    background: Tensor


def convolve(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution and its GroupNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
    )


class Residual(nn.Module):
    """x + f(x) with `depth` convolutions in f."""

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(convolve(channels, channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers[:-1]:
            y = F.silu(layer(y))
        return F.silu(x + self.layers[-1](y))


class JudgeModel(nn.Module):
    """Pictures Float[N, 3, S, S] in [0, 1] -> Answers."""

    def __init__(self, cfg: JudgeConfig):
        super().__init__()
        self.cfg = cfg
        a, b, c, d = cfg.widths
        self.enter = convolve(3, a, 2)
        self.down = nn.ModuleList(convolve(i, o, 2) for i, o in ((a, b), (b, c), (c, d)))
        # One convolution where cells are many, two at the coarser strides.
        self.blocks = nn.ModuleList(
            [Residual(a, 1), Residual(b, 1), Residual(c, 2), Residual(d, 2)]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(w, cfg.neck, 1) for w in (b, c, d))
        self.merge = nn.ModuleList(convolve(cfg.neck, cfg.neck) for _ in range(2))
        self.split = [1, cfg.objects, cfg.colours, 4]
        self.cells = nn.Conv2d(cfg.neck, sum(self.split), 1)
        self.background = nn.Linear(c + d, cfg.backgrounds)
        nn.init.constant_(self.cells.bias[:1], -4.0)  # few cells are centres

    def forward(self, images: Tensor) -> Answers:
        x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](F.silu(self.enter(x)))
        maps = []
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            x = block(F.silu(down(x)))
            maps.append(x)
        fine, middle, coarse = (conv(m) for conv, m in zip(self.lateral, maps, strict=True))
        x = F.silu(self.merge[0](middle + F.interpolate(coarse, scale_factor=2.0)))
        x = F.silu(self.merge[1](fine + F.interpolate(x, scale_factor=2.0)))
        cells = self.cells(x).permute(0, 2, 3, 1).float()  # [N, h, w, all answers]
        centre, objects, colours, reach = cells.split(self.split, dim=3)
        pooled = torch.cat([maps[1].mean((2, 3)), maps[2].mean((2, 3))], dim=1)
        background = self.background(pooled).float()
        return Answers(centre[..., 0], objects, colours, F.softplus(reach) * 0.25, background)


def cell_centres(height: int, width: int) -> Tensor:
    """Centre x and y of every cell, in fractions of the picture: Float[height, width, 2]."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], 2)
