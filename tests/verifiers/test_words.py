"""The closed vocabulary: what a word is read as, and what is said of words it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfgen.errors import InputError
from tfgen.training.captions import Captioner
from tfgen.training.objects import load_objects
from tfgen.verifiers.words import PAD, START, UNKNOWN, WordTokenizer, article, plural

WORDS = [
    "a",
    "cat",
    "cats",
    "fox",
    "gray",
    "grey",
    "hat",
    "in",
    "mountains",
    "pony",
    "puppy",
    "sky",
]
WORDS += ["snow", "teddy", "the", "two", "woods"]


@pytest.fixture
def tokenize() -> WordTokenizer:
    return WordTokenizer(WORDS, context_length=8)


def read(tokenize: WordTokenizer, text: str) -> list[str]:
    """The vocabulary's words that a text is read as; "?" where it is none."""
    ids = tokenize(text)[0].tolist()
    words = ids[1 : ids.index(tokenize.end)]
    return ["?" if i == UNKNOWN else tokenize.words[i - START - 1] for i in words]


def test_a_text_starts_and_ends_with_its_marks_and_is_padded(tokenize: WordTokenizer) -> None:
    first = START + 1
    row = tokenize(["a fox in space"])[0].tolist()
    assert row == [START, first, first + 3, first + 7, UNKNOWN, tokenize.end, PAD, PAD]
    assert tokenize.end == max(row)  # open_clip pools text at the highest index
    assert tokenize.vocab_size == tokenize.end + 1


def test_every_word_of_the_vocabulary_but_british_spellings_is_itself(
    tokenize: WordTokenizer,
) -> None:
    for word in set(WORDS) - {"grey"}:
        assert read(tokenize, word) == [word]


def test_the_sprite_worlds_words_keep_the_indices_they_were_trained_with() -> None:
    vocabulary = Captioner(list(load_objects("full"))).vocabulary()
    tokenize = WordTokenizer(vocabulary, context_length=4)
    for i, word in enumerate(vocabulary):
        if word != "grey":  # in no caption
            assert tokenize(word)[0, 1] == i + START + 1, word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two puppies", ["two", "puppy"]),
        ("ponies", ["pony"]),
        ("foxes and foxs", ["fox", "?", "fox"]),
        ("the skies", ["the", "sky"]),
        ("a mountain", ["a", "mountains"]),
        ("a grey cat", ["a", "gray", "cat"]),
        ("A cat's HAT!", ["a", "cat", "hat"]),
        ("the cat\N{RIGHT SINGLE QUOTATION MARK}s hat", ["the", "cat", "hat"]),
        ("teddy-cat, in: snow", ["teddy", "cat", "in", "snow"]),
        ("", []),
    ],
)
def test_other_forms_of_a_word_are_read_as_it(
    tokenize: WordTokenizer, text: str, words: list[str]
) -> None:
    assert read(tokenize, text) == words


@pytest.mark.parametrize("word", ["as", "wood", "insnow", "ca", "hate", "foxy", "a's-b", "ins"])
def test_a_word_is_never_read_as_another(tokenize: WordTokenizer, word: str) -> None:
    assert "?" in read(tokenize, word)


def test_the_files_own_variants_come_first() -> None:
    tokenize = WordTokenizer(["dogs", "puppy"], 8, variants={"puppies": "dogs"})
    assert read(tokenize, "puppies") == ["dogs"]


def test_unknown_words_are_named_once_each_in_order(tokenize: WordTokenizer) -> None:
    assert tokenize.unknown("zebra in the kofe zebra, two cats' caf\u00e9") == [
        "zebra",
        "kofe",
        "caf\u00e9",
    ]
    assert tokenize.unknown("two puppies in the SNOW") == []


def test_the_nearest_words_are_offered(tokenize: WordTokenizer) -> None:
    assert tokenize.nearest("pupy")[0] == "puppy"
    assert tokenize.nearest("xylophone") == []


def test_a_text_too_long_for_the_context_is_refused(tokenize: WordTokenizer) -> None:
    assert tokenize.fits("a fox in the snow cat")
    assert tokenize("a fox in the snow cat").shape == (1, 8)
    assert not tokenize.fits("a fox in the snow cat hat")
    with pytest.raises(InputError, match="has 7 words; this verifier reads at most 6: shorten"):
        tokenize("a fox in the snow cat hat")


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        ("dog", "dogs"),
        ("fox", "foxes"),
        ("bus", "buses"),
        ("church", "churches"),
        ("toothbrush", "toothbrushes"),
        ("puppy", "puppies"),
        ("monkey", "monkeys"),
        ("kitchen knife", "kitchen knives"),
        ("wolf", "wolves"),
        ("leaf", "leaves"),
        ("giraffe", "giraffes"),
        ("chef", "chefs"),
        ("roof", "roofs"),
        ("potato", "potatoes"),
        ("piano", "pianos"),
        ("snowman", "snowmen"),
        ("human", "humans"),
        ("person", "people"),
        ("computer mouse", "computer mice"),
        ("blouse", "blouses"),
        ("mongoose", "mongooses"),
        ("goose", "geese"),
        ("stuffed bear", "stuffed bears"),
        ("slice of pizza", "slices of pizza"),
        ("goldfish", "goldfish"),
        ("aircraft", "aircraft"),
    ],
)
def test_plural(noun: str, several: str) -> None:
    assert plural(noun) == several


def test_articles_of_the_small_world_go_by_the_letter() -> None:
    """`sprites-clip` was trained on those: another article would be another text."""
    words = {word for spec in load_objects("small") for word in spec.words}
    assert all((article(word) == "an") == (word[0] in "aeiou") for word in words)


def test_plurals_agree_with_the_table_written_by_hand() -> None:
    """What differs has a plural of its own: "men", "cacti", "dice", "french fries"."""
    specs = load_objects("full")
    other = [s.name for s in specs if plural(s.name) != s.plural]
    assert len(other) < 0.1 * len(specs), other


def test_a_vocabulary_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"words": WORDS, "context_length": 8, "variants": {}}))
    loaded = WordTokenizer.load(path)
    assert (loaded.words, loaded.context_length) == (WORDS, 8)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"words": ["a"]}',
        '{"words": "a cat", "context_length": 8}',
        '{"words": [1]}',
    ],
)
def test_a_foreign_vocabulary_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(InputError, match="vocabulary.json"):
        WordTokenizer.load(path)
