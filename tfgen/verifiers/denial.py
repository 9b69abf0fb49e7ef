"""What a prompt names and its picture does not show: what is denied, and what is only compared
with."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen.verifiers.everyday import OPEN, Item, words_of

# Words after which what is named is not to be shown; after the second kind, only what is named
# with an article, or so: "a not so friendly dog" is a dog.
WITHOUT = frozenset(
    "no without except excluding exclude avoid avoiding minus lacking remove neither nor never "
    "sans omit skip shouldn't mustn't can't cannot won't hate hates".split()
)
NOT = frozenset("not non isn't aren't wasn't don't doesn't".split())
PAIRS = (
    ["instead", "of"],
    ["rather", "than"],
    ["free", "of"],
    ["other", "than"],
    ["devoid", "of"],
    ["void", "of"],
    ["leave", "out"],
    ["anything", "but"],
    ["everything", "but"],
)
ALL_THAT_FOLLOWS = ["negative", "prompt"]
NAMING = frozenset(
    "a an the any add adding draw drawing show showing include including want wanting have having "
    "put use using really actually anywhere".split()
)
AGAIN = frozenset(["but", "just", "only"])  # what is to be shown goes on
ALSO = frozenset(["or", "nor"])

# Words between which and a noun nothing but the noun's description stands, if it is an example.
EXAMPLES = (["similar", "to"], ["size", "of"], ["shape", "of"], ["form", "of"], ["color", "of"])
WISHES = frozenset(["would", "i'd", "i", "you'd", "we'd", "rather", "other", "more"])
NAMED = ("object", "alone", "place")


def affirmed(
    text: Sequence[str], items: Sequence[Item], small: frozenset[str]
) -> tuple[list[Item], list[Item]]:
    """What a prompt says that its picture shows, and what it says that it does not: of "no", "not
    a" or "without" the next thing or place, or a list of them, and all that describes it. small:
    words that say nothing."""
    kept: list[Item] = []
    denied: list[Item] = []
    since: int | None = None  # the word that denies, until what it denies was named
    described = False
    for place, item in enumerate(items):
        word = text[item.start] if item.end > item.start else ""
        two = text[item.start : item.start + 2] if word else []
        if two == ALL_THAT_FOLLOWS:
            denied += [i for i in items[place:] if i.start >= item.start + 2]
            break
        if word in WITHOUT | NOT or two in PAIRS:
            since, described = item.start, False
        elif since is None:
            kept.append(item)
        elif item.kind == "pause":
            if not _goes_on(text, items[place:]):
                since = None
                kept.append(item)
        elif word in AGAIN and text[since : since + 2] not in PAIRS:
            since = None
        elif described and item.kind in ("relation", "turned", "side", "place"):
            since = None  # "that isn't blue, but in the snow"
            kept.append(item)
        elif item.kind in NAMED:
            denied.append(item)
            if not _goes_on(text, items[place + 1 :]):
                since = None
        else:
            denied.append(item)
            unknown = not item.kind and word not in small | NAMING | ALSO
            described |= unknown or item.kind in ("colour", "count", "size")
            named = NAMING & {*text[since + 1 : item.start]}
            if text[since] == "non" or (unknown and text[since] in NOT and not named):
                since = None
    said = (i for i in denied if i.kind or words_of(text, i) not in small | ALSO)
    return kept, [item for item in said if item.kind != "pause"]


def _goes_on(text: Sequence[str], items: Sequence[Item]) -> bool:
    """Whether these go on a list: ", dogs, or birds" and "and cars"."""
    for place, item in enumerate(items):
        word = text[item.start] if item.end > item.start else ""
        if word in ALSO:
            return True
        if place == 0 and word == OPEN:
            return any(i.kind == "object" and i.meaning.many for i in items[1:2])
        if item.kind != "pause" and (place == 0 or item.kind not in ("object", "alone")):
            return False
    return False


def compared(
    text: Sequence[str], items: Sequence[Item], small: frozenset[str]
) -> tuple[list[Item], list[Item]]:
    """What a prompt says that its picture shows, and what it only compares that with: "a dog like
    a bear", "as red as a rose", "bigger than a house"; where it shows nothing else, all of it."""
    kept: list[Item] = []
    examples: list[Item] = []
    comparing = False
    for item in items:
        if item.end > item.start and _compares(text, item):
            comparing = True
        elif comparing and item.kind in NAMED:
            comparing = False
            examples.append(item)
        elif comparing and item.kind in ("colour", "size", "adjective"):
            examples.append(item)
        elif comparing and words_of(text, item) in small:
            kept.append(item)
        else:
            comparing = False
            kept.append(item)
    if not examples or not any(item.kind in ("object", "alone") for item in kept):
        return list(items), []
    return kept, examples


def _compares(text: Sequence[str], item: Item) -> bool:
    word, before = text[item.end - 1], text[max(item.start - 3, 0) : item.start]
    if word == "like":
        wished = before[-1:] and before[-1] in WISHES
        return not wished and text[item.end : item.end + 1] in (["a"], ["an"], ["the"])
    if word == "than":
        return not (before[-1:] and before[-1] in WISHES)
    if word in ("resembling", "resembles"):
        return True
    return (word == "as" and "as" in before) or text[item.start : item.start + 2] in EXAMPLES
