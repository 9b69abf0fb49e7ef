"""Everyday words, and what they say in a small world: the phrases of a prompt, one by one.

The lexicon (`everyday_words.json`, ours, written by hand) names what people may call, or would take
in place of, what a world can show. What the world's own words mean goes before it, and what it
knows of other worlds is passed over. An emoji is what it is called (`emoji.json`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tfgen.hub import read_json
from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.misspelling import Misspelling
from tfgen.verifiers.prompt_text import clauses
from tfgen.verifiers.words import SPELLINGS, WordTokenizer, plural

LEXICON = Path(__file__).with_name("everyday_words.json")
EMOJI = Path(__file__).with_name("emoji.json")
OPEN, WORN = "and", "worn"  # relations: nothing said of where, and the second on the first
BETWEEN = 4  # words that may stand between "in" and the place: "in the deep dark old forest"
WALLS = ("on", "against", "over")  # after which a colour is a background: "isolated on white"
# Kinds of meanings that a phrase may have besides those that name an object.
BESIDE = ("noun", "adjective", "backdrop", "colour", "size")
# After which "orange" is a colour: "the fox is orange", "painted orange".
COLOURED = frozenset("is are be was were it's in painted dyed colored all bright dark".split())

# After which it is of what follows, known or not: "with orange hair".
WEARING = frozenset("with in has have wearing".split())

# What only says how an emoji is drawn: variation selectors and skin tones.
STYLE = dict.fromkeys([0xFE0E, 0xFE0F, *range(0x1F3FB, 0x1F400)])

Key = tuple[str, ...]


class Meaning(NamedTuple):
    """What a phrase says.

    kind: "object", "alone" (an object where nothing better is named), "colour", "count", "size",
    "side", "relation", "turned" (a relation of the second object to the first: "to its left"),
    "place" (with its preposition), "noun" (a place without), "adjective" (of a place), "backdrop"
    (where a colour before it is the place), "nothing" (words that only seem to name an object:
    "storybook illustration"), "aside" (of a part of something: "blue-eyed", "three-headed"),
    "pause" (no words at all), or "" for what nobody understands. value: an object's index in the
    world's table, a number, or the world's own phrase. many: of an object, several; of a number,
    that it must be of several, or it is none ("a 1920 car"). colour: of an object, that it has
    where the prompt says none (a polar bear's).
    """

    kind: str
    value: Any = None
    many: bool = False
    colour: str | None = None


NOTHING, PAUSE, ASIDE = Meaning(""), Meaning("pause"), Meaning("aside")


class Item(NamedTuple):
    """Words [start, end) of a prompt, and what they say."""

    start: int
    end: int
    meaning: Meaning = NOTHING

    @property
    def kind(self) -> str:
        return self.meaning.kind

    @property
    def value(self) -> Any:
        return self.meaning.value


class Everyday:
    """Reads prompts for the world that `words` describes."""

    def __init__(self, words: ContrastWords) -> None:
        self.words = words
        self.lexicon: dict[str, Any] = read_json(LEXICON)
        self.small = frozenset(self.lexicon["small words"])
        self.materials = frozenset(self.lexicon["materials"])
        self.parts = frozenset(key(phrase) for phrase in self.lexicon["parts"])
        names = [spec["name"] for spec in words.objects]
        self.person = names.index("person") if "person" in names else None

    @cached_property
    def table(self) -> dict[Key, dict[str, Meaning]]:
        """Phrase, as words -> its meaning of each kind; "orange" is an object and a colour."""
        table: dict[Key, dict[str, Meaning]] = {}
        for phrase, meaning in self._own():
            table.setdefault(key(phrase), {}).setdefault(meaning.kind, meaning)
        for phrase, meaning in self._everyday():  # a new meaning of a known phrase would hide it
            if key(phrase) not in table or meaning.kind in BESIDE:
                table.setdefault(key(phrase), {}).setdefault(meaning.kind, meaning)
        return table

    def _own(self) -> Iterator[tuple[str, Meaning]]:
        """What the world's own words mean, names before plurals that were only derived."""
        for i, spec in enumerate(self.words.objects):
            for phrase in (spec["name"], *spec["synonyms"]):
                yield phrase, Meaning("object", i)
            yield spec["plural"], Meaning("object", i, many=True)
        for i, spec in enumerate(self.words.objects):
            for phrase in spec["synonyms"]:
                yield plural(phrase), Meaning("object", i, many=True)
        for word in self.words.colours:
            yield word, Meaning("colour", word)
        for number, phrases in enumerate(self.words.counts[1:], start=2):
            for phrase in phrases:
                yield phrase, Meaning("count", number)
        groups = {
            "place": self.words.backgrounds,
            "relation": self.words.relations,
            "size": self.words.sizes,
            "side": self.words.places,
        }
        for kind, entries in groups.items():
            for phrases in entries:
                for phrase in phrases:
                    yield phrase, Meaning(kind, phrases[0])
        for joint in self.words.arrangements:
            for phrase in joint["open"]:
                yield phrase, Meaning("relation", OPEN)

    def _everyday(self) -> Iterator[tuple[str, Meaning]]:
        """What the lexicon adds, of what this world has."""
        yield from self._everyday_objects()
        own = {
            "place": [*self.words.backgrounds],
            "colour": [[word] for word in self.words.colours],
            "size": self.words.sizes,
            "relation": [*self.words.relations, [OPEN], [WORN]],
            "turned": self.words.relations,
            "side": self.words.places,
        }
        for section, entries in own.items():
            known = {phrase: phrases[0] for phrases in entries for phrase in phrases}
            for name, phrases in self.lexicon[section].items():
                ways = phrases if isinstance(phrases, dict) else {section: phrases}
                for kind, phrase in ((k, phrase) for k in ways for phrase in ways[k]):
                    if name in known:
                        yield phrase, Meaning(kind, known[name])
                        if kind == "noun":
                            yield plural(phrase), Meaning(kind, known[name])
        for number, (name, *_) in enumerate(self.words.counts, start=1):
            for phrase in self.lexicon["count"].get(name, ()):
                yield phrase, Meaning("count", number)
        for kind in ("backdrop", "nothing"):
            for phrase in self.lexicon[kind]:
                yield phrase, Meaning(kind)

    def _everyday_objects(self) -> Iterator[tuple[str, Meaning]]:
        index = {spec["name"]: (i, None) for i, spec in enumerate(self.words.objects)}
        for colour in self.words.colours:
            index |= {f"{colour} {name}": (i, colour) for name, (i, c) in index.items() if not c}
        for kind in ("object", "alone"):
            named = [
                (phrase, index[name])
                for name, phrases in self.lexicon[kind].items()
                if name in index
                for phrase in phrases
            ]
            for phrase, (i, colour) in named:
                yield phrase, Meaning(kind, i, colour=colour)
            for phrase, (i, colour) in named:
                yield plural(phrase), Meaning(kind, i, many=True, colour=colour)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.table))

    @cached_property
    def _before_places(self) -> set[Key]:
        """What may stand before a place: prepositions, and what else tells where something is."""
        found = {phrase for phrase, kinds in self.table.items() if "relation" in kinds}
        return found | {key(phrase) for phrase in self.lexicon["preposition"]}

    @cached_property
    def _misspelling(self) -> Misspelling:
        """Of single words that name an object, a colour, or a place of the world's own; plurals are
        not looked for, as too much looks like one."""
        named = {"object", "colour"}
        names = [
            word
            for (word, *more), kinds in self.table.items()
            if not more and any(m.kind in named and not m.many for m in kinds.values())
        ]
        own = {*self.words.colours, *(spec["name"] for spec in self.words.objects)}
        own |= {key(phrases[0])[-1] for phrases in self.words.backgrounds}
        known = {*self.small, *self.lexicon["right"], *(w for phrase in self.table for w in phrase)}
        return Misspelling(names, own, known)

    @cached_property
    def _emoji(self) -> dict[str, str]:
        return read_json(EMOJI)

    def spelled_out(self, prompt: str) -> str:
        """The prompt with its emoji in words; two things side by side are joined by "and"."""
        said, before = "", ""
        for part in re.split(f"([{''.join(self._emoji)}])", prompt.translate(STYLE)):
            words = self._emoji.get(part, "")
            both = self._names_object(before) and self._names_object(words)
            said += f" {'and ' if both else ''}{words} " if words else part
            before = words or (before if not part.strip() else "")
        return said

    def _names_object(self, phrase: str) -> bool:
        """Whether a phrase is no place, colour or relation, which need no "and"."""
        return bool(phrase) and not self.table.get(key(phrase), {}).keys() & {
            "place", "colour", "relation",
        }  # fmt: skip

    def scan(self, prompt: str) -> tuple[list[str], list[Item]]:
        """A prompt's words, and what they say, in order: those that say nothing one by one, and
        where a clause ends a "pause" of no words."""
        text: list[str] = []
        items: list[Item] = []
        for clause in clauses(prompt):
            at, words = 0, spelt(WordTokenizer.split(clause))
            if not words:
                continue
            while at < len(words):
                item = self._aside(words, at) or self._place(words, at) or self._phrase(words, at)
                item = item or Item(at, at + 1)
                items.append(item._replace(start=len(text) + at, end=len(text) + item.end))
                at = item.end
            text += words
            items.append(Item(len(text), len(text), PAUSE))
        return text, items

    def _meanings(self, text: list[str], at: int) -> tuple[int, dict[str, Meaning]]:
        """The end of the longest phrase that begins at a word, and its meanings; without one the
        end of the word, and those of an object that it is a misspelling of."""
        for end in range(min(at + self._longest, len(text)), at, -1):
            if meanings := self.table.get(tuple(text[at:end])):
                return end, meanings
        if text[at].isdigit() and int(text[at]) > 10:
            return at + 1, {"count": Meaning("count", len(self.words.counts), many=True)}
        if meant := self._misspelling.meant(text[at]):
            return at + 1, self.table.get((meant,), {})
        return at + 1, {}

    def _aside(self, text: list[str], at: int) -> Item | None:
        """Words that describe a part, alone or with the word before: "blue-eyed", "3 year old"."""
        before = self._meanings(text, at)[1].keys()
        if before and text[at + 1 : at + 2] == ["shaped"] and at + 2 < len(text):
            return Item(at, at + 2, ASIDE)  # "a banana-shaped car"
        if before - {"colour", "count", "size"}:
            return None
        for start in (at, at + 1):
            for end in range(min(start + 2, len(text)), start, -1):
                part = tuple(text[start:end])
                if part in self.parts and (before or part not in self.table):
                    return Item(at, end, ASIDE)
        return None

    def _phrase(self, text: list[str], at: int) -> Item | None:
        end, meanings = self._meanings(text, at)
        if "object" in meanings and "colour" in meanings:
            chosen = "colour" if self._is_colour(text, at, end) else "object"
        elif "object" in meanings and "size" in meanings:  # "a baby" or "a baby elephant"
            after = self._meanings(text, end)[1] if end < len(text) else {}
            chosen = "size" if "object" in after else "object"
        else:
            chosen = next(iter(meanings), None)
        if chosen == "relation" and "side" in self._meanings(text, end - 1)[1]:
            return Item(at, end - 1)  # "sitting on the left"
        return Item(at, end, meanings[chosen]) if chosen else None

    def _is_colour(self, text: list[str], at: int, end: int) -> bool:
        """Whether words that are a colour and an object are the first, as in "an orange old cat",
        "the cat is orange", "orange and red balloons"; in "an orange and a cat" they are not."""
        if at and (text[at - 1] in COLOURED or "object" in self._meanings(text, at - 1)[1]):
            return True
        following = text[end : end + 1]
        if not following:
            return False
        kinds = self._meanings(text, end)[1].keys()
        if kinds & {"object", "alone", "size", "colour"}:
            return True
        beyond = self._meanings(text, end + 1)[1].keys() if end + 1 < len(text) else set()
        if following[0] in (OPEN, "or"):
            return "colour" in beyond
        unknown = not kinds and following[0] not in self.small
        worn = WEARING & {*text[max(at - 2, 0) : at]} and not following[0].endswith("ing")
        return unknown and bool(worn or beyond & {"object", "alone"})

    def _place(self, text: list[str], at: int) -> Item | None:
        """A place that is named from a word on, perhaps with what says that it is one: "in the dark
        forest", "sitting on a wooden table", "sunset", "on a plain red wall"."""
        end, meanings = self._meanings(text, at)
        if "place" in meanings:
            ground = end < len(text) and text[end - 1] in self.words.colours
            stop, following = self._meanings(text, end) if ground else (end, {})
            if "noun" in following:  # "on green grass" is no green background
                return Item(at, stop, following["noun"]._replace(kind="place"))
            return Item(at, end, meanings["place"])
        reach = range(min(at + self._longest, len(text)), at, -1)
        begin = next((e for e in reach if tuple(text[at:e]) in self._before_places), at)
        if begin == at:
            return self._ground(text, at, at, wall=False)
        for here in range(begin, min(begin + BETWEEN, len(text) - 1) + 1):
            if text[here] in ("is", "are", "was", "were"):  # "the one on the left is red"
                break
            if found := self._ground(text, at, here, wall=text[begin - 1] in WALLS):
                return found
            if self._meanings(text, here)[1].keys() - {"colour", "size", "adjective"}:
                break
        return None

    def _ground(self, text: list[str], start: int, at: int, wall: bool) -> Item | None:
        """The place that begins with words from `start` on and is named at `at`, if one is.

        wall: it is "on" or "against" what comes, so that a colour alone is a place, too.
        """
        end, meanings = self._meanings(text, at)
        if "noun" in meanings and "object" not in meanings:
            stop, following = self._meanings(text, end) if end < len(text) else (end, {})
            if "noun" in following:  # "city buildings", "a mountain lake": the last is the place
                end, meanings = stop, following
            return Item(start, end, meanings["noun"]._replace(kind="place"))
        colour = meanings["colour"].value if "colour" in meanings else text[at]
        behind = self.table.get(key(f"on a {colour} background"), {}).get("place")
        if behind is None and "colour" not in meanings:
            return None
        stop, following = self._meanings(text, end) if end < len(text) else (end, {})
        if not following and stop < len(text):  # a word between, as in "a red brick wall"
            stop, following = self._meanings(text, stop)
        if "backdrop" in following or (wall and end == len(text)):
            return Item(start, stop, behind or Meaning("place"))  # "a purple wall" is none
        return None


def words_of(text: Sequence[str], item: Item) -> str:
    """What an item says, of a prompt's words."""
    return " ".join(text[item.start : item.end])


def key(phrase: str) -> Key:
    """The words of a phrase, in American spelling."""
    return tuple(spelt(WordTokenizer.split(phrase)))


def spelt(text: Iterable[str]) -> list[str]:
    """Words in American spelling."""
    return [SPELLINGS.get(word, word) for word in text]
