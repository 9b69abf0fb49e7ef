"""Read a scene off a tokenizer's layers: which background, which sprites in which colours, where.

No network judges here: what the decoder painted is compared with all that the world can paint. By
that, training knows whether a picture that a search found shows what it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.colours import COLOURS
from tfgen.training.world import Scenes, World

SHORTEST = 6
"""Tokens of a prefix that can be read; shorter ones only hint at their objects."""
CLEAR, SPOILT = 0.03, 0.06
"""Errors up to CLEAR are those of true scenes (99 % of them, at 8 to 16 tokens of the tier medium);
objects from SPOILT on are no longer what they resemble most."""


@dataclass(frozen=True)
class Reading:
    """Of N pictures, the scenes that they resemble most, and how much they differ from those.

    scenes: of N; objects that the decoder leaves out are -1. error: Float[N], that of the worst
    object: the squared difference of its premultiplied colours and opacity from those of the
    sprite, as a share of the sprite's own squares; infinite where there is no object.
    """

    scenes: Scenes
    error: Tensor

    def __getitem__(self, rows: Tensor) -> Reading:
        return Reading(self.scenes[rows], self.error[rows])

    @staticmethod
    def cat(parts: list[Reading]) -> Reading:
        return Reading(Scenes.cat([p.scenes for p in parts]), torch.cat([p.error for p in parts]))

    @property
    def clear(self) -> Tensor:
        """Bool[N]: the picture shows its scene."""
        return self.error <= CLEAR

    @property
    def spoilt(self) -> Tensor:
        """Bool[N]: the picture shows no scene of the world."""
        return self.error >= SPOILT


class Reader:
    """Reads pictures of a tokenizer as scenes of a world."""

    def __init__(self, world: World, tokenizer: SpritesTokenizer) -> None:
        self.world, self.tokenizer = world, tokenizer
        sprites = world.sprite_bank(tokenizer.model.cfg.canvas_size)
        self._sprites = sprites.flatten(0, 1).flatten(1).float() / 255
        self._places = world.background_bank(tokenizer.image_size)
        self._places = self._places.flatten(0, 1).flatten(1).float() / 255

    @torch.no_grad()
    def read(self, tokens: Tensor, lengths: Tensor) -> Reading:
        """tokens: Int64[N, num_tokens], of which row i's first lengths[i] count. In float32, also
        where a training step has autocast: a distance is a difference of large numbers."""
        with torch.autocast(self.tokenizer.device.type, enabled=False):
            return self._read(tokens, lengths)

    def _read(self, tokens: Tensor, lengths: Tensor) -> Reading:
        model, device = self.tokenizer.model, self.tokenizer.device
        codes = self.tokenizer.fsq.to_codes(tokens.to(device))
        keep = torch.arange(tokens.shape[1], device=device) < lengths.to(device)[:, None]
        layered, _ = model.layers(codes, keep)
        there = layered.present > 0
        seen = model.canvases(layered.slots[there]).flatten(1)  # [P, 4 x canvas x canvas]
        distance, sprite = squared_distances(seen, self._sprites).min(1)
        error = torch.full(there.shape, -torch.inf, device=device)
        error[there] = distance / self._sprites[sprite].square().sum(1)
        error = error.amax(1).masked_fill(~there.any(1), torch.inf)
        objects = torch.full(there.shape, -1, device=device)
        colours = torch.zeros_like(objects)
        objects[there], colours[there] = sprite // len(COLOURS), sprite % len(COLOURS)
        place = squared_distances(layered.background.flatten(1), self._places).argmin(1)
        scenes = self.world.scenes(
            place // self.world.variants,
            place % self.world.variants,
            torch.zeros_like(place),  # the layout becomes the nearest to the boxes
            objects,
            colours,
            layered.boxes * there[..., None],
        )
        return Reading(scenes, error)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between the rows of Float[P, d] and of Float[M, d]: Float[P, M]."""
    products = a.float() @ b.T
    return (a.square().sum(1)[:, None] - 2 * products + b.square().sum(1)).clamp(min=0)
