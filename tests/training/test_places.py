"""Scenes whose objects stand anywhere, and what captions say of where they are."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch
from torch import Tensor

from tests.toy_world import SPECS, shapes
from tfgen.training.captions import (
    ABOVE,
    ANY,
    BESIDE,
    EVERYTHING,
    LEFT_OF,
    PLACE_PHRASES,
    RELATION_WORDS,
    REVERSED_WORDS,
    SIZE_WORDS,
    Captioner,
    Mentions,
    fits,
)
from tfgen.training.groups import GROUP, grouped, vary
from tfgen.training.negatives import odd_ones_out
from tfgen.training.places import arrangement, crowded, in_order, scatter
from tfgen.training.world import LAYOUT_BOXES, LAYOUT_INDEX, LAYOUTS, Scenes, World

CAPTIONER = Captioner(SPECS)


def make(free: float) -> World:
    return World(sizes=(32,), variants=2, sprites=shapes(), specs=SPECS, free=free)


@pytest.fixture(scope="module")
def world() -> World:
    return make(1.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def anywhere(scenes: Scenes) -> Tensor:
    """Bool[N]: which scenes do not stand as their layout does."""
    return (scenes.boxes != LAYOUT_BOXES[scenes.layout]).flatten(1).any(1)


def placed(world: World, *boxes: tuple[float, float, float], kinds: tuple[int, ...] = (0, 1)):
    """One scene of different kinds in these boxes."""
    table = torch.zeros(1, 4, 3)
    table[0, : len(boxes)] = torch.tensor(boxes)
    nothing = torch.zeros(1, dtype=torch.long)
    objects = torch.tensor([[*kinds[: len(boxes)], *[0] * (4 - len(kinds[: len(boxes)]))]])
    layout = torch.zeros(1, dtype=torch.long)
    colours = torch.zeros(1, 4, dtype=torch.long)
    return world.scenes(nothing, nothing, layout, objects, colours, table)


# ---- where objects stand


def test_without_a_share_scenes_and_captions_are_what_their_seeds_gave() -> None:
    """Training runs of `small` go on, and are made again, with the scenes of their seeds."""
    scenes = make(0.0).sample(500, seeded(0))
    captions, _ = CAPTIONER.write(scenes, random.Random(0))
    group, said, _ = grouped(make(0.0), CAPTIONER, 6, seeded(1), random.Random(1))
    digest = hashlib.sha256("|".join(captions + said).encode())
    for part in (scenes, group):
        for value in vars(part).values():
            digest.update(value.numpy().tobytes())
    assert digest.hexdigest()[:16] == "4bbdcb355a917f12"


def test_the_share_is_how_many_scenes_stand_anywhere() -> None:
    assert not anywhere(make(0.0).sample(500, seeded(0))).any()
    assert 0.35 < anywhere(make(0.5).sample(500, seeded(0))).float().mean() < 0.55
    assert anywhere(make(1.0).sample(500, seeded(0))).float().mean() > 0.8  # but for crowds


def test_free_scenes_differ_from_the_others_in_their_places_only(world: World) -> None:
    free, fixed = world.sample(300, seeded(2)), make(0.0).sample(300, seeded(2))
    for field in ("background", "variant", "objects", "colours"):
        assert torch.equal(getattr(free, field), getattr(fixed, field))
    assert torch.equal(free.counts, fixed.counts)
    assert torch.equal(free.boxes[..., 2] > 0, free.objects >= 0)


def test_objects_stand_everywhere_at_all_sizes_and_hardly_overlap(world: World) -> None:
    scenes = world.sample(2000, seeded(3))
    x, y, size = scenes.boxes[scenes.objects >= 0].unbind(1)
    cells = (x * 4).long() * 4 + (y * 4).long()
    assert len(cells.unique()) == 16
    assert size.min() < 0.3 and size.max() > 0.88
    assert ((size * 20).long().unique().diff() == 1).all()  # no gaps
    assert not crowded(scenes.boxes).any()
    reach = 0.42 * size
    assert (torch.stack([x, y]) - reach >= -1e-5).all()
    assert (torch.stack([x, y]) + reach <= 1 + 1e-5).all()


def test_a_crowd_is_two_objects_on_one_place() -> None:
    apart = torch.tensor([[[0.25, 0.5, 0.4], [0.75, 0.5, 0.4], [0, 0, 0], [0, 0, 0]]])
    close = torch.tensor([[[0.25, 0.5, 0.4], [0.5, 0.5, 0.4], [0, 0, 0], [0, 0, 0]]])
    alone = torch.tensor([[[0.5, 0.5, 0.9], [0, 0, 0], [0, 0, 0], [0, 0, 0]]])
    assert crowded(torch.cat([apart, close, alone])).tolist() == [False, True, False]


def test_slots_are_in_reading_order() -> None:
    boxes = in_order(scatter(torch.tensor([2, 3, 4] * 50), 4, seeded(4)))
    for box in boxes:
        present = box[box[:, 2] > 0]
        assert len(present) == (box[:, 2] > 0).sum() and (box[len(present) :] == 0).all()
        (dx, dy) = (present[1] - present[0])[:2].tolist()
        if len(present) == 2:
            assert (dx if abs(dx) >= abs(dy) else dy) > 0
        if len(present) == 3:
            assert (present[:, 0].diff() >= 0).all()
        if len(present) == 4:
            assert present[:2, 1].max() <= present[2:, 1].min()
            assert dx >= 0 and present[3, 0] >= present[2, 0]


def test_a_layout_is_the_nearest_to_itself_and_to_what_looks_like_it(world: World) -> None:
    for i, layout in enumerate(LAYOUTS):
        for shift in (0.0, 0.03):
            boxes = tuple((x + shift, y, s) for x, y, s in layout.slots)
            scenes = placed(world, *boxes, kinds=(0,) * 4)
            assert scenes.layout.item() == i, layout.name


# ---- what is said of it


def test_words_of_size_place_and_relation_are_said_only_where_they_are_clear(world: World) -> None:
    """Told from the boxes here, by another rule than the captions' own."""
    said: set[str] = set()
    for seed in range(6):
        scenes = world.sample(400, seeded(seed))
        captions, mentions = CAPTIONER.write(scenes, random.Random(seed), EVERYTHING)
        for i, caption in enumerate(captions):
            first, second = scenes.boxes[i, 0].tolist(), scenes.boxes[i, 1].tolist()
            if mentions.size[i] >= 0:
                small = bool(mentions.size[i])
                assert first[2] < 0.41 if small else first[2] > 0.71
                assert any(w in caption.split() for w in SIZE_WORDS["small" if small else "large"])
            if mentions.place[i] >= 0:
                right = bool(mentions.place[i])
                assert first[0] > 0.65 if right else first[0] < 0.35
                assert any(p in caption for p in PLACE_PHRASES["right" if right else "left"])
            if mentions.relation[i] > ANY:
                across, down = second[0] - first[0], second[1] - first[1]
                relation = mentions.relation[i].item()
                assert down > 2 * abs(across) if relation == ABOVE else across > 2 * abs(down)
                words = (*RELATION_WORDS[relation], *REVERSED_WORDS.get(relation, ()))
                assert any(f" {phrase} " in caption for phrase in words)
                said.add(("any", "beside", "left", "above")[relation])
    assert said == {"beside", "left", "above"}


def test_no_word_is_said_of_what_is_neither_one_nor_the_other(world: World) -> None:
    middling = placed(world, (0.42, 0.5, 0.55))
    diagonal = placed(world, (0.3, 0.3, 0.3), (0.68, 0.65, 0.3))
    for seed in range(20):
        _, of_one = CAPTIONER.write(middling, random.Random(seed), EVERYTHING)
        _, of_two = CAPTIONER.write(diagonal, random.Random(seed), EVERYTHING)
        assert of_one.size.item() == of_one.place.item() == -1
        assert of_two.relation.item() == ANY


@pytest.mark.parametrize("free", [0.5, 1.0])
def test_every_caption_fits_its_own_free_scene(free: float) -> None:
    world = make(free)
    for seed in range(6):
        scenes = world.sample(250, seeded(seed))
        for emphasis in (EVERYTHING, None):
            more = () if emphasis is None else (emphasis,)
            captions, mentions = CAPTIONER.write(scenes, random.Random(seed), *more)
            wrong = (~fits(mentions, scenes).diagonal()).nonzero()[:, 0].tolist()
            assert not wrong, captions[wrong[0]]


def told(relation: int, kinds: tuple[int, int]) -> Mentions:
    open_colours = torch.ones(1, 2, CAPTIONER.allowed.shape[1], dtype=torch.bool)
    nothing = torch.tensor([-1])
    return Mentions(
        nothing,
        nothing,
        nothing,
        torch.tensor([2]),
        torch.tensor([relation]),
        torch.tensor([kinds]),
        open_colours,
    )


@pytest.mark.parametrize(
    ("relation", "kinds", "expected"),
    [
        (LEFT_OF, (0, 1), True),  # the second stands to the right of the first, and below it
        (LEFT_OF, (1, 0), False),
        (ABOVE, (0, 1), True),
        (ABOVE, (1, 0), False),
        (BESIDE, (1, 0), True),
        (ANY, (1, 0), True),
        (ANY, (0, 2), False),
    ],
)
def test_a_caption_is_not_held_against_a_scene_it_may_be_true_of(
    world: World, relation: int, kinds: tuple[int, int], expected: bool
) -> None:
    diagonal = placed(world, (0.3, 0.3, 0.3), (0.68, 0.65, 0.3))
    assert bool(fits(told(relation, kinds), diagonal)) == expected


def test_the_other_way_up_the_second_may_be_above(world: World) -> None:
    rising = placed(world, (0.3, 0.65, 0.3), (0.68, 0.3, 0.3))
    assert bool(fits(told(ABOVE, (1, 0)), rising))
    assert not bool(fits(told(ABOVE, (0, 1)), rising))


def test_what_is_sure_holds_perhaps_too_and_opposites_are_never_both_sure(world: World) -> None:
    boxes = world.sample(3000, seeded(7)).boxes
    sure, perhaps = (vars(arrangement(boxes, sure=s)) for s in (True, False))
    for word, holds in sure.items():
        assert (perhaps[word] | ~holds).all(), word
        assert holds.any() or word.startswith("second"), word
    assert not (sure["large"] & perhaps["small"]).any()
    assert not (sure["left"] & perhaps["right"]).any()
    assert not (sure["first_left"] & (perhaps["second_left"] | perhaps["first_above"])).any()


# ---- groups and negatives


@pytest.mark.parametrize("factor", ["object", "colour", "background"])
def test_a_group_stands_where_its_scene_stood(world: World, factor: str) -> None:
    for seed in range(10):
        base = world.sample(1, seeded(seed))
        group = vary(world, base, factor, seeded(seed))
        assert (group.boxes == base.boxes).all() and (group.layout == base.layout).all()


def test_a_group_of_arrangements_shows_one_pair_side_by_side_and_turned_over(world: World) -> None:
    base = world.sample(40, seeded(0))
    base = base[anywhere(base)]
    for row in range(8):
        group = vary(world, base[row : row + 1], "arrangement", seeded(row))
        side, stacked = (LAYOUT_INDEX[name] for name in ("side by side", "stacked"))
        assert set(group.layout.tolist()) == {side, stacked}
        assert anywhere(group).all() and len(group.boxes.unique(dim=0)) == 2
        sure = arrangement(group.boxes, sure=True)
        assert torch.equal(sure.first_left, group.layout == side)
        assert torch.equal(sure.first_above, group.layout == stacked)


def test_a_group_of_counts_stands_anywhere_where_its_scene_did(world: World) -> None:
    base = world.sample(20, seeded(0))
    free = vary(world, base[anywhere(base)][:1], "count", seeded(1))
    assert free.counts.unique().tolist() == [1, 2, 3, 4]
    assert anywhere(free).float().mean() > 0.6
    fixed = vary(world, make(0.0).sample(1, seeded(0)), "count", seeded(1))
    assert not anywhere(fixed).any()


def test_groups_of_free_scenes_hold_pictures_that_their_captions_tell_apart(world: World) -> None:
    scenes, captions, mentions = grouped(world, CAPTIONER, 12, seeded(0), random.Random(0))
    assert len(captions) == 12 * GROUP
    assert fits(mentions, scenes).diagonal().all()
    assert fits(mentions, scenes).float().mean() < 0.2


def test_odd_ones_out_stand_anywhere_too(world: World) -> None:
    scenes = odd_ones_out(world, 60, seeded(0))
    assert set(scenes.counts.tolist()) == {3, 4}
    assert anywhere(scenes).float().mean() > 0.5


def test_free_scenes_are_painted_where_their_boxes_are(world: World) -> None:
    scenes = placed(world, (0.2, 0.75, 0.3))
    alpha = world.render(scenes, 32).alpha[0, 0] > 0.5
    rows, columns = alpha.nonzero(as_tuple=True)
    assert rows.float().mean() / 32 == pytest.approx(0.74, abs=0.03)
    assert columns.float().mean() / 32 == pytest.approx(0.19, abs=0.03)
