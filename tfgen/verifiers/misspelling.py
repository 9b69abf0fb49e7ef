"""Misspelt names: which of the words that are known somebody has meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import SequenceMatcher

SHORT = 7  # letters: of anything shorter, one more or less is mostly another word
SHORTEST = 4  # of names in which two letters are exchanged
LONG, ALIKE = 9, 0.88  # letters from which two slips are forgiven, by difflib's ratio


class Misspelling:
    """Knows what words are meant by misspelt ones.

    names: the words that may be meant. likely: those of them that are, even if they are a letter
    shorter than others. right: words that are spelt as they are meant, though they look like one
    of the names: "terrain" is no terrapin.
    """

    def __init__(
        self, names: Iterable[str], likely: Collection[str] = (), right: Collection[str] = ()
    ) -> None:
        self.right, self._likely = right, sorted(likely)
        self._names: dict[str, list[str]] = {}  # by the first letter, which few get wrong
        for name in sorted({*names, *likely}):
            if len(name) >= SHORT - (name in likely) and name.isalpha():
                self._names.setdefault(name[0], []).append(name)

    def meant(self, word: str) -> str | None:
        """The name that a word is a misspelling of; None where it is none."""
        if not word.isalpha() or word in self.right:
            return None
        for name in self._likely:  # neighbours exchanged are no other word, however short
            if len(name) == len(word) >= SHORTEST and exchanged(word, name):
                return name
        if len(word) < SHORT - 2:
            return None
        names = self._names.get(word[0], ())
        near = [n for n in names if one_slip(word, n) or alike(word, n)]
        near = [n for n in near if not word.startswith(n)]  # a skateboarder is no skateboard
        return max(
            near, key=lambda name: (SequenceMatcher(None, word, name).ratio(), name), default=None
        )


def one_slip(word: str, name: str) -> bool:
    """Whether a letter too many, too few, or wrong, or two exchanged, makes one of the other."""
    short, long = sorted((word, name), key=len)
    if len(short) != len(long):
        return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
    return sum(a != b for a, b in zip(word, name, strict=True)) == 1 or exchanged(word, name)


def exchanged(word: str, name: str) -> bool:
    """Whether two neighbouring letters, not the first, are exchanged."""
    wrong = [i for i, (a, b) in enumerate(zip(word, name, strict=True)) if a != b]
    if len(wrong) != 2 or wrong[1] != wrong[0] + 1 or wrong[0] == 0:
        return False
    first, second = wrong
    return word[first] == name[second] and word[second] == name[first]


def alike(word: str, name: str) -> bool:
    return min(len(word), len(name)) >= LONG and SequenceMatcher(None, word, name).ratio() >= ALIKE
