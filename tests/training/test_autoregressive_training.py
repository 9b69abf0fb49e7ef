"""The autoregressive prior trained at toy size: it learns, resumes, and writes what is loaded."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toy_grid import write_grid
from tests.toy_world import make_world, write_tokenizer
from tfgen import hub
from tfgen.priors.autoregressive import AutoregressivePrior
from tfgen.tokenizers.base import Tokenizer
from tfgen.training import autoregressive
from tfgen.training.captions import Captioner
from tfgen.training.commands import load_config
from tfgen.training.world import World
from tfgen.verifiers.words import PAD, START, UNKNOWN, WordTokenizer

CONFIG_FILE = Path(autoregressive.__file__).parent / "configs" / "autoregressive_small.json"
CONFIG = {
    "tier": "small",
    "seed": 6,
    "steps": 40,
    "batch": 8,
    "peak_lr": 0.05,
    "flat": 0.4,
    "ema": 0.5,
    "drop_texts": 0.1,
    "drop_words": 0.02,
    "held_out": 70,
    "guidance": 2.0,
    "pairs": 0.5,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
    "model": {"width": 16, "heads": 2, "depth": 1},
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(32)


@pytest.fixture(scope="module")
def words(world: World) -> WordTokenizer:
    return WordTokenizer(Captioner(world.specs).vocabulary(), 24)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write_tokenizer(tmp_path_factory.mktemp("models") / "ordered")
    return hub.load_tokenizer(str(folder), torch.device("cpu"))


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_the_packaged_config_is_of_this_trainer() -> None:
    assert set(load_config(CONFIG_FILE, [])) == set(CONFIG)


def test_a_batch_is_scenes_with_their_captions(world, words, tokenizer) -> None:
    captioner = Captioner(world.specs)
    text, tokens = autoregressive.batch(world, tokenizer, captioner, words, 6, seed=3)
    scenes = world.sample(6, torch.Generator().manual_seed(3))
    assert torch.equal(tokens, tokenizer.encode(world.render(scenes, 32).images))
    assert (text[:, 0] == START).all() and (text == words.end).sum(1).eq(1).all()
    assert (text[:, -1] != PAD).any() and (text != UNKNOWN).all()
    again, _ = autoregressive.batch(world, tokenizer, captioner, words, 6, seed=3)
    assert torch.equal(text, again)


def dropped(words: WordTokenizer, text: Tensor, texts: float, unknown: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return autoregressive.dropped(text, words("")[0, :2], texts, unknown, generator)


def test_dropped_texts_are_the_empty_text(words: WordTokenizer) -> None:
    text = words(["a red fox", "two cats on grass"] * 200)
    assert torch.equal(dropped(words, text, 1.0, 0.0), words([""] * 400))
    assert torch.equal(dropped(words, text, 0.0, 0.0), text)
    some = dropped(words, text, 0.25, 0.0)
    gone = (some == words("")).all(1)
    assert 0.15 < gone.float().mean() < 0.35
    assert torch.equal(some[~gone], text[~gone])


def test_dropped_words_are_unknown_and_nothing_else_is_touched(words: WordTokenizer) -> None:
    text = words(["a red fox", "two cats on grass"])
    lost = dropped(words, text, 0.0, 1.0)
    special = (text <= START) | (text == words.end)
    assert torch.equal(lost[special], text[special])
    assert (lost[~special] == UNKNOWN).all()


def test_what_is_measured_is_what_the_prior_says(world, words, tokenizer, tmp_path) -> None:
    prior = autoregressive.train(CONFIG, tmp_path, "cpu", tokenizer, words, world, until=1)
    captioner = Captioner(world.specs)
    scenes = world.sample(70, torch.Generator().manual_seed(autoregressive.HELD_OUT_SEED))
    tokens = tokenizer.encode(world.render(scenes, 32).images)
    free = prior.sequence_log_prob(tokens)
    assert prior.expected_log_prob(3) == pytest.approx(free[:, :3].mean().item(), abs=1e-3)
    captions, _ = captioner.write(scenes, random.Random(autoregressive.HELD_OUT_SEED))
    guided = [
        prior.with_guidance(3.0).condition(caption).sequence_log_prob(row[None])
        for caption, row in zip(captions, tokens, strict=True)
    ]
    asked = prior.with_guidance(3.0).condition(captions[0])
    assert asked.expected_log_prob(8) == pytest.approx(torch.cat(guided).mean().item(), abs=1e-3)


def test_a_training_that_resumes_is_the_one_that_never_stopped(
    world, words, tokenizer, tmp_path: Path
) -> None:
    def run(name: str, until: int) -> AutoregressivePrior:
        folder = tmp_path / name
        return autoregressive.train(CONFIG, folder, "cpu", tokenizer, words, world, until)

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(parts.log_probs(tokens[:, :3]), whole.log_probs(tokens[:, :3]))


@pytest.mark.parametrize("write", [write_tokenizer, write_grid])
def test_the_script_trains_a_prior_for_any_tokenizer(
    write, world, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model")
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text(json.dumps({"words": words.words, "context_length": 24}))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autoregressive, "World", lambda *_, **__: world)
    monkeypatch.setattr(autoregressive, "learning_rate", lambda *_, **__: 1e-2)
    options = ["--tokenizer", folder, "--vocabulary", vocabulary, "--device", "cpu"]
    command = ["autoregressive", "--config", config, *options]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    autoregressive.main()
    tokenizer = hub.load_tokenizer(str(folder), torch.device("cpu"))
    prior = AutoregressivePrior.for_tokenizer(tokenizer, folder)
    assert (tmp_path / "cache" / "runs" / "autoregressive_model" / "log.jsonl").is_file()
    assert prior.guidance == 2.0
    assert prior.metadata["scenes"] == 320
    assert prior.metadata["tokenizer"] == tokenizer.fingerprint()
    uniform = -torch.tensor(float(tokenizer.vocab_size)).log().item()
    assert prior.condition("a red fox").with_guidance(1).expected_log_prob(2) > uniform + 0.2
