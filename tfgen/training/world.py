"""The sprite world: scenes of 3D-rendered emoji on painted backgrounds, with their ground truth.

A scene is a background variant, a layout (where up to four objects stand and how large) and for
each object a class and a colour; in a share of the scenes, if one is asked for, the objects stand
anywhere instead. Scenes come from a seed; rendering is a few batched tensor
operations on banks made once (every sprite in every colour at several sizes, every background
variant), on CPU or CUDA.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.tokenizers.sprites_model import place
from tfgen.training.backgrounds import BACKGROUNDS, paint_bank
from tfgen.training.colours import COLOURS, recolour
from tfgen.training.objects import ObjectSpec
from tfgen.training.places import crowded, in_order, scatter
from tfgen.training.rows import Rows
from tfgen.training.sprites import load_sprites

MAX_OBJECTS = 4
Slot = tuple[float, float, float]  # centre x, centre y, size, as fractions of the picture


@dataclass(frozen=True)
class Layout:
    """Named places for objects, in reading order (left to right, then top to bottom)."""

    name: str
    slots: tuple[Slot, ...]


LAYOUTS: tuple[Layout, ...] = (
    Layout("large", ((0.50, 0.53, 0.80),)),
    Layout("centre", ((0.50, 0.57, 0.60),)),
    Layout("small", ((0.50, 0.60, 0.38),)),
    Layout("left", ((0.29, 0.59, 0.48),)),
    Layout("right", ((0.71, 0.59, 0.48),)),
    Layout("side by side", ((0.26, 0.58, 0.47), (0.74, 0.58, 0.47))),
    Layout("stacked", ((0.50, 0.26, 0.46), (0.50, 0.75, 0.46))),
    Layout("row of three", ((0.175, 0.58, 0.33), (0.50, 0.58, 0.33), (0.825, 0.58, 0.33))),
    Layout(
        "two by two",
        ((0.28, 0.28, 0.41), (0.72, 0.28, 0.41), (0.28, 0.74, 0.41), (0.72, 0.74, 0.41)),
    ),
)
LAYOUT_INDEX = {layout.name: i for i, layout in enumerate(LAYOUTS)}
# How often a training scene uses each layout.
LAYOUT_WEIGHTS = torch.tensor([0.12, 0.17, 0.07, 0.06, 0.06, 0.22, 0.12, 0.10, 0.08])
LAYOUT_BOXES = torch.tensor(
    [[*layout.slots, *[(0.0, 0.0, 0.0)] * (MAX_OBJECTS - len(layout.slots))] for layout in LAYOUTS]
)  # Float[layouts, 4, 3]


def nearest_layout(boxes: Tensor) -> Tensor:
    """The layout Int64[N] with as many objects that looks most like boxes Float[N, 4, 3]: lone
    objects in the same place, several in the same places to each other."""

    def compared(boxes: Tensor) -> Tensor:
        present = (boxes[..., 2:] > 0).float()
        count = present.sum(1, keepdim=True)
        middle = boxes[..., :2].sum(1, keepdim=True) / count
        return boxes - F.pad(middle * (count > 1), (0, 1)) * present

    off = (compared(boxes)[:, None] - compared(LAYOUT_BOXES)).abs().sum((2, 3))
    same = ((boxes[:, None, :, 2] > 0) == (LAYOUT_BOXES[..., 2] > 0)).all(2)
    return off.masked_fill(~same, torch.inf).argmin(1)


@dataclass
class Scenes(Rows):
    """Ground truth of N scenes (all on one device).

    background, variant, layout: Int64[N] (the nearest layout, where objects stand anywhere);
    objects, colours: Int64[N, 4] (object -1: no object in that slot; colour 0: natural, else an
    index into COLOURS); boxes: Float[N, 4, 3] centre x, centre y, size.
    """

    background: Tensor
    variant: Tensor
    layout: Tensor
    objects: Tensor
    colours: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.background)

    @property
    def counts(self) -> Tensor:
        return (self.objects >= 0).sum(1)

    def grounds(self, variants: int) -> Tensor:
        """Which of all variants of all backgrounds each has, where a background has so many:
        Int64[N]."""
        return self.background * variants + self.variant


@dataclass
class Layers:
    """What the renderer painted: images, backgrounds Float[N, 3, S, S]; alpha Float[N, 1, S, S]
    (1 where any object covers the background)."""

    images: Tensor
    backgrounds: Tensor
    alpha: Tensor


def shares_in(config: dict[str, Any]) -> dict[str, Any]:
    """Of a training config, what its world is made with, see World."""
    return {name: config[name] for name in ("free", "variants") if name in config}


class World:
    """Banks of sprites and backgrounds for one tier, and the sampler and renderer over them.

    Arguments: `tier` "small", "medium" or "full"; `sizes`: picture sizes that will be rendered;
    `variants`: variants of each background; `free`: the share of the scenes whose objects stand
    anywhere; `pairs`: the share that are surely of two different objects, each in a colour other
    than its natural one, of which there are far more than of all others. `sprites` (uint8
    [M, 4, S, S], premultiplied) and `specs` replace the tier's own.
    """

    def __init__(
        self,
        tier: str = "small",
        sizes: tuple[int, ...] = (64,),
        variants: int = 8,
        device: torch.device | str = "cpu",
        sprites: Tensor | None = None,
        specs: list[ObjectSpec] | None = None,
        free: float = 0.0,
        pairs: float = 0.0,
    ):
        self.device = torch.device(device)
        self.variants, self.free, self.pairs = variants, free, pairs
        if sprites is None:
            sprites, specs = load_sprites(tier, 192)
        assert specs is not None
        self.specs = specs
        self._sprites = sprites.to(self.device)
        self._banks: dict[int, Tensor] = {}
        self._backgrounds = {s: paint_bank(s, variants).to(self.device) for s in sizes}

    @property
    def num_objects(self) -> int:
        return len(self.specs)

    def sprite_bank(self, size: int) -> Tensor:
        """Every object in every colour: uint8 [M, colours, 4, size, size], premultiplied."""
        if size not in self._banks:
            source = self._sprites.float() / 255
            how = {"mode": "area"}
            if size > source.shape[-1]:
                how = {"mode": "bilinear", "align_corners": False}
            bank = []
            for c in COLOURS:  # bytes at once: all colours of many large sprites take gigabytes
                scaled = F.interpolate(recolour(source, c), size=(size, size), **how)
                bank.append((scaled * 255).round().to(torch.uint8))
            self._banks[size] = torch.stack(bank, 1)
        return self._banks[size]

    def on_cpu(self) -> World:
        """This world, to draw scenes that stay on the CPU: where they are looked at one by one, a
        GPU would be waited for each time. It renders nothing."""
        twin = copy.copy(self)
        twin.device = torch.device("cpu")
        return twin

    def sample(self, n: int, generator: torch.Generator) -> Scenes:
        """Draw n random scenes (random numbers from a CPU generator, whatever the device)."""

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator)

        def chance(p: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) < p

        layout = torch.multinomial(LAYOUT_WEIGHTS, n, replacement=True, generator=generator)
        objects = draw(self.num_objects, n, MAX_OBJECTS)
        colours = draw(len(COLOURS) - 1, n, MAX_OBJECTS) + 1
        colours[chance(0.45, n, MAX_OBJECTS)] = 0
        # Counts above two are of one kind; pairs are of one kind three times in ten.
        alike = chance(0.3, n) | (layout >= LAYOUT_INDEX["row of three"])
        objects[alike] = objects[alike, :1].expand(-1, MAX_OBJECTS)
        counted = layout >= LAYOUT_INDEX["row of three"]
        same_colour = alike & (chance(0.95, n) | counted)
        colours[same_colour] = colours[same_colour, :1].expand(-1, MAX_OBJECTS)
        if self.pairs:  # without them no random number is drawn
            many = round(self.pairs * n)
            two = LAYOUT_WEIGHTS * ((LAYOUT_BOXES[..., 2] > 0).sum(1) == 2)
            layout[:many] = torch.multinomial(two, many, replacement=True, generator=generator)
            shuffled = torch.rand(many, self.num_objects, generator=generator).argsort(1)
            objects[:many, :2] = shuffled[:, :2]
            colours[:many] = draw(len(COLOURS) - 1, many, MAX_OBJECTS) + 1
        background, variant = draw(len(BACKGROUNDS), n), draw(self.variants, n)
        boxes = self.places(layout, generator)
        return self.scenes(background, variant, layout, objects, colours, boxes)

    def places(
        self, layout: Tensor, generator: torch.Generator, free: float | None = None
    ) -> Tensor:
        """Boxes Float[N, 4, 3] of scenes with as many objects as these layouts Int64[N] have.

        A share `free` (default: the world's) stand anywhere, unless that made a crowd, the others
        where the layout has them. Without a share no random number is drawn.
        """
        boxes = LAYOUT_BOXES[layout]
        free = self.free if free is None else free
        if not free:
            return boxes
        anywhere = in_order(scatter((boxes[..., 2] > 0).sum(1), MAX_OBJECTS, generator))
        chosen = (torch.rand(len(layout), generator=generator) < free) & ~crowded(anywhere)
        return torch.where(chosen[:, None, None], anywhere, boxes)

    def scenes(
        self,
        background: Tensor,
        variant: Tensor,
        layout: Tensor,
        objects: Tensor,
        colours: Tensor,
        boxes: Tensor | None = None,
    ) -> Scenes:
        """Scenes from their attributes; slots that the layout lacks are emptied. boxes: where the
        objects stand instead of where the layout has them, and then the layout is the nearest."""
        layout = layout.cpu()
        if boxes is None:
            boxes = LAYOUT_BOXES[layout]
        else:
            boxes = boxes.cpu()
            layout = nearest_layout(boxes)
        empty = boxes[..., 2] == 0
        objects = objects.cpu().masked_fill(empty, -1)
        colours = colours.cpu().masked_fill(empty, 0)
        scenes = Scenes(background.cpu(), variant.cpu(), layout, objects, colours, boxes)
        return scenes.to(self.device)

    def sprite_targets(self, scenes: Scenes, size: int) -> tuple[Tensor, Tensor]:
        """The sprites of all present slots: (present Bool[N, 4], Float[P, 4, size, size])."""
        present = scenes.objects >= 0
        bank = self.sprite_bank(size)
        return present, bank[scenes.objects[present], scenes.colours[present]].float() / 255

    def background_bank(self, size: int) -> Tensor:
        """Every variant of every background: uint8 [backgrounds, variants, 3, size, size]."""
        if size not in self._backgrounds:
            self._backgrounds[size] = paint_bank(size, self.variants).to(self.device)
        return self._backgrounds[size]

    def backgrounds(self, scenes: Scenes, size: int) -> Tensor:
        """The scenes without their objects: Float[N, 3, size, size]."""
        return self.background_bank(size)[scenes.background, scenes.variant].float() / 255

    def render(self, scenes: Scenes, size: int = 64) -> Layers:
        """Paint the scenes at `size` pixels."""
        backgrounds = self.backgrounds(scenes, size)
        images = backgrounds.clone()
        alpha = torch.zeros_like(images[:, :1])
        bank = self.sprite_bank(round(0.75 * size))
        for slot in range(MAX_OBJECTS):
            rows = (scenes.objects[:, slot] >= 0).nonzero()[:, 0]
            sprites = bank[scenes.objects[rows, slot], scenes.colours[rows, slot]].float() / 255
            layer = place(sprites, scenes.boxes[rows, slot], size)
            cover = layer[:, 3:]
            images[rows] = images[rows] * (1 - cover) + layer[:, :3]
            alpha[rows] = torch.maximum(alpha[rows], cover)
        return Layers(images, backgrounds, alpha)
