"""Contrast captions: the prompt with one thing said differently.

A bare similarity can be raised by anything the prompt's words go with. A picture that must fit
"a red fox in snow" better than "a blue fox in snow", "a red car in snow" and "a red fox on a beach"
has to show the fox, the red and the snow. The words that can be exchanged are data
(`ContrastWords`): for the sprite world they are shipped with its verifier, for other models with
the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tfgen.errors import InputError
from tfgen.hub import read_json
from tfgen.verifiers.words import SPELLINGS, WordTokenizer, article, plural

OPTIONAL = frozenset({"arrangements", "sizes", "places", "nothing"})
FACTORS = ("object", "colour", "background", "count", "relation", "size", "place")

# Words that part a noun from the words before it: what precedes them does not describe it.
BREAKS = frozenset(
    "and or of with without in on at by to from for over under near is are has have that".split()
)


@dataclass(frozen=True)
class Span:
    """Words [start, end) of a prompt that name entry `entry` of a factor's table.

    plural: of an object, whether several are named.
    """

    factor: str
    entry: int
    start: int
    end: int
    plural: bool = False


@dataclass(frozen=True)
class ContrastWords:
    """What can be said, factor by factor; the first way to say an entry is the one swaps use.

    objects: per object {"name", "plural", "synonyms"}, optionally "natural_colours", the colours a
    person would call it by as it is (a fox fits "a red fox" and "an orange fox"), and "kinds", the
    names of other objects that are kinds of it (a parrot fits "a bird"); colours: words;
    backgrounds: per background its phrases ("in snow", "in the snow"); counts: per number, from 1,
    its words; relations: per relation its phrases, as opposites in turn (0 and 1, 2 and 3);
    arrangements: {"open": phrases that join two objects and leave open which is where, "among":
    phrases that say it, one for each arrangement to be told apart}; sizes, places: per entry its
    words; nothing: captions, perhaps empty, that the verifier knows to mean pictures in which
    nothing can be made out.
    """

    objects: list[dict[str, Any]]
    colours: list[str]
    backgrounds: list[list[str]]
    counts: list[list[str]]
    relations: list[list[str]]
    arrangements: list[dict[str, list[str]]] = field(default_factory=list)
    sizes: list[list[str]] = field(default_factory=list)
    places: list[list[str]] = field(default_factory=list)
    nothing: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> ContrastWords:
        """From a JSON object with these fields; InputError where it is another."""
        data = read_json(path)
        known = {f.name for f in fields(cls)}
        required = known - OPTIONAL
        if not (required <= set(data) <= known and all(isinstance(v, list) for v in data.values())):
            raise InputError(
                f"{str(path)!r} holds no contrast words: it must have the lists "
                f"{', '.join(sorted(required))}, and may have {', '.join(sorted(OPTIONAL))}."
            )
        words = cls(**data)
        try:
            words._table, words._joints  # noqa: B018  reads every entry
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{str(path)!r} holds no contrast words that can be read: an entry lacks or has "
                f"a wrong value ({type(error).__name__}: {error})."
            ) from error
        return words

    def examples(self) -> list[str]:
        """Some of the objects, in the plural, to tell what can be said."""
        return [spec["plural"] for spec in self.objects[:12]]

    def _entries(self, factor: str) -> list[list[str]]:
        """The phrases of each entry of a factor's table, for all factors but objects."""
        if factor == "colour":
            return [[c] for c in self.colours]
        return getattr(self, factor + "s")

    @cached_property
    def _table(self) -> dict[tuple[str, ...], dict[str, tuple[int, bool]]]:
        """Phrase, as words -> by factor: the entry it names, and whether in the plural.

        Few have more than one factor: "orange" is both an object and a colour.
        """
        table: dict[tuple[str, ...], dict[str, tuple[int, bool]]] = {}

        def add(phrase: str, factor: str, entry: int, many: bool = False) -> None:
            table.setdefault(tuple(_spelt(phrase)), {}).setdefault(factor, (entry, many))

        for i, spec in enumerate(self.objects):
            for phrase in (spec["name"], *spec["synonyms"]):
                add(phrase, "object", i)
            add(spec["plural"], "object", i, True)
        # Derived plurals come last, so that no real phrase gives way to one.
        for i, spec in enumerate(self.objects):
            for synonym in spec["synonyms"]:
                add(plural(synonym), "object", i, True)
        for factor in FACTORS[1:]:
            for i, phrases in enumerate(self._entries(factor)):
                for phrase in phrases:
                    add(phrase, factor, i)
        return table

    @cached_property
    def _joints(self) -> dict[tuple[str, ...], list[list[str]]]:
        """What leaves an arrangement open, as words -> what says one, as words."""
        return {
            tuple(_spelt(phrase)): [WordTokenizer.split(text) for text in joint["among"]]
            for joint in self.arrangements
            for phrase in joint["open"]
        }

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._table), default=0)

    def parse(self, prompt: str) -> tuple[list[str], list[Span]]:
        """The prompt's words and what they name, the longest phrase first at each place."""
        words, keys = WordTokenizer.split(prompt), _spelt(prompt)
        spans: list[Span] = []
        at = 0
        while at < len(words):
            span = self._span(keys, at)
            if span is not None:
                spans.append(span)
            at = span.end if span else at + 1
        for i, span in enumerate(spans):
            if span.factor == "object" and not span.plural:  # "two fish", "two scissors"
                count = _noun_phrase(keys, spans, span)[1]
                spans[i] = replace(span, plural=count is not None and count.entry > 0)
        return words, spans

    def _span(self, keys: list[str], at: int) -> Span | None:
        """What the words from `at` on name, if anything."""
        for end in range(min(at + self._longest, len(keys)), at, -1):
            meanings = self._table.get(tuple(keys[at:end]), {})
            factor = next(iter(meanings), None)
            if factor == "object" and "colour" in meanings:  # "an orange" or "an orange cat"
                noun = self._span(keys, end) if end < len(keys) else None
                factor = "colour" if noun and noun.factor in ("object", "size") else "object"
            if factor == "count":  # "a pair of" gives way to "pair of scissors"
                longer = (self._span(keys, i) for i in range(at + 1, end))
                if any(s and s.factor == "object" and s.end > end for s in longer):
                    continue
            if factor is not None:
                entry, many = meanings[factor]
                return Span(factor, entry, at, end, many)
        return None

    def arranged(self, caption: str) -> list[str]:
        """The ways to say where the two objects of a caption are that leaves it open ("a dog and a
        cat": which is on the left?); nothing where there are not two, or their places are said."""
        words, spans = self.parse(caption)
        objects = [span for span in spans if span.factor == "object"]
        if len(objects) != 2 or any(span.factor == "relation" for span in spans):
            return []
        first, second = objects
        start, count = _noun_phrase(words, spans, second)
        begin = count.start if count else start
        joint = self._joints.get(tuple(_spelt(" ".join(words[first.end : begin]))), [])
        return [" ".join([*words[: first.end], *said, *words[begin:]]) for said in joint]

    def beside(self, prompt: str) -> list[list[str]]:
        """Of a prompt that names two objects, what each of them is called beside any other: for
        each, the prompt with the other one, as the prompt describes it, exchanged for every object
        that is neither. Of other prompts nothing."""
        words, spans = self.parse(prompt)
        objects = [span for span in spans if span.factor == "object"]
        if len(objects) != 2:
            return []
        named = {span.entry for span in objects}
        others = [spec["name"] for i, spec in enumerate(self.objects) if i not in named]
        captions = []
        for other in reversed(objects):
            start, count = _noun_phrase(words, spans, other)
            before, after = words[: count.start if count else start], words[other.end :]
            if before and before[-1] in ("a", "an", "the"):
                before = before[:-1]
            each = ([*before, "a", *WordTokenizer.split(name), *after] for name in others)
            captions.append([" ".join(agree(caption)) for caption in each])
        return captions

    def swaps(self, prompt: str) -> dict[str, list[str]]:
        """Contrast captions of a prompt by factor, without the prompt itself or repeats.

        Every named object, colour and background is exchanged for every other; counts for other
        counts; relations for other relations; of two objects each is also left alone, in every
        number; their colours and, where a relation is said, their places are exchanged. An object
        whose colour is not said is given each colour that is not natural to it. Not exchanged: a
        natural colour of an object for another natural one, and an object for a kind of it.
        """
        words, spans = self.parse(prompt)
        by_factor = {f: [s for s in spans if s.factor == f] for f in FACTORS}
        objects, colours = by_factor["object"], by_factor["colour"]
        out: dict[str, list[str]] = {f: [] for f in FACTORS}
        same = {" ".join(words), " ".join(agree(words))}

        def put(factor: str, caption: list[str]) -> None:
            text = " ".join(agree(caption))
            if text not in same:
                same.add(text)
                out[factor].append(text)

        def replaced(*edits: tuple[Span, str]) -> list[str]:
            """The prompt with each span exchanged for its text."""
            result, at = [], 0
            for span, text in sorted(edits, key=lambda e: e[0].start):
                result += [*words[at : span.start], *WordTokenizer.split(text)]
                at = span.end
            return [*result, *words[at:]]

        for span in objects:
            kinds = self.objects[span.entry].get("kinds", ())
            for i, spec in enumerate(self.objects):
                if i != span.entry and spec["name"] not in kinds:
                    put("object", replaced((span, spec["plural" if span.plural else "name"])))
        for span in colours:
            natural = self._natural_colours(words, spans, span)
            for i, colour in enumerate(self.colours):
                if i != span.entry and colour not in natural:
                    put("colour", replaced((span, colour)))
        for noun in objects:
            natural = self.objects[noun.entry].get("natural_colours", [])
            begin = _noun_phrase(words, spans, noun)[0]
            if natural and not any(begin <= c.start < noun.start for c in colours):
                # Nobody who says "a pizza" means a purple one.
                named = " ".join(words[noun.start : noun.end])
                for colour in self.colours:
                    if colour not in natural:
                        put("colour", replaced((noun, f"{colour} {named}")))
        for factor in ("background", "relation", "size", "place"):
            for span in by_factor[factor]:
                for i, phrases in enumerate(self._entries(factor)):
                    if i != span.entry:
                        put(factor, replaced((span, phrases[0])))
        for noun in objects:
            self._renumber(words, spans, noun, len(objects) == 1, put)
        if len(objects) == 2:
            alone: list[list[str]] = []
            _single_out(words, spans, *objects, lambda _, caption: alone.append(caption))
            for caption in alone:
                put("count", caption)
            # Three of one kind are no two kinds either, and a search comes upon them.
            for caption in alone:
                its_words, its_spans = self.parse(" ".join(caption))
                for noun in its_spans:
                    if noun.factor == "object" and not noun.plural:
                        self._renumber(its_words, its_spans, noun, True, put)
        if len(objects) == 2 and len(colours) == 2 and colours[0].entry != colours[1].entry:
            a, b = colours
            put("colour", replaced((a, self.colours[b.entry]), (b, self.colours[a.entry])))
        if len(objects) == 2 and by_factor["relation"] and objects[0].entry != objects[1].entry:
            a, b = objects
            put("relation", replaced((a, self._named(words, b, a)), (b, self._named(words, a, b))))
        return out

    def _named(self, words: list[str], noun: Span, place: Span) -> str:
        """What `noun` is called where `place` is: in the prompt's words, if the number agrees."""
        if noun.plural == place.plural:
            return " ".join(words[noun.start : noun.end])
        return self.objects[noun.entry]["plural" if place.plural else "name"]

    def _natural_colours(self, words: list[str], spans: list[Span], colour: Span) -> list[str]:
        """The natural colours of the object that has `colour`, if that is one of them."""
        for noun in spans:
            if noun.factor == "object" and noun.start >= colour.end:
                natural = self.objects[noun.entry].get("natural_colours", [])
                described = _noun_phrase(words, spans, noun)[0] <= colour.start
                return natural if described and self.colours[colour.entry] in natural else []
        return []

    def _renumber(
        self,
        words: list[str],
        spans: list[Span],
        noun: Span,
        alone: bool,
        put: Callable[[str, list[str]], None],
    ) -> None:
        """The prompt with other numbers of `noun`; where it is not alone, only if it says one."""
        start, count = _noun_phrase(words, spans, noun)
        many = count is not None and count.entry > 0
        if not (alone or many):
            return
        spec = self.objects[noun.entry]
        begin = count.start if count else start
        between = words[count.end if count else start : noun.start]
        for i, number in enumerate(self.counts):
            if noun.plural and not many and i > 0:  # "foxes" are any number of them but one
                continue
            if i == (count.entry if count else 0) and not (noun.plural and not many):
                continue
            named = words[noun.start : noun.end]
            if (i > 0) != noun.plural:
                named = WordTokenizer.split(spec["plural" if i else "name"])
            put("count", [*words[:begin], number[0], *between, *named, *words[noun.end :]])


def _spelt(text: str) -> list[str]:
    """The words of a text, in American spelling."""
    return [SPELLINGS.get(w, w) for w in WordTokenizer.split(text)]


def _noun_phrase(words: list[str], spans: list[Span], noun: Span) -> tuple[int, Span | None]:
    """Where the noun's own words ("a large red") begin, and what counts it: its number or article.

    Words that nothing is known about between a number and its noun ("two fluffy cats") are its own.
    """
    covering = {i: s for s in spans for i in range(s.start, s.end)}
    start = at = noun.start
    while at > 0:
        span = covering.get(at - 1)
        if span is None and words[at - 1] not in BREAKS:
            at -= 1
        elif span is not None and span.factor in ("colour", "size"):
            start = span.start if start == at else start
            at = span.start
        elif span is not None and span.factor == "count":
            of_one = words[span.start : span.end] in (["a"], ["an"], ["one"])
            return (start, None) if of_one and noun.plural else (span.start, span)
        else:
            break
    return start, None


def _single_out(
    words: list[str],
    spans: list[Span],
    first: Span,
    second: Span,
    put: Callable[[str, list[str]], None],
) -> None:
    """Each of two objects without the other, in the same surroundings."""
    opening, begin = (_noun_phrase(words, spans, noun)[0] for noun in (first, second))
    where = [
        word
        for span in spans
        if span.factor == "background" and first.end <= span.start < begin
        for word in words[span.start : span.end]
    ]
    rest = [*where, *words[second.end :]]
    put("count", [*words[: first.end], *rest])
    put("count", [*words[:opening], *words[begin : second.end], *rest])


def agree(words: list[str]) -> list[str]:
    """The words with "a" and "an" chosen by the sound that follows."""
    out = list(words)
    for i, word in enumerate(out[:-1]):
        if word in ("a", "an"):
            out[i] = article(out[i + 1])
    return out
