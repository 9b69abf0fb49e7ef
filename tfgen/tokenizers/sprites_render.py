"""The large decoder of `sprites`: the same layers, painted at four times the size.

A search decodes thousands of prefixes at 64 pixels; only the winner is worth more. The enlargers go
on from the painters' last features, so the large picture shows exactly what was searched for; what
is too fine for those, such as eyes, they paint from the descriptions anew.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites_model import (
    Layered,
    SpritesConfig,
    SpritesModel,
    Stages,
    compose,
    modulated,
    place,
)
from tfgen.tokenizers.sprites_reading import residual
from tfgen.tokenizers.subpixel import conv_enlarged

SCALE = 4


class Enlarger(nn.Module):
    """A painter's last features Float[N, C, s, s] and its descriptions Float[N, latent] ->
    Float[N, out, 8 s, 8 s], unbounded.

    The painter itself turns s into 2 s pixels, its picture's side; this is SCALE times that. own:
    width of the stages that paint features anew, as many as the painter's; widths: of those after.
    """

    def __init__(
        self,
        latent: int,
        painter: tuple[int, ...],
        out: int,
        side: int,
        own: int,
        widths: tuple[int, int] = (48, 24),
    ):
        super().__init__()
        self.refined = nn.ModuleList(residual(latent, 4 * latent) for _ in range(2))
        self.stages = Stages(latent, (own,) * len(painter), side)
        self.widths = widths
        before = painter[-1] + own
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip((before, widths[0]), widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, w, affine=False) for w in widths)
        self.styles = nn.Linear(latent, 2 * sum(widths))
        self.out = nn.Conv2d(widths[-1], 4 * out, 3, padding=1)

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        for block in self.refined:
            latent = latent + block(latent)
        x = torch.cat([features, self.stages.features(latent)], dim=1)
        styles = self.styles(latent)[..., None, None].split([2 * w for w in self.widths], dim=1)
        for conv, norm, style in zip(self.convs, self.norms, styles, strict=True):
            x = modulated(norm(conv_enlarged(x, conv)), style)
        return F.pixel_shuffle(self.out(x), 2)


class SpritesRenderer(nn.Module):
    """Paints decoded scenes at SCALE times the tokenizer's picture size."""

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        self.background = Enlarger(cfg.latent, cfg.background_widths, 3, cfg.image_size, own=96)
        self.object = Enlarger(cfg.latent, cfg.object_widths, 4, cfg.canvas_size, own=128)
        self.size = SCALE * cfg.image_size

    def paint_background(self, model: SpritesModel, trunk: Tensor) -> Tensor:
        """The trunk's output Float[N, width] -> Float[N, 3, size, size] in [0, 1]."""
        latent = model.to_background(trunk)
        return torch.sigmoid(self.background(model.background.features(latent), latent).float())

    def paint_objects(self, model: SpritesModel, slots: Tensor) -> Tensor:
        """Descriptions Float[P, latent] -> premultiplied RGBA Float[P, 4, SCALE * canvas, ...]."""
        rgba = torch.sigmoid(self.object(model.object.features(slots), slots).float())
        return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)

    def paint(self, model: SpritesModel, layered: Layered, trunk: Tensor) -> Tensor:
        """The whole picture, Float[N, 3, size, size]; as `sprites_model.paint` does it."""
        background = self.paint_background(model, trunk)
        rows, slots = (layered.present > 0).nonzero(as_tuple=True)
        if len(rows) == 0:
            return background
        canvases = self.paint_objects(model, layered.slots[rows, slots])
        painted = place(canvases, layered.boxes[rows, slots], self.size)
        return compose(background, painted, rows, slots)
