"""The object table holds what the captions, the renderer and the benchmark take for granted."""

from __future__ import annotations

import re

import pytest

from tfgen.errors import InputError
from tfgen.training.objects import NATURAL_COLOURS, TIERS, load_objects
from tfgen.training.sprites import CROPS

OBJECTS = load_objects()

GENEVAL = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball,
kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote,
computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush"""
WITHOUT_SPRITE = """fire hydrant, parking meter, bench, baseball bat, baseball glove, dining table,
tv remote, microwave, oven, toaster, sink, refrigerator, hair drier"""
REQUIRED_IN_SMALL = """fox, cat, dog, rabbit, bear, penguin, elephant, whale, fish, duck, dragon,
horse, car, bus, rocket, airplane, sailboat, bicycle, apple, banana, pizza, cake, hamburger, tree,
pine tree, cactus, sunflower, mushroom, house, castle, umbrella, robot, balloon, guitar, chair,
clock, book, crown, snowman, teddy bear"""


def words(text: str) -> set[str]:
    return {word.strip() for word in text.split(",")}


def singular_words(tier: str) -> set[str]:
    return {word for spec in load_objects(tier) for word in (spec.name, *spec.synonyms)}


def test_tiers_have_their_sizes():
    small, medium, full = (len(load_objects(tier)) for tier in TIERS)
    assert 36 <= small <= 48
    assert 110 <= medium <= 140
    assert full >= 250


def test_smaller_tiers_are_prefixes_of_larger_ones():
    small, medium, full = (load_objects(tier) for tier in TIERS)
    assert medium[: len(small)] == small
    assert full[: len(medium)] == medium


def test_an_unknown_tier_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="small, medium, full"):
        load_objects("tiny")


def test_small_has_the_objects_of_the_standard_prompts():
    assert words(REQUIRED_IN_SMALL) <= {spec.name for spec in load_objects("small")}


def test_no_word_means_two_objects():
    owner: dict[str, str] = {}
    for spec in OBJECTS:
        for word in spec.words:
            assert owner.setdefault(word, spec.name) == spec.name, word


def test_synonyms_add_something():
    for spec in OBJECTS:
        assert len(set(spec.synonyms)) == len(spec.synonyms), spec
        assert not {spec.name, spec.plural} & set(spec.synonyms), spec


def test_no_name_starts_with_a_colour():
    """Else "a green apple" could be an apple that is green or another object."""
    phrases = {w for spec in OBJECTS for w in spec.words if " " in w}
    assert not [phrase for phrase in phrases if phrase.split()[0] in NATURAL_COLOURS]


def test_words_are_what_people_type():
    for word in (word for spec in OBJECTS for word in spec.words):
        assert re.fullmatch(r"[a-zñ0-9][a-zñ0-9' -]*", word), word


def test_each_object_has_its_own_sprite():
    sprites = [spec.sprite for spec in OBJECTS]
    assert len(set(sprites)) == len(sprites)
    for sprite in sprites:
        stem, _, crop = sprite.partition("@")
        assert re.fullmatch(r"[0-9a-f]{4,5}(-[0-9a-f]{4,5})*", stem), sprite
        assert not crop or crop in CROPS, sprite


def test_every_object_has_natural_colours():
    for spec in OBJECTS:
        assert spec.natural_colours, spec
        assert set(spec.natural_colours) <= set(NATURAL_COLOURS), spec
        assert len(set(spec.natural_colours)) == len(spec.natural_colours), spec


def test_a_red_fox_is_the_animal():
    fox = next(spec for spec in OBJECTS if spec.name == "fox")
    assert {"red", "orange"} <= set(fox.natural_colours)


@pytest.mark.parametrize(
    "name, plural",
    [
        ("fox", "foxes"),
        ("fish", "fish"),
        ("sheep", "sheep"),
        ("person", "people"),
        ("knife", "knives"),
        ("mouse", "mice"),
        ("cactus", "cacti"),
        ("strawberry", "strawberries"),
        ("scissors", "scissors"),
    ],
)
def test_plurals(name: str, plural: str):
    assert {spec.name: spec.plural for spec in OBJECTS}[name] == plural


def test_names_that_are_plurals_take_no_article():
    flags = {spec.name: spec.is_plural for spec in OBJECTS}
    assert flags["scissors"] and flags["skis"] and flags["grapes"]
    assert not flags["sheep"] and not flags["fish"] and not flags["bus"]


def test_every_geneval_name_with_a_sprite_is_known_under_its_own_spelling():
    assert words(GENEVAL) - singular_words("full") == words(WITHOUT_SPRITE)


def test_medium_has_nearly_all_of_them():
    missing = words(GENEVAL) - words(WITHOUT_SPRITE) - singular_words("medium")
    assert missing == {"frisbee", "snowboard", "surfboard"}
