"""Training batches for the verifier: groups of scenes that differ in ONE factor, with captions.

Whatever else a caption says holds for the whole group, so only the factor itself can tell its
picture from the others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import Captioner, Emphasis, Mentions
from tfgen.training.colours import COLOURS
from tfgen.training.places import two_ways
from tfgen.training.world import LAYOUT_BOXES, LAYOUT_INDEX, LAYOUTS, MAX_OBJECTS, Scenes, World

GROUP = 16
FACTORS = ("object", "colour", "background", "arrangement", "count", "random")
FACTOR_WEIGHTS = (0.38, 0.20, 0.06, 0.21, 0.07, 0.08)
PAIRS = 0.4
"""How often a group's scene is surely one of two different objects, the hardest to tell from their
swaps."""

EMPHASIS = {
    "object": Emphasis(background=0.7),
    "colour": Emphasis(background=0.7, natural=0.5),
    "background": Emphasis(background=1.0),
    "arrangement": Emphasis(background=0.6, natural=0.6, relation=1.0),
    "count": Emphasis(background=0.6, size=1.0, place=1.0),
    "random": Emphasis(),
}


def vary(world: World, base: Scenes, factor: str, generator: torch.Generator) -> Scenes:
    """A group: GROUP copies of one scene that differ in `factor` only."""

    def deal(high: int) -> Tensor:
        """GROUP different values below `high` (repeating only where there are fewer)."""
        rounds = math.ceil(GROUP / high)
        return torch.cat([torch.randperm(high, generator=generator) for _ in range(rounds)])[:GROUP]

    scene = base.to("cpu")[torch.zeros(GROUP, dtype=torch.long)]
    background, variant, layout, boxes = scene.background, scene.variant, scene.layout, scene.boxes
    free = bool((boxes[0] != LAYOUT_BOXES[layout[0]]).any())
    objects, colours = scene.objects.clone(), scene.colours.clone()
    alike = bool((objects[0] == objects[0, 0])[objects[0] >= 0].all())
    alike &= bool((colours[0] == colours[0, 0])[objects[0] >= 0].all())
    slots = slice(None) if alike else torch.randint(2, (), generator=generator)
    spread = (lambda v: v[:, None]) if alike else (lambda v: v)
    if factor == "object":
        objects[:, slots] = spread(deal(world.num_objects))
    elif factor == "colour":
        colours[:, slots] = spread(deal(len(COLOURS)))  # its own among them
    elif factor == "background":
        background = deal(len(BACKGROUNDS))
    elif factor == "count":
        objects[:], colours[:] = objects[:, :1].clone(), colours[:, :1].clone()
        boxes = world.places(deal(len(LAYOUTS)), generator, float(free))
    elif factor == "arrangement":
        # Two objects of different kinds and colours, in every order and binding.
        objects[:] = torch.randperm(world.num_objects, generator=generator)[:MAX_OBJECTS]
        colours[:] = torch.randperm(len(COLOURS), generator=generator)[:MAX_OBJECTS]
        draw = deal(8)
        stacked = torch.tensor([LAYOUT_INDEX["side by side"], LAYOUT_INDEX["stacked"]])
        ways = two_ways(generator, MAX_OBJECTS) if free else None
        boxes = (LAYOUT_BOXES[stacked] if ways is None else ways)[draw & 1]
        for table, bit in ((objects, 2), (colours, 4)):
            flipped = (draw & bit).bool()
            table[flipped, :2] = table[flipped, :2].flip(1)
    return world.scenes(background, variant, layout, objects, colours, boxes)


def base_scene(world: World, pairs: float, generator: torch.Generator) -> Scenes:
    """One scene; with probability `pairs` surely one of two different objects."""
    draw = world.sample(8, generator)
    two = ((draw.counts == 2) & (draw.objects[:, 0] != draw.objects[:, 1])).nonzero()[:, 0]
    pick = two[:1] if len(two) and torch.rand((), generator=generator) < pairs else slice(0, 1)
    return draw[pick]


def grouped(
    world: World,
    captioner: Captioner,
    groups: int,
    generator: torch.Generator,
    rng: random.Random,
    weights: Sequence[float] = FACTOR_WEIGHTS,
    pairs: float = PAIRS,
) -> tuple[Scenes, list[str], Mentions]:
    """`groups` groups of scenes with captions that mention what varies within each.

    weights: how often each of FACTORS is what varies; pairs: see PAIRS.
    """
    chances = torch.tensor(weights)
    factors = torch.multinomial(chances, groups, replacement=True, generator=generator)
    scenes, captions, mentions = [], [], []
    for f in factors.tolist():
        factor = FACTORS[f]
        if factor == "random":
            part = world.sample(GROUP, generator)
        else:
            part = vary(world, base_scene(world, pairs, generator), factor, generator)
        words, said = captioner.write(part, rng, EMPHASIS[factor])
        scenes.append(part)
        captions += words
        mentions.append(captioner.meant(said))
    return Scenes.cat(scenes), captions, Mentions.cat(mentions)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small shifts, brightness and noise: what should not change a caption."""
    n = len(images)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    dx, dy = torch.randint(5, (2,), generator=generator).tolist()
    images = padded[..., dy : dy + images.shape[-2], dx : dx + images.shape[-1]]
    gain = 0.94 + 0.12 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.02 * noise_like(images, generator)
    soft = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    blur = (torch.rand(n, 1, 1, 1, generator=generator) < 0.25).to(images) * 0.8
    images = torch.lerp(images, soft, blur.to(images.device))
    return (images * gain.to(images.device) + noise).clamp(0, 1)


def noise_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the same shape, drawn where the images are: for a GPU the CPU would
    take longer over it than all else takes."""
    if images.device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(images.device).manual_seed(seed)
    return torch.randn(images.shape, generator=generator, device=images.device)
