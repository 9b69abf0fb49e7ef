"""Scenes and their ground truth, and the renderer that paints them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.toy_world import CAR, FOX, SPECS, make_world, shapes
from tfgen.training.backgrounds import BACKGROUNDS, paint
from tfgen.training.colours import COLOURS, NATURAL, RAMPS, recolour
from tfgen.training.world import LAYOUT_INDEX, LAYOUTS, MAX_OBJECTS, Scenes, World

SIZE = 32


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SIZE)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in vars(a))


def scene(
    world: World, layout: str, objects: list[int], colours: list[int], background: int = 0
) -> Scenes:
    """One scene; `objects` and `colours` of its slots, in the order of the layout."""
    fill = [0] * (MAX_OBJECTS - len(objects))
    return world.scenes(
        torch.tensor([background]),
        torch.tensor([0]),
        torch.tensor([LAYOUT_INDEX[layout]]),
        torch.tensor([objects + fill]),
        torch.tensor([colours + fill]),
    )


# ---- scenes


def test_a_seed_makes_the_same_scenes_and_another_seed_others(world: World) -> None:
    assert same(world.sample(50, seeded(1)), world.sample(50, seeded(1)))
    assert not same(world.sample(50, seeded(1)), world.sample(50, seeded(2)))


def test_scenes_are_consistent(world: World) -> None:
    scenes = world.sample(400, seeded(0))
    slots = torch.tensor([len(item.slots) for item in LAYOUTS])
    assert torch.equal(scenes.counts, slots[scenes.layout])
    empty = scenes.objects < 0
    assert torch.equal(empty, scenes.boxes[..., 2] == 0)
    assert (scenes.colours[empty] == 0).all()
    assert scenes.objects.max() < len(SPECS) and scenes.colours.max() < len(COLOURS)
    assert scenes.background.max() < len(BACKGROUNDS) and scenes.variant.max() < world.variants


def test_every_attribute_occurs(world: World) -> None:
    scenes = world.sample(2000, seeded(0))
    assert len(scenes.background.unique()) == len(BACKGROUNDS)
    assert len(scenes.layout.unique()) == len(LAYOUTS)
    assert len(scenes.colours.unique()) == len(COLOURS)
    assert set(scenes.objects.unique().tolist()) == {-1, *range(len(SPECS))}


def test_three_and_four_objects_are_of_one_kind_and_colour(world: World) -> None:
    """Captions count them: "three red foxes"."""
    scenes = world.sample(3000, seeded(3))
    many = scenes[scenes.counts > 2]
    present = many.objects >= 0
    assert ((many.objects == many.objects[:, :1]) | ~present).all()
    assert ((many.colours == many.colours[:, :1]) | ~present).all()


def test_a_share_of_the_scenes_are_coloured_pairs() -> None:
    world = make_world(SIZE)
    world.pairs = 0.25
    scenes = world.sample(400, seeded(0))
    pairs = scenes[torch.arange(100)]
    assert (pairs.counts == 2).all() and (pairs.objects[:, 0] != pairs.objects[:, 1]).all()
    assert (pairs.colours[:, :2] > 0).all()
    kinds = {LAYOUTS[i].name for i in pairs.layout.tolist()}
    assert kinds == {layout.name for layout in LAYOUTS if len(layout.slots) == 2}
    assert len(pairs.objects[:, :2].unique()) == len(SPECS)
    others = scenes[torch.arange(100, 400)]
    assert len(others.layout.unique()) == len(LAYOUTS) and (others.colours[:, 0] == 0).any()


def test_layouts_lie_inside_the_picture_and_their_objects_apart() -> None:
    for layout in LAYOUTS:
        for x, y, size in layout.slots:
            assert size / 2 <= min(x, y, 1 - x, 1 - y) + 1e-6, layout.name
        for i, (xa, ya, a) in enumerate(layout.slots):
            for xb, yb, b in layout.slots[:i]:
                assert max(abs(xa - xb), abs(ya - yb)) >= (a + b) / 2 - 0.02, layout.name


def test_layouts_are_in_reading_order() -> None:
    for layout in LAYOUTS:
        rows = [(round(y, 1), x) for x, y, _ in layout.slots]
        assert rows == sorted(rows), layout.name


def test_scenes_are_cut_and_joined(world: World) -> None:
    scenes = world.sample(6, seeded(0))
    assert same(Scenes.cat([scenes[:2], scenes[torch.arange(2, 6)]]), scenes)


# ---- pictures


def test_rendering_is_deterministic_and_each_scene_its_own(world: World) -> None:
    scenes = world.sample(12, seeded(4))
    images = world.render(scenes, SIZE).images
    assert images.shape == (12, 3, SIZE, SIZE)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(world.render(scenes, SIZE).images, images)
    assert torch.equal(make_world(SIZE).render(scenes, SIZE).images, images)
    assert torch.allclose(world.render(scenes[5:7], SIZE).images, images[5:7], atol=1e-6)


def test_objects_are_where_the_ground_truth_says_and_nowhere_else(world: World) -> None:
    scenes = world.sample(150, seeded(5))
    layers = world.render(scenes, SIZE)
    changed = (layers.images - layers.backgrounds).abs().amax(1) > 2 / 255
    assert (layers.alpha[:, 0][changed] > 0).all()
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    edge = 1 / SIZE
    covered = torch.zeros_like(changed)
    for slot in range(MAX_OBJECTS):
        x, y, size = scenes.boxes[:, slot].T
        reach = (size / 2 + edge * (size > 0))[:, None]
        across = (axis - x[:, None]).abs() < reach
        down = (axis - y[:, None]).abs() < reach
        box = down[:, :, None] & across[:, None, :]
        present = scenes.objects[:, slot] >= 0
        assert (changed & box).flatten(1).any(1)[present].all()  # something is in every box
        covered |= box & present[:, None, None]
    assert not (changed & ~covered).any()


def test_a_scene_without_its_objects_is_its_background(world: World) -> None:
    one = scene(world, "left", [FOX], [0], background=3)
    layers = world.render(one, SIZE)
    expected = paint(3, 0, SIZE)
    assert torch.allclose(layers.backgrounds[0], expected, atol=1 / 255)
    right = layers.images[0, :, :, SIZE * 3 // 5 :]
    assert torch.allclose(right, expected[:, :, SIZE * 3 // 5 :], atol=1 / 255)


def test_a_sprite_is_painted_as_it_is_in_its_place(world: World) -> None:
    one = scene(world, "centre", [CAR], [0])
    x, y, _ = one.boxes[0, 0].tolist()
    pixel = world.render(one, SIZE).images[0, :, int(y * SIZE), int(x * SIZE)]
    sprite = shapes()[CAR, :3, 12, 12] / 255
    assert torch.allclose(pixel, sprite, atol=0.08)


def test_the_same_scene_looks_the_same_at_another_size(world: World) -> None:
    scenes = world.sample(6, seeded(6))
    small = world.render(scenes, SIZE).images
    large = world.render(scenes, 2 * SIZE).images
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    assert (reduced - small).abs().mean() < 0.03


def test_targets_are_the_sprites_of_the_slots_that_are_taken(world: World) -> None:
    pair = scene(world, "side by side", [CAR, FOX], [0, 3])
    present, sprites = world.sprite_targets(pair, 24)
    assert present.tolist() == [[True, True, False, False]]
    assert sprites.shape == (2, 4, 24, 24)
    assert torch.allclose(sprites[0], shapes()[CAR] / 255, atol=1 / 255)
    assert torch.equal(sprites[1, 3], (shapes()[FOX, 3] / 255).float())


def test_backgrounds_can_be_told_apart() -> None:
    pictures = torch.stack([paint(i, 0, 16) for i in range(len(BACKGROUNDS))])
    apart = (pictures[:, None] - pictures).abs().flatten(2).mean(2)
    assert (apart + torch.eye(len(pictures)) > 0.03).all()
    assert (paint(0, 0, 16) - paint(0, 1, 16)).abs().max() > 0.01  # variants differ


# ---- colours


def mean_colour(sprites: Tensor) -> Tensor:
    return sprites[:, :3].flatten(2).sum(2) / sprites[:, 3].flatten(1).sum(1)[:, None]


@pytest.mark.parametrize("colour", RAMPS)
def test_every_object_takes_every_colour(colour: str) -> None:
    sprites = shapes() / 255
    painted = recolour(sprites, colour)
    assert torch.equal(painted[:, 3], sprites[:, 3])  # the outline stays
    assert (painted[:, :3] <= painted[:, 3:] + 1e-6).all()  # still premultiplied
    middles = torch.tensor([RAMPS[c][1] for c in RAMPS]) / 255
    off = (mean_colour(painted)[:, None] - middles).norm(dim=-1)
    assert [list(RAMPS)[i] for i in off.argmin(1)] == [colour] * len(sprites)


def test_the_natural_colour_changes_nothing() -> None:
    sprites = shapes() / 255
    assert COLOURS[0] == NATURAL and len(COLOURS) == 11
    assert torch.equal(recolour(sprites, NATURAL), sprites)


@pytest.mark.parametrize("colour", ["red", "black", "white"])
def test_shading_survives_another_colour(colour: str) -> None:
    sprites = shapes()[:1] / 255  # brighter to the right
    row = recolour(sprites, colour)[0, :3, 12, 3:21].sum(0)
    assert (row.diff() >= -1e-5).all() and row[-1] - row[0] > 0.3
