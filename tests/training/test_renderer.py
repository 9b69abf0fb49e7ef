"""The large decoder trained at toy size: it learns, resumes, and is written where it is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toy_world import make_world, write_tokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training import renderer
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.commands import load_config
from tfgen.training.world import World

CONFIG = {
    "tier": "small",
    "seed": 3,
    "steps": 40,
    "batch": 4,
    "backgrounds": 2,
    "peak_lr": 0.02,
    "ema": 0.9,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_renderer_that_resumes_is_the_one_that_never_stopped(
    world: World, folder: Path, tmp_path: Path
) -> None:
    tokenizer = SpritesTokenizer.load(folder)

    def train(run: str, until: int) -> dict[str, Tensor]:
        return renderer.train(CONFIG, tmp_path / run, "cpu", tokenizer, world, until).state_dict()

    whole = train("whole", 4)
    train("parts", 2)
    parts = train("parts", 4)
    assert len(losses(tmp_path / "parts")) == 4
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert all(torch.allclose(parts[name], value, atol=1e-5) for name, value in whole.items())


def test_a_renderer_learns_a_few_scenes_and_leaves_the_tokenizer_alone(
    world: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = SpritesTokenizer.load(folder)
    before = tokenizer.fingerprint()
    few = world.sample(4, torch.Generator().manual_seed(0))
    monkeypatch.setattr(world, "sample", lambda *_: few)
    monkeypatch.setattr(renderer, "learning_rate", lambda *_, **__: 5e-3)
    renderer.train(CONFIG, tmp_path / "run", "cpu", tokenizer, world, until=15)
    seen = losses(tmp_path / "run")
    assert sum(seen[-4:]) < 0.8 * sum(seen[:4])
    assert tokenizer.fingerprint() == before


def test_memories_are_taught_what_is_there(
    world: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "tokenizer.json"
    config = json.loads(path.read_text())
    grounds = len(BACKGROUNDS) * world.variants
    config["model"] |= {"kinds": world.num_objects, "memory": 2}
    config["model"] |= {"grounds": grounds, "ground_memory": 2}
    path.write_text(json.dumps(config))
    tokenizer = SpritesTokenizer.load(folder)
    few = world.sample(4, torch.Generator().manual_seed(0))
    monkeypatch.setattr(world, "sample", lambda *_: few)
    monkeypatch.setattr(renderer, "learning_rate", lambda *_, **__: 5e-3)
    trained = renderer.train(CONFIG, tmp_path / "run", "cpu", tokenizer, world, until=15)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert trained.typical is not None and trained.typical.abs().max() > 0
    seen = [json.loads(line)["naming"] for line in lines]
    assert sum(seen[-4:]) < 0.8 * sum(seen[:4])


def test_the_script_writes_what_the_tokenizer_renders_with(
    world: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SpritesTokenizer.load(folder)
    tokens = torch.randint(12, (3, 5), generator=torch.Generator().manual_seed(0))
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(renderer, "World", lambda *_, **__: world)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    command = ["renderer", "--config", config, "--tokenizer", folder, "--run", "toy", "steps=2"]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--device", "cpu"])
    renderer.main()

    assert len(losses(tmp_path / "cache" / "runs" / "toy")) == 2
    written = load_file(folder / "renderer.safetensors")
    assert {value.dtype for value in written.values()} <= {torch.float16, torch.int8, torch.float32}
    tokenizer = SpritesTokenizer.load(folder)
    assert tokenizer.image_size == 32 and tokenizer.render_size == 4 * 32
    assert torch.equal(tokenizer.decode(tokens), plain.decode(tokens))
    images = tokenizer.render(tokens)
    assert images.shape == (3, 3, 128, 128) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


def test_the_config_has_the_settings_that_the_script_reads() -> None:
    config = load_config(Path(renderer.__file__).parent / "configs" / "renderer_small.json", [])
    assert set(config) == set(CONFIG)


def test_what_is_painted_is_what_a_memory_reads() -> None:
    true = torch.tensor([2, 0])
    painted, loss = renderer.read(None, true)
    assert torch.equal(painted, true) and loss == 0
    said = torch.tensor([[0.0, 4.0, 3.0], [9.0, 0.0, 0.0]])
    painted, loss = renderer.read(said, true)
    assert painted.tolist() == [1, 0]
    assert loss == pytest.approx(
        float(torch.log(1 + torch.e**1 + torch.tensor(-3.0).exp())) / 2, abs=1e-3
    )


def test_a_lost_star_counts_more_than_as_many_pixels_of_sky() -> None:
    night = torch.full((1, 3, 32, 32), 0.1)
    starry = night.clone()
    starry[..., 10:12, 10:12] = 1.0
    lost = renderer.detailed_error(night, starry)
    spoilt = starry.clone()
    spoilt[..., 24:26, 24:26] = 1.0
    assert lost > 5 * renderer.detailed_error(spoilt, starry) > 0
    assert renderer.detailed_error(starry, starry) == 0
