"""How the prompts of SpriteEval were written: once, from a fixed seed, for the packaged tier.

    python -m tfgen.spriteeval.prompts    # writes dev.jsonl and test.jsonl beside this file
    python -m tfgen.spriteeval.prompts --tier full -o FOLDER    # those of another tier

The latter are for `python -m benchmarks.alignment --prompt-file FOLDER/test.jsonl` with models of
that tier. Nothing else imports this file; `tfgen.spriteeval.load` reads what it wrote. What makes
the prompts fair:

- Everything is dealt, not drawn: in each split an object comes as often as any other, and so does
  each colour, number, relation and background, up to what the other rules forbid.
- Nothing asked for in one split (these objects with these attributes) is asked for in the other,
  for the same task. The only exception is single_object, as each split asks for all objects of the
  world, in another wording.
- Half of the prompts of GenEval's six tasks begin "a photo of", as all of GenEval's do, for
  pictures of this world are no photos.
- A colour is never one by which somebody would call the object as it is. A fox left as it is may
  pass for a red one or an orange one, so that the truth would be a matter of taste, and a method
  that is deaf to colours would get half of them right.
- The two objects of a pair share no word of their names and synonyms: a teddy bear is a kind of
  bear, and a pine tree a kind of tree.
- Nothing stands on a plain background of the colour that it is asked in or has by nature.
- Relations are GenEval's four. "Next to" is not asked for: where that ends is a matter of taste.
- Numbers are exact, by GenEval's `exclude` of one more. In all other tasks more of the same do not
  hurt, as in GenEval.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from tfgen.spriteeval.files import FOLDER, SPLITS
from tfgen.training.backgrounds import BACKGROUNDS, BackgroundSpec
from tfgen.training.colours import RAMPS
from tfgen.training.objects import PACKAGED_TIER, TIERS, ObjectSpec, load_objects
from tfgen.verifiers.words import article, plural

SEED = 1
NUMBERS = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
RELATIONS = ("left of", "right of", "above", "below")
SAID = {  # in free phrasing; the first is said of the object that is mentioned first
    "left of": ("to the left of", "on the left of"),
    "right of": ("to the right of", "on the right of"),
    "above": ("on top of", "over"),
    "below": ("under", "underneath", "beneath"),
}
NOT_ASKED = frozenset({"coach", "cycle"})  # synonyms that may mean something else
T = TypeVar("T")
Entry = dict[str, Any]
Pair = tuple[ObjectSpec, ObjectSpec]


@dataclass
class Writer:
    """Writes one split. `used` holds what has been asked for so far, in either split."""

    objects: Sequence[ObjectSpec]
    colours: Sequence[str]
    backgrounds: Sequence[BackgroundSpec]
    rng: random.Random
    used: set[Any]

    def write(self) -> list[Entry]:
        """The split, task by task."""
        six = [
            *self.single_object(),
            *self.two_object(),
            *self.counting(),
            *self.coloured(),
            *self.position(),
            *self.color_attr(),
        ]
        return [*six, *self.background(), *self.free_phrasing()]

    # Dealing

    def deal(self, values: Sequence[T], count: int) -> list[T]:
        """`count` values in random order, each as often as any other, give or take one."""
        order = self.rng.sample(values, len(values))
        return self.rng.sample(list(islice(cycle(order), count)), count)

    def match(
        self, items: Sequence[Any], values: Sequence[T], fits: Callable[[Any, T], bool]
    ) -> list[T]:
        """One value for each item, dealt, so that it fits: what does not changes places."""
        dealt = self.deal(values, len(items))
        for i, item in enumerate(items):
            while not fits(item, dealt[i]):
                j = self.rng.randrange(len(items))
                if fits(items[j], dealt[i]) and fits(item, dealt[j]):
                    dealt[i], dealt[j] = dealt[j], dealt[i]
        return dealt

    def attributes(
        self,
        task: str,
        objects: Sequence[ObjectSpec],
        values: Sequence[T],
        fits: Callable[[ObjectSpec, T], bool] = lambda spec, value: True,
    ) -> list[T]:
        """One value for each object, none that the task has asked of it before."""
        dealt = self.match(
            objects,
            values,
            lambda spec, value: fits(spec, value) and (task, spec.name, value) not in self.used,
        )
        self.used |= {(task, spec.name, v) for spec, v in zip(objects, dealt, strict=True)}
        return dealt

    def pairs(self, task: str, count: int) -> list[Pair]:
        """Pairs of different objects; no two objects come together twice in a task."""
        first = self.deal(self.objects, count)
        while True:  # until no pair has come together before
            second = self.match(first, self.objects, lambda a, b: not alike(a, b))
            keys = [frozenset((a.name, b.name)) for a, b in zip(first, second, strict=True)]
            if len(set(keys)) == count and not {(task, key) for key in keys} & self.used:
                self.used |= {(task, key) for key in keys}
                return list(zip(first, second, strict=True))

    def two_colours(self, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
        """A colour for each of a pair: two different ones, neither by nature its own."""
        first = self.match([a for a, _ in pairs], self.colours, unnatural)
        items = list(zip([b for _, b in pairs], first, strict=True))
        second = self.match(
            items, self.colours, lambda item, c: unnatural(item[0], c) and c != item[1]
        )
        return list(zip(first, second, strict=True))

    def opened(self, bodies: Sequence[str]) -> list[str]:
        """Every second one, at random, as GenEval says it: "a photo of ..."."""
        openings = self.deal(("", "a photo of "), len(bodies))
        return [opening + body for opening, body in zip(openings, bodies, strict=True)]

    # GenEval's six tasks

    def single_object(self) -> list[Entry]:
        objects = self.deal(self.objects, len(self.objects))
        openings = self.attributes("single_object", objects, ("", "a photo of "))
        return [
            entry("single_object", opening + a(spec.name), [thing(spec)])
            for spec, opening in zip(objects, openings, strict=True)
        ]

    def two_object(self) -> list[Entry]:
        pairs = self.pairs("two_object", len(self.objects))
        prompts = self.opened([f"{a(one.name)} and {a(two.name)}" for one, two in pairs])
        return [
            entry("two_object", prompt, [thing(one), thing(two)])
            for prompt, (one, two) in zip(prompts, pairs, strict=True)
        ]

    def counting(self) -> list[Entry]:
        objects = self.deal(self.objects, len(self.objects))
        numbers = self.attributes("counting", objects, tuple(NUMBERS))
        counted = list(zip(objects, numbers, strict=True))
        prompts = self.opened([f"{NUMBERS[n][0]} {spec.plural}" for spec, n in counted])
        return [
            entry("counting", prompt, [thing(spec, count=n)])
            for prompt, (spec, n) in zip(prompts, counted, strict=True)
        ]

    def coloured(self) -> list[Entry]:
        objects = self.deal(self.objects, len(self.objects))
        colours = self.attributes("colors", objects, self.colours, unnatural)
        coloured = list(zip(objects, colours, strict=True))
        prompts = self.opened([a(f"{colour} {spec.name}") for spec, colour in coloured])
        return [
            entry("colors", prompt, [thing(spec, color=colour)])
            for prompt, (spec, colour) in zip(prompts, coloured, strict=True)
        ]

    def position(self) -> list[Entry]:
        pairs = self.pairs("position", len(self.objects))
        relations = self.deal(RELATIONS, len(pairs))
        placed = list(zip(pairs, relations, strict=True))
        prompts = self.opened(
            [f"{a(one.name)} {relation} {a(two.name)}" for (one, two), relation in placed]
        )
        return [
            entry("position", prompt, [thing(two), thing(one, position=[relation, 0])])
            for prompt, ((one, two), relation) in zip(prompts, placed, strict=True)
        ]

    def color_attr(self) -> list[Entry]:
        pairs = self.pairs("color_attr", len(self.objects))
        colours = self.two_colours(pairs)
        both = list(zip(pairs, colours, strict=True))
        prompts = self.opened(
            [f"{a(f'{c} {one.name}')} and {a(f'{d} {two.name}')}" for (one, two), (c, d) in both]
        )
        return [
            entry("color_attr", prompt, [thing(one, color=c), thing(two, color=d)])
            for prompt, ((one, two), (c, d)) in zip(prompts, both, strict=True)
        ]

    # Our two

    def background(self) -> list[Entry]:
        objects = self.deal(self.objects, len(self.objects))
        places = self.attributes("background", objects, self.backgrounds, stands_out)
        return [
            entry("background", f"{a(spec.name)} {place.phrases[0]}", [thing(spec)], place)
            for spec, place in zip(objects, places, strict=True)
        ]

    def free_phrasing(self) -> list[Entry]:
        """The same contents as people say them: synonyms, other word orders, other openings."""
        quarter = len(self.objects) // 4
        deck = self.deal(self.objects, 2 * quarter)
        return [
            *self._free_colours(deck[:quarter]),
            *self._free_numbers(deck[quarter:]),
            *self._free_pairs(quarter),
            *self._free_relations(len(self.objects) - 3 * quarter),
        ]

    def _free_colours(self, objects: Sequence[ObjectSpec]) -> list[Entry]:
        colours = self.attributes("free colours", objects, self.colours, unnatural)
        asked = {spec.name: colour for spec, colour in zip(objects, colours, strict=True)}
        places = self.attributes(
            "free places",
            objects,
            self.backgrounds,
            lambda spec, place: stands_out(spec, place) and asked[spec.name] != plain(place),
        )
        forms = self.deal(
            (
                "show me {x} {where}",
                "there {be} {x} {where}",
                "{where} there {be} {x}",
                "a picture of {x} {where}",
                "{where}, {x}",
            ),
            len(objects),
        )
        entries = []
        for form, spec, colour, place in zip(forms, objects, colours, places, strict=True):
            noun = f"{colour} {self.noun(spec)}"
            prompt = form.format(x=a(noun), be=verb(noun), where=self.phrase(place))
            entries.append(entry("free_phrasing", prompt, [thing(spec, color=colour)], place))
        return entries

    def _free_numbers(self, objects: Sequence[ObjectSpec]) -> list[Entry]:
        numbers = self.attributes("free numbers", objects, tuple(NUMBERS))
        places = self.attributes("free places", objects, self.backgrounds, stands_out)
        forms = self.deal(
            ("there are {x} {where}", "show me {x}", "{x} {where}", "an image of {x}"), len(objects)
        )
        entries = []
        for form, spec, n, place in zip(forms, objects, numbers, places, strict=True):
            words = NUMBERS[n][: 2 if "there are" in form else None]  # not "there are a pair of"
            many = f"{self.rng.choice(words)} {self.noun(spec, many=True)}"
            prompt = form.format(x=many, where=self.phrase(place))
            where = place if "{where}" in form else None
            entries.append(entry("free_phrasing", prompt, [thing(spec, count=n)], where))
        return entries

    def _free_pairs(self, count: int) -> list[Entry]:
        pairs = self.pairs("free pairs", count)
        colours = self.two_colours(pairs)
        forms = self.deal(
            ("{x} with {y}", "show me {x} and {y}", "a scene with {x} and {y}", "{y} and {x}"),
            count,
        )
        entries = []
        for i, (form, (one, two), (c, d)) in enumerate(zip(forms, pairs, colours, strict=True)):
            if i % 2:  # without their colours
                names, things = (self.noun(one), self.noun(two)), [thing(one), thing(two)]
            else:
                names = (f"{c} {self.noun(one)}", f"{d} {self.noun(two)}")
                things = [thing(one, color=c), thing(two, color=d)]
            prompt = form.format(x=a(names[0]), y=a(names[1]))
            things = things[::-1] if form.startswith("{y}") else things
            entries.append(entry("free_phrasing", prompt, things))
        return entries

    def _free_relations(self, count: int) -> list[Entry]:
        pairs = self.pairs("free relations", count)
        relations = self.deal(RELATIONS, count)
        forms = self.deal(
            (
                "there {be} {x} {rel} {y}",
                "{x} {be} {rel} {y}",
                "{rel} {y} there {be} {x}",
                "show me {x} {rel} {y}",
            ),
            count,
        )
        entries = []
        for form, (one, two), relation in zip(forms, pairs, relations, strict=True):
            said = self.rng.choice(SAID[relation])
            x, y = self.noun(one), self.noun(two)
            prompt = form.format(x=a(x), y=a(y), be=verb(x), rel=said)
            things = [thing(two), thing(one, position=[relation, 0])]
            entries.append(entry("free_phrasing", prompt, things))
        return entries

    def noun(self, spec: ObjectSpec, many: bool = False) -> str:
        """A synonym, where there is one that means nothing else."""
        synonyms = [word for word in spec.synonyms if word not in NOT_ASKED]
        if not synonyms or (many and spec.is_plural):
            return spec.plural if many else spec.name
        word = self.rng.choice(synonyms)
        return plural(word) if many else word

    def phrase(self, place: BackgroundSpec) -> str:
        """Another phrase than the task `background` says; neither "on red" nor "in a house"."""
        names = {word for spec in self.objects for word in spec.words}
        others = [
            phrase
            for phrase in place.phrases[1:]
            if not names & set(phrase.split()) and phrase.split()[-1] not in (*RAMPS, "gray")
        ]
        return self.rng.choice(others or place.phrases[:1])


def entry(
    tag: str, prompt: str, include: list[Entry], background: BackgroundSpec | None = None
) -> Entry:
    """A prompt with its truth, in GenEval's metadata format; `background` is ours."""
    out: Entry = {"tag": tag, "include": include}
    if include[0]["count"] > 1:
        out["exclude"] = [{"class": include[0]["class"], "count": include[0]["count"] + 1}]
    if background:
        out["background"] = background.name
    return out | {"prompt": prompt}


def thing(spec: ObjectSpec, count: int = 1, **attributes: Any) -> Entry:
    return {"class": spec.name, "count": count, **attributes}


def a(noun: str) -> str:
    """With its article, which scissors and french fries have none of (but a pair of scissors)."""
    return noun if _is_several(noun) else f"{article(noun)} {noun}"


def verb(noun: str) -> str:
    """French fries are there, a pair of scissors is."""
    return "are" if _is_several(noun) else "is"


def _is_several(noun: str) -> bool:
    return " of " not in noun and noun.endswith(_plural_names())


@cache
def _plural_names() -> tuple[str, ...]:
    """What a thing is called that has a plural for a name."""
    names = [word for spec in load_objects() if spec.is_plural for word in spec.words]
    return tuple(name for name in names if name.endswith("s") and " of " not in name)


def alike(one: ObjectSpec, two: ObjectSpec) -> bool:
    """Whether their names or synonyms share a word."""
    words = [{word for name in spec.words for word in name.split()} for spec in (one, two)]
    return bool(words[0] & words[1])


def unnatural(spec: ObjectSpec, colour: str) -> bool:
    return colour not in spec.natural_colours


def stands_out(spec: ObjectSpec, place: BackgroundSpec) -> bool:
    return plain(place) not in spec.natural_colours


def plain(place: BackgroundSpec) -> str:
    """The colour of a plain background; of any other, its name."""
    return place.name.removesuffix(" background")


def generate(
    objects: Sequence[ObjectSpec],
    colours: Sequence[str] = tuple(RAMPS),
    backgrounds: Sequence[BackgroundSpec] = BACKGROUNDS,
    seed: int = SEED,
) -> dict[str, list[Entry]]:
    """Both splits: eight tasks, of each as many prompts as there are objects. Same seed, same."""
    rng, used = random.Random(seed), set()
    return {split: Writer(objects, colours, backgrounds, rng, used).write() for split in SPLITS}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tfgen.spriteeval.prompts", description="Write the prompts of SpriteEval."
    )
    parser.add_argument("--tier", choices=TIERS, default=PACKAGED_TIER)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="DIR")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    for split, entries in generate(load_objects(args.tier)).items():
        lines = [json.dumps(line) + "\n" for line in entries]
        (args.output / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
