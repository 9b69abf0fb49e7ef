"""The frequency prior counted over scenes of a toy world."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.toy_world import make_world, write_tokenizer
from tfgen.priors.frequency import FrequencyPrior
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training import prior


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def count(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the script on the toy world."""
    world = make_world(32)
    monkeypatch.setattr(prior, "World", lambda *_, **__: world)

    def run(*options: str) -> FrequencyPrior:
        command = ["prior", "--tokenizer", str(folder), "--device", "cpu", *options]
        monkeypatch.setattr(sys, "argv", command)
        prior.main()
        return FrequencyPrior.load(folder / "prior.safetensors")

    return run


def test_the_script_writes_the_prior_that_goes_with_the_tokenizer(folder: Path, count) -> None:
    counted = count("--scenes", "200", "--min-count", "1")
    tokenizer = SpritesTokenizer.load(folder)
    assert (counted.vocab_size, counted.num_tokens) == (tokenizer.vocab_size, tokenizer.num_tokens)
    assert counted.metadata["tokenizer"] == tokenizer.fingerprint()
    assert counted.metadata["tier"] == "small"
    loaded = FrequencyPrior.for_tokenizer(tokenizer, folder)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert torch.equal(loaded.log_probs(tokens), counted.log_probs(tokens))


def test_tokens_of_true_scenes_are_likelier_than_any(folder: Path, count) -> None:
    counted = count("--scenes", "400")
    tokenizer = SpritesTokenizer.load(folder)
    world = make_world(32)
    scenes = world.render(world.sample(50, torch.Generator().manual_seed(0)), 32).images
    true = counted.sequence_log_prob(tokenizer.encode(scenes)).mean()
    uniform = -torch.tensor(tokenizer.vocab_size).log()
    assert true > uniform + 0.1
    assert counted.expected_log_prob(8) == pytest.approx(true.item(), abs=0.3)


def test_the_same_scenes_are_counted_each_time(folder: Path, count) -> None:
    count("--scenes", "100")
    first = (folder / "prior.safetensors").read_bytes()
    count("--scenes", "100")
    assert (folder / "prior.safetensors").read_bytes() == first


def test_a_count_that_was_stopped_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, world = SpritesTokenizer.load(folder), make_world(32)
    monkeypatch.setattr(prior, "PART", 1)
    encoded = []
    encode = prior.encode

    def noted(*arguments) -> torch.Tensor:
        encoded.append(arguments[-1])
        return encode(*arguments)

    monkeypatch.setattr(prior, "encode", noted)
    whole, parts = folder / "whole.safetensors", folder / "parts.safetensors"
    prior.count(world, tokenizer, 250, whole, "small")
    assert encoded == [0, 1, 2]

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prior.count(world, tokenizer, 250, parts, "small", progress=stop)
    assert encoded[3:] == [0, 1] and not parts.exists()
    prior.count(world, tokenizer, 250, parts, "small")
    assert encoded[5:] == [2]
    assert parts.read_bytes() == whole.read_bytes()
