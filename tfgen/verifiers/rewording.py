"""A prompt in people's words, said in the words that a small world's models were trained on.

A closed vocabulary makes nothing of "a majestic ship in a storm", and a search then finds a picture
of what little is left. Here what the world can show of the prompt is said as its captions say it,
"a sailboat in the rain", and the user is told. A prompt that the world's own words cover is left
as it is, letter by letter.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        """Whether the world's own words say all of the prompt, and it names an object."""
        text, spans = self.words.parse(prompt)
        read = {i for s in spans for i in range(s.start, s.end)}
        known = all(i in read or word in SMALL_WORDS for i, word in enumerate(spelt(text)))
        named = any(s.factor == "object" for s in spans)
        return known and named and self.everyday.spelled_out(prompt) == prompt

    def can_be_shown(self, prompt: str) -> bool:
        """Whether a picture has room for what the prompt names: some of one kind of object, or one
        each of two."""
        nouns = [s for s in self.words.parse(prompt)[1] if s.factor == "object"]
        kinds = len({noun.entry for noun in nouns})
        return kinds == 1 or (kinds == 2 and not any(noun.plural for noun in nouns))

    def __call__(self, prompt: str) -> Reworded:
        """The prompt as it is to be searched for: itself where all of it is understood, and where
        nothing of it names an object or a place."""
        if self.covers(prompt) and self.can_be_shown(prompt):
            return Reworded(prompt, prompt)
        text, items = self.everyday.scan(self.everyday.spelled_out(prompt))
        things, left_out = things_of(text, items, self.everyday)
        place, other_places = place_of(items)
        added = None
        if not things:
            added = self.everyday.lexicon["company"].get(place.value) if place else None
            if added is None:
                return Reworded(prompt, prompt)
        said = [added or self._said(text, items, things[:2])]
        said += [place.value] if place else []
        left_out += [*other_places, *(thing.item for thing in things[2:])]
        unsaid = dict.fromkeys(words_of(text, item) for item in sorted(left_out))
        return Reworded(" ".join(said), prompt, tuple(unsaid), added)

    def _said(self, text: list[str], items: Sequence[Item], things: Sequence[Thing]) -> str:
        """The caption of one kind of object, or of two and how they stand."""
        if len(things) == 1:
            sides = [item.value for item in items if item.kind == "side"]
            return " ".join([self._named(things[0]), *sides[:1]])
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
        between = [item for item in items if start <= item.start < end]
        for item in items:
            if item.kind == "turned" and item.start >= start:
                return item.value, True
        for item in between:
            if item.kind == "side":  # "a fox on the left, a cat on the right"
                return item.value.replace("on", "to", 1) + " of", False
        said = [item for item in between if item.kind == "relation"]
        relation = said[-1].value if said else OPEN
        worn = self.words.objects[things[1].entry]["name"] in self.everyday.lexicon["worn"]
        if relation == WORN or (worn and said and words_of(text, said[-1]) == "in"):
            return ABOVE, True
        ahead = [item.value for item in items if item.kind == "relation" and item.end <= start]
        if relation == OPEN and (told := [r for r in ahead if r not in (OPEN, WORN)]):
            return told[-1], True  # "under a tree sleeps a fox"
        return relation, False

    def _named(self, thing: Thing) -> str:
        """What captions call a thing: "two small red foxes"."""
        spec = self.words.objects[thing.entry]
        count = min(thing.count, len(self.words.counts))
        colour = thing.colour or thing.item.meaning.colour
        words = [thing.size, colour, spec["plural" if count > 1 else "name"]]
        noun = " ".join(word for word in words if word)
        if count > 1:
            return f"{self.words.counts[count - 1][0]} {noun}"
        pair = spec["name"] == spec["plural"] and noun.endswith("s")  # "scissors"
        return noun if pair else f"{article(noun)} {noun}"


@dataclass(frozen=True)
class Thing:
    """An object as the prompt describes it; item: its noun."""

    item: Item
    count: int = 1
    colour: str | None = None
    size: str | None = None

    @property
    def entry(self) -> int:
        return self.item.value


def things_of(
    text: list[str], items: Sequence[Item], everyday: Everyday
) -> tuple[list[Thing], list[Item]]:
    """The objects that a prompt names, each kind once, and what nothing is made of."""
    named = {item.kind for item in items}
    things: list[Thing] = []
    left_out: list[Item] = []
    before: dict[str, Item] = {}  # what describes the next object, or else the last one

    def describe_last() -> None:
        if things:
            last = things[-1]
            if "colour" in before and last.colour is None:  # "the fox is red"
                things[-1] = last = replace(last, colour=before["colour"].value)
            if "count" in before and last.item.meaning.many:  # "cacti, three of them"
                things[-1] = replace(last, count=before["count"].value)
            before.clear()
        before.pop("count", None)

    for previous, item in zip([None, *items], items, strict=False):
        kind, word = item.kind, words_of(text, item)
        if kind == "object" or (kind == "alone" and "object" not in named):
            told = {name: described.value for name, described in before.items()}
            thing = Thing(item, **({"count": 2 if item.meaning.many else 1} | told))
            if things and things[-1].item == previous:
                last = things.pop()
                astronaut = item.value == everyday.person != last.entry
                # The last word is what it is, as in "a saguaro cactus", but of "a cat astronaut".
                thing = merged(last, thing) if astronaut else merged(thing, last)
            things.append(thing)
            before.clear()
        elif kind in ("colour", "size", "count"):
            if kind == "count" or kind not in before:
                before[kind] = item
            if kind == "colour" and text[item.start - 1 : item.start] in (["is"], ["are"]):
                describe_last()
        elif kind in ("relation", "turned", "side", "place", "pause"):
            describe_last()
        elif kind in ("", "alone", "nothing") and word not in everyday.small:
            left_out.append(item)
            if things and "colour" in before and word not in everyday.materials:
                left_out.append(before.pop("colour"))  # "a cat with blue eyes"
    describe_last()
    kinds: dict[int, Thing] = {}
    for thing in things:
        if other := kinds.get(thing.entry):  # more of it, or the same again
            gap = range(other.item.end, thing.item.start)
            more = any(item.kind == "relation" and item.start in gap for item in items)
            both = merged(other, thing)
            thing = replace(both, count=other.count + thing.count) if more else both
        kinds[thing.entry] = thing
    return list(kinds.values()), left_out


def merged(thing: Thing, other: Thing) -> Thing:
    """A thing with what is said of another that is the same."""
    return replace(
        thing,
        count=max(thing.count, other.count),
        colour=thing.colour or other.colour,
        size=thing.size or other.size,
    )


def place_of(items: Sequence[Item]) -> tuple[Item | None, list[Item]]:
    """Where a prompt says that it is, and what else it says of that: a picture has one place.

    Before other places go colours, which are said on purpose; a noun goes before an adjective.
    """
    said = [item for kind in ("place", "adjective") for item in items if item.kind == kind]
    known = [item for item in said if item.value is not None]
    if not known:
        return None, said
    found = min(known, key=lambda item: not item.value.endswith("background"))
    return found, [item for item in said if item.value != found.value]


def words_of(text: Sequence[str], item: Item) -> str:
    return " ".join(text[item.start : item.end])
