"""A closed vocabulary of words: the text side of small CLIP models trained on a small world."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tfgen.errors import InputError
from tfgen.hub import read_json

PAD, UNKNOWN, START = 0, 1, 2

# What captions have beside what they name.
SMALL_WORDS = frozenset(
    "a an the of and or with in on at to by is are there some this that show me it its which photo "
    "photograph picture image drawing render scene 3d colored coloured".split()
)

# British spellings of words that captions have in American English.
SPELLINGS = {"grey": "gray", "colour": "color", "coloured": "colored"}

# The first pattern that a noun's end matches tells its plural.
PLURALS = tuple(
    (re.compile(f"(?:{pattern})$"), ending)
    for pattern, ending in (
        (r"(sheep|fish|deer|craft)", r"\1"),
        (r"(?<!hu)man", "men"),
        (r"person", "people"),
        (r"child", "children"),
        (r"\b(m|l)ouse", r"\1ice"),
        (r"\box", "oxen"),
        (r"\b(goose|tooth|foot)", lambda noun: noun[0].replace("oo", "ee")),
        (r"(l|ea|oa|ar|kni|wi|li|thie)fe?", r"\1ves"),  # wolf, leaf, loaf, scarf, knife
        (r"([^aeiou])y", r"\1ies"),
        (r"(s|x|z|ch|sh|tomato|potato|hero|mosquito)", r"\1es"),
        (r"", "s"),
    )
)
# Nouns whose plural means something else than several of them ("in the woods").
PLURAL_APART = frozenset({"wood", "spectacle"})

VOWEL_SOUND = re.compile(r"(?!uni(?![dmn])|ufo|ukulele|eu|us[ae]|one)[aeiou]|hour|honest")


def plural(noun: str) -> str:
    """The plural of a noun or of a phrase that ends in one or says "of": "slices of pizza"."""
    head, of, rest = noun.partition(" of ")
    for pattern, ending in PLURALS:
        if pattern.search(head):
            return pattern.sub(ending, head, count=1) + of + rest
    raise AssertionError("the last pattern matches every noun")


def article(word: str) -> str:
    """The article of a lower-case word, "a" or "an" by the sound that it begins with."""
    return "an" if VOWEL_SOUND.match(word) else "a"


class WordTokenizer:
    """Words -> indices: 0 pads, 1 is an unknown word, 2 starts a text, the last index ends it.

    The end has the highest index because open_clip pools text at the argmax. A word outside the
    vocabulary is read as the word inside that it is another form of: one of `variants`, a British
    spelling, a plural or singular ("puppies" for "puppy"), a possessive ("cat's" for "cat").
    """

    def __init__(
        self,
        words: Sequence[str],
        context_length: int,
        variants: dict[str, str] | None = None,
    ):
        self.words = list(words)
        self.context_length = context_length
        self.variants = variants or {}
        self.index = {w: i + START + 1 for i, w in enumerate(self.words)}
        self.end = len(self.words) + START + 1
        self.vocab_size = self.end + 1

    @staticmethod
    def split(text: str) -> list[str]:
        """Lower-case words and digits of a text, in order; a hyphen parts words."""
        text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text)

    @cached_property
    def _plurals(self) -> dict[str, str]:
        """Plurals, right and naive ("foxs"), of the vocabulary's words, short ones excepted."""
        nouns = [w for w in self.words if len(w) > 2]
        return {w + "s": w for w in nouns} | {plural(w): w for w in nouns}

    def _known(self, word: str) -> str:
        """The vocabulary's form of a word; the word itself where it has none."""
        word = self.variants.get(word, word)
        if SPELLINGS.get(word) in self.index:
            return SPELLINGS[word]
        for form in (word, word.removesuffix("'s")):
            if form in self.index:
                return form
            if form in self._plurals:
                return self._plurals[form]
            if plural(form) in self.index and form not in PLURAL_APART:
                return plural(form)
        return word

    def unknown(self, text: str) -> list[str]:
        """The words of a text outside the vocabulary, in order, each once."""
        return list(dict.fromkeys(w for w in self.split(text) if self._known(w) not in self.index))

    def says_nothing(self, text: str) -> bool:
        """Whether of all words of a text the vocabulary knows small ones at most."""
        return {*self.split(text)} - {*self.unknown(text)} <= SMALL_WORDS

    def check(self, text: str, name: str, kind: str, known: Sequence[str] = ()) -> None:
        """Raises InputError on a text that does not fit the context and, with examples of what is
        known, on one that says nothing. name: of the verifier; kind: what the text is."""
        if not self.fits(text):
            raise InputError(
                f"The {kind} is too long: {name} reads at most {self.context_length - 2} words. "
                f"Shorten {text!r}."
            )
        if known and self.says_nothing(text):
            raise InputError(
                f"The verifier {name} knows no word of {text!r}; it knows {', '.join(known)} "
                "and more."
            )

    def nearest(self, word: str, count: int = 3) -> list[str]:
        """Known words spelt most like `word`."""
        return difflib.get_close_matches(word, self.words, n=count, cutoff=0.6)

    def fits(self, text: str) -> bool:
        """Whether the context has room for all words of a text."""
        return len(self.split(text)) + 2 <= self.context_length

    def __call__(self, texts: str | Iterable[str]) -> Tensor:
        """Texts -> Int64[N, context_length]; raises InputError for a text that does not fit."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = torch.full((len(texts), self.context_length), PAD)
        for row, text in zip(out, texts, strict=True):
            words = self.split(text)
            if not self.fits(text):
                raise InputError(
                    f"{text!r} has {len(words)} words; this verifier reads at most "
                    f"{self.context_length - 2}: shorten it."
                )
            ids = [START, *(self.index.get(self._known(w), UNKNOWN) for w in words), self.end]
            row[: len(ids)] = torch.tensor(ids)
        return out

    @classmethod
    def load(cls, path: Path) -> WordTokenizer:
        """From a JSON object {"words", "context_length", "variants"}; InputError if it is none."""
        data = read_json(path)
        words, length, variants = (data.get(k) for k in ("words", "context_length", "variants"))
        if not (
            isinstance(words, list)
            and all(isinstance(w, str) for w in words)
            and isinstance(length, int)
            and isinstance(variants or {}, dict)
        ):
            raise InputError(
                f'{str(path)!r} is no vocabulary: it must hold "words", a list of words, and '
                '"context_length", a number.'
            )
        return cls(words, length, variants)
