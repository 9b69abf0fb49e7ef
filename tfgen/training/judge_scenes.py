"""Scenes to train and measure the judge on, with boxes, and with objects that no word names.

A judge must not lean on the nine layouts, and must be strict: a red blob is no apple. So objects
stand anywhere (half of the scenes), kinds and colours mix freely, and some of what is painted is
*other*: a sprite of the larger tiers, a chimera of two sprites, a cross-fade of two, a solid
average of two or three, a sprite blurred past recognition, a flat silhouette, a shaded blob. Some
objects of the world are *mixed*: a part in one colour and a part in another, so that no colour word
fits. And some are a little bent and mottled, or in a hue between the colours, and are still called
what they are, so that it is the shape that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.tokenizers.sprites_model import compose, place
from tfgen.training.colours import COLOURS, RAMPS
from tfgen.training.objects import ObjectSpec, load_objects
from tfgen.training.places import scatter
from tfgen.training.rows import Fields
from tfgen.training.spoil import CANVAS, bend, blob, blur, halves, mottle, rehue
from tfgen.training.sprites import load_sprites
from tfgen.training.world import LAYOUT_BOXES, LAYOUT_WEIGHTS, Scenes, World

MIXED = len(COLOURS)  # the colour class of an object in two colours
MAX_PLACED = 5
# Freely placed scenes: how often they hold 1 to 5 objects.
COUNT_WEIGHTS = torch.tensor([0.32, 0.34, 0.15, 0.15, 0.04])
OTHERS = ("foreign", "chimera", "cross-fade", "average", "blurred", "silhouette", "blob")
OTHER_WEIGHTS = torch.tensor([0.28, 0.2, 0.1, 0.17, 0.06, 0.06, 0.13])
BENT, REHUED = 0.2, 0.08  # shares of the world's own objects, where some are to be spoilt


@dataclass
class Placed:
    """What is to be painted: N scenes of up to MAX_PLACED objects, lower slots first.

    background, variant: Int64[N]; objects Int64[N, MAX_PLACED]: -1 no object, else a class, the
    number of classes for *other*; colours Int64[N, MAX_PLACED], which may be MIXED; boxes
    Float[N, MAX_PLACED, 3] centre x, centre y and size of the sprite's square, in fractions of the
    picture.
    """

    background: Tensor
    variant: Tensor
    objects: Tensor
    colours: Tensor
    boxes: Tensor


@dataclass
class Pictures(Fields):
    """Painted scenes and what a detector should say of them.

    images Float[N, 3, S, S]; background Int64[N]; of the P objects: rows Int64[P] their picture,
    objects Int64[P], colours Int64[P] (as in Placed; -1 for a hue between the colours), boxes
    Float[P, 4] left, top, right, bottom of what is painted, in fractions of the picture; visible
    Float[P] the share not painted over.
    """

    images: Tensor
    background: Tensor
    rows: Tensor
    objects: Tensor
    colours: Tensor
    boxes: Tensor
    visible: Tensor


def foreign_objects(specs: Sequence[ObjectSpec], held_out: bool) -> list[int]:
    """Rows of the full table that are none of `specs` nor could be called by their words; one in
    eight of them is held out of training."""
    words = {w for spec in specs for w in spec.words}
    rows = [
        i
        for i, spec in enumerate(load_objects())
        if not any(phrase in words or phrase.split()[-1] in words for phrase in spec.words)
    ]
    return [row for n, row in enumerate(rows) if (n % 8 == 7) == held_out]


class JudgeWorld:
    """A world, the sprites that are foreign to it, and how scenes for a judge are drawn.

    `world`: on the CPU. `foreign`: sprites uint8 [F, 4, s, s], premultiplied, that no class of the
    world names; F may be 0, as it is where the world knows every sprite: what is *other* is then of
    the other sorts.
    """

    def __init__(self, world: World, foreign: Tensor, image_size: int = 64):
        self.world, self.image_size = world, image_size
        self.other = world.num_objects  # the class of what no word names
        self.bank = world.sprite_bank(CANVAS)
        if len(foreign):
            strangers = World(sizes=(), variants=world.variants, sprites=foreign, specs=world.specs)
            self.bank = torch.cat([self.bank, strangers.sprite_bank(CANVAS)])

    @property
    def sorts(self) -> tuple[str, ...]:
        """The sorts of *other* that it can paint."""
        foreign = len(self.bank) > self.other
        return tuple(sort for sort in OTHERS if foreign or sort != "foreign")

    @classmethod
    def load(
        cls, tier: str = "small", variants: int = 16, held_out: bool = False, free: float = 0.0
    ) -> JudgeWorld:
        """The world of a tier, with the foreign sprites of the full one (`held_out`: those that
        training leaves out). free: see World."""
        world = World(tier, (64,), variants, free=free)
        return cls.among(world, load_sprites("full", 192)[0], held_out)

    @classmethod
    def among(cls, world: World, sprites: Tensor, held_out: bool = False) -> JudgeWorld:
        """The world, with the foreign ones among sprites uint8 [N, 4, s, s] of the first N objects
        of the full table."""
        rows = [r for r in foreign_objects(world.specs, held_out) if r < len(sprites)]
        foreign = F.avg_pool2d(sprites[rows].float(), 2) if rows else torch.zeros(0, 4, 1, 1)
        return cls(world, foreign.round().to(torch.uint8))

    def true(self, scenes: Scenes) -> Placed:
        """The world's own scenes, to be painted as they are."""
        fill = MAX_PLACED - scenes.objects.shape[1]
        return Placed(
            scenes.background,
            scenes.variant,
            F.pad(scenes.objects, (0, fill), value=-1),
            F.pad(scenes.colours, (0, fill)),
            F.pad(scenes.boxes, (0, 0, 0, fill)),
        )

    def sample(
        self, n: int, generator: torch.Generator, other: float = 0.15, mixed: float = 0.06
    ) -> Placed:
        """Draw n scenes; `other` and `mixed` are shares of the objects."""

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator)

        def chance(p: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) < p

        boxes = torch.where(
            chance(0.5, n, 1, 1), laid_out(n, generator), scattered(n, generator)
        )  # [n, MAX_PLACED, 3]
        objects = draw(self.world.num_objects, n, MAX_PLACED)
        colours = 1 + draw(len(COLOURS) - 1, n, MAX_PLACED)
        colours[chance(0.45, n, MAX_PLACED)] = 0
        # Four in ten scenes are of one kind, mostly in one colour, and some of them of all but one.
        kind = chance(0.4, n, 1) & ~(chance(0.25, n, 1) & (draw(MAX_PLACED, n, 1) == slots()))
        objects = torch.where(kind, objects[:, :1], objects)
        colours = torch.where(kind & chance(0.7, n, 1), colours[:, :1], colours)
        objects = objects.masked_fill(chance(other, n, MAX_PLACED), self.other)
        plain = (objects == self.other) | ~chance(mixed, n, MAX_PLACED)
        colours = torch.where(plain, colours, MIXED)
        empty = (boxes[..., 2] == 0) | chance(0.02, n, 1)
        return Placed(
            draw(self.world._backgrounds[self.image_size].shape[0], n),
            draw(self.world.variants, n),
            objects.masked_fill(empty, -1),
            colours.masked_fill(empty, 0),
            boxes,
        )

    def paint(
        self,
        placed: Placed,
        generator: torch.Generator,
        spoilt: bool = False,
        others: Tensor = OTHER_WEIGHTS,
    ) -> Pictures:
        """Paint scenes; the generator draws what *other* and *mixed* objects look like. spoilt:
        some objects are bent and mottled, or in another hue; others: how often *other* is of each
        sort of OTHERS."""
        size = self.image_size
        rows, slot = (placed.objects >= 0).nonzero(as_tuple=True)
        objects, colours = placed.objects[rows, slot], placed.colours[rows, slot].clone()
        sprites = self._sprites(objects, colours, generator, others)
        if spoilt:
            self._spoil(sprites, objects, colours, generator)
        layers = place(sprites, placed.boxes[rows, slot], size)  # [P, 4, S, S]
        backgrounds = self.world._backgrounds[size][placed.background, placed.variant].float() / 255
        images = compose(backgrounds, layers, rows, slot)
        alpha = torch.zeros(len(images), MAX_PLACED, size, size)
        alpha[rows, slot] = layers[:, 3]
        hidden = torch.ones_like(alpha)
        for s in range(MAX_PLACED - 1):
            hidden[:, s] = (1 - alpha[:, s + 1 :]).prod(1)
        area = alpha.sum((2, 3)).clamp(min=1e-3)
        visible = ((alpha * hidden).sum((2, 3)) / area)[rows, slot]
        boxes = extents(layers[:, 3])
        return Pictures(images, placed.background, rows, objects, colours, boxes, visible)

    def _sprites(
        self, objects: Tensor, colours: Tensor, generator: torch.Generator, others: Tensor
    ) -> Tensor:
        """What is painted for each object, Float[P, 4, CANVAS, CANVAS]; a *mixed* object whose two
        colours look alike becomes one of plain colour (in place)."""
        known = objects.clamp(max=self.other - 1)
        sprites = self.bank[known, colours % MIXED].float() / 255  # not yet the others, the mixed
        for p in ((objects < self.other) & (colours == MIXED)).nonzero()[:, 0].tolist():
            first, second = torch.randperm(len(COLOURS), generator=generator)[:2].tolist()
            pair = self.bank[objects[p], [first, second]].float() / 255
            mask = halves(pair, generator)
            differs = ((pair[0] - pair[1]).abs().sum(0) * pair[0, 3]).sum() / pair[0, 3].sum()
            clear = differs > 0.45
            sprites[p] = torch.lerp(pair[0], pair[1], mask) if clear else pair[0]
            colours[p] = MIXED if clear else first
        strange = (objects == self.other).nonzero()[:, 0].tolist()
        others = others * torch.tensor([float(sort in self.sorts) for sort in OTHERS])
        kinds = torch.multinomial(others, len(strange) + 1, True, generator=generator)
        for p, kind in zip(strange, kinds.tolist(), strict=False):
            sprites[p] = self.stranger(OTHERS[kind], generator)
        return sprites

    def _spoil(
        self, sprites: Tensor, objects: Tensor, colours: Tensor, generator: torch.Generator
    ) -> None:
        """Bend and mottle some of the world's own objects, turn the hue of some (in place)."""
        known = objects < self.other
        draw = torch.rand(2, len(objects), generator=generator)
        for p in (known & (draw[0] < BENT)).nonzero()[:, 0].tolist():
            sprites[p] = mottle(bend(sprites[p], 0.02, generator), 0.12, generator)
        for p in (known & (draw[1] < REHUED)).nonzero()[:, 0].tolist():
            sprites[p], colours[p] = rehue(sprites[p], generator), -1

    def stranger(self, kind: str, generator: torch.Generator) -> Tensor:
        """One object of a sort of OTHERS: premultiplied RGBA Float[4, CANVAS, CANVAS]."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator).item()

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        known, total = self.world.num_objects, len(self.bank)
        colour = 0 if uniform(0, 1) < 0.4 else pick(1, len(COLOURS))
        if kind == "foreign":
            return self.bank[pick(known, total), colour].float() / 255
        first = pick(0, known)
        sprite = self.bank[first, colour].float() / 255
        if kind in ("chimera", "cross-fade"):
            second = (first + pick(1, known)) % known
            again = colour if uniform(0, 1) < 0.7 else pick(0, len(COLOURS))
            stranger = self.bank[second, again].float() / 255
            pair = torch.stack([sprite, stranger])
            mask = halves(pair, generator) if kind == "chimera" else uniform(0.38, 0.62)
            return torch.lerp(sprite, stranger, mask)
        if kind == "average":
            several = torch.randperm(known, generator=generator)[: pick(2, 4)]
            mean = self.bank[several, colour].float().mean(0) / 255
            alpha = (3 * mean[3:] - 0.9).clamp(0, 1)  # as solid as a decoder paints it
            solid = torch.cat([mean[:3] / mean[3:].clamp(min=1e-3) * alpha, alpha])
            return mottle(blur(solid[None], uniform(0.5, 1.8))[0], uniform(0.05, 0.3), generator)
        if kind == "blurred":
            return blur(sprite[None], uniform(5.0, 8.0))[0]
        if kind == "silhouette":
            alpha = blur(sprite[None, 3:], uniform(0.6, 1.8))[0]
            light = torch.full_like(alpha, uniform(0.35, 0.65))
        else:
            alpha, light = blob(generator)
        ramp = torch.tensor(list(RAMPS.values()))[pick(0, len(RAMPS))] / 255  # dark, mid, light
        level = 2 * light.clamp(0, 1)
        dark, mid, bright = ramp[:, :, None, None]
        rgb = torch.where(
            level < 1, torch.lerp(dark, mid, level), torch.lerp(mid, bright, level - 1)
        )
        return torch.cat([rgb * alpha, alpha])


def slots() -> Tensor:
    return torch.arange(MAX_PLACED)[None]


def laid_out(n: int, generator: torch.Generator) -> Tensor:
    """Boxes Float[n, MAX_PLACED, 3] of the world's layouts, shaken a little; size 0: no object."""
    layout = torch.multinomial(LAYOUT_WEIGHTS, n, True, generator=generator)
    boxes = F.pad(LAYOUT_BOXES[layout], (0, 0, 0, MAX_PLACED - LAYOUT_BOXES.shape[1]))
    shake = torch.rand(n, MAX_PLACED, 3, generator=generator) * 2 - 1
    centres = boxes[..., :2] + 0.035 * shake[..., :2]
    return torch.cat([centres, boxes[..., 2:] * (1 + 0.12 * shake[..., 2:])], 2)


def scattered(n: int, generator: torch.Generator) -> Tensor:
    """Boxes Float[n, MAX_PLACED, 3] anywhere, overlapping little; size 0: no object."""
    count = 1 + torch.multinomial(COUNT_WEIGHTS, n, True, generator=generator)
    return scatter(count, MAX_PLACED, generator)


def extents(alpha: Tensor) -> Tensor:
    """Left, top, right, bottom of what alpha Float[P, S, S] covers, in fractions: Float[P, 4]."""
    size = alpha.shape[-1]
    covered = alpha > 0.35
    sides = []
    for dim in (1, 2):  # the columns, the rows that are covered
        line = covered.any(dim).float()
        first = line.argmax(1)
        last = size - line.flip(1).argmax(1)
        sides.append((first / size, last / size))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)
