"""The ten GenEval colours, given to a sprite without losing its shading.

A sprite is recoloured through its brightness: the picture's luminance, stretched to the sprite's
own range, runs along a ramp from a dark shade over the colour to a light tint. Eyes, windows and
outlines stay readable, which a plain hue rotation would not achieve on gray or white sprites.
"""

from __future__ import annotations

import torch
from torch import Tensor

NATURAL = "natural"

# name -> (dark end, the colour itself, light end) of its ramp, 0-255
RAMPS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((70, 0, 8), (222, 36, 40), (255, 176, 168)),
    "orange": ((96, 34, 0), (250, 130, 20), (255, 218, 160)),
    "yellow": ((110, 74, 0), (250, 208, 30), (255, 246, 180)),
    "green": ((0, 48, 12), (48, 164, 60), (190, 240, 180)),
    "blue": ((4, 14, 84), (38, 96, 226), (176, 212, 255)),
    "purple": ((40, 0, 76), (134, 60, 200), (222, 190, 250)),
    "pink": ((122, 20, 76), (246, 120, 180), (255, 220, 236)),
    "brown": ((38, 16, 4), (128, 76, 36), (212, 172, 132)),
    "black": ((0, 0, 2), (40, 40, 46), (132, 134, 142)),
    "white": ((112, 116, 126), (232, 234, 238), (255, 255, 255)),
}
COLOURS: tuple[str, ...] = (NATURAL, *RAMPS)


def recolour(sprites: Tensor, colour: str) -> Tensor:
    """Give `colour` to sprites: premultiplied RGBA Float[M, 4, S, S] in [0, 1] -> the same."""
    if colour == NATURAL:
        return sprites
    rgb, alpha = sprites[:, :3], sprites[:, 3:]
    plain = rgb / alpha.clamp(min=1e-3)
    weights = torch.tensor([0.299, 0.587, 0.114], device=sprites.device)[:, None, None]
    luminance = (plain * weights).sum(1)  # [M, S, S]
    level = torch.stack([_stretch(lum, a) for lum, a in zip(luminance, alpha[:, 0], strict=True)])
    dark, mid, light = (
        torch.tensor(c, device=sprites.device, dtype=sprites.dtype)[:, None, None] / 255
        for c in RAMPS[colour]
    )
    level = level[:, None]
    low = dark + (mid - dark) * (level / 0.5).clamp(0, 1)
    high = mid + (light - mid) * ((level - 0.5) / 0.5).clamp(0, 1)
    return torch.cat([torch.where(level < 0.5, low, high) * alpha, alpha], dim=1)


def _stretch(luminance: Tensor, alpha: Tensor) -> Tensor:
    """Luminance [S, S] mapped so that the sprite's 3rd, 50th and 97th percentiles become 0.08, 0.5
    and 0.95."""
    inside = luminance[alpha > 0.5]
    if inside.numel() == 0:
        return luminance
    q = torch.quantile(inside, torch.tensor([0.03, 0.5, 0.97], device=inside.device))
    low = 0.08 + 0.42 * (luminance - q[0]) / (q[1] - q[0]).clamp(min=0.04)
    high = 0.5 + 0.45 * (luminance - q[1]) / (q[2] - q[1]).clamp(min=0.04)
    return torch.where(luminance < q[1], low, high).clamp(0, 1)
