"""The grid tokenizer trained at toy size: it learns, resumes, and writes what is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.toy_grid import SIZES
from tests.toy_world import apart, make_world, weights
from tfgen.errors import InputError
from tfgen.tokenizers.grid import GridTokenizer
from tfgen.tokenizers.grid_model import GridConfig
from tfgen.training import grid
from tfgen.training.commands import load_config
from tfgen.training.tokenizer import psnr
from tfgen.training.world import LAYOUT_INDEX, World

CONFIG = {
    "seed": 5,
    "steps": 40,
    "batch": 8,
    "peak_lr": 0.05,
    "ema": 0.9,
    "attribute_weight": 0.05,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
    "model": SIZES,
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(32)


@pytest.fixture(scope="module")
def trainer(world: World) -> grid.GridTrainer:
    torch.manual_seed(0)
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in SIZES.items()}
    return grid.GridTrainer(GridConfig(**sizes), world.num_objects, 0.05)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_the_packaged_config_is_of_this_trainer() -> None:
    config = load_config(Path(grid.__file__).parent / "configs" / "grid_small.json", [])
    assert set(config) == {*CONFIG, "tier"}


def test_a_cell_shows_the_object_whose_box_holds_its_middle(world: World) -> None:
    layouts = torch.tensor([LAYOUT_INDEX["side by side"], LAYOUT_INDEX["small"]])
    objects = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]])
    nothing = torch.zeros(2, dtype=torch.long)
    scenes = world.scenes(nothing, nothing, layouts, objects, torch.zeros(2, 4, dtype=torch.long))
    found = grid.contents(scenes, 4).view(2, 4, 4)
    assert found[0].tolist() == [[-1] * 4, [0, 0, 1, 1], [0, 0, 1, 1], [-1] * 4]
    assert found[1].tolist() == [[-1] * 4, [-1] * 4, [-1, 0, 0, -1], [-1] * 4]


def test_the_loss_says_nothing_of_absent_cells(
    world: World, trainer: grid.GridTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = world.sample(4, torch.Generator().manual_seed(0))
    one = torch.ones(4, dtype=torch.long)
    paint = trainer.model.decoder.paint
    before = trainer(world, scenes, one)[0]

    def spoilt(cells):
        images = paint(cells)
        below = torch.arange(32) >= 16
        return images.where(~below[:, None] & ~below, 0.9)

    monkeypatch.setattr(trainer.model.decoder, "paint", spoilt)
    assert torch.allclose(trainer(world, scenes, one)[0], before)
    assert not torch.allclose(trainer(world, scenes, 2 * one)[0], before)


def test_a_picture_that_is_all_right_above_is_measured_there(
    world: World, trainer: grid.GridTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = world.sample(6, torch.Generator().manual_seed(1))
    target = world.render(scenes, 32).images
    monkeypatch.setattr(trainer, "decode", lambda *_: target + 0.1)
    found = grid.evaluate(trainer, world, scenes, [2, 4])
    assert found["finished@2"] == found["finished@4"] == found["psnr@4"] == pytest.approx(20.0)
    grey = target.clone()
    grey[:, :, 16:] = 0.5
    grey[:, :, :16] += 0.1
    assert found["psnr@2"] == pytest.approx(psnr(grey, target).mean().item(), abs=0.01)


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the evaluation on held-out scenes, which costs more than a toy training."""
    monkeypatch.setattr(grid, "evaluate", lambda *_: {})


@pytest.mark.usefixtures("unjudged")
def test_a_training_that_resumes_is_the_one_that_never_stopped(
    world: World, tmp_path: Path
) -> None:
    whole = grid.train(CONFIG, tmp_path / "whole", "cpu", world, until=4)
    grid.train(CONFIG, tmp_path / "parts", "cpu", world, until=2)
    parts = grid.train(CONFIG, tmp_path / "parts", "cpu", world, until=4)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    pairs = zip(parts.parameters(), whole.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.usefixtures("unjudged")
def test_it_learns_a_few_scenes_and_what_it_writes_is_loaded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = world.sample(8, torch.Generator().manual_seed(0))
    monkeypatch.setattr(world, "sample", lambda *_: few)
    monkeypatch.setattr(grid, "learning_rate", lambda *_: 3e-3)
    trained = grid.train(CONFIG, tmp_path / "run", "cpu", world, until=30)
    seen = losses(tmp_path / "run")
    assert len(seen) == 30
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"search_defaults": {"beam": 3}}')
    grid.export(trained, folder)
    assert json.loads((folder / "tokenizer.json").read_text())["search_defaults"] == {"beam": 3}
    loaded = GridTokenizer.load(folder)
    images = world.render(few, 32).images
    tokens = loaded.encode(images)
    with torch.no_grad():
        codes = trained.encode(images)
        assert (tokens == trained.fsq.to_tokens(codes)).float().mean() > 0.9  # float16 rounds
        known = loaded.fsq.to_codes(tokens)
        assert torch.allclose(loaded.decode(tokens), trained.decode(known, 4), atol=0.02)


def test_new_heads_learn_without_moving_the_networks(world: World) -> None:
    trainer = grid.GridTrainer(GridConfig(**SIZES), world.num_objects, 0.5)
    scenes = world.sample(4, torch.Generator().manual_seed(0))
    lengths = torch.full((4,), trainer.cfg.num_tokens)

    def gradients(attribute_weight: float) -> dict[str, torch.Tensor | None]:
        trainer.zero_grad()
        trainer.attribute_weight = attribute_weight
        trainer(world, scenes, lengths)[0].backward()
        return {name: p.grad for name, p in trainer.named_parameters()}

    trainer.heads_alone = True
    alone, without = gradients(0.5), gradients(0.0)
    for name, gradient in alone.items():
        if name.startswith("model."):
            torch.testing.assert_close(gradient, without[name], atol=1e-6, rtol=1e-4)
        else:
            assert gradient.abs().max() > 0


@pytest.mark.usefixtures("unjudged")
def test_it_begins_with_the_networks_of_another_grid_tokenizer(
    world: World, tmp_path: Path
) -> None:
    first = grid.train(CONFIG, tmp_path / "first", "cpu", world, until=2)
    grid.export(first, tmp_path / "known")
    other = CONFIG | {"seed": 9, "peak_lr": 0.0}
    second = grid.train(
        other | {"start": str(tmp_path / "known")}, tmp_path / "second", "cpu", world, until=1
    )

    assert apart(weights(first.model), weights(second.model)) < 2e-3  # packed in float16 between
    anew = grid.train(other, tmp_path / "anew", "cpu", world, until=1)
    assert apart(weights(first.model), weights(anew.model)) > 0.05
    with pytest.raises(InputError, match="'sprites' has other networks than the config"):
        grid.train(CONFIG | {"start": "sprites"}, tmp_path / "ordered", "cpu", world)
