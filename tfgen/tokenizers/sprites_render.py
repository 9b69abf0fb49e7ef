"""The large decoder of `sprites`: the same layers, painted at four times the size.

A search decodes thousands of prefixes at 64 pixels; only the winner is worth more. The enlargers go
on from the painters' last features; what is too fine for those, such as eyes and stars, comes from
the descriptions anew: painted by stages of the enlarger's own or, if the tokenizer's config says
so, from a memory of what each kind of object and each background looks like. A memory commits to
the likeliest: what the verifier scored as a smear or a mixture is then shown as one of the two.
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


class Memory(nn.Module):
    """Descriptions Float[N, latent] -> Float[N, channels, side, side], what is kept of the kind of
    object, or the background, that each describes best.

    One is chosen, however doubtful: a mixture of two is neither. Colours of objects are not kept: a
    kind has the same shape in every colour, and the descriptions modulate what comes after.
    """

    def __init__(self, latent: int, kinds: int, channels: int, side: int):
        super().__init__()
        self.keys = nn.Linear(latent, kinds)
        self.values = nn.Parameter(torch.randn(kinds, channels, side, side) / 2)

    def features(self, latent: Tensor) -> Tensor:
        return self.values[self.keys(latent).argmax(dim=1)]


class Enlarger(nn.Module):
    """A painter's last features Float[N, C, s, s] and its descriptions Float[N, latent] ->
    Float[N, out, 8 s, 8 s], unbounded.

    The painter itself turns s into 2 s pixels, its picture's side; this is SCALE times that. own:
    gives Float[N, own_width, s, s] of what the painter's features lack; widths: of the convolutions
    after both, of which the last two double the side.
    """

    def __init__(
        self,
        latent: int,
        painter_width: int,
        own: Stages | Memory,
        own_width: int,
        out: int,
        widths: tuple[int, ...] = (48, 24),
    ):
        super().__init__()
        self.refined = nn.ModuleList(residual(latent, 4 * latent) for _ in range(2))
        self.own = own
        self.widths = widths
        inputs = (painter_width + own_width, *widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, w, affine=False) for w in widths)
        self.styles = nn.Linear(latent, 2 * sum(widths))
        self.out = nn.Conv2d(widths[-1], 4 * out, 3, padding=1)

    def described(self, latent: Tensor) -> Tensor:
        """The descriptions as `own` is given them, of the same shape."""
        for block in self.refined:
            latent = latent + block(latent)
        return latent

    def named(self, latent: Tensor) -> Tensor | None:
        """What a memory reads in descriptions: logits Float[N, kinds]; None without a memory."""
        return self.own.keys(self.described(latent)) if isinstance(self.own, Memory) else None

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        latent = self.described(latent)
        x = torch.cat([features, self.own.features(latent).to(features.dtype)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        styles = self.styles(latent)[..., None, None].split([2 * w for w in self.widths], dim=1)
        for i, (conv, norm, style) in enumerate(zip(self.convs, self.norms, styles, strict=True)):
            x = conv_enlarged(x, conv) if i >= len(self.widths) - 2 else conv(x)
            x = modulated(norm(x), style)
        return F.pixel_shuffle(self.out(x), 2)


class SpritesRenderer(nn.Module):
    """Paints decoded scenes at SCALE times the tokenizer's picture size."""

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        self.background = _enlarger(
            cfg, cfg.background_widths, cfg.image_size, 96, 3, cfg.grounds, cfg.ground_memory
        )
        self.object = _enlarger(
            cfg, cfg.object_widths, cfg.canvas_size, 128, 4, cfg.kinds, cfg.memory
        )
        self.size = SCALE * cfg.image_size
        self.typical = None  # descriptions of the backgrounds that are remembered
        if cfg.ground_memory:
            self.typical = nn.Parameter(torch.zeros(cfg.grounds, cfg.latent))

    def paint_background(self, model: SpritesModel, trunk: Tensor) -> Tensor:
        """The trunk's output Float[N, width] -> Float[N, 3, size, size] in [0, 1].

        A search finds descriptions of no background, where a prompt names none; of what the memory
        reads there the typical one is painted, or its details would be those of no background too.
        """
        latent = model.to_background(trunk)
        if self.typical is not None:
            said = self.background.named(latent)
            assert said is not None
            latent = self.typical[said.argmax(dim=1)]
        return self.paint_described(model, latent)

    def paint_described(self, model: SpritesModel, latent: Tensor) -> Tensor:
        """Backgrounds' own descriptions Float[N, latent] -> Float[N, 3, size, size] in [0, 1]."""
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


def _enlarger(
    cfg: SpritesConfig,
    painter: tuple[int, ...],
    side: int,
    own_width: int,
    out: int,
    kinds: int,
    memory: int,
) -> Enlarger:
    """With a memory of so many channels of each kind or, of none, with stages of own_width."""
    if not memory:
        own = Stages(cfg.latent, (own_width,) * len(painter), side)
        return Enlarger(cfg.latent, painter[-1], own, own_width, out)
    kept = Memory(cfg.latent, kinds, memory, side // 2)
    widths = (64, 48, 24)  # the first, to blend before it enlarges
    return Enlarger(cfg.latent, painter[-1], kept, memory, out, widths)
