"""Grafts: the first tokens of one scene with the other tokens of another, for an ordered code whose
parts mean the same in whatever company.

A search puts a picture together token by token, so it is good to it when the tokens of, say, the
second object show that object after any first one. An autoencoder has no reason to arrange its code
so: it only ever decodes codes of true scenes. Here it also decodes grafts, and is to show the
scene that has the parts of both. The scene (background and layout) has the tokens before
`SCENE`, the first of two objects those before `FIRST`, and the rest is the other's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tfgen.training.world import LAYOUT_BOXES, Scenes

SCENE, FIRST = 2, 4
PAIRS = (LAYOUT_BOXES[..., 2] > 0).sum(1) == 2


@dataclass(frozen=True)
class Grafts:
    """Of N scenes: scene i keeps its tokens before cut Int64[N] and has those from there on of
    scene donor Int64[N], whose objects stand in the same places. cut 0: it keeps all its own."""

    donor: Tensor
    cut: Tensor

    def codes(self, codes: Tensor) -> Tensor:
        """Float[N, T, d] -> the same with the grafts made."""
        own = torch.arange(codes.shape[1], device=codes.device) < self.cut[:, None]
        own |= self.cut[:, None] == 0
        return torch.where(own[..., None], codes, codes[self.donor])

    def scenes(self, scenes: Scenes) -> Scenes:
        """What the grafted codes are to show."""
        own = (torch.arange(scenes.objects.shape[1], device=self.cut.device) == 0) & (
            self.cut[:, None] == FIRST
        )
        own |= self.cut[:, None] == 0
        objects = torch.where(own, scenes.objects, scenes.objects[self.donor])
        colours = torch.where(own, scenes.colours, scenes.colours[self.donor])
        return Scenes(
            scenes.background, scenes.variant, scenes.layout, objects, colours, scenes.boxes
        )

    def long_enough(self, lengths: Tensor) -> Tensor:
        """Prefix lengths Int64[N] such that something of the donor is seen."""
        return torch.maximum(lengths, 2 * self.cut.to(lengths.device))

    def cuts_made(self) -> list[int]:
        return sorted(set(self.cut.tolist()) - {0})


def graft(scenes: Scenes, share: float, generator: torch.Generator) -> Grafts:
    """Random grafts of about this share of the scenes, between scenes whose objects stand in the
    same places; a scene that is alone in that keeps its tokens. generator: of the CPU."""
    n, device = len(scenes), scenes.boxes.device
    _, places, counts = scenes.boxes.cpu().unique(dim=0, return_inverse=True, return_counts=True)
    # Those of one place in a row, in random order: each one's donor is the next, the last's is the
    # first.
    order = torch.randperm(n, generator=generator)
    order = order[places[order].argsort(stable=True)]
    following = torch.arange(1, n + 1)
    following[counts.cumsum(0) - 1] -= counts
    donor = torch.empty_like(order).scatter_(0, order, order[following])
    chosen = (torch.rand(n, generator=generator) < share) & (donor != torch.arange(n))
    of_first = (torch.rand(n, generator=generator) < 0.5) & PAIRS[scenes.layout.cpu()]
    cut = torch.where(of_first, FIRST, SCENE) * chosen
    return Grafts(donor.to(device), cut.to(device))
