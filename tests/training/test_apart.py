"""The tokenizer's parts trained apart at toy size: each learns its own work and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy_world import SIZES, make_world, weights
from tests.toy_world import apart as difference
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training import apart, tokenizer
from tfgen.training.common import TimeUp, load_config
from tfgen.training.world import World

PART = {"steps": 40, "batch": 8, "peak_lr": 0.05}
CONFIG: dict[str, Any] = {
    "seed": 1,
    "ema": 0.9,
    "attribute_weight": 0.3,
    "grafts": 0.4,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
    "painters": PART,
    "codes": PART,
    "encoder": PART,
    "model": SIZES,
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


@pytest.mark.parametrize("path", ["cpu/apart_full.json"])
def test_the_packaged_configs_are_of_this_trainer(path: str) -> None:
    config = load_config(Path(apart.__file__).parent / "configs" / path, [])
    assert set(config) - {"tier", "free", "start"} == set(CONFIG)
    for part in apart.PARTS:
        assert set(PART) <= set(config[part])


@pytest.mark.parametrize("part", apart.PARTS)
def test_a_part_learns_and_leaves_the_others(
    world: World, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = apart.Apart(CONFIG, "cpu", world)
    loss_of = {"painters": trained.paint, "codes": trained.tell, "encoder": trained.look}[part]
    own = {"painters": trained.painters(), "codes": trained.codes(), "encoder": trained.encoder()}
    few = world.sample(16, torch.Generator().manual_seed(0))
    monkeypatch.setattr(world, "sample", lambda *_: few)
    before = {name: weights(module) for name, module in own.items()}
    optimiser = torch.optim.Adam(own[part].parameters(), lr=3e-3)
    seen = []
    for _ in range(60):
        loss, _ = loss_of(16, torch.Generator().manual_seed(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])
    for name, module in own.items():
        assert (difference(before[name], weights(module)) > 0) == (name == part)


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
    optimiser = torch.optim.Adam(trained.encoder().parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = trained.look(16, torch.Generator())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert agree() > max(0.9, before + 0.2)


def test_of_a_scene_the_scribe_reads_what_is_there(world: World) -> None:
    """What colour and where an absent object is says nothing; all else does."""
    trained = apart.Apart(CONFIG, "cpu", world)
    scenes = world.sample(32, torch.Generator().manual_seed(3))
    one = (scenes.counts == 1).nonzero()[0]
    scene = scenes[one]
    codes = trained.scribe(scene)
    absent = scenes[one]
    absent.colours[:, 1:] = 5
    absent.boxes[:, 1:] = 0.5
    assert torch.equal(trained.scribe(absent), codes)
    for field in ("background", "variant", "objects", "colours", "boxes"):
        other = scenes[one]
        value = getattr(other, field)
        value[..., :1] = 0.3 if field == "boxes" else (value[..., :1] + 1) % 2
        assert not torch.equal(trained.scribe(other), codes), field


@pytest.mark.usefixtures("unjudged")
def test_what_resumes_is_what_never_stopped(world: World, tmp_path: Path) -> None:
    whole = apart.train(CONFIG, tmp_path / "whole", "cpu", world, until=4)
    apart.train(CONFIG, tmp_path / "parts", "cpu", world, until=2)
    # The later parts begin anew: they had learned from others than they are now.
    for part in ("codes", "encoder"):
        (tmp_path / "parts" / part / "checkpoint.safetensors").unlink()
    parts = apart.train(CONFIG, tmp_path / "parts", "cpu", world, until=4)
    assert difference(weights(parts.model), weights(whole.model)) < 1e-5


@pytest.mark.usefixtures("unjudged")
def test_it_stops_when_the_time_is_up_and_goes_on_with_the_next_part(
    world: World, tmp_path: Path
) -> None:
    config = CONFIG | {part: PART | {"steps": 2} for part in apart.PARTS}
    calls = 0
    while True:
        calls += 1
        assert calls < 20
        try:
            apart.train(config, tmp_path, "cpu", world, deadline=0.0)
        except TimeUp:
            continue
        break
    assert [len(losses(tmp_path / part)) for part in apart.PARTS] == [2, 2, 2]


def test_it_is_measured_and_the_tokenizer_goes_on_from_it(world: World, tmp_path: Path) -> None:
    trained = apart.train(CONFIG, tmp_path / "run", "cpu", world, until=2)
    for part, measured in (("painters", "canvas"), ("codes", "object@8"), ("encoder", "digits")):
        rows = (tmp_path / "run" / part / "log.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])[measured] >= 0
    apart.export(trained, tmp_path / "export")
    loaded = SpritesTokenizer.load(tmp_path / "export")
    images = world.render(world.sample(4, torch.Generator().manual_seed(0)), 32).images
    assert loaded.decode(loaded.encode(images)).shape == images.shape
    config = {"seed": 1, "steps": 40, "batch": 8, "peak_lr": 0.0, "ema": 0.9, "grafts": 0.4}
    config |= {"attribute_weight": 0.1, "bf16": False, "log_every": 1, "save_every": 1000}
    config |= {"model": SIZES, "start": str(tmp_path / "export")}
    further = tokenizer.train(config, tmp_path / "further", "cpu", world, until=1)
    assert difference(weights(further.model), weights(trained.model)) < 2e-3  # float16 between
