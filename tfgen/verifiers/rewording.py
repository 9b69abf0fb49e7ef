"""A prompt in people's words, said in the words that a small world's models were trained on.

A closed vocabulary makes nothing of "a majestic ship in a storm", and a search then finds a picture
of what little is left. Here what the world can show of the prompt is said as its captions say it,
"a sailboat in the rain", and the user is told. A prompt that the world's own words cover is left
as it is, letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.everyday import OPEN, WORN, Everyday, Item, spelt
from tfgen.verifiers.words import article

# What the captions of a world have beside what they name.
SMALL_WORDS = frozenset(
    "a an the of and or with in on at to by is are there some this that show me it its which photo "
    "photograph picture image drawing render scene 3d colored coloured".split()
)
ABOVE = "above"
MOST = 4  # objects of one kind in a picture


@dataclass(frozen=True)
class Reworded:
    """text: what to search for. prompt: what the user said. left_out: words of it of which nothing
    is made. added: an object, where the prompt names none."""

    text: str
    prompt: str
    left_out: tuple[str, ...] = ()
    added: str | None = None

    def sentences(self) -> list[str]:
        """What the user should know of it; nothing of a prompt that is searched for as it is."""
        if self.text == self.prompt:
            return []
        said = f"The prompt is read as {self.text!r}"
        if self.left_out:
            said += f", without {', '.join(map(repr, self.left_out))}"
        if self.added:
            said += f"; it names no object, so {self.added} was added"
        return [f"{said}."]


@dataclass(frozen=True)
class Thing:
    """An object as the prompt describes it; item: its noun."""

    item: Item
    count: int = 1
    colour: str | None = None
    size: str | None = None

    @property
    def entry(self) -> int:
        return self.item.meaning.value  # type: ignore[union-attr]


class Rewording:
    """Says prompts in the words of the world that `words` describes."""

    def __init__(self, words: ContrastWords) -> None:
        self.words = words
        self.everyday = Everyday(words)

    def understood(self, prompt: str) -> bool:
        """Whether the world's own words cover the prompt, and name what a picture can show: some of
        one kind of object, or one each of two."""
        text, spans = self.words.parse(prompt)
        read = {i for s in spans for i in range(s.start, s.end)}
        known = all(i in read or word in SMALL_WORDS for i, word in enumerate(spelt(text)))
        nouns = [s for s in spans if s.factor == "object"]
        kinds = len({s.entry for s in nouns})
        return known and (kinds == 1 or (kinds == 2 and not any(s.plural for s in nouns)))

    def __call__(self, prompt: str) -> Reworded:
        """The prompt as it is to be searched for: itself where all of it is understood, and where
        nothing of it names an object or a place."""
        if self.understood(prompt):
            return Reworded(prompt, prompt)
        text, items = self.everyday.scan(prompt)
        things, left_out = self._things(text, items)
        place, other_places = self._place(items)
        left_out += other_places
        added = None
        if not things:
            added = self.everyday.lexicon["company"].get(place.meaning.value) if place else None
            if added is None:
                return Reworded(prompt, prompt)
        shown, others = things[:2], things[2:]
        left_out += [thing.item for thing in others]
        said = added or self._said(text, items, shown)
        if place:
            said += f" {place.meaning.value}"
        unsaid = dict.fromkeys(words_of(text, item) for item in sorted(left_out))
        return Reworded(said, prompt, tuple(unsaid), added)

    def _things(self, text: list[str], items: Sequence[Item]) -> tuple[list[Thing], list[Item]]:
        """The objects that the prompt names, each kind once, and what nothing is made of."""
        named = {i.meaning.kind for i in items if i.meaning}
        things: list[Thing] = []
        left_out: list[Item] = []
        before: dict[str, Item] = {}  # what describes the next object, or else the last one

        def describe_last() -> None:
            """What was said and found no object after it is of the one before it."""
            if things:
                last = things[-1]
                if "colour" in before and last.colour is None:
                    things[-1] = last = replace(last, colour=before["colour"].meaning.value)
                if "count" in before and last.item.meaning.many:  # "cacti, three of them"
                    things[-1] = replace(last, count=before["count"].meaning.value)
                before.clear()
            before.pop("count", None)

        for item in items:
            kind = item.meaning.kind if item.meaning else ""
            if kind == "count":
                before[kind] = item
            elif kind in ("colour", "size"):
                before.setdefault(kind, item)
                if kind == "colour" and text[item.start - 1 : item.start] in (["is"], ["are"]):
                    describe_last()
            elif kind == "object" or (kind == "alone" and "object" not in named):
                count = before["count"].meaning.value if "count" in before else 1
                many = item.meaning.many and "count" not in before
                told = {k: before[k].meaning.value for k in ("colour", "size") if k in before}
                thing = Thing(item, 2 if many else count, **told)
                if (
                    things and things[-1].item.end == item.start
                ):  # "a saguaro cactus", "a kite shop"
                    last = things.pop()
                    colour, size = last.colour or thing.colour, last.size or thing.size
                    count = max(last.count, thing.count)
                    thing = replace(thing, count=count, colour=colour, size=size)
                things.append(thing)
                before.clear()
            elif kind in ("relation", "turned", "side", "place", "pause"):
                describe_last()
            elif not kind or kind in ("alone", "nothing"):
                word = words_of(text, item)
                if word not in self.everyday.small:
                    left_out.append(item)
                    if things and "colour" in before and word not in self.everyday.materials:
                        left_out.append(before.pop("colour"))  # "a cat with blue eyes"
        describe_last()
        joined = [i.start for i in items if i.meaning and i.meaning.kind == "relation"]
        kinds: dict[int, Thing] = {}
        for thing in things:
            if other := kinds.get(thing.entry):  # more of it, or the same again
                colour, count = other.colour or thing.colour, max(other.count, thing.count)
                if any(other.item.end <= at < thing.item.start for at in joined):
                    count = other.count + thing.count
                thing = replace(other, count=count, colour=colour)
            kinds[thing.entry] = thing
        return list(kinds.values()), left_out

    @staticmethod
    def _place(items: Iterable[Item]) -> tuple[Item | None, list[Item]]:
        """Where the prompt says it is, and what else it says of that: a picture has one place."""
        places = [i for i in items if i.meaning and i.meaning.kind == "place"]
        adjectives = [i for i in items if i.meaning and i.meaning.kind == "adjective"]
        found = [i for i in places + adjectives if i.meaning.value is not None]
        found.sort(key=lambda item: not item.meaning.value.endswith("background"))
        if not found:
            return None, places
        alike = found[0].meaning.value
        return found[0], [i for i in places + adjectives if i.meaning.value != alike]

    def _said(self, text: list[str], items: Sequence[Item], things: Sequence[Thing]) -> str:
        """The caption of one kind of object, or of two and how they stand."""
        sides = [i for i in items if i.meaning and i.meaning.kind == "side"]
        if len(things) == 1:
            return " ".join([self._named(things[0]), *(i.meaning.value for i in sides[:1])])
        first, second = (self._named(replace(t, count=1, size=None)) for t in things)
        relation, turned = self._relation(text, items, things)
        if turned:
            first, second = second, first
        return f"{first} {relation} {second}"

    def _relation(
        self, text: list[str], items: Sequence[Item], things: Sequence[Thing]
    ) -> tuple[str, bool]:
        """How the first of two objects stands to the second or, turned, the second to the first."""
        start, end = things[0].item.end, things[1].item.start
        said = [i for i in items if i.meaning and i.meaning.kind in ("relation", "turned", "side")]
        for item in said:
            if item.meaning.kind == "turned" and item.start >= start:
                return item.meaning.value, True
            if (
                item.meaning.kind == "side" and start <= item.start < end
            ):  # "a fox on the left, ..."
                return item.meaning.value.replace("on", "to", 1) + " of", False
        between = [i for i in said if i.meaning.kind == "relation" and start <= i.start < end]
        ahead = [i.meaning.value for i in said if i.meaning.kind == "relation" and i.end <= start]
        relation = between[-1].meaning.value if between else OPEN
        worn = self.words.objects[things[1].entry]["name"] in self.everyday.lexicon["worn"]
        if relation == WORN or (worn and between and words_of(text, between[-1]) == "in"):
            return ABOVE, True
        if relation == OPEN and (told := [r for r in ahead if r not in (OPEN, WORN)]):
            return told[-1], True  # "under a tree sleeps a fox"
        return relation, False

    def _named(self, thing: Thing) -> str:
        """What captions call a thing: "two small red foxes"."""
        spec = self.words.objects[thing.entry]
        count = min(thing.count, MOST, len(self.words.counts))
        words = [thing.size, thing.colour, spec["plural" if count > 1 else "name"]]
        noun = " ".join(word for word in words if word)
        if count > 1:
            return f"{self.words.counts[count - 1][0]} {noun}"
        pair = spec["name"] == spec["plural"] and noun.endswith("s")  # "scissors"
        return noun if pair else f"{article(noun)} {noun}"


def words_of(text: Sequence[str], item: Item) -> str:
    return " ".join(text[item.start : item.end])
