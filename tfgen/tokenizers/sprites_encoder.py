"""The encoder of the `sprites` tokenizer: what it sees in a picture, and the code it writes of it.

It writes the code at once, or in two steps, for worlds of many kinds of object: it reads the scene
(which background, which kind in which colour in each slot, and where) and a *scribe* writes the
code of what was read. What the code of a kind is then does not have to be learned from pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tfgen.tokenizers.sprites_model import SpritesConfig


class Reading(NamedTuple):
    """What can be read in N pictures, as logits.

    ground: Float[N, grounds]; kinds: Float[N, slots, kinds + 1], the last: nothing; colours:
    Float[N, slots, colours]; boxes: Float[N, slots, 3], centre and size in fractions of the
    picture, no logits.
    """

    ground: Tensor
    kinds: Tensor
    colours: Tensor
    boxes: Tensor


def norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU())


def residual(width: int, hidden: int) -> nn.Sequential:
    """What is added to vectors Float[..., width] by a residual block."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)
    )


def chosen(logits: Tensor) -> Tensor:
    """1 for the likeliest, 0 for the others: Float[..., C], with the gradients of the softmax."""
    share = logits.float().softmax(-1)
    best = F.one_hot(logits.argmax(-1), logits.shape[-1])
    return best + share - share.detach()


class Reader(nn.Module):
    """What the encoder sees -> what it reads in it. Whatever slot an object stands in, the same
    network tells what it is, so that a kind has to be learned once."""

    def __init__(self, cfg: SpritesConfig, features: int, width: int = 128):
        super().__init__()
        self.slots, self.split = cfg.slots, (cfg.kinds + 1, cfg.colours, 3)
        self.ground = nn.Linear(features, cfg.grounds)
        self.to_slots = nn.Linear(features, cfg.slots * width)
        self.block = residual(width, 4 * width)
        self.tell = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.split)))

    def forward(self, features: Tensor) -> Reading:
        slots = self.to_slots(features).unflatten(1, (self.slots, -1))
        told = self.tell(slots + self.block(slots)).float()
        return Reading(self.ground(features).float(), *told.split(self.split, -1))


class Scribe(nn.Module):
    """What a scene holds -> its unquantised code vectors Float[N, T, d]."""

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        width, each = cfg.scribe, 128 + 32 + 3 * 11
        self.shape = (cfg.num_tokens, len(cfg.levels))
        self.ground = nn.Embedding(cfg.grounds, 64)
        self.kind = nn.Embedding(cfg.kinds + 1, 128)  # the last: nothing
        self.colour = nn.Embedding(cfg.colours, 32)
        self.register_buffer("waves", torch.pi * 2.0 ** torch.arange(5), persistent=False)
        self.enter = nn.Linear(64 + cfg.slots * each, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(2)
        )
        self.to_codes = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, cfg.num_tokens * len(cfg.levels))
        )

    def forward(self, ground: Tensor, kinds: Tensor, colours: Tensor, boxes: Tensor) -> Tensor:
        """ground Int64[N], kinds and colours Int64[N, slots] (kind -1: nothing), boxes
        Float[N, slots, 3]."""
        there = (kinds >= 0)[..., None]
        kinds = kinds.where(kinds >= 0, self.kind.num_embeddings - 1)
        return self._write(
            self.ground(ground), self.kind(kinds), self.colour(colours), there, boxes
        )

    def of(self, reading: Reading) -> Tensor:
        """The code of the likeliest scene."""
        kinds = chosen(reading.kinds)
        return self._write(
            chosen(reading.ground) @ self.ground.weight,
            kinds @ self.kind.weight,
            chosen(reading.colours) @ self.colour.weight,
            1 - kinds[..., -1:],
            reading.boxes,
        )

    def _write(
        self, ground: Tensor, kinds: Tensor, colours: Tensor, there: Tensor, boxes: Tensor
    ) -> Tensor:
        """there: Float[N, slots, 1]: what colour nothing has, and where, is not told."""
        phases = boxes[..., None] * self.waves
        places = torch.cat([boxes[..., None], phases.sin(), phases.cos()], -1).flatten(2)
        slots = torch.cat([kinds, colours * there, places * there], -1)
        x = self.enter(torch.cat([ground, slots.flatten(1)], 1))
        for block in self.blocks:
            x = x + block(x)
        return self.to_codes(x).unflatten(1, self.shape)


class Encoder(nn.Module):
    """Pictures Float[N, 3, H, W] in [0, 1] -> unquantised codes Float[N, T, d]."""

    features = 768

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        layers: list[nn.Module] = []
        before, side = 3, cfg.image_size
        for i, channels in enumerate(cfg.encoder_widths):
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), norm_act(channels)]
            if 0 < i < len(cfg.encoder_widths) - 1:
                layers += [nn.Conv2d(channels, channels, 3, padding=1), norm_act(channels)]
            before, side = channels, side // 2
        self.convs = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(before * side * side, self.features),
            nn.LayerNorm(self.features),
            nn.SiLU(),
            nn.Linear(self.features, self.features),
            nn.SiLU(),
        )
        self.cfg, self.shape = cfg, (cfg.num_tokens, len(cfg.levels))
        if cfg.scribe:
            self.reader = Reader(cfg, self.features)
            self.scribe = Scribe(cfg)
        else:
            self.to_codes = nn.Linear(self.features, cfg.num_tokens * len(cfg.levels))

    def describe(self, images: Tensor) -> Tensor:
        """What the encoder sees: Float[N, features]."""
        x = self.convs((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return self.head(x.flatten(1))

    def write(self, features: Tensor) -> Tensor:
        """The codes of what is seen."""
        if self.cfg.scribe:
            return self.scribe.of(self.reader(features))
        return self.to_codes(features).unflatten(1, self.shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.write(self.describe(images))
