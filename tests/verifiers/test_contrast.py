"""What a prompt names, and the prompt with one thing said differently."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from tfgen.errors import InputError
from tfgen.training.captions import Captioner
from tfgen.training.clip import contrast_words
from tfgen.training.objects import load_objects
from tfgen.verifiers.clip import GENERAL_WORDS
from tfgen.verifiers.contrast import FACTORS, ContrastWords, agree
from tfgen.verifiers.words import WordTokenizer, plural

COCO = """
person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign
parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella
handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard
surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange
broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop
computer_mouse tv_remote computer_keyboard cell_phone microwave oven toaster sink refrigerator book
clock vase scissors teddy_bear hair_drier toothbrush
"""
GENEVAL = [name.replace("_", " ") for name in COCO.split()]
WORLD = ContrastWords(**contrast_words(Captioner(list(load_objects("full")))))
GENERAL = ContrastWords.load(GENERAL_WORDS)
BOTH = pytest.mark.parametrize("words", [WORLD, GENERAL], ids=["world", "general"])

SMALL = ContrastWords(
    objects=[
        {
            "name": "fox",
            "plural": "foxes",
            "synonyms": [],
            "natural_colours": ["red", "orange"],
        },
        {"name": "teddy bear", "plural": "teddy bears", "synonyms": ["teddy", "stuffed bear"]},
        {"name": "bear", "plural": "bears", "synonyms": []},
        {"name": "fish", "plural": "fish", "synonyms": []},
        {"name": "umbrella", "plural": "umbrellas", "synonyms": []},
        {"name": "orange", "plural": "oranges", "synonyms": []},
        {"name": "scissors", "plural": "scissors", "synonyms": ["pair of scissors"]},
        {"name": "rabbit", "plural": "rabbits", "synonyms": ["bunny"]},
        {"name": "animal", "plural": "animals", "synonyms": [], "kinds": ["fox", "bear", "rabbit"]},
    ],
    colours=["red", "orange", "blue", "gray"],
    backgrounds=[["in snow", "in the snow"], ["on a beach"], ["on a gray background"]],
    counts=[["a", "an", "one", "the"], ["two", "a pair of"], ["three"]],
    relations=[["to the left of"], ["to the right of"], ["above", "on top of"], ["below"]],
    arrangements=[
        {"open": ["and", "with"], "among": ["to the left of", "above"]},
        {"open": ["next to"], "among": ["to the left of", "to the right of"]},
    ],
    sizes=[["large", "big"], ["small"]],
    places=[["on the left"], ["on the right"]],
)


RED_FOX = ["colour: red", "object: fox"]


def named(words: ContrastWords, prompt: str) -> list[str]:
    """What a prompt names, as "factor: its words"; objects in the plural with a +."""
    said, spans = words.parse(prompt)
    return [
        f"{s.factor}: {' '.join(said[s.start : s.end])}{'+' if s.plural else ''}" for s in spans
    ]


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("red fox in snow", [*RED_FOX, "background: in snow"]),
        ("A RED fox, in the Snow!", ["count: a", *RED_FOX, "background: in the snow"]),
        ("three teddy bears", ["count: three", "object: teddy bears+"]),
        ("three stuffed bears", ["count: three", "object: stuffed bears+"]),
        ("two bunnies", ["count: two", "object: bunnies+"]),
        ("two bears", ["count: two", "object: bears+"]),
        ("a fish", ["count: a", "object: fish"]),
        ("two big fish", ["count: two", "size: big", "object: fish+"]),
        ("a pair of foxes", ["count: a pair of", "object: foxes+"]),
        ("a pair of scissors", ["count: a", "object: pair of scissors"]),
        ("two pairs of scissors", ["count: two", "object: pairs of scissors+"]),
        ("an orange", ["count: an", "object: orange"]),
        ("an orange fox", ["count: an", "colour: orange", "object: fox"]),
        ("two orange oranges", ["count: two", "colour: orange", "object: oranges+"]),
        ("a grey fox", ["count: a", "colour: grey", "object: fox"]),
        ("fox on a grey background", ["object: fox", "background: on a grey background"]),
        ("fox on the left", ["object: fox", "place: on the left"]),
        (
            "fox to the left of teddy",
            ["object: fox", "relation: to the left of", "object: teddy"],
        ),
        ("a fox's hat", ["count: a"]),
        ("capybara", []),
        ("", []),
    ],
)  # fmt: skip
def test_parse(prompt: str, names: list[str]) -> None:
    assert named(SMALL, prompt) == names


def test_every_object_and_colour_and_background_is_exchanged_for_every_other() -> None:
    swaps = SMALL.swaps("a blue bear in snow")
    assert swaps["object"] == [
        "a blue fox in snow",
        "a blue teddy bear in snow",
        "a blue fish in snow",
        "a blue umbrella in snow",
        "a blue orange in snow",
        "a blue scissors in snow",
        "a blue rabbit in snow",
        "a blue animal in snow",
    ]
    assert swaps["colour"] == [
        "a red bear in snow",
        "an orange bear in snow",
        "a gray bear in snow",
    ]
    assert swaps["background"] == ["a blue bear on a beach", "a blue bear on a gray background"]
    assert swaps["count"] == ["two blue bears in snow", "three blue bears in snow"]
    assert not swaps["relation"] and not swaps["size"] and not swaps["place"]


def test_sizes_and_places_are_exchanged() -> None:
    swaps = SMALL.swaps("a big fox on the left")
    assert swaps["size"] == ["a small fox on the left"]
    assert swaps["place"] == ["a big fox on the right"]


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("a fox", ["two foxes", "three foxes"]),
        ("fox", ["two foxes", "three foxes"]),
        ("big red fox", ["two big red foxes", "three big red foxes"]),
        ("two foxes", ["a fox", "three foxes"]),
        ("a pair of foxes", ["a fox", "three foxes"]),
        ("three stuffed bears", ["a teddy bear", "two stuffed bears"]),
        ("two fluffy bunnies", ["a fluffy rabbit", "three fluffy bunnies"]),
        ("a fish", ["two fish", "three fish"]),
        ("two fish", ["a fish", "three fish"]),
        ("a photo of a fox", ["a photo of two foxes", "a photo of three foxes"]),
        # "foxes" may be any number but one
        ("foxes", ["a fox"]),
        ("a photo of red foxes", ["a photo of a red fox"]),
        ("the foxes", ["a fox"]),
        # of two objects, each alone, in every number; a number that is said is changed too
        (
            "a fox and a bear in snow",
            [
                *("a fox in snow", "a bear in snow", "two foxes in snow", "three foxes in snow"),
                *("two bears in snow", "three bears in snow"),
            ],
        ),
        (
            "a big red fox above a bear",
            [
                *("a big red fox", "a bear", "two big red foxes", "three big red foxes"),
                *("two bears", "three bears"),
            ],
        ),
        (
            "a photo of a fox with a bear",
            [
                *("a photo of a fox", "a photo of a bear"),
                *("a photo of two foxes", "a photo of three foxes"),
                *("a photo of two bears", "a photo of three bears"),
            ],
        ),
        (
            "a fox, a bear",
            ["a fox", "a bear", "two foxes", "three foxes", "two bears", "three bears"],
        ),
        (
            "two foxes and a bear",
            [
                *("a fox and a bear", "three foxes and a bear", "two foxes", "a bear"),
                *("two bears", "three bears"),
            ],
        ),
    ],
)
def test_counts(prompt: str, counts: list[str]) -> None:
    assert SMALL.swaps(prompt)["count"] == counts


def test_two_objects_exchange_their_colours() -> None:
    swaps = SMALL.swaps("a red bear and a blue rabbit")
    assert "a blue bear and a red rabbit" in swaps["colour"]
    same = SMALL.swaps("a red bear and a red rabbit")["colour"]
    assert len(same) == len(set(same)) == 6


def test_a_relation_is_exchanged_for_the_others_and_turned_round() -> None:
    assert SMALL.swaps("a fox above a bear")["relation"] == [
        "a fox to the left of a bear",
        "a fox to the right of a bear",
        "a fox below a bear",
        "a bear above a fox",
    ]
    assert SMALL.swaps("two foxes above a bear")["relation"][-1] == "two bears above a fox"
    assert not SMALL.swaps("a fox and a bear")["relation"]


@pytest.mark.parametrize(
    "prompt, ways",
    [
        (
            "A red fox and two fish, in snow",
            [
                "a red fox to the left of two fish in snow",
                "a red fox above two fish in snow",
            ],
        ),
        (
            "a photo of a bear next to an umbrella",
            [
                "a photo of a bear to the left of an umbrella",
                "a photo of a bear to the right of an umbrella",
            ],
        ),
        ("a fox above a bear", []),  # it is said
        ("a fox in snow and a bear", []),  # not what joins them
        ("a fox and a bear and a rabbit", []),
        ("two foxes", []),
        ("a fox and a dragon", []),  # of which nothing is known
    ],
)
def test_arrangements_that_a_prompt_leaves_open(prompt: str, ways: list[str]) -> None:
    assert SMALL.arranged(prompt) == ways


def test_a_natural_colour_is_not_exchanged_for_another() -> None:
    assert SMALL.swaps("a red fox")["colour"] == ["a blue fox", "a gray fox"]
    assert len(SMALL.swaps("a blue fox")["colour"]) == 3
    both = SMALL.swaps("a red bear above a red fox")["colour"]
    assert "an orange bear above a red fox" in both
    assert "a red bear above an orange fox" not in both


def test_an_object_is_not_exchanged_for_a_kind_of_it() -> None:
    assert "a fox" not in SMALL.swaps("an animal")["object"]
    assert "a fish" in SMALL.swaps("an animal")["object"]
    assert "an animal" in SMALL.swaps("a fox")["object"]


@BOTH
@pytest.mark.parametrize(
    "prompt",
    [
        "a red fox in snow",
        "two dogs on a beach",
        "a photo of a grey cat to the left of a blue car at night",
        "an orange next to an orange cat",
        "four stuffed bears on grass",
        "umbrella",
    ],
)
def test_no_contrast_caption_is_the_prompt_or_another(words: ContrastWords, prompt: str) -> None:
    captions = list(chain(*words.swaps(prompt).values()))
    assert captions
    assert len(captions) == len(set(captions))
    assert " ".join(WordTokenizer.split(prompt)) not in captions
    assert not any("  " in c or " a a" in c or "stuffed dog" in c for c in captions)


def test_a_prompt_that_names_nothing_has_no_contrast_captions() -> None:
    assert list(SMALL.swaps("hello world")) == list(FACTORS)
    assert not any(SMALL.swaps("hello world").values())


def test_articles_agree_with_the_sound_that_follows() -> None:
    text = "a orange and an fox a unicorn a umbrella an hour an ufo a unidentified thing a"
    assert " ".join(agree(text.split())) == (
        "an orange and a fox a unicorn an umbrella an hour a ufo an unidentified thing a"
    )


# ---- the word list for other models


def phrases(words: ContrastWords) -> list[tuple[str, tuple[str, int]]]:
    """Every phrase of every entry, plurals derived too, with its (factor, entry)."""
    rows = []
    for i, spec in enumerate(words.objects):
        said = {spec["name"], spec["plural"], *spec["synonyms"], *map(plural, spec["synonyms"])}
        rows += [(phrase, ("object", i)) for phrase in said]
    tables = {
        "colour": [[c] for c in words.colours],
        "background": words.backgrounds,
        "count": words.counts,
        "relation": words.relations,
        "size": words.sizes,
        "place": words.places,
    }
    for factor, table in tables.items():
        rows += [(p, (factor, i)) for i, entry in enumerate(table) for p in entry]
    return rows


def test_no_phrase_of_the_general_words_names_two_things() -> None:
    meaning: dict[tuple[str, ...], tuple[str, int]] = {}
    colliding = set()
    for phrase, entry in phrases(GENERAL):
        if meaning.setdefault(tuple(WordTokenizer.split(phrase)), entry) != entry:
            colliding.add(phrase)
    assert colliding == {"orange"}  # the fruit and the colour; which, its neighbours tell


@BOTH
def test_every_phrase_is_parsed_as_what_it_names(words: ContrastWords) -> None:
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    for phrase, entry in phrases(words):
        key = tuple(WordTokenizer.split(phrase))
        if first.setdefault(key, entry) != entry:
            continue  # the world's table has synonyms that are other objects' plurals
        said, spans = words.parse(phrase)
        assert (spans[0].factor, spans[0].start, spans[0].end) == (entry[0], 0, len(said)), phrase


def test_the_general_words_have_what_prompts_are_made_of() -> None:
    names = {spec["name"] for spec in GENERAL.objects}
    assert len(GENEVAL) == 80 and set(GENEVAL) <= names
    basic = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black"}
    assert basic | {"white", "gray"} <= set(GENERAL.colours)
    assert len(names) == len(GENERAL.objects) >= 150
    assert len(GENERAL.backgrounds) >= 25
    assert len(GENERAL.counts) == 6
    assert len(GENERAL.relations) % 2 == 0


def test_the_general_words_refer_to_words_that_exist() -> None:
    names = {spec["name"] for spec in GENERAL.objects}
    for spec in GENERAL.objects:
        assert set(spec.get("kinds", [])) <= names - {spec["name"]}, spec
        assert set(spec.get("natural_colours", [])) <= set(GENERAL.colours), spec


# ---- files


def test_words_are_loaded_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "contrast.json"
    content = contrast_words(Captioner(list(load_objects("small"))))
    path.write_text(json.dumps(content))
    assert ContrastWords.load(path) == ContrastWords(**content)


@pytest.mark.parametrize(
    "change",
    [
        {"objects": None},
        {"objects": ["fox"]},
        {"objects": [{"name": "fox"}]},
        {"colours": "red"},
        {"colours": [1]},
        {"tastes": ["sweet"]},
    ],
)
def test_foreign_words_are_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "contrast.json"
    path.write_text(json.dumps(json.loads(GENERAL_WORDS.read_text()) | change))
    with pytest.raises(InputError, match="contrast.json"):
        ContrastWords.load(path)


def test_words_without_a_required_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "contrast.json"
    content = json.loads(GENERAL_WORDS.read_text())
    del content["relations"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="relations"):
        ContrastWords.load(path)


def test_an_object_of_unsaid_colour_is_contrasted_with_the_colours_unnatural_to_it() -> None:
    fox = {"name": "fox", "plural": "foxes", "synonyms": [], "natural_colours": ["red"]}
    words = ContrastWords(
        objects=[fox, {"name": "bear", "plural": "bears", "synonyms": []}],
        colours=["red", "blue", "orange"],
        backgrounds=[["in snow"], ["on grass"]],
        counts=[["a"], ["two"]],
        relations=[],
    )
    assert words.swaps("a fox in snow")["colour"] == ["a blue fox in snow", "an orange fox in snow"]
    assert words.swaps("two foxes")["colour"] == ["two blue foxes", "two orange foxes"]
    assert words.swaps("a red fox")["colour"] == ["a blue fox", "an orange fox"]
    assert words.swaps("a bear")["colour"] == []  # whose natural colours nobody said


def test_each_of_two_objects_is_named_beside_every_third() -> None:
    first, second = SMALL.beside("a photo of a red fox and two blue umbrellas in snow")
    assert first[0] == "a photo of a red fox and a teddy bear in snow"
    assert second[0] == "a photo of a teddy bear and two blue umbrellas in snow"
    for captions in (first, second):
        assert len(captions) == len(SMALL.objects) - 2
        assert "a photo of a red fox and an orange in snow" in first
        named = [[s.entry for s in SMALL.parse(c)[1] if s.factor == "object"] for c in captions]
        assert all(len(pair) == 2 and pair != [0, 4] for pair in named)
    above = SMALL.beside("the bear above the blue fish")
    assert [captions[0] for captions in above] == [
        "the bear above a fox",
        "a fox above the blue fish",
    ]


@pytest.mark.parametrize("prompt", ["a red fox in snow", "two foxes", "a fox, a bear and a fish"])
def test_of_one_object_or_of_three_there_is_nothing_to_be_beside(prompt: str) -> None:
    assert SMALL.beside(prompt) == []
