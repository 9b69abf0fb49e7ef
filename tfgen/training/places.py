"""Where the objects of a scene stand: anywhere, and what can be said of it in words.

Boxes are Float[N, slots, 3]: centre x, centre y and size in fractions of the picture; size 0: no
object. Words hold of boxes surely, perhaps, or not at all: a caption says only what is sure, and is
held against a picture only where it does not even hold perhaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIZE_RANGES = torch.tensor([(0.30, 0.92), (0.28, 0.54), (0.26, 0.44), (0.26, 0.42), (0.25, 0.34)])
"""How large objects are where 1, 2, ... of them stand anywhere."""

CORE = 0.42  # how far an object reaches from its centre, by its size, all but its rim
CROWDED = 0.03  # how much of their cores may overlap, in fractions of the picture


def scatter(count: Tensor, slots: int, generator: torch.Generator) -> Tensor:
    """Boxes Float[N, slots, 3] of count Int64[N] (1 to 5) objects anywhere, overlapping little."""
    n = len(count)
    low, high = SIZE_RANGES[count - 1].unsqueeze(1).unbind(2)  # [n, 1] each
    size = low + (high - low) * torch.rand(n, slots, generator=generator)
    size = size.masked_fill(torch.arange(slots) >= count[:, None], 0.0)
    centres = torch.zeros(n, slots, 2)
    for s in range(slots):
        # Of sixteen places the first that is free, or else the one that is least taken.
        margin = CORE * size[:, None, s, None]
        tries = margin + (1 - 2 * margin) * torch.rand(n, 16, 2, generator=generator)
        apart = (tries[:, :, None] - centres[:, None, :s]).abs().amax(3)  # [n, 16, s]
        need = CORE * (size[:, None, :s] + size[:, s, None, None])
        room = (apart - need).amin(2) if s else torch.ones(n, 16)
        best = (room.clamp(max=0) - 1e-6 * torch.arange(16)).argmax(1)
        centres[:, s] = tries[torch.arange(n), best]
    return torch.cat([centres, size[..., None]], 2)


def crowded(boxes: Tensor) -> Tensor:
    """Bool[N]: whether any two objects overlap by more than their rims."""
    centres, size = boxes[..., :2], boxes[..., 2]
    apart = (centres[:, :, None] - centres[:, None]).abs().amax(3)  # [N, slots, slots]
    overlap = CORE * (size[:, :, None] + size[:, None]) - apart
    both = (size[:, :, None] > 0) & (size[:, None] > 0)
    both &= ~torch.eye(size.shape[1], dtype=torch.bool)
    return (both & (overlap > CROWDED)).flatten(1).any(1)


def in_order(boxes: Tensor) -> Tensor:
    """The boxes of each scene from left to right, or from top to bottom where they are two that
    stand so, or the upper two before the lower two where they are four."""
    x, y, size = boxes.unbind(2)
    present = size > 0
    count = present.sum(1)
    spread = [(v[:, 0] - v[:, 1]).abs() for v in (x, y)]
    upright = (count == 2) & (spread[1] > spread[0])
    rank = y.masked_fill(~present, 9.0).argsort(1).argsort(1)  # from the top
    lower = (count == 4)[:, None] & (rank >= 2)
    key = torch.where(upright[:, None], y, x) + 2 * lower
    order = key.masked_fill(~present, 9.0).argsort(1)
    boxes = boxes * present[..., None]  # nothing is nowhere
    return boxes.gather(1, order[..., None].expand_as(boxes))


def two_ways(generator: torch.Generator, slots: int) -> Tensor | None:
    """Boxes Float[2, slots, 3] of two objects anywhere, the first surely to the left of the second,
    and of the same two turned over, the first surely above; None where none were found."""
    boxes = in_order(scatter(torch.full((32,), 2), slots, generator))
    fine = arrangement(boxes, sure=True).first_left & ~crowded(boxes)
    if not fine.any():
        return None
    side = boxes[int(fine.int().argmax())]
    return torch.stack([side, side[:, [1, 0, 2]]])


@dataclass
class Arrangement:
    """Which words hold of N scenes, Bool[N] each.

    large, small, left, right: of a lone object; pair: there are two objects; beside: they stand
    side by side; first_left: that of the first slot stands to the left of that of the second; and
    so on.
    """

    large: Tensor
    small: Tensor
    left: Tensor
    right: Tensor
    pair: Tensor
    beside: Tensor
    first_left: Tensor
    second_left: Tensor
    first_above: Tensor
    second_above: Tensor


def arrangement(boxes: Tensor, sure: bool) -> Arrangement:
    """What holds of boxes surely, or at least perhaps."""
    count = (boxes[..., 2] > 0).sum(1)
    lone, pair = count == 1, count == 2
    x, _, size = boxes[:, 0].unbind(1)
    off = 0.16 if sure else 0.06  # from the middle
    right, down = (boxes[:, 1, :2] - boxes[:, 0, :2]).unbind(1)  # from the first to the second

    def along(way: Tensor, across: Tensor) -> Tensor:
        """Whether the second stands this way from the first."""
        least, slope = (0.2, 0.4) if sure else (0.08, 2.5)
        return pair & (way >= least) & (across.abs() <= slope * way)

    first_left, second_left = along(right, down), along(-right, down)
    first_above, second_above = along(down, right), along(-down, right)
    beside = first_left | second_left
    if not sure:
        upright = arrangement(boxes, sure=True)
        beside = pair & ~(upright.first_above | upright.second_above)
    return Arrangement(
        large=lone & (size >= (0.72 if sure else 0.64)),
        small=lone & (size <= (0.40 if sure else 0.46)),
        left=lone & (x <= 0.5 - off),
        right=lone & (x >= 0.5 + off),
        pair=pair,
        beside=beside,
        first_left=first_left,
        second_left=second_left,
        first_above=first_above,
        second_above=second_above,
    )
