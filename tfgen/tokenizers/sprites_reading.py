"""Reading a scene of the sprite world, and writing of what was read.

A *reader* turns what a network of convolutions sees in a picture into a scene: which background,
which kind in which colour in each slot, and where. A *scribe* turns a scene into vectors: the
tokenizer's writes the code, the verifier's the embedding. So what a kind is called has not to be
learned from pictures, only what it looks like.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POINTS = 5
"""An object is looked at at so many points a side."""


class Holds(NamedTuple):
    """What a scene can hold: so many objects at most, of so many kinds, in so many colours, before
    so many variants of backgrounds, all backgrounds' together."""

    slots: int
    kinds: int
    colours: int
    grounds: int


class Reading(NamedTuple):
    """What can be read in N pictures, as logits.

    ground: Float[N, grounds]; kinds: Float[N, slots, kinds + 1], the last: nothing; colours:
    Float[N, slots, colours]; tries: Float[tries, N, slots, 3], where they were thought to be after
    each look, centre and size in fractions of the picture, no logits.
    """

    ground: Tensor
    kinds: Tensor
    colours: Tensor
    tries: Tensor

    @property
    def boxes(self) -> Tensor:
        """Where they are, Float[N, slots, 3]: the last try."""
        return self.tries[-1]

    def first(self, n: int) -> Reading:
        """In the first n pictures."""
        return Reading(self.ground[:n], self.kinds[:n], self.colours[:n], self.tries[:, :n])


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


class Sight(NamedTuple):
    """What a network sees in N pictures: of the whole Float[N, features], and at each place
    Float[N, channels, h, w]."""

    whole: Tensor
    places: Tensor

    def detach(self) -> Sight:
        return Sight(self.whole.detach(), self.places.detach())


class Deeper(nn.Module):
    """Maps Float[N, C, h, w] -> the same with what two more convolutions see."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Reader(nn.Module):
    """What is seen -> what is read in it. In the whole it finds where objects are; what they are it
    tells from a close look there, and one more where it then finds them to be. So a kind has to be
    learned once, and not for every place.

    features, channels: of a `Sight`.
    """

    looks = 2

    def __init__(self, holds: Holds, features: int, channels: int, width: int = 256):
        super().__init__()
        self.slots, self.split = holds.slots, (holds.kinds, holds.colours, 3)
        self.ground = nn.Linear(features, holds.grounds)
        self.find = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, holds.slots * 4)
        )
        self.deeper = nn.Sequential(Deeper(channels), Deeper(channels))
        self.look = nn.Sequential(
            nn.Linear(POINTS**2 * channels, width), nn.LayerNorm(width), nn.SiLU()
        )
        self.tell = nn.Linear(width, sum(self.split))

    def forward(self, sight: Sight) -> Reading:
        found = self.find(sight.whole).float().unflatten(1, (self.slots, 4))
        nothing, boxes = found[..., :1], found[..., 1:]
        places, tries = self.deeper(sight.places), [boxes]
        for _ in range(self.looks):
            near = self.look(closely(places, boxes.detach()))
            kinds, colours, off = self.tell(near).float().split(self.split, -1)
            boxes = boxes + off * boxes[..., 2:].detach().clamp(0.1, 1.0)
            tries.append(boxes)
        ground = self.ground(sight.whole).float()
        return Reading(ground, torch.cat([kinds, nothing], -1), colours, torch.stack(tries))


def closely(places: Tensor, boxes: Tensor) -> Tensor:
    """What is seen at POINTS x POINTS points of each box: places Float[N, C, h, w], boxes
    Float[N, slots, 3] (see `Reading`) -> Float32[N, slots, POINTS^2 C]."""
    step = (torch.arange(POINTS, device=boxes.device) + 0.5) / POINTS - 0.5
    offsets = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1).flatten(0, 1)
    points = boxes[:, :, None, :2] + offsets * boxes[:, :, None, 2:]  # [N, slots, POINTS^2, 2]
    with torch.autocast(places.device.type, enabled=False):
        seen = F.grid_sample(places.float(), 2 * points - 1, align_corners=False)
    return seen.permute(0, 2, 3, 1).flatten(2)


class Scribe(nn.Module):
    """What N scenes hold -> vectors Float[N, out]; width: of the network."""

    def __init__(self, holds: Holds, width: int, out: int):
        super().__init__()
        each = 128 + 32 + 3 * 11
        self.ground = nn.Embedding(holds.grounds, 64)
        self.kind = nn.Embedding(holds.kinds + 1, 128)  # the last: nothing
        self.colour = nn.Embedding(holds.colours, 32)
        self.register_buffer("waves", torch.pi * 2.0 ** torch.arange(5), persistent=False)
        self.enter = nn.Linear(64 + holds.slots * each, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(2)
        )
        self.to_codes = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))

    def forward(self, ground: Tensor, kinds: Tensor, colours: Tensor, boxes: Tensor) -> Tensor:
        """ground Int64[N], kinds and colours Int64[N, slots] (kind -1: nothing), boxes
        Float[N, slots, 3]."""
        there = (kinds >= 0)[..., None]
        kinds = kinds.where(kinds >= 0, self.kind.num_embeddings - 1)
        return self._write(
            self.ground(ground), self.kind(kinds), self.colour(colours), there, boxes
        )

    def of_likeliest(self, reading: Reading) -> Tensor:
        """What it writes of the likeliest scene, with the gradients of `of_mean`."""
        return self._of(*map(chosen, reading[:3]), reading.boxes)

    def of_mean(self, reading: Reading) -> Tensor:
        """What it writes of the mean of what may be there."""
        return self._of(*(logits.float().softmax(-1) for logits in reading[:3]), reading.boxes)

    def _of(self, ground: Tensor, kinds: Tensor, colours: Tensor, boxes: Tensor) -> Tensor:
        """Of probabilities."""
        return self._write(
            ground @ self.ground.weight,
            kinds @ self.kind.weight,
            colours @ self.colour.weight,
            1 - kinds[..., -1:],
            boxes,
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
        return self.to_codes(x)
