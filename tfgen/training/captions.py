"""Captions for scenes: a grammar wide enough for the ways people ask for a picture.

A caption mentions some of a scene's attributes and leaves others open. What it mentions is kept
beside the words (`Mentions`), so that training knows exactly which other pictures it also fits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.objects import ObjectSpec
from tfgen.training.places import arrangement
from tfgen.training.rows import Rows
from tfgen.training.world import Scenes
from tfgen.verifiers.words import article

COUNT_WORDS = {1: ("a", "one"), 2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
SIZE_WORDS = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny")}
PLACE_PHRASES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
}
OPENINGS = (
    "a photo of",
    "a picture of",
    "an image of",
    "a 3d render of",
    "a drawing of",
    "a photograph of",
    "a scene with",
    "there is",
    "show me",
)
ANY, BESIDE, LEFT_OF, ABOVE = range(4)  # relations a pair's caption can state
RELATION_WORDS = {
    ANY: ("and", "and", "with"),
    BESIDE: ("next to", "beside", "near", "by"),
    LEFT_OF: ("to the left of", "on the left of", "left of"),
    ABOVE: ("above", "on top of", "over"),
}
# The same relations told from the other object: "b to the right of a".
REVERSED_WORDS = {
    LEFT_OF: ("to the right of", "on the right of", "right of"),
    ABOVE: ("below", "under", "underneath", "beneath"),
}


@dataclass
class Mentions(Rows):
    """What N captions state; -1: left open.

    background, size (0 large, 1 small), place (0 left, 1 right): Int64[N]; count: Int64[N] objects
    in all; relation: Int64[N], -1 for one kind of object; kinds: Int64[N, 2] object of the first
    and second mention; colours: Bool[N, 2, len(COLOURS)] the colours each mention allows.
    """

    background: Tensor
    size: Tensor
    place: Tensor
    count: Tensor
    relation: Tensor
    kinds: Tensor
    colours: Tensor


@dataclass(frozen=True)
class Emphasis:
    """Chances that a caption mentions each attribute it could leave open. colour: of an object in
    another colour than its own, natural: of one in its own."""

    background: float = 0.8
    colour: float = 1.0
    natural: float = 0.35
    size: float = 0.35
    place: float = 0.5
    relation: float = 0.75


EVERYTHING = Emphasis(1.0, 1.0, 0.5, 1.0, 1.0, 1.0)


class Captioner:
    """Writes captions for scenes of a world with the given objects."""

    def __init__(self, specs: list[ObjectSpec]):
        self.specs = specs
        # allowed[m, c, k]: a picture whose object m has colour k fits the word COLOURS[c]; row 0 is
        # "colour not mentioned".
        self.allowed = torch.zeros(len(specs), len(COLOURS), len(COLOURS), dtype=torch.bool)
        self.allowed[:, 0] = True
        for m, spec in enumerate(specs):
            for c, colour in enumerate(COLOURS[1:], start=1):
                self.allowed[m, c, c] = True
                self.allowed[m, c, 0] = colour in spec.natural_colours
        # usual[m, k]: object m looks so by nature; nobody who says "a pizza" means a purple one.
        self.usual = self.allowed[:, :, 0].clone()
        self.usual[:, 0] = True
        self.natural = [
            [c for c in spec.natural_colours if c in COLOURS or c == "gray"] for spec in specs
        ]

    def vocabulary(self) -> list[str]:
        """Every word a caption can hold, sorted."""
        phrases = list(OPENINGS) + [
            "a an the one some there are in background colored of gray grey"
        ]
        for table in (COUNT_WORDS, SIZE_WORDS, PLACE_PHRASES, RELATION_WORDS, REVERSED_WORDS):
            phrases += [p for words in table.values() for p in words]
        phrases += [p for b in BACKGROUNDS for p in b.phrases] + list(COLOURS[1:])
        phrases += [w for s in self.specs for w in s.words]
        return sorted({word for p in phrases for word in p.lower().replace("-", " ").split()})

    def write(
        self, scenes: Scenes, rng: random.Random, emphasis: Emphasis = Emphasis()
    ) -> tuple[list[str], Mentions]:
        """One caption for each scene, and what the captions state."""
        n = len(scenes)
        captions = []
        rows = {f: torch.full((n,), -1) for f in ("background", "size", "place", "relation")}
        kinds = torch.full((n, 2), -1)
        colours = torch.ones(n, 2, len(COLOURS), dtype=torch.bool)
        stand = arrangement(scenes.boxes, sure=True)
        places = torch.stack(
            [stand.large, stand.small, stand.left, stand.right, stand.first_left, stand.first_above]
        ).T
        columns = (scenes.background, places, scenes.objects, scenes.colours)
        for i, (background, where, objects, tints) in enumerate(
            zip(*(c.tolist() for c in columns), strict=True)
        ):
            large, small, left, right, beside, upright = where
            objects = [m for m in objects if m >= 0]
            alike = len(set(objects)) == 1 and len(set(tints[: len(objects)])) == 1
            size = place = relation = -1
            if alike:
                noun, word = self._noun(objects[0], tints[0], len(objects), rng, emphasis)
                kinds[i, 0], colours[i, 0] = objects[0], self.allowed[objects[0], word]
                if (large or small) and rng.random() < emphasis.size:
                    size = int(small)
                    noun = f"{rng.choice(SIZE_WORDS['small' if size else 'large'])} {noun}"
                body = self._counted(noun, len(objects), rng)
                if (left or right) and rng.random() < emphasis.place:
                    place = int(right)
                    body += " " + rng.choice(PLACE_PHRASES["right" if place else "left"])
            else:
                parts = [self._noun(objects[s], tints[s], 1, rng, emphasis) for s in (0, 1)]
                relation = ANY
                if (beside or upright) and rng.random() < emphasis.relation:
                    relation = (LEFT_OF if rng.random() < 0.7 else BESIDE) if beside else ABOVE
                order = [0, 1]
                words = RELATION_WORDS[relation]
                if relation in REVERSED_WORDS and rng.random() < 0.5:
                    order, words = [1, 0], REVERSED_WORDS[relation]
                elif relation in (ANY, BESIDE) and rng.random() < 0.5:
                    order = [1, 0]
                first, second = (self._counted(parts[s][0], 1, rng) for s in order)
                body = f"{first} {rng.choice(words)} {second}"
                for s in (0, 1):
                    kinds[i, s] = objects[s]
                    colours[i, s] = self.allowed[objects[s], parts[s][1]]
            told = -1
            if rng.random() < emphasis.background:
                told = background
                phrase = rng.choice(BACKGROUNDS[background].phrases)
                body = f"{phrase} {body}" if rng.random() < 0.05 else f"{body} {phrase}"
            if rng.random() < 0.35:
                body = f"{rng.choice(OPENINGS)} {body}"
            captions.append(body)
            rows["background"][i], rows["size"][i], rows["place"][i] = told, size, place
            rows["relation"][i] = relation
        device = scenes.background.device
        mentions = Mentions(count=scenes.counts.cpu(), kinds=kinds, colours=colours, **rows)
        return captions, mentions.to(device)

    def meant(self, mentions: Mentions) -> Mentions:
        """What people mean: an object whose colour is not said has one that it has by nature."""
        unsaid = mentions.colours.all(dim=2) & (mentions.kinds >= 0)  # [N, 2]
        usual = self.usual.to(unsaid.device)[mentions.kinds.clamp(min=0)]
        return replace(mentions, colours=torch.where(unsaid[..., None], usual, mentions.colours))

    def _noun(
        self, m: int, colour: int, count: int, rng: random.Random, e: Emphasis
    ) -> tuple[str, int]:
        """("red foxes", index of the colour word, 0 for none) for object m; gray counts as none,
        since no object is recoloured gray."""
        spec = self.specs[m]
        noun = spec.plural if count > 1 else spec.name
        if count == 1 and spec.synonyms and rng.random() < 0.2:
            noun = rng.choice(spec.synonyms)
        if colour:
            return (f"{COLOURS[colour]} {noun}", colour) if rng.random() < e.colour else (noun, 0)
        if self.natural[m] and rng.random() < e.natural:
            word = rng.choice(self.natural[m])
            return f"{word} {noun}", COLOURS.index(word) if word in COLOURS else 0
        return noun, 0

    @staticmethod
    def _counted(noun: str, count: int, rng: random.Random) -> str:
        if count > 1:
            return f"{rng.choice(COUNT_WORDS[count])} {noun}"
        draw = rng.random()
        if draw < 0.75:
            return f"{article(noun)} {noun}"
        return noun if draw < 0.85 else f"{'one' if draw < 0.92 else 'the'} {noun}"


def fits(mentions: Mentions, scenes: Scenes) -> Tensor:
    """Which captions fit which scenes, at least perhaps: Bool[captions, scenes]."""
    stand = arrangement(scenes.boxes, sure=False)

    def stated(mention: Tensor, options: list[Tensor]) -> Tensor:
        """True where the mention is open, else the option it names: Bool[captions, scenes]."""
        table = torch.stack([*options, torch.ones_like(options[0])])
        return table[mention]  # -1 picks the last row

    ok = (mentions.background[:, None] < 0) | (mentions.background[:, None] == scenes.background)
    ok &= mentions.count[:, None] == scenes.counts
    ok &= stated(mentions.size, [stand.large, stand.small])
    ok &= stated(mentions.place, [stand.left, stand.right])

    def shows(which: int) -> Tensor:
        """Whether mention `which` describes each slot: Bool[captions, scenes, slots]."""
        same = mentions.kinds[:, which, None, None] == scenes.objects
        return same & mentions.colours[:, which][:, scenes.colours]

    first, second = shows(0), shows(1)
    empty = scenes.objects < 0
    alone = (first | empty).all(-1)
    ordered = first[..., 0] & second[..., 1]
    turned = first[..., 1] & second[..., 0]
    either = ordered | turned
    pair = torch.stack(
        [
            either & stand.pair,
            either & stand.beside,
            (ordered & stand.first_left) | (turned & stand.second_left),
            (ordered & stand.first_above) | (turned & stand.second_above),
            alone,
        ]
    )
    relation = mentions.relation % 5  # -1, one kind of object, is the last row
    return ok & pair.gather(0, relation[None, :, None].expand(1, -1, len(scenes)))[0]
