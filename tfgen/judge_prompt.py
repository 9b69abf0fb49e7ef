"""What a prompt in the sprite world's words asks for, as GenEval's metadata say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tfgen import hub
from tfgen.errors import InputError
from tfgen.verifiers.contrast import ContrastWords, Span
from tfgen.verifiers.rewording import Reworded, Rewording
from tfgen.verifiers.words import SMALL_WORDS

NAME, CONFIG_FILE, WORDS_FILE = "sprites-judge", "judge.json", "words.json"
RELATIONS = ("left of", "right of", "above", "below")  # in the order of the words' relations


@lru_cache(maxsize=4)
def vocabulary(folder: Path) -> tuple[ContrastWords, list[str]]:
    """A judge's words, and the names of its backgrounds in the words' order."""
    backgrounds = hub.read_json(folder / CONFIG_FILE).get("backgrounds", [])
    return ContrastWords.load(folder / WORDS_FILE), backgrounds


@lru_cache(maxsize=4)
def _rewording(folder: Path) -> Rewording:
    return Rewording(vocabulary(folder)[0])


def reword(prompt: str, folder: Path | None = None) -> Reworded:
    """The prompt in the words of the judge in `folder` (default: the packaged one); as it is where
    those say all of it, even if that is more than our pictures show."""
    rewording = _rewording(folder or hub.WEIGHTS / NAME)
    return Reworded(prompt, prompt) if rewording.covers(prompt) else rewording(prompt)


def metadata_of(prompt: str, folder: Path | None = None) -> dict[str, Any]:
    """GenEval's metadata of a prompt, said in the words of the judge in `folder` (default: the
    packaged one), with one key more: the background's name.

    A number ("one", "two", ...) is exact and so also excludes more; "a fox" and "foxes" ask for at
    least one and two. A relation is of the objects before and after it ("a fox above a car"), or,
    where none is before it, of the two after it ("above a car there is a fox"). Sizes and places
    ("a large fox on the left") are not judged. Of a place alone ("a snowy forest") nothing is
    included. Raises InputError where no object is named that the judge knows.
    """
    words, backgrounds = vocabulary(folder or hub.WEIGHTS / NAME)
    said = reword(prompt, folder)
    text, spans = words.parse(said.text)
    where = [s for s in spans if s.factor == "background"]
    nouns = [s for s in spans if s.factor == "object" and not said.added]
    if not nouns and not (said.added and where and not said.left_out):
        raise InputError(f"The judge knows no object in {prompt!r}: name one, as in 'a red fox'.")
    entries = []
    at = 0
    for noun in nouns:
        entries.append(_entry(words, text, [s for s in spans if at <= s.start < noun.start], noun))
        at = noun.end
    trailing = [s for s in spans if s.start >= at and s.factor == "colour"]
    if entries and trailing and "color" not in entries[-1]:  # "the fox is red"
        entries[-1]["color"] = words.colours[trailing[0].entry]
    order, position = _relations(spans, nouns)
    for i, (relation, target) in position.items():
        entries[i]["position"] = [relation, order.index(target)]
    counted = dict.fromkeys(e["class"] for e in entries if e.pop("exact"))
    include = [entries[i] for i in order]
    exclude = [
        {"class": c, "count": 1 + sum(e["count"] for e in include if e["class"] == c)}
        for c in counted
    ]
    metadata: dict[str, Any] = {"tag": _tag(include, exclude), "include": include}
    if exclude:
        metadata["exclude"] = exclude
    if where:
        metadata["background"] = backgrounds[where[0].entry]
    return metadata | {"prompt": prompt}


def unjudged(prompt: str, folder: Path | None = None) -> list[str]:
    """The words of a prompt, as it is said in the judge's words, that `metadata_of` makes nothing
    of, small words aside."""
    words, _ = vocabulary(folder or hub.WEIGHTS / NAME)
    text, spans = words.parse(reword(prompt, folder).text)
    read = {i for s in spans if s.factor not in ("size", "place") for i in range(s.start, s.end)}
    return [w for i, w in enumerate(text) if i not in read and w not in SMALL_WORDS]


def _entry(words: ContrastWords, text: list[str], before: list[Span], noun: Span) -> dict[str, Any]:
    """The `include` entry of a noun and the words before it; exact: whether a number is said."""
    entry: dict[str, Any] = {"class": words.objects[noun.entry]["name"]}
    entry["count"], entry["exact"] = (2 if noun.plural else 1), False
    for span in before:
        if span.factor == "colour":
            entry["color"] = words.colours[span.entry]
        elif span.factor == "count" and (span.entry > 0 or not noun.plural):
            article = text[span.start] in ("a", "an", "the") and span.entry == 0
            entry["count"], entry["exact"] = span.entry + 1, not article
    return entry


def _relations(
    spans: Sequence[Span], nouns: Sequence[Span]
) -> tuple[list[int], dict[int, tuple[str, int]]]:
    """The order in which nouns are included, targets of relations first as GenEval wants it, and
    by noun its relation and target."""
    position: dict[int, tuple[str, int]] = {}
    for span in spans:
        if span.factor != "relation":
            continue
        after = [i for i, noun in enumerate(nouns) if noun.start >= span.end]
        before = [i for i, noun in enumerate(nouns) if noun.end <= span.start]
        subject, target = (before[-1:], after[:1]) if before else (after[1:2], after[:1])
        if subject and target:
            position[subject[0]] = (RELATIONS[span.entry], target[0])
    order: list[int] = []

    def include(i: int) -> None:
        if i not in order:
            if i in position:
                include(position[i][1])
            order.append(i)

    for i in range(len(nouns)):
        include(i)
    return order, position


def _tag(include: Sequence[Mapping[str, Any]], exclude: Sequence[Any]) -> str:
    """GenEval's task."""
    if any("position" in e for e in include):
        return "position"
    colours = sum("color" in e for e in include)
    if colours:
        return "color_attr" if len(include) > 1 else "colors"
    if exclude:
        return "counting"
    return "two_object" if len(include) > 1 else "single_object"
