"""A prompt in people's words, said in the words that a small world's models were trained on.

A closed vocabulary makes nothing of "a majestic ship in a storm", and a search then finds a picture
of what little is left. Here what the world can show of the prompt is said as its captions say it,
"a sailboat in the rain", and the user is told. A prompt that the world's own words cover is left
as it is, letter by letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tfgen.errors import InputError
from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.denial import affirmed, compared
from tfgen.verifiers.everyday import OPEN, WORN, Everyday, Item, spelt, words_of
from tfgen.verifiers.things import Thing, place_of, things_of
from tfgen.verifiers.words import SMALL_WORDS, article

ABOVE = "above"


@dataclass(frozen=True)
class Reworded:
    """text: what to search for. prompt: what the user said. left_out: words of it of which nothing
    is made. added: an object, where the prompt names none."""

    text: str
    prompt: str
    left_out: tuple[str, ...] = ()
    added: str | None = None

    def sentences(self, what: str = "prompt") -> list[str]:
        """What the user should know of it; nothing of a prompt that is searched for as it is."""
        if self.text == self.prompt:
            return []
        said = f"The {what} is read as {self.text!r}"
        if self.left_out:
            said += f", without {', '.join(map(repr, self.left_out))}"
        if self.added:
            said += f"; it names no object, so {self.added} was added"
        return [f"{said}."]


class Rewording:
    """Says prompts in the words of the world that `words` describes."""

    def __init__(self, words: ContrastWords) -> None:
        self.words = words
        self.everyday = Everyday(words)

    def covers(self, prompt: str) -> bool:
        """Whether the world's own words say all of the prompt, as its captions do, and it names an
        object."""
        text, spans = self.words.parse(prompt)
        read = {i for s in spans for i in range(s.start, s.end)}
        known = all(i in read or word in SMALL_WORDS for i, word in enumerate(spelt(text)))
        named = any(s.factor == "object" for s in spans)
        places = {s.entry for s in spans if s.factor == "background"}
        plain = known and named and len(places) < 2 and self.everyday.spelled_out(prompt) == prompt
        return plain and self._in_order(prompt)

    def _in_order(self, prompt: str) -> bool:
        """Whether a prompt tells of its things in the order of captions: what describes one before
        it, and between two how they stand. A verifier that was trained on captions reads "above a
        fox a cat" as "a fox above a cat"."""
        said = self.words.parse(prompt)[1]
        spans = [span for span in said if span.factor != "count"]
        nouns = [span for span in spans if span.factor == "object"]
        if any(s.factor == "count" and s.entry and s.start >= nouns[-1].end for s in said):
            return False  # "cats, three of them"
        colours = [span for span in spans if span.factor == "colour"]
        if any(a.end == b.start for a, b in pairwise(nouns)):  # "a cat astronaut" is one
            return False
        of_nouns = {a.start for a, b in pairwise(spans) if a.end == b.start}
        if any(colour.start not in of_nouns for colour in colours):  # "the fox is red"
            return False
        if len(nouns) == 1:
            return len(colours) < 2
        if len({noun.entry for noun in nouns}) == 1 and len({c.entry for c in colours}) < 2:
            return False  # "a cat and its kitten" are two cats
        _, items = self.everyday.scan(prompt)
        first, last = nouns[0].start, nouns[-1].end
        apart = any(item.kind == "pause" and first < item.start < last for item in items)
        turned = any(item.kind == "turned" for item in items)
        stands = [s for s in spans if s.factor == "relation"]
        if not stands and any(i.kind == "relation" and i.value != OPEN for i in items):
            return False  # "a cat on a car": captions say "above"
        beside = any(
            span.factor == "place" or (span.factor == "relation" and not first < span.start < last)
            for span in spans
        )
        return not (apart or turned or beside)

    def can_be_shown(self, prompt: str) -> bool:
        """Whether a picture has room for what the prompt names: some of one kind of object, or one
        each of two."""
        nouns = [s for s in self.words.parse(prompt)[1] if s.factor == "object"]
        kinds = len({noun.entry for noun in nouns})
        return len(nouns) == 1 or (kinds <= 2 and not any(noun.plural for noun in nouns))

    def __call__(self, prompt: str) -> Reworded:
        """The prompt as it is to be searched for: itself where all of it is understood, and where
        nothing of it names an object or a place. InputError where all that it names is what is not
        to be shown."""
        if self.covers(prompt) and self.can_be_shown(prompt):
            return Reworded(prompt, prompt)
        text, items = self.everyday.scan(self.everyday.spelled_out(prompt))
        items, denied = affirmed(text, items, self.everyday.small)
        items, examples = compared(text, items, self.everyday.small)
        things, left_out = things_of(text, items, self.everyday)
        place, other_places = place_of(text, items, self.everyday)
        added = None
        if not things:
            added = self._company(place, denied)
            if added is None and any(item.kind in ("object", "alone") for item in denied):
                raise InputError(
                    f"{prompt!r} only says what the picture must not show: say what it shows, and "
                    "give the rest with --negative."
                )
            if added is None:
                return Reworded(prompt, prompt)
        said = [added or self._said(text, items, things[:2])]
        said += [place.value] if place else []
        left_out += [*denied, *examples, *other_places]
        shown = {thing.entry for thing in things[:2]}
        for thing in things[2:]:  # of a kind that is shown it is the colour that is not
            left_out.append(
                thing.said.get("colour", thing.item) if thing.entry in shown else thing.item
            )
        if len(things) > 1:  # a picture of two shows one of each
            of_one = len(things) if len(shown) == 1 else 1
            for thing in things[:2]:
                lost = {"size", "count"} if thing.count > of_one else {"size"}
                left_out += [item for kind, item in thing.said.items() if kind in lost]
        unsaid = dict.fromkeys(words_of(text, item) for item in sorted(left_out))
        return Reworded(" ".join(said), prompt, tuple(unsaid), added)

    def _company(self, place: Item | None, denied: Sequence[Item]) -> str | None:
        """What is added to a place alone, but for what is not to be there."""
        kinds = [
            self.words.objects[i.value]["name"] for i in denied if i.kind in ("object", "alone")
        ]
        usual = self.everyday.lexicon["company"].get(place.value, []) if place else []
        return next((name for name in usual if not name.endswith(tuple(kinds))), None)

    def _said(self, text: list[str], items: Sequence[Item], things: Sequence[Thing]) -> str:
        """The caption of one kind of object, or of two and how they stand."""
        if len(things) == 1:
            sides = [item.value for item in items if item.kind == "side"]
            return " ".join([self._named(things[0]), *sides[:1]])
        first, second = (self._named(thing, alone=False) for thing in things)
        relation, turned = self._relation(text, items, things)
        if turned:
            first, second = second, first
        return f"{first} {relation} {second}"

    def _relation(
        self, text: list[str], items: Sequence[Item], things: Sequence[Thing]
    ) -> tuple[str, bool]:
        """How the first of two objects stands to the second or, turned, the second to the first."""
        start, end = things[0].item.end, things[1].item.start
        between = [item for item in items if start <= item.start < end]
        for place, item in enumerate(items):
            if item.kind == "turned" and item.start >= start:
                # "a cat on top, a dog at the bottom", but "a cat, on top a dog"
                first = [i.kind for i in between if i.start < item.start]
                own = item.start < end and not {"pause", "relation"} & {*first}
                ends = items[place + 1].kind == "pause" or items[place + 1].value == OPEN
                return item.value, not (own and ends)
        if side := self._side(items, between, things):
            return side, False
        said = [item for item in between if item.kind == "relation"]
        relation = said[-1].value if said else OPEN
        worn = self.words.objects[things[1].entry]["name"] in self.everyday.lexicon["worn"]
        if relation == WORN or (worn and said and words_of(text, said[-1]) == "in"):
            return ABOVE, True
        ahead = [item.value for item in items if item.kind == "relation" and item.end < start]
        if relation == OPEN and (told := [r for r in ahead if r not in (OPEN, WORN)]):
            return told[-1], True  # "under a tree sleeps a fox"
        return relation, False

    def _side(
        self, items: Sequence[Item], between: Sequence[Item], things: Sequence[Thing]
    ) -> str | None:
        """The relation that sides say: "a fox on the left, a cat on the right", "on the left a fox
        and on the right a cat", "a fox and on the right a cat"."""
        sides, start = [phrases[0] for phrases in self.words.places], things[0].item.start
        relations = dict(zip(sides, self.words.relations, strict=False))
        ahead = [item for item in items if item.kind == "side" and item.end <= start]
        if ahead:
            return relations[ahead[-1].value][0]
        for place, item in enumerate(between):
            if item.kind == "side":
                side = sides.index(item.value)
                if any(i.kind in ("pause", "relation") for i in between[:place]):
                    side = 1 - side  # it is the second one's
                return relations[sides[side]][0]
        return None

    def _named(self, thing: Thing, alone: bool = True) -> str:
        """What captions call a thing: "two small red foxes"; or one, where it is not alone."""
        spec = self.words.objects[thing.entry]
        count = min(thing.count, len(self.words.counts)) if alone else 1
        size = thing.size if alone else None
        words = [size, thing.colour, spec["plural" if count > 1 else "name"]]
        noun = " ".join(word for word in words if word)
        if count > 1:
            return f"{self.words.counts[count - 1][0]} {noun}"
        pair = spec["name"] == spec["plural"] and noun.endswith("s")  # "scissors"
        return noun if pair else f"{article(noun)} {noun}"
