"""Grafts between the codes of two scenes: whose tokens they have, and what they are to show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.toy_world import SIZES, make_world
from tfgen.training import tokenizer
from tfgen.training.grafts import FIRST, SCENE, Grafts, graft
from tfgen.training.world import LAYOUT_INDEX, Scenes, World

T = 8


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(32)


def sample(world: World, n: int = 200) -> Scenes:
    return world.sample(n, torch.Generator().manual_seed(3))


def made(scenes: Scenes, share: float = 1.0, seed: int = 0) -> Grafts:
    return graft(scenes, share, torch.Generator().manual_seed(seed))


def numbered(n: int) -> torch.Tensor:
    """Codes [n, T, 1] that tell their scene and their place."""
    return (100.0 * torch.arange(n)[:, None] + torch.arange(T))[..., None]


def test_codes_are_ones_own_before_the_cut_and_the_donors_after_it(world: World) -> None:
    grafts = made(sample(world))
    grafted = grafts.codes(numbered(200))
    for i, (donor, cut) in enumerate(zip(grafts.donor.tolist(), grafts.cut.tolist(), strict=True)):
        assert donor != i and cut in (SCENE, FIRST)
        expected = [100 * (i if t < cut else donor) + t for t in range(T)]
        assert grafted[i, :, 0].tolist() == expected


def test_a_grafted_scene_has_the_parts_of_both(world: World) -> None:
    scenes = sample(world)
    grafts = made(scenes)
    grafted = grafts.scenes(scenes)
    donors = scenes[grafts.donor]
    for name in ("background", "variant", "layout", "boxes"):
        assert torch.equal(getattr(grafted, name), getattr(scenes, name))
    of_first = grafts.cut == FIRST
    for name in ("objects", "colours"):
        own, other, now = (getattr(s, name) for s in (scenes, donors, grafted))
        assert torch.equal(now[~of_first], other[~of_first])
        assert torch.equal(now[of_first, 0], own[of_first, 0])
        assert torch.equal(now[of_first, 1:], other[of_first, 1:])
    assert torch.equal(grafted.objects >= 0, scenes.objects >= 0)


def test_only_scenes_with_objects_in_the_same_places_are_grafted(world: World) -> None:
    scenes = sample(world)
    grafts = made(scenes)
    assert torch.equal(scenes.boxes, scenes.boxes[grafts.donor])
    pairs = (scenes.counts == 2)[grafts.cut == FIRST]
    assert len(pairs) and pairs.all()


def test_a_scene_that_is_alone_keeps_its_tokens(world: World) -> None:
    layout = torch.tensor([LAYOUT_INDEX[n] for n in ("large", "stacked", "small")])
    ones = torch.ones(3, dtype=torch.int64)
    scenes = world.scenes(
        ones, ones, layout, ones[:, None].expand(3, 4), ones[:, None].expand(3, 4)
    )
    grafts = made(scenes)
    assert grafts.cut.tolist() == [0, 0, 0]
    assert torch.equal(grafts.codes(numbered(3)), numbered(3))
    assert torch.equal(grafts.scenes(scenes).objects, scenes.objects)


def test_a_share_is_grafted_and_the_seed_decides(world: World) -> None:
    scenes = sample(world, 600)
    assert 0.33 < (made(scenes, 0.4).cut > 0).float().mean() < 0.47
    assert made(scenes, 0.0).cuts_made() == []
    again, other = made(scenes, 0.4), made(scenes, 0.4, seed=1)
    assert torch.equal(made(scenes, 0.4).donor, again.donor)
    assert not torch.equal(again.donor, other.donor)


def test_prefixes_are_long_enough_to_show_the_donor() -> None:
    grafts = Grafts(torch.tensor([1, 2, 0]), torch.tensor([0, SCENE, FIRST]))
    assert grafts.long_enough(torch.tensor([1, 1, 1])).tolist() == [1, 2 * SCENE, 2 * FIRST]
    assert grafts.long_enough(torch.tensor([8, 8, 8])).tolist() == [8, 8, 8]


def config(**changes: object) -> dict:
    config = {"seed": 1, "steps": 2, "batch": 16, "peak_lr": 0.01, "ema": 0.9, "bf16": False}
    config |= {"attribute_weight": 0.08, "log_every": 1, "save_every": 99, "model": SIZES}
    return config | changes


def test_the_loss_asks_for_the_grafted_scene(world: World, tmp_path: Path) -> None:
    """With grafts between equal scenes it is the loss without them, and else it is not; what the
    encoder is asked about what it sees stays the same."""
    trainer = tokenizer.train(config(steps=0), tmp_path, "cpu", world)
    scenes, lengths = sample(world, 1)[torch.tensor([0, 0])], torch.full((2,), T)
    swapped = Grafts(torch.tensor([1, 0]), torch.tensor([SCENE, SCENE]))
    plain, _ = trainer(world, scenes, lengths)
    assert torch.allclose(trainer(world, scenes, lengths, swapped)[0], plain)

    several = sample(world, 64)
    lengths = torch.full((64,), T)
    plain, parts = trainer(world, several, lengths)
    grafted, grafted_parts = trainer(world, several, lengths, made(several))
    assert grafted.isfinite() and not torch.allclose(grafted, plain)
    assert grafted_parts["seen_object"] == parts["seen_object"]


def test_training_grafts_the_share_that_its_config_asks_for(world: World, tmp_path: Path) -> None:
    def first_loss(name: str, **changes: object) -> float:
        tokenizer.train(config(**changes), tmp_path / name, "cpu", world)
        return json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"]

    without = first_loss("without")
    assert first_loss("none", grafts=0.0) == without != first_loss("some", grafts=0.5)
    last = json.loads((tmp_path / "some" / "log.jsonl").read_text().splitlines()[-1])
    assert {f"graft@{SCENE}", f"graft@{FIRST}"} < set(last)
