"""The judge trained at toy size, and the scenes it is trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy_judge import (
    CONFIG,
    OTHER_CLASS,
    SIZE,
    judge_model,
    make_judge_world,
    write_judge,
)
from tests.toy_world import CAR, CAT, FOX, SPECS, shapes
from tfgen.errors import InputError
from tfgen.judge import Judge, Thresholds
from tfgen.judge_model import Answers, JudgeModel, cell_centres
from tfgen.training import judge, judge_scenes
from tfgen.training.ahead import ahead
from tfgen.training.colours import COLOURS
from tfgen.training.commands import load_config
from tfgen.training.judge_scenes import (
    MAX_PLACED,
    MIXED,
    OTHER_WEIGHTS,
    OTHERS,
    JudgeWorld,
    Pictures,
    Placed,
    extents,
    foreign_objects,
    laid_out,
    scattered,
)
from tfgen.training.objects import load_objects
from tfgen.training.spoil import CANVAS, bend, halves, mottle, rehue, soften
from tfgen.training.world import LAYOUTS, World
from tfgen.verifiers.contrast import ContrastWords

CONFIGS = Path(judge.__file__).parent / "configs"
RED, ORANGE, BLUE = (COLOURS.index(c) for c in ("red", "orange", "blue"))


@pytest.fixture(scope="module")
def world() -> JudgeWorld:
    return make_judge_world()


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "evaluate", lambda *_: {})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def placed(*things: tuple[int, int, tuple[float, float, float]]) -> Placed:
    """One scene of (object, colour, box)."""
    objects = torch.full((1, MAX_PLACED), -1)
    colours = torch.zeros(1, MAX_PLACED, dtype=torch.long)
    boxes = torch.zeros(1, MAX_PLACED, 3)
    for slot, (thing, colour, box) in enumerate(things):
        objects[0, slot], colours[0, slot], boxes[0, slot] = thing, colour, torch.tensor(box)
    nowhere = torch.zeros(1, dtype=torch.long)
    return Placed(nowhere, nowhere, objects, colours, boxes)


def answers_of(pictures: Pictures, sure: float = 20.0) -> Answers:
    """What a network that knows the truth would answer."""
    side, n = SIZE // 4, len(pictures.images)
    cells, _, _ = judge.centre_map(pictures, side)
    centre = torch.full((n, side, side), -sure)
    objects = torch.zeros(n, side, side, OTHER_CLASS + 1)
    colours = torch.zeros(n, side, side, MIXED + 1)
    reach = torch.zeros(n, side, side, 4)
    grid = cell_centres(side, side)
    for p, (row, (cy, cx)) in enumerate(zip(pictures.rows.tolist(), cells.tolist(), strict=True)):
        centre[row, cy, cx] = sure
        around = slice(max(cy - 1, 0), cy + 2), slice(max(cx - 1, 0), cx + 2)
        objects[row][around][..., pictures.objects[p]] = sure
        colours[row][around][..., pictures.colours[p]] = sure
        box, middle = pictures.boxes[p], grid[around]
        reach[row][around] = torch.cat([middle - box[:2], box[2:] - middle], 2)
    background = torch.zeros(n, 22)
    background[torch.arange(n), pictures.background] = sure
    return Answers(centre, objects, colours, reach, background)


# ---- scenes


def test_what_is_painted_lies_in_its_box(world: JudgeWorld) -> None:
    scene = placed((CAR, 0, (0.3, 0.4, 0.5)), (CAT, RED, (0.75, 0.7, 0.4)))
    bare = world.paint(placed(), seeded()).images[0]
    pictures = world.paint(scene, seeded())
    assert pictures.objects.tolist() == [CAR, CAT] and pictures.colours.tolist() == [0, RED]
    changed = ((pictures.images[0] - bare).abs().sum(0) > 0.15).nonzero()
    inside = torch.zeros(len(changed), dtype=torch.bool)
    for left, top, right, bottom in (pictures.boxes * SIZE).tolist():
        y, x = changed.unbind(1)
        here = (x >= left - 1) & (x <= right) & (y >= top - 1) & (y <= bottom)
        assert here.sum() > 20
        inside |= here
    assert inside.all()


def test_extents_are_the_sides_of_what_is_covered() -> None:
    alpha = torch.zeros(1, 10, 10)
    alpha[0, 2:5, 3:9] = 1
    assert extents(alpha)[0].tolist() == pytest.approx([0.3, 0.2, 0.9, 0.5])


def test_an_object_behind_another_is_known_to_be_hidden(world: JudgeWorld) -> None:
    box = (0.5, 0.5, 0.5)
    pictures = world.paint(placed((FOX, 0, box), (FOX, 0, box)), seeded())
    assert pictures.visible[0] < 0.1 and pictures.visible[1] == pytest.approx(1.0)
    apart = world.paint(placed((FOX, 0, (0.25, 0.5, 0.4)), (FOX, 0, (0.75, 0.5, 0.4))), seeded())
    assert (apart.visible > 0.99).all()


def test_half_of_the_scenes_are_laid_out_and_half_are_not() -> None:
    slots = torch.tensor([slot for layout in LAYOUTS for slot in layout.slots])
    boxes = laid_out(200, seeded())
    near = (boxes[boxes[..., 2] > 0][:, None] - slots).abs().amax(2).amin(1)
    assert near.max() < 0.11
    boxes = scattered(200, seeded())
    near = (boxes[boxes[..., 2] > 0][:, None, :2] - slots[:, :2]).abs().amax(2).amin(1)
    assert near.mean() > 0.05


def test_scattered_objects_stay_in_the_picture_and_seldom_overlap() -> None:
    boxes = scattered(300, seeded())
    there = boxes[..., 2] > 0
    assert set(there.sum(1).tolist()) == {1, 2, 3, 4, 5}
    half = 0.42 * boxes[..., 2:]
    assert (boxes[..., :2] - half)[there].min() >= -1e-5
    assert (boxes[..., :2] + half)[there].max() <= 1 + 1e-5
    pairs = there[:, :, None] & there[:, None] & ~torch.eye(MAX_PLACED, dtype=torch.bool)
    apart = (boxes[:, :, None, :2] - boxes[:, None, :, :2]).abs().amax(3)
    overlap = apart < 0.4 * (boxes[:, :, None, 2] + boxes[:, None, :, 2])
    assert overlap[pairs].float().mean() < 0.05


def test_kinds_and_colours_mix_as_they_do_in_no_scene_of_the_world(world: JudgeWorld) -> None:
    drawn = world.sample(2000, seeded())
    there = drawn.objects >= 0
    four = drawn.objects[there.sum(1) == 4]
    kinds = torch.tensor([len(set(row) - {-1}) for row in four.tolist()])
    assert (kinds == 1).any() and (kinds > 1).float().mean() > 0.4
    other = drawn.objects == OTHER_CLASS
    assert other[there].float().mean() == pytest.approx(0.15, abs=0.02)
    assert (drawn.colours[~other & there] == MIXED).float().mean() == pytest.approx(0.06, abs=0.015)
    assert (drawn.colours[other] < MIXED).all()
    assert (~there.any(1)).any()  # nothing but a background
    assert drawn.objects.max() == OTHER_CLASS
    assert set(drawn.background.tolist()) == set(range(22)) and drawn.variant.max() == 1


@pytest.mark.parametrize("kind", OTHERS)
def test_a_stranger_is_none_of_the_worlds_sprites(world: JudgeWorld, kind: str) -> None:
    known = world.world.sprite_bank(CANVAS).flatten(0, 1).float() / 255
    for seed in range(8):
        sprite = world.stranger(kind, seeded(seed))
        assert sprite.shape == (4, CANVAS, CANVAS)
        assert sprite.min() >= 0 and sprite.max() <= 1 + 1e-5
        assert sprite[3].mean() > 0.05
        assert (sprite - known).abs().mean((1, 2, 3)).min() > 0.01


def test_a_mixed_object_is_in_two_colours(world: JudgeWorld) -> None:
    objects, colours = torch.full((80,), CAR), torch.full((80,), MIXED)
    sprites = world._sprites(objects, colours, seeded(), OTHER_WEIGHTS)
    alike = colours < MIXED
    assert alike.any() and alike.float().mean() < 0.3
    plain = world.bank[CAR].float() / 255
    distance = (sprites[:, None] - plain).abs().mean((2, 3, 4)).amin(1)
    assert (distance[~alike] > 0.01).all()
    # Where the two colours look alike, it is one of plain colour, and is called that.
    assert torch.equal(sprites[alike], plain[colours[alike]])


def test_a_cut_leaves_about_a_half_of_both_sprites(world: JudgeWorld) -> None:
    pair = world.bank[[FOX, CAT], 0].float() / 255
    for seed in range(20):
        mask = halves(pair, seeded(seed))
        for side, sprite in ((1 - mask, pair[0]), (mask, pair[1])):
            assert 0.3 < (side * sprite[3]).sum() / sprite[3].sum() < 0.7


def test_bent_mottled_and_rehued_sprites_are_nearest_to_themselves(world: JudgeWorld) -> None:
    own = world.world.sprite_bank(CANVAS)[:, RED].float() / 255
    for m, sprite in enumerate(own):
        bent = mottle(bend(sprite, 0.02, seeded(m)), 0.12, seeded(m))
        turned = rehue(sprite, seeded(m))
        assert torch.equal(turned[3], sprite[3])
        for changed in (bent, turned):
            assert (changed[:3] <= changed[3:] + 1e-5).all() and changed.min() >= 0
            assert (changed - sprite).abs().mean() > 0.005
            assert (changed[3] - own[:, 3]).abs().mean((1, 2)).argmin() == m


def test_a_hue_between_the_colours_is_not_asked_for(
    world: JudgeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_scenes, "REHUED", 1.0)
    scene = placed((CAR, RED, (0.5, 0.5, 0.6)))
    assert world.paint(scene, seeded()).colours.tolist() == [RED]
    pictures = world.paint(scene, seeded(), spoilt=True)
    assert pictures.colours.tolist() == [-1]
    answers = answers_of(pictures)
    answers = answers._replace(colours=torch.randn(answers.colours.shape, generator=seeded()))
    both = {  # the same object twice, once with a colour
        "rows": torch.tensor([0, 0]),
        "colours": torch.tensor([-1, BLUE]),
        "objects": pictures.objects.repeat(2),
        "boxes": pictures.boxes.repeat(2, 1),
        "visible": pictures.visible.repeat(2),
    }
    one = judge.judge_loss(answers, replace(pictures, colours=torch.tensor([BLUE])), OTHER_CLASS)
    two = judge.judge_loss(answers, replace(pictures, **both), OTHER_CLASS)
    assert two["colour"] == pytest.approx(one["colour"].item())


def test_what_the_worlds_words_could_name_is_not_foreign() -> None:
    small = load_objects("small")
    names = [load_objects()[row].name for row in foreign_objects(small, held_out=False)]
    assert "zebra" in names and len(names) > 300
    assert not {"polar bear", "christmas tree", "police car", "fox", "hot air balloon"} & set(names)
    held_out = [load_objects()[row].name for row in foreign_objects(small, held_out=True)]
    assert len(held_out) > 40 and not set(held_out) & set(names)


def test_a_world_that_knows_every_sprite_has_strangers_of_the_other_sorts(tmp_path: Path) -> None:
    """As the full tier does, which has objects anywhere, too."""
    known = World(sizes=(SIZE,), variants=2, sprites=shapes(), specs=SPECS, free=1.0)
    world = JudgeWorld(known, torch.zeros(0, 4, 24, 24, dtype=torch.uint8), SIZE)
    assert len(world.bank) == world.other == len(SPECS)
    pictures = world.paint(world.sample(60, seeded(), other=0.9), seeded())
    assert (pictures.objects == world.other).float().mean() > 0.8
    config = CONFIG | {"steps": 2, "other": 0.5}
    model = judge.train(config, tmp_path / "run", world, Echo(0.9))
    judge.export(model, world, Echo(0.9), tmp_path / "judge", scenes=4)
    assert Judge.load(tmp_path / "judge").objects == [spec.name for spec in SPECS]


def test_the_full_tier_knows_every_sprite_and_a_smaller_one_does_not() -> None:
    everything, small = load_objects(), load_objects("small")
    assert not foreign_objects(everything, False) and not foreign_objects(everything, True)
    sprites = shapes(8)[torch.arange(80) % 5]
    world = World(sizes=(SIZE,), variants=1, sprites=sprites[:40], specs=list(small))
    foreign = [row for row in foreign_objects(small, False) if row < 80]
    assert len(JudgeWorld.among(world, sprites).bank) == 40 + len(foreign) > 40
    assert len(JudgeWorld.among(world, sprites[:40]).bank) == 40


def test_pictures_drawn_ahead_by_other_processes_are_the_same(world: JudgeWorld) -> None:
    def draw(step: int) -> list[np.ndarray]:
        return judge.draw_pictures(world, CONFIG, None, seeded(step)).arrays()

    here, there = (list(ahead(draw, range(2, 7), 7, workers)) for workers in (0, 2))
    assert [step for step, _ in there] == [2, 3, 4, 5, 6]
    for (_, a), (_, b) in zip(here, there, strict=True):
        for name, value, same in zip(Pictures.__dataclass_fields__, a, b, strict=True):
            assert np.array_equal(value, same), name


def test_softening_keeps_a_picture_recognisable(world: JudgeWorld) -> None:
    images = world.paint(world.sample(16, seeded()), seeded()).images
    soft = soften(images, seeded(1))
    assert soft.shape == images.shape and soft.min() >= 0 and soft.max() <= 1
    off = (soft[:, None] - images).abs().flatten(2).mean(2)
    assert (off.argmin(1) == torch.arange(16)).all() and (off.diagonal() > 0).all()


# ---- what is learned


def test_the_truth_costs_nothing_and_a_wrong_answer_costs(world: JudgeWorld) -> None:
    pictures = world.paint(
        placed((CAR, RED, (0.3, 0.3, 0.4)), (OTHER_CLASS, 0, (0.7, 0.7, 0.4))), seeded()
    )
    right = answers_of(pictures)
    loss = judge.judge_loss(right, pictures, OTHER_CLASS)
    assert loss.keys() == judge.WEIGHTS.keys()
    assert all(part.item() < 1e-3 for part in loss.values())
    wrong = {
        "centre": right._replace(centre=-right.centre),
        "object": right._replace(objects=right.objects.roll(1, 3)),
        "colour": right._replace(colours=right.colours.roll(1, 3)),
        "reach": right._replace(reach=right.reach + 0.1),
        "background": right._replace(background=right.background.roll(1, 1)),
    }
    for part, answers in wrong.items():
        now = judge.judge_loss(answers, pictures, OTHER_CLASS)
        assert {k for k, v in now.items() if v > loss[k] + 0.05} == {part}


def test_a_hidden_object_is_neither_asked_for_nor_held_against(world: JudgeWorld) -> None:
    box = (0.5, 0.5, 0.4)
    pictures = world.paint(placed((CAR, 0, box), (CAR, 0, (0.2, 0.2, 0.3))), seeded())
    pictures.visible[0] = 0.2
    cells, target, weight = judge.centre_map(pictures, 8)
    y, x = cells[0].tolist()
    assert target[0, y, x] < 1 and weight[0, y, x] == 0
    assert target[0][tuple(cells[1].tolist())] == 1 and weight[0, 7, 7] == 1
    answers = answers_of(pictures)
    both = judge.judge_loss(answers, pictures, OTHER_CLASS)
    answers.centre[0, y, x] *= -1
    answers.objects[0, y, x] = answers.objects[0, y, x].roll(1)
    assert judge.judge_loss(answers, pictures, OTHER_CLASS) == both


class Echo:
    """A tokenizer whose tokens are the picture itself, which it decodes darker or lighter."""

    def __init__(self, gain: float):
        self.gain = gain

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens * self.gain


def test_a_share_of_the_pictures_is_decoded_unless_it_shows_something_else(
    world: JudgeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "soften", lambda images, _: images)
    plain, near, far = (
        judge.draw_pictures(world, CONFIG, Echo(gain), seeded()) for gain in (1.0, 0.97, 0.3)
    )
    assert torch.equal(plain.images[:6], near.images[:6])
    assert torch.allclose(near.images[6:], 0.97 * plain.images[6:])
    assert torch.equal(far.images, plain.images)
    assert (plain.objects[plain.rows >= 6] < OTHER_CLASS).all() and plain.rows.max() == 7


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.usefixtures("unjudged")
def test_a_judge_that_resumes_is_the_one_that_never_stopped(
    world: JudgeWorld, tmp_path: Path
) -> None:
    whole = judge.train(CONFIG, tmp_path / "whole", world, until=4)
    judge.train(CONFIG, tmp_path / "parts", world, until=2)
    parts = judge.train(CONFIG, tmp_path / "parts", world, until=4)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


@pytest.mark.usefixtures("unjudged")
def test_a_judge_learns_a_few_scenes(
    world: JudgeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = judge.draw_pictures(world, CONFIG, None, seeded())
    monkeypatch.setattr(judge, "draw_pictures", lambda *_: few)
    monkeypatch.setattr(judge, "learning_rate", lambda *_, **__: 3e-3)
    judge.train(CONFIG, tmp_path, world, until=25)
    seen = losses(tmp_path)
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_evaluation_counts_what_is_right(world: JudgeWorld) -> None:
    scenes = world.world.sample(12, seeded())
    pictures = world.paint(world.true(scenes), seeded())

    class Knowing(nn.Module):
        def forward(self, images: Tensor) -> Answers:
            return answers_of(pictures)

    found = judge.evaluate(Knowing(), pictures, OTHER_CLASS)
    assert found == {"object": 1.0, "colour": 1.0, "background": 1.0, "count": 1.0}
    amiss = replace(pictures, background=pictures.background.roll(1))
    amiss.objects = (pictures.objects + 1) % OTHER_CLASS
    found = judge.evaluate(Knowing(), amiss, OTHER_CLASS)
    assert found["object"] == 0.0 and found["background"] < 0.5 and found["count"] == 1.0


# ---- a judge that begins with another


def test_a_judge_begins_with_what_one_of_fewer_objects_knows(
    world: JudgeWorld, tmp_path: Path
) -> None:
    known = judge_model().eval()
    judge.export(known, world, None, tmp_path, scenes=2)
    known = Judge.load(tmp_path).model
    more = JudgeModel(replace(known.cfg, objects=known.cfg.objects + 3)).eval()
    judge.begin_with(more, str(tmp_path))
    images = world.paint(world.sample(2, seeded()), seeded()).images
    with torch.no_grad():
        was, now = known(images), more(images)
    for name in ("centre", "colours", "reach", "background"):
        assert torch.allclose(getattr(now, name), getattr(was, name), atol=1e-5), name
    both = [*range(OTHER_CLASS), -1]
    assert torch.allclose(now.objects[..., both], was.objects, atol=1e-5)


@pytest.mark.usefixtures("unjudged")
def test_training_begins_with_the_judge_that_the_config_names(
    world: JudgeWorld, tmp_path: Path
) -> None:
    known = write_judge(tmp_path / "known")
    config = CONFIG | {"start": str(known), "peak_lr": 0.0}
    trained = judge.train(config, tmp_path / "run", world, until=1)
    theirs = Judge.load(known).model.state_dict()
    assert max((v - theirs[k]).abs().max() for k, v in trained.state_dict().items()) < 2e-3
    with pytest.raises(InputError, match="'sprites-judge' has another network than the config"):
        judge.train(CONFIG | {"start": "sprites-judge"}, tmp_path / "other", world)


# ---- what is written


def test_a_written_judge_sees_what_the_trained_one_saw(world: JudgeWorld, tmp_path: Path) -> None:
    model = judge_model().eval()
    judge.export(model, world, None, tmp_path, scenes=3)
    assert {p.name for p in tmp_path.iterdir()} == {"judge.safetensors", "judge.json", "words.json"}
    loaded = Judge.load(tmp_path)
    assert loaded.objects == [spec.name for spec in SPECS]
    assert loaded.backgrounds[0] == "snow"
    images = world.paint(world.sample(3, seeded()), seeded()).images
    with torch.no_grad():
        for was, now in zip(model(images), loaded.model(images), strict=True):
            assert torch.allclose(was, now, atol=0.02)


@pytest.fixture
def doubtful(world: JudgeWorld) -> tuple[Judge, Pictures]:
    """Thirty pictures with an orange cat, and a judge whose centres of true objects have 0.55, and
    their names 0.65; of a false one 0.45, but its name 0.95."""
    scenes = world.world.sample(30, seeded())
    scenes.objects[:, 1:], scenes.objects[:, 0], scenes.colours[:, 0] = -1, CAT, ORANGE
    pictures = world.paint(world.true(scenes), seeded())
    answers = answers_of(pictures)
    answers.centre[answers.centre > 0] = torch.logit(torch.tensor(0.55))
    likely = torch.tensor(0.65 * OTHER_CLASS / 0.35).log()
    answers = answers._replace(objects=torch.where(answers.objects > 0, likely, 0.0))
    answers.centre[:, 0, 0] = torch.logit(torch.tensor(0.45))
    answers.objects[:, 0, 0, CAR] = 10.0

    class Doubtful(nn.Module):
        def forward(self, images: Tensor) -> Answers:
            return answers

    words = ContrastWords(**judge.contrast_words(judge.Captioner(SPECS)))
    return Judge(Doubtful(), words, ["snow"] * 22, Thresholds()), pictures


def test_the_thresholds_are_those_that_name_most_pictures_objects_exactly(
    doubtful: tuple[Judge, Pictures],
) -> None:
    chosen = judge.choose_thresholds(*doubtful)
    assert chosen.centre == 0.5 and chosen.object == 0.6
    assert chosen.colour == 0.9  # as strict as can be, for all colours are certain


def test_strict_thresholds_may_cost_a_few_right_answers() -> None:
    options = [Thresholds(object=value) for value in (0.8, 0.7, 0.6)]
    scores = dict(zip(options, (980, 991, 1000), strict=True))
    assert judge.strictest(options, scores.__getitem__, 0.99).object == 0.7


def test_a_colour_is_believed_as_far_as_that_is_right_most_often(
    doubtful: tuple[Judge, Pictures],
) -> None:
    """Ten mixed objects pass for orange with 0.55; twenty orange ones are so with 0.65."""
    reader, pictures = doubtful
    colours = reader.model(pictures.images).colours
    colours.zero_()
    for i in range(30):
        share = 0.55 if i < 10 else 0.65
        colours[i, ..., ORANGE] = torch.tensor(share / (1 - share) * MIXED).log()
    pictures.colours[:10] = MIXED
    assert judge.choose_thresholds(reader, pictures).colour == 0.6


def test_the_config_has_the_settings_that_the_script_reads() -> None:
    config = load_config(CONFIGS / "judge_small.json", ["steps=7"])
    assert config["steps"] == 7
    assert set(config) == {*CONFIG, "tier", "variants"}
    assert config["decoded_share"] <= 0.2
