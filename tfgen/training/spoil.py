"""Ways to spoil sprites and pictures, for a judge that must know what still is an object and what
is none any more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS = 48  # side of a sprite before it is put in its place


def halves(pair: Tensor, generator: torch.Generator) -> Tensor:
    """A mask Float[CANVAS, CANVAS] that is 0 on one side of a line and 1 on the other: the first of
    ten that leave about a half of each of two sprites Float[2, 4, CANVAS, CANVAS], or else the
    fairest."""
    angle, shift = torch.rand(2, 10, 1, 1, generator=generator)
    axis = (torch.arange(CANVAS) + 0.5) / CANVAS - 0.5
    turn = 2 * torch.pi * angle
    along = axis[None] * turn.cos() + axis[:, None] * turn.sin() - 0.24 * (shift - 0.5)
    masks = (along * CANVAS / 2 + 0.5).clamp(0, 1)  # [10, CANVAS, CANVAS]
    left = torch.stack([1 - masks, masks], 1) * pair[:, 3]
    shares = left.sum((2, 3)) / pair[:, 3].sum((1, 2)).clamp(min=1e-3)  # [10, 2]
    fair = (shares - 0.5).abs().amax(1) < 0.15
    return masks[
        int(fair.float().argmax() if fair.any() else (shares - 0.5).abs().amax(1).argmin())
    ]


def blob(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Alpha and brightness, Float[1, CANVAS, CANVAS] each, of a shaded shape that is nothing."""
    axis = ((torch.arange(CANVAS) + 0.5) / CANVAS - 0.5) * 2
    wide, high, rim, slope, grain = torch.rand(5, generator=generator)
    x, y = axis[None] * (0.7 + 0.6 * wide), axis[:, None] * (0.7 + 0.6 * high)
    shape, shade = smooth_noise(2, 5, generator)
    fine = smooth_noise(1, 10, generator)[0]
    inside = 0.75 - (x**2 + y**2).sqrt() + 0.13 * shape + 0.08 * rim * fine
    alpha = (inside * CANVAS / 4).clamp(0, 1)[None]
    light = 0.5 - 0.1 * (x + y) * slope + 0.12 * shade + 0.15 * grain * fine
    return alpha, light[None]


def smooth_noise(channels: int, cells: int, generator: torch.Generator) -> Tensor:
    """Noise of unit size that varies over `cells` cells: Float[channels, CANVAS, CANVAS]."""
    noise = torch.randn(1, channels, cells, cells, generator=generator)
    return F.interpolate(noise, (CANVAS, CANVAS), mode="bicubic", align_corners=False)[0]


def bend(sprite: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """A sprite Float[4, CANVAS, CANVAS] whose parts are shifted by about `amount` of its side."""
    axis = (torch.arange(CANVAS) + 0.5) / CANVAS * 2 - 1
    plain = torch.stack([axis[None].expand(CANVAS, -1), axis[:, None].expand(-1, CANVAS)])
    grid = plain + 2 * amount * smooth_noise(2, 6, generator)
    bent = F.grid_sample(sprite[None], grid.permute(1, 2, 0)[None], align_corners=False)
    return bent[0]


def mottle(sprite: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A sprite Float[4, CANVAS, CANVAS] with uneven brightness."""
    rgb = sprite[:3] * (1 + strength * smooth_noise(1, 10, generator))
    return torch.cat([rgb.clamp(min=0).minimum(sprite[3:]), sprite[3:]])


def rehue(sprite: Tensor, generator: torch.Generator) -> Tensor:
    """A sprite Float[4, CANVAS, CANVAS] with its hues turned around the gray axis."""
    turn = 2 * torch.pi * (0.08 + 0.84 * torch.rand((), generator=generator))
    third, root = torch.tensor(1 / 3), (1 - turn.cos()) / 3
    a, b = turn.cos() + root, third.sqrt() * turn.sin()
    row = torch.stack([a, root - b, root + b])
    matrix = torch.stack([row, row.roll(1), row.roll(2)])  # a rotation, circulant
    rgb = torch.einsum("ij,jyx->iyx", matrix, sprite[:3])
    return torch.cat([rgb.clamp(min=0).minimum(sprite[3:]), sprite[3:]])


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images Float[N, C, H, W], the border repeated."""
    reach = max(1, round(2.5 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    line = (line / line.sum()).to(images)
    channels = images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, line.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, line[:, None].expand(channels, 1, -1, 1), groups=channels)


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """What should change no answer: a little blur, resampling, compression, light and noise."""
    n, size = len(images), images.shape[-1]
    parts = []
    for part in images.split(max(1, n // 8)):
        how, amount = torch.rand(2, generator=generator).tolist()
        if how < 0.3:
            part = blur(part, 0.3 + 0.7 * amount)
        elif how < 0.5:
            small = F.interpolate(part, size=round(size * (0.68 + 0.3 * amount)), mode="area")
            part = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
        elif how < 0.65:
            part = compress(part, 0.02 + 0.1 * amount)
        parts.append(part)
    draw = torch.rand(n, 4, 1, 1, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator)
    strength = 0.03 * torch.rand(n, 1, 1, 1, generator=generator)
    # Each channel a little brighter or darker by itself, and all of them together.
    gain = 1 + 0.03 * draw[:, :3] + 0.07 * draw[:, 3:]
    return (torch.cat(parts) * gain + strength * noise).clamp(0, 1)


def compress(images: Tensor, step: float) -> Tensor:
    """Coarser frequencies in blocks of 8 x 8, as JPEG leaves them: coefficients rounded to
    multiples of a step that grows with the frequency."""
    k = torch.arange(8)
    basis = torch.cos(torch.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2  # [frequency, pixel]
    basis[0] /= 2**0.5
    n, c, h, w = images.shape
    blocks = images.reshape(n, c, h // 8, 8, w // 8, 8)
    freq = torch.einsum("fy,ncaybx,gx->ncafbg", basis, blocks, basis)
    steps = (step * (1 + k[:, None] + k[None]))[:, None, :]
    freq = (freq / steps).round() * steps
    return torch.einsum("fy,ncafbg,gx->ncaybx", basis, freq, basis).reshape(images.shape)
