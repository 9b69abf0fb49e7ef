"""Captions, what they state, and which scenes they fit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.toy_world import CAR, CAT, ELEPHANT, FOX, SPECS, make_world
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import (
    ABOVE,
    ANY,
    BESIDE,
    EVERYTHING,
    LEFT_OF,
    Captioner,
    Emphasis,
    Mentions,
    fits,
)
from tfgen.training.colours import COLOURS
from tfgen.training.objects import load_objects
from tfgen.training.world import LAYOUT_INDEX, MAX_OBJECTS, Scenes, World
from tfgen.verifiers.words import WordTokenizer

NATURAL, RED, ORANGE, BLUE = (COLOURS.index(c) for c in ("natural", "red", "orange", "blue"))
SNOW, BEACH = (next(i for i, b in enumerate(BACKGROUNDS) if b.name == n) for n in ("snow", "beach"))
CAPTIONER = Captioner(SPECS)
SILENT = Emphasis(0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(8)


def scene(world: World, layout: str, *things: tuple[int, int], background: int = SNOW) -> Scenes:
    """One scene of (object, colour)s."""
    things = things + ((0, 0),) * (MAX_OBJECTS - len(things))
    return world.scenes(
        torch.tensor([background]),
        torch.tensor([0]),
        torch.tensor([LAYOUT_INDEX[layout]]),
        torch.tensor([[thing for thing, _ in things]]),
        torch.tensor([[colour for _, colour in things]]),
    )


def caption(
    first: tuple[int, int | None],
    second: tuple[int, int | None] | None = None,
    *,
    relation: int = -1,
    count: int = 1,
    background: int = -1,
    size: int = -1,
    place: int = -1,
) -> Mentions:
    """What one caption states; things are (object, colour word or None)."""
    colours = torch.ones(1, 2, len(COLOURS), dtype=torch.bool)
    kinds = torch.full((1, 2), -1)
    for i, thing in enumerate((first, second)):
        if thing is not None:
            kinds[0, i] = thing[0]
            colours[0, i] = CAPTIONER.allowed[thing[0], thing[1] or 0]
    single = {"background": background, "size": size, "place": place, "count": count}
    fields = {k: torch.tensor([v]) for k, v in single.items()}
    return Mentions(kinds=kinds, colours=colours, relation=torch.tensor([relation]), **fields)


def fit(mentions: Mentions, scenes: Scenes) -> bool:
    return bool(fits(mentions, scenes))


# ---- which scenes a caption fits


def test_natural_and_painted_colours_both_count(world: World) -> None:
    red_fox = caption((FOX, RED))
    assert fit(red_fox, scene(world, "centre", (FOX, NATURAL)))
    assert fit(red_fox, scene(world, "centre", (FOX, RED)))
    assert not fit(red_fox, scene(world, "centre", (FOX, BLUE)))
    assert not fit(red_fox, scene(world, "centre", (FOX, ORANGE)))
    assert fit(caption((FOX, ORANGE)), scene(world, "centre", (FOX, NATURAL)))
    assert not fit(caption((FOX, BLUE)), scene(world, "centre", (FOX, NATURAL)))
    assert not fit(caption((CAT, RED)), scene(world, "centre", (CAT, NATURAL)))


def test_what_is_left_open_fits_anything(world: World) -> None:
    fox = caption((FOX, None))
    for colour in range(len(COLOURS)):
        for layout in ("large", "small", "left", "right", "centre"):
            for background in (SNOW, BEACH):
                assert fit(fox, scene(world, layout, (FOX, colour), background=background))


def test_the_object_counts(world: World) -> None:
    assert not fit(caption((FOX, None)), scene(world, "centre", (CAR, NATURAL)))
    assert not fit(caption((FOX, RED)), scene(world, "centre", (CAR, RED)))


def test_the_background_counts(world: World) -> None:
    in_snow = caption((FOX, None), background=SNOW)
    assert fit(in_snow, scene(world, "centre", (FOX, BLUE), background=SNOW))
    assert not fit(in_snow, scene(world, "centre", (FOX, BLUE), background=BEACH))


def test_the_number_counts(world: World) -> None:
    two = scene(world, "side by side", (FOX, BLUE), (FOX, BLUE))
    three = scene(world, "row of three", *[(FOX, BLUE)] * 3)
    assert fit(caption((FOX, BLUE), count=2), two)
    assert not fit(caption((FOX, BLUE), count=1), two)
    assert not fit(caption((FOX, BLUE), count=2), three)
    assert fit(caption((FOX, BLUE), count=3), three)
    mixed = scene(world, "side by side", (FOX, BLUE), (CAR, BLUE))
    assert not fit(caption((FOX, BLUE), count=2), mixed)
    half = scene(world, "side by side", (FOX, BLUE), (FOX, RED))
    assert not fit(caption((FOX, BLUE), count=2), half)
    assert fit(caption((FOX, None), count=2), half)


def test_sizes_and_places_count(world: World) -> None:
    large, small = (scene(world, layout, (FOX, RED)) for layout in ("large", "small"))
    left, right = (scene(world, layout, (FOX, RED)) for layout in ("left", "right"))
    for said, true, false in (
        (caption((FOX, RED), size=0), large, small),
        (caption((FOX, RED), size=1), small, large),
        (caption((FOX, RED), place=0), left, right),
        (caption((FOX, RED), place=1), right, left),
    ):
        assert fit(said, true)
        assert not fit(said, false)
        assert not fit(said, scene(world, "centre", (FOX, RED)))


RED_FOX, BLUE_CAR = (FOX, RED), (CAR, BLUE)


@pytest.mark.parametrize(
    ("relation", "layout", "things", "expected"),
    [
        (LEFT_OF, "side by side", (RED_FOX, BLUE_CAR), True),
        (LEFT_OF, "side by side", (BLUE_CAR, RED_FOX), False),
        (LEFT_OF, "side by side", ((FOX, BLUE), (CAR, RED)), False),
        (LEFT_OF, "stacked", (RED_FOX, BLUE_CAR), False),
        (ABOVE, "stacked", (RED_FOX, BLUE_CAR), True),
        (ABOVE, "stacked", (BLUE_CAR, RED_FOX), False),
        (ABOVE, "side by side", (RED_FOX, BLUE_CAR), False),
        (BESIDE, "side by side", (RED_FOX, BLUE_CAR), True),
        (BESIDE, "side by side", (BLUE_CAR, RED_FOX), True),
        (BESIDE, "stacked", (RED_FOX, BLUE_CAR), False),
        (ANY, "side by side", (BLUE_CAR, RED_FOX), True),
        (ANY, "stacked", (BLUE_CAR, RED_FOX), True),
        (ANY, "stacked", (RED_FOX, (CAR, RED)), False),
        (ANY, "stacked", ((FOX, BLUE), (CAR, RED)), False),
        (ANY, "stacked", (RED_FOX, RED_FOX), False),
        # "a red fox ... a red car": the fox's own coat will do, the car's too
        (ANY, "stacked", ((FOX, NATURAL), BLUE_CAR), True),
        (ANY, "stacked", (RED_FOX, (CAR, NATURAL)), False),
    ],
)
def test_a_red_fox_and_a_blue_car(
    world: World, relation: int, layout: str, things: tuple, expected: bool
) -> None:
    said = caption(RED_FOX, BLUE_CAR, relation=relation, count=2)
    assert fit(said, scene(world, layout, *things)) == expected


def test_many_captions_and_scenes_at_once_are_each_pair_alone(world: World) -> None:
    scenes = world.sample(20, torch.Generator().manual_seed(0))
    _, mentions = CAPTIONER.write(scenes, random.Random(0))
    table = fits(mentions, scenes)
    for i in range(20):
        row = Mentions(*(getattr(mentions, f)[i : i + 1] for f in vars(mentions)))
        for j in range(20):
            assert fit(row, scenes[j : j + 1]) == table[i, j]


# ---- what is written


@pytest.mark.parametrize("emphasis", [Emphasis(), EVERYTHING, SILENT])
def test_every_caption_fits_its_own_scene(world: World, emphasis: Emphasis) -> None:
    for seed in range(8):
        scenes = world.sample(250, torch.Generator().manual_seed(seed))
        captions, mentions = CAPTIONER.write(scenes, random.Random(seed), emphasis)
        wrong = (~fits(mentions, scenes).diagonal()).nonzero()[:, 0].tolist()
        assert not wrong, captions[wrong[0]]


def test_a_seed_writes_the_same_captions(world: World) -> None:
    scenes = world.sample(50, torch.Generator().manual_seed(0))
    first, second, other = (CAPTIONER.write(scenes, random.Random(s))[0] for s in (1, 1, 2))
    assert first == second != other


def words_of(scenes: Scenes, emphasis: Emphasis, tries: int = 40) -> set[str]:
    return {CAPTIONER.write(scenes, random.Random(i), emphasis)[0][0] for i in range(tries)}


def test_captions_say_what_the_scene_shows(world: World) -> None:
    everything = Emphasis(1, 1, 1, 1, 1, 1)
    for said in words_of(scene(world, "small", (CAR, BLUE)), everything):
        assert "blue" in said and ("car" in said or "automobile" in said)
        assert any(phrase in said for phrase in BACKGROUNDS[SNOW].phrases)
        assert any(word in said.split() for word in ("small", "little", "tiny"))
    for said in words_of(scene(world, "side by side", *[(FOX, BLUE)] * 2), everything):
        assert "blue foxes" in said
        assert any(word in said for word in ("two", "2", "a pair of"))
    for said in words_of(scene(world, "side by side", RED_FOX, BLUE_CAR), everything):
        if "left of" in said:
            assert said.index("red fox") < said.index("blue")
        if "right of" in said:
            assert said.index("red fox") > said.index("blue")


def test_captions_leave_out_what_they_may(world: World) -> None:
    for said in words_of(scene(world, "small", (CAR, BLUE)), SILENT):
        assert "blue" not in said and "snow" not in said and "small" not in said.split()


def test_articles_agree(world: World) -> None:
    said = words_of(scene(world, "centre", (ELEPHANT, NATURAL)), SILENT)
    assert any("an elephant" in s for s in said) and not any("a elephant" in s for s in said)


def test_articles_go_by_the_sound(world: World) -> None:
    captioner = Captioner([replace(SPECS[0], name="unicorn"), *SPECS[1:]])
    scenes = scene(world, "centre", (0, NATURAL))
    said = {captioner.write(scenes, random.Random(i), SILENT)[0][0] for i in range(30)}
    assert any("a unicorn" in s for s in said) and not any("an unicorn" in s for s in said)


@pytest.mark.parametrize("tier", ["small", "full"])
def test_every_word_of_a_caption_is_in_the_vocabulary(tier: str) -> None:
    specs = list(load_objects(tier))
    blank = torch.zeros(len(specs), 4, 8, 8, dtype=torch.uint8)
    world = World(sizes=(), variants=1, sprites=blank, specs=specs)
    captioner = Captioner(specs)
    tokenize = WordTokenizer(captioner.vocabulary(), context_length=40)
    assert tokenize.words == sorted(set(tokenize.words))
    for seed in range(4):
        scenes = world.sample(250, torch.Generator().manual_seed(seed))
        for said in captioner.write(scenes, random.Random(seed))[0]:
            assert set(WordTokenizer.split(said)) <= set(tokenize.words), said
