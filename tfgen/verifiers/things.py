"""What a prompt describes, of what its phrases say: its things, and its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tfgen.verifiers.everyday import OPEN, Everyday, Item, words_of

# With these, what a noun is called begins.
ARTICLES = frozenset("a an the this that its his her their my our your".split())
ONE = frozenset(["one", "another"])
OWNERS = frozenset("whose its his her their with".split())  # of a part


@dataclass(frozen=True)
class Thing:
    """An object as the prompt describes it. item: its noun; said: what tells of it, by kind
    ("count", "colour", "size"); more: the number of others that are mentioned apart."""

    item: Item
    said: dict[str, Item]
    more: int = 0

    @property
    def entry(self) -> int:
        return self.item.value

    @property
    def count(self) -> int:
        own, said = self.item.meaning, self.said.get("count")
        if said is None or (said.meaning.many and not own.many):
            return (2 if own.many else 1) + self.more
        return said.value + self.more

    @property
    def colour(self) -> str | None:
        """None where the prompt says none."""
        return self.said["colour"].value if "colour" in self.said else self.item.meaning.colour

    @property
    def size(self) -> str | None:
        return self.said["size"].value if "size" in self.said else None

    def in_colour(self, colour: Item) -> Thing:
        return replace(self, said=self.said | {"colour": colour})

    def with_more(self, told: dict[str, Item]) -> Thing:
        """With what is told of it besides, where nothing of the kind was said."""
        return replace(self, said=told | self.said)


def things_of(
    text: Sequence[str], items: Sequence[Item], everyday: Everyday
) -> tuple[list[Thing], list[Item]]:
    """The objects that a prompt names, each kind once or, in two colours, twice; and what nothing
    is made of."""
    reader = _Reader(text, everyday)
    named = {item.kind for item in items}
    for place, (previous, item) in enumerate(zip([None, *items], items, strict=False)):
        kind, word = item.kind, words_of(text, item)
        if word == "one" and reader.another(item, previous):  # "a red car and a blue one"
            continue
        if word == OPEN and _joins_colours(previous, items[place + 1 :]):
            continue
        if kind == "object" or (kind == "alone" and "object" not in named):
            reader.thing(item, previous)
        elif kind in ("colour", "size", "count"):
            following = items[place + 1].kind if place + 1 < len(items) else "pause"
            begins = previous is None or previous.kind == "pause"
            reader.description(item, begins, begins and following == "pause")
        elif kind in ("relation", "turned", "side", "pause", "place"):
            reader.end(item)
        elif kind == "aside" or (kind != "adjective" and word not in everyday.small):
            reader.unknown(item)
        elif word in ARTICLES:
            reader.article()
    reader.end()
    return _each_once(reader.things, items, reader.left_out), reader.left_out


def _joins_colours(previous: Item | None, following: Sequence[Item]) -> bool:
    """Whether "and" stands between two colours: "a red and a blue balloon"."""
    after = [item for item in following[:2] if item.kind]
    return bool(after) and previous is not None and {previous.kind, after[0].kind} == {"colour"}


class _Reader:
    """Reads from left to right; holds what was said so far."""

    def __init__(self, text: Sequence[str], everyday: Everyday) -> None:
        self.text, self.everyday = text, everyday
        self.things: list[Thing] = []
        self.left_out: list[Item] = []
        self.before: dict[str, Item] = {}  # what describes the next object, or else the last one
        self.second: Item | None = None  # a further colour: "red and blue balloons"
        self.number: Item | None = None  # one that stands alone: "cats, 3"
        self.part: Item | None = None  # what nobody understands, since the last thing
        self.of_a_part = False  # it describes what nobody understands: "with blue eyes"

    def thing(self, item: Item, previous: Item | None) -> None:
        """An object, which has what was said before it."""
        thing, things = Thing(item, dict(self.before)), self.things
        if things and things[-1].item == previous:
            last = things.pop()
            # The last word is what it is, as in "a saguaro cactus", but of "a cat astronaut".
            astronaut = item.value == self.everyday.person != last.entry
            if thing.entry != last.entry:
                self.left_out.append(item if astronaut else last.item)
            thing = last.with_more(thing.said) if astronaut else also(thing, last)
        things.append(thing)
        if self.second is not None:
            if item.meaning.many or self.text[self.second.start - 1] in ARTICLES | ONE:
                things.append(thing.in_colour(self.second))
            else:  # "a red and white lighthouse"
                self.left_out.append(self.second)
        self.part = None
        self._forget()

    def another(self, item: Item, previous: Item | None) -> bool:
        """Whether "one" after a colour is another of the last thing; if so, it is."""
        if not self.things or previous is None or previous.kind != "colour":
            return False
        meaning = self.things[-1].item.meaning
        if not meaning.many:
            self.thing(item._replace(meaning=meaning), None)
        return not meaning.many

    def description(self, item: Item, begins: bool, alone: bool) -> None:
        """A colour, a size or a number. begins: after a pause; alone: before one, too."""
        kind, said = item.kind, self.before.get(item.kind)
        if kind == "colour" and self._of_the_part(item):
            self.left_out.append(item)
            return
        between = self.text[said.end : item.start] if said else []
        listed = between[:1] in ([OPEN], ["one"]) or (begins and not self.things)
        if kind == "colour" and said is not None and listed and self.second is None:
            self.second = item
        elif said is not None:
            self.left_out.append(said if kind == "count" else item)
        if kind == "count" or said is None:
            self.before[kind] = item
        if kind == "count" and alone:
            self.number = item
        if kind == "colour" and self.text[item.start - 1 : item.start] in (["is"], ["are"]):
            self.end()

    def _of_the_part(self, colour: Item) -> bool:
        """Whether a colour is said of a part that nobody understands: "whose eyes are green"."""
        if self.part is None or not self.things:
            return False
        start = self.part.start
        said = {*self.text[self.part.end : colour.start]} & {"is", "are", "was", "were", "painted"}
        return bool(said and {*self.text[max(start - 2, 0) : start]} & OWNERS)

    def unknown(self, item: Item) -> None:
        self.left_out.append(item)
        self.part = item
        material = words_of(self.text, item) in self.everyday.materials
        self.of_a_part |= bool(self.before) and item.kind != "aside" and not material

    def article(self) -> None:
        """Another noun begins: "in a white toque, cutting a melon"."""
        if self.of_a_part:
            self.left_out += self.before.values()
            self._forget()

    def end(self, item: Item | None = None) -> None:
        """A part of the prompt ends. What stands after a thing tells of it: "the fox is red",
        "cacti, three of them". item: what comes next."""
        before = self.before
        if item is not None and item.kind == "place" and self._describes(item):
            self.left_out.append(before.pop("colour"))  # "white snow"
        if not self.things:  # it may be said of one that follows
            before.pop("count", None)
            self.of_a_part = False
            return
        last = self.things[-1]
        told: dict[str, Item] = {}
        if not self.of_a_part:
            told = {kind: item for kind, item in before.items() if kind not in last.said}
            if "count" in told and not (last.item.meaning.many and self._counts(told["count"])):
                del told["count"]
            self.things[-1] = last.with_more(told)
            if another := self._another(last, told):  # "two dogs, one black and one white"
                self.things.append(last.in_colour(another))
                told["colour"] = before["colour"]
                self.second = None if self.second is another else self.second
        self.left_out += [item for kind, item in before.items() if kind not in told]
        self.left_out += [self.second] if self.second else []
        self._forget()

    def _another(self, last: Thing, told: dict[str, Item]) -> Item | None:
        """Of the colours after a noun in the plural, a second one."""
        if not last.item.meaning.many or "colour" not in self.before:
            return None
        own = last.said.get("colour")
        if own is not None and own.start > last.item.start:
            return self.before["colour"]
        return self.second if "colour" in told else None

    def _counts(self, count: Item) -> bool:
        """Whether a number after its noun counts it: "three of them", "the cats are three"."""
        text = self.text
        return (
            count is self.number
            or text[count.end : count.end + 1] == ["of"]
            or text[count.start - 1] in ("is", "are")
        )

    def _describes(self, place: Item) -> bool:
        """Whether the colour before a place is the place's."""
        colour, word = self.before.get("colour"), self.text[place.start]
        bare = word not in self.everyday.lexicon["preposition"]
        return colour is not None and colour.end == place.start and bare

    def _forget(self) -> None:
        self.before.clear()
        self.second, self.of_a_part = None, False


def _each_once(things: list[Thing], items: Sequence[Item], left_out: list[Item]) -> list[Thing]:
    """Of several mentions of one kind: more of it, the same again, or one of another colour."""
    found: list[Thing] = []
    for thing in things:
        same = [t for t in found if t.entry == thing.entry]
        fits = [t for t in same if None in (t.colour, thing.colour) or t.colour == thing.colour]
        if not fits:
            found.append(thing)
            continue
        other = fits[0]
        gap = range(other.item.end, thing.item.start)
        if any(item.kind == "relation" and item.start in gap for item in items):
            told = {kind: item for kind, item in thing.said.items() if kind == "size"}
            both = replace(other.with_more(told), more=other.more + thing.count)
        else:
            both = also(thing, other)
        left_out += [item for item in thing.said.values() if item not in both.said.values()]
        found[found.index(other)] = both
    return found


def also(thing: Thing, other: Thing) -> Thing:
    """A thing with what is said of another mention of it."""
    both = thing.with_more(other.said)
    if other.count <= both.count:
        return both
    if "count" in other.said:
        return replace(both, said=both.said | {"count": other.said["count"]})
    many = thing.item.meaning._replace(many=True)
    return replace(both, item=thing.item._replace(meaning=many))


def place_of(
    text: Sequence[str], items: Sequence[Item], everyday: Everyday
) -> tuple[Item | None, list[Item]]:
    """Where a prompt says that it is, and what else it says of that: a picture has one place.

    Before other places go colours, which are said on purpose; a noun goes before an adjective, and
    before what may be anywhere, such as a road or a table.
    """
    anywhere = set(everyday.lexicon["anywhere"])
    said = [item for kind in ("place", "adjective") for item in items if item.kind == kind]
    known = [item for item in said if item.value is not None]
    if not known:
        return None, said

    def doubt(item: Item) -> tuple[bool, bool, bool]:
        coloured = item.value.endswith("background")
        return not coloured, item.kind == "adjective", text[item.end - 1] in anywhere

    found = min(known, key=doubt)
    return found, [item for item in said if item.value != found.value]
