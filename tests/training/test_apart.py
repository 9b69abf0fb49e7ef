"""The tokenizer's parts trained apart at toy size: each learns its own work and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.toy_world import SIZES, SPECS, make_world, shapes, weights
from tests.toy_world import apart as difference
from tfgen.errors import InputError
from tfgen.tokenizers.fsq import FSQ
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_reading import Reading
from tfgen.training import apart, tokenizer
from tfgen.training.ahead import ahead
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.commands import load_config
from tfgen.training.common import TimeUp
from tfgen.training.world import World
from tfgen.training.writing import tokens_of

PARTS = apart.PARTS
PART = {"steps": 40, "batch": 8, "peak_lr": 0.05}
CONFIG: dict[str, Any] = {
    "seed": 1,
    "ema": 0.9,
    "attribute_weight": 0.3,
    "grafts": 0.4,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
    **dict.fromkeys(PARTS, PART),
    "model": SIZES
    | {"slot_depth": 1, "scribe": 64, "kinds": 5, "colours": len(COLOURS)}
    | {"grounds": 2 * len(BACKGROUNDS), "levels": [8, 6, 4]},
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(32)


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the evaluation on held-out scenes, which costs more than a toy training."""
    for measure in ("painted", "told", "looked"):
        monkeypatch.setattr(apart.Apart, measure, lambda _: {})


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_the_packaged_config_is_of_this_trainer() -> None:
    config = load_config(Path(apart.__file__).parent / "configs" / "apart_small.json", [])
    assert set(config) == {*CONFIG, "tier"}
    for part in PARTS:
        assert set(config[part]) == set(PART)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_learns_and_leaves_the_others(
    world: World, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = apart.Apart(CONFIG, "cpu", world)
    module, draw, loss_of, _ = trained.work()[part]
    few = world.sample(16, torch.Generator().manual_seed(0))
    monkeypatch.setattr(world, "sample", lambda *_: few)
    model = trained.model
    modules = {
        "descriptions": trained.described,
        "painter": model.object,
        "scribe": model.encoder.scribe,
        "trunk": model.trunk,
        "eye": model.encoder.convs,
    }
    before = {name: weights(module) for name, module in modules.items()}
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    seen = []
    for _ in range(60):
        loss, _ = loss_of(draw(16, torch.Generator().manual_seed(2)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])
    changed = {name for name in modules if difference(before[name], weights(modules[name])) > 0}
    assert (
        changed
        == {
            "painters": {"descriptions", "painter"},
            "codes": {"scribe", "trunk"},
            "decoder": {"trunk", "painter"},
            "encoder": {"eye"},
        }[part]
    )


def test_the_encoder_comes_to_write_what_the_scribe_writes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = apart.Apart(CONFIG, "cpu", world)
    few = world.sample(16, torch.Generator().manual_seed(0))
    monkeypatch.setattr(world, "sample", lambda *_: few)
    images = world.render(few, 32).images

    def agree() -> float:
        return (trained.trainer.encode(images) == trained.write(few)).float().mean().item()

    before = agree()
    optimiser = torch.optim.Adam(trained.encoder().parameters(), lr=1e-3)
    for _ in range(300):
        loss, _ = trained.look(trained.draw_scenes(16, torch.Generator()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before < 0.5 and agree() > 0.8


def test_of_a_scene_the_scribe_reads_what_is_there(world: World) -> None:
    """What colour and where an absent object is says nothing; all else does."""
    scribe = apart.Apart(CONFIG, "cpu", world).scribe
    scenes = world.sample(32, torch.Generator().manual_seed(3))
    scene = scenes[(scenes.counts == 1).nonzero()[0]]
    told = {"ground": scene.background, "kinds": scene.objects, "colours": scene.colours}
    told["boxes"] = scene.boxes
    codes = scribe(**told)
    absent = {name: value.clone() for name, value in told.items()}
    absent["colours"][:, 1:], absent["boxes"][:, 1:] = 5, 0.5
    assert torch.equal(scribe(**absent), codes)
    for name, value in told.items():
        other = value.clone()
        other[..., :1] = 0.3 if name == "boxes" else (other[..., :1] + 1) % 2
        assert not torch.equal(scribe(**told | {name: other}), codes), name


def test_what_is_read_for_sure_is_written_as_the_truth_is(world: World) -> None:
    scribe = apart.Apart(CONFIG, "cpu", world).scribe
    scenes = world.sample(32, torch.Generator().manual_seed(3))
    kinds = scenes.objects.where(scenes.objects >= 0, world.num_objects)
    sizes = (world.num_objects + 1, len(COLOURS))
    kinds, colours = (
        9.0 * F.one_hot(index, n) for index, n in zip((kinds, scenes.colours), sizes, strict=True)
    )
    ground = scenes.background * world.variants + scenes.variant
    seen = 9.0 * F.one_hot(ground, len(BACKGROUNDS) * world.variants)
    read = scribe.of_likeliest(Reading(seen, kinds, colours, scenes.boxes[None]))
    truth = scribe(ground, scenes.objects, scenes.colours, scenes.boxes)
    assert torch.allclose(read, truth, atol=1e-5)


def test_the_first_token_tells_the_background_and_how_many_objects(world: World) -> None:
    fsq = FSQ(CONFIG["model"]["levels"])
    scenes = world.sample(400, torch.Generator().manual_seed(4))
    told = apart.first_token(scenes, fsq, world.variants)
    assert int(told.max()) < fsq.vocab_size
    grounds = scenes.background * world.variants + scenes.variant
    digits = ((fsq.to_codes(told) + 1) / 2 * (torch.tensor(fsq.levels) - 1)).round().long()
    assert torch.equal(digits[:, 2], scenes.counts - 1)
    assert torch.equal(digits[:, 0] + 8 * digits[:, 1], grounds)
    # A code that says it, in the middle of its bins, is not off.
    middle = torch.atanh((digits + 0.5) / torch.tensor(fsq.levels) * 2 - 1)
    trained = apart.Apart(CONFIG, "cpu", world)
    assert trained.off(middle, told) < 1e-6 < 1e-2 < trained.off(middle.flip(0), told)


def test_a_codebook_too_small_for_the_first_token_is_refused(world: World) -> None:
    config = CONFIG | {"model": CONFIG["model"] | {"levels": [8, 6, 3]}}
    with pytest.raises(InputError, match='A codebook of 144 is too small .* more "levels"'):
        apart.Apart(config, "cpu", world)


def test_scenes_are_written_as_the_scribe_is_told_them_in_its_own_world_alone(world: World) -> None:
    trained = apart.Apart(CONFIG, "cpu", world)
    tokenizer = SpritesTokenizer(trained.model)
    scenes = world.sample(9, torch.Generator().manual_seed(5))
    written = tokens_of(tokenizer, world, scenes)
    assert torch.equal(written, tokenizer.fsq.to_tokens(trained.write(scenes)))
    read = tokenizer.encode(world.render(scenes, 32).images)
    assert not torch.equal(written, read)  # the encoder has learned nothing
    other = World(sizes=(32,), variants=3, sprites=shapes(), specs=SPECS)
    scenes = other.sample(9, torch.Generator().manual_seed(5))
    read = tokenizer.encode(other.render(scenes, 32).images)
    assert torch.equal(tokens_of(tokenizer, other, scenes), read)


def test_a_model_for_another_world_is_refused(world: World) -> None:
    config = CONFIG | {"model": CONFIG["model"] | {"kinds": 4}}
    with pytest.raises(InputError, match='"kinds": 5, "colours": 11'):
        apart.Apart(config, "cpu", world)
    with pytest.raises(InputError, match="other sizes"):
        apart.Apart(CONFIG | {"start": "sprites"}, "cpu", world)
    with pytest.raises(InputError, match="'sprites-grid' is no tokenizer of the kind sprites"):
        apart.Apart(CONFIG | {"start": "sprites-grid"}, "cpu", world)


@pytest.mark.usefixtures("unjudged")
def test_what_resumes_is_what_never_stopped(world: World, tmp_path: Path) -> None:
    whole = apart.train(CONFIG, tmp_path / "whole", "cpu", world, until=4)
    apart.train(CONFIG, tmp_path / "parts", "cpu", world, until=2)
    # The later parts begin anew: they had learned from others than they are now.
    for part in PARTS[1:]:
        (tmp_path / "parts" / part / "checkpoint.safetensors").unlink()
    parts = apart.train(CONFIG, tmp_path / "parts", "cpu", world, until=4)
    assert difference(weights(parts.model), weights(whole.model)) < 1e-5


@pytest.mark.usefixtures("unjudged")
def test_it_stops_when_the_time_is_up_and_goes_on_with_the_next_part(
    world: World, tmp_path: Path
) -> None:
    config = CONFIG | {part: PART | {"steps": 2} for part in PARTS}
    calls = 0
    while True:
        calls += 1
        assert calls < 20
        try:
            apart.train(config, tmp_path, "cpu", world, deadline=0.0)
        except TimeUp:
            continue
        break
    assert [len(losses(tmp_path / part)) for part in PARTS] == [2, 2, 2, 2]


def test_it_is_measured_and_the_tokenizer_goes_on_from_it(world: World, tmp_path: Path) -> None:
    trained = apart.train(CONFIG, tmp_path / "run", "cpu", world, until=2)
    measures = ("canvas", "object@8", "canvas@8", "digits")
    for part, measured in zip(PARTS, measures, strict=True):
        rows = (tmp_path / "run" / part / "log.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])[measured] >= 0
    apart.export(trained, tmp_path / "export")
    loaded = SpritesTokenizer.load(tmp_path / "export")
    images = world.render(world.sample(4, torch.Generator().manual_seed(0)), 32).images
    assert loaded.decode(loaded.encode(images)).shape == images.shape
    config = {"seed": 1, "steps": 40, "batch": 8, "peak_lr": 0.0, "ema": 0.9, "grafts": 0.4}
    config |= {"attribute_weight": 0.1, "bf16": False, "log_every": 1, "save_every": 1000}
    config |= {"model": CONFIG["model"], "start": str(tmp_path / "export")}
    further = tokenizer.train(config, tmp_path / "further", "cpu", world, until=1)
    assert difference(weights(further.model), weights(trained.model)) < 2e-3  # float16 between


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize("part", PARTS)
def test_batches_drawn_ahead_by_other_processes_are_the_same(world: World, part: str) -> None:
    draw = apart.Apart(CONFIG, "cpu", world).work()[part][1]

    def drawn(step: int) -> apart.Drawn:
        return draw(24, torch.Generator().manual_seed(step))

    here, there = (list(ahead(drawn, range(2, 6), 6, workers)) for workers in (0, 2))
    for (step, mine), (same, theirs) in zip(here, there, strict=True):
        assert step == same and len(mine) == len(theirs)
        assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))


@pytest.mark.usefixtures("unjudged")
def test_parts_learn_the_same_from_what_is_drawn_ahead(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = apart.train(CONFIG, tmp_path / "alone", "cpu", world, until=2)
    asked = []
    monkeypatch.setattr(apart, "workers_beside", lambda device: asked.append(device) or 2)
    helped = apart.train(CONFIG, tmp_path / "helped", "cpu", world, until=2)
    assert asked == ["cpu"] * 4
    assert difference(weights(alone.model), weights(helped.model)) == 0
