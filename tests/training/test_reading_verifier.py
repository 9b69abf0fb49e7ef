"""The verifier that reads the scene before it embeds it, and the names that pictures learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.toy_world import CLIP, make_world, tokenizer_model, weights, write_verifier
from tests.toy_world import apart as difference
from tests.verifiers.toy_clip import pictures
from tfgen.errors import InputError
from tfgen.hub import read_safetensors
from tfgen.packing import unpack
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_model import SpritesConfig, SpritesModel
from tfgen.tokenizers.sprites_reading import Holds
from tfgen.training import clip, clip_batches, clip_model
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import Captioner
from tfgen.training.colours import COLOURS
from tfgen.training.named import Named
from tfgen.training.tokenizer import export_networks
from tfgen.training.world import Scenes, World
from tfgen.verifiers.clip import WEIGHTS_FILE, ClipVerifier
from tfgen.verifiers.sprites_clip import SpritesClip
from tfgen.verifiers.sprites_tower import ReadingTower
from tfgen.verifiers.words import WordTokenizer

CONFIG = CLIP | {"reads": True, "told": 2, "named": 0.5}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(64)


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "evaluate", lambda *_: {})


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.usefixtures("unjudged")
def test_it_learns_from_scenes_first_and_then_from_pictures(world: World, tmp_path: Path) -> None:
    decoder = SpritesTokenizer(tokenizer_model(64))
    told, _ = clip.train(CONFIG, tmp_path, "cpu", world, decoder, until=2)
    before = weights(told.model.visual.trunk.convs)
    torch.manual_seed(CONFIG["seed"])
    untouched = clip_model.create(told.model.vocab_size, 32, told.holds).visual.trunk.convs
    assert difference(before, weights(untouched)) == 0
    seen, _ = clip.train(CONFIG, tmp_path, "cpu", world, decoder, until=4)
    assert difference(before, weights(seen.model.visual.trunk.convs)) > 0
    for step, row in enumerate(rows(tmp_path)):
        assert ("heads" in row) == ("nothing" in row) == (step >= 2)
        assert "named" in row and row["said"] > 0


@pytest.mark.usefixtures("unjudged")
def test_told_what_scenes_hold_it_tells_them_apart(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(batches(world, CONFIG).each([0], 1, 0)))[1]
    monkeypatch.setattr(clip_batches.Batches, "each", lambda *_: ((i, batch) for i in range(30)))
    monkeypatch.setattr(clip, "learning_rate", lambda *_, **__: 2e-3)
    clip.train(CONFIG | {"told": 99}, tmp_path, "cpu", world, until=30)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


def batches(world: World, config: dict[str, Any]) -> clip_batches.Batches:
    captioner = Captioner(world.specs)
    words = WordTokenizer(captioner.vocabulary(), clip.CONTEXT_LENGTH)
    return clip_batches.Batches(world, captioner, words, config)


@pytest.mark.usefixtures("unjudged")
def test_its_files_are_loaded_with_and_without_open_clip(world: World, tmp_path: Path) -> None:
    from open_clip import create_model

    trained, words = clip.train(CONFIG, tmp_path / "run", "cpu", world, until=3)
    folder = tmp_path / "verifier"
    clip.export(trained, words, Captioner(world.specs), 32, folder)
    mine = ClipVerifier.load(folder).model
    assert isinstance(mine, SpritesClip) and isinstance(mine.visual.trunk, ReadingTower)
    assert mine.visual.trunk.holds == (4, world.num_objects, len(COLOURS), 2 * len(BACKGROUNDS))
    theirs = create_model(f"local-dir:{folder}", load_weights=False).eval()
    packed = read_safetensors(folder / WEIGHTS_FILE)
    assert packed["visual.trunk.hidden.0.weight"].dtype == torch.int8
    theirs.load_state_dict(unpack(packed))
    shown = pictures(3, 64) * 2 - 1
    with torch.inference_mode():
        embedded = mine.encode_image(shown)
        assert torch.equal(embedded, theirs.encode_image(shown))
        assert torch.allclose(embedded[1:2], mine.encode_image(shown[1:2]), atol=1e-5)


def test_it_begins_with_the_eyes_of_a_tokenizer_and_the_words_of_a_plain_verifier(
    world: World, tmp_path: Path, unjudged: None
) -> None:
    holds = Holds(4, world.num_objects, len(COLOURS), 2 * len(BACKGROUNDS))
    sizes = {"kinds": holds.kinds, "colours": holds.colours, "grounds": holds.grounds}
    torch.manual_seed(5)
    model = SpritesModel(SpritesConfig(scribe=32, width=32, **sizes))
    export_networks("sprites", model, model.cfg, tmp_path / "tokenizer")
    plain = write_verifier(tmp_path / "plain", world)
    config = CONFIG | {"peak_lr": 0.0}
    begin = {"model": plain, "tower": tmp_path / "tokenizer"}
    trained, _ = clip.train(config, tmp_path / "run", "cpu", world, until=1, **begin)
    tower, known = trained.model.visual.trunk, ClipVerifier.load(plain).model
    encoder = SpritesTokenizer.load(tmp_path / "tokenizer").model.encoder
    assert difference(weights(tower.convs), weights(encoder.convs)) < 1e-5
    assert difference(weights(tower.head.reader), weights(encoder.reader)) < 1e-5
    assert difference(weights(trained.model.transformer), weights(known.transformer)) < 1e-3


@pytest.mark.usefixtures("unjudged")
def test_the_verifier_that_a_config_names_keeps_its_tower(world: World, tmp_path: Path) -> None:
    """And a plain one, beside a tokenizer that reads nothing, cannot give one that reads."""
    plain, tokenizer = write_verifier(tmp_path / "plain", world), tmp_path / "tokenizer"
    model = SpritesModel(SpritesConfig(width=32))
    export_networks("sprites", model, model.cfg, tokenizer)
    config = CONFIG | {"start": str(plain), "reads": False, "told": 0, "peak_lr": 0.0}
    trained, _ = clip.train(config, tmp_path / "run", "cpu", world, tower=tokenizer, until=1)
    known = ClipVerifier.load(plain).model.visual.trunk
    assert difference(weights(trained.model.visual.trunk), weights(known)) < 1e-3
    with pytest.raises(InputError, match="does not read scenes of this world"):
        clip.train(config | {"reads": True}, tmp_path / "other", "cpu", world, tower=tokenizer)
    with pytest.raises(InputError, match='can be "told" scenes'):
        clip.train(config | {"told": 3}, tmp_path / "third", "cpu", world)


def scenes_of(world: World, objects: list[list[int]], colours: list[list[int]]) -> Scenes:
    """Scenes of these objects (-1: none) in these colours, whatever else they are."""
    drawn = world.sample(len(objects), torch.Generator().manual_seed(0))
    drawn.objects, drawn.colours = torch.tensor(objects), torch.tensor(colours)
    return drawn


def test_a_picture_is_to_be_like_the_names_of_its_objects(world: World) -> None:
    captioner = Captioner(world.specs)
    words = WordTokenizer(captioner.vocabulary(), clip.CONTEXT_LENGTH)
    n, c = world.num_objects, len(COLOURS)
    named = Named(captioner, words, n * c)
    assert len(named.text) == n * c
    # Every name has an axis of its own.
    named.table.copy_(torch.eye(n * c))
    red = COLOURS.index("red")
    scenes = scenes_of(
        world, [[0, 1, -1, -1], [1, 1, -1, -1], [2, -1, -1, -1]], [[red, 0, 0, 0]] * 3
    )
    right = F.one_hot(torch.tensor([0 * c + red, 1 * c + red, 2 * c + red]), n * c).float()
    right[0, 1 * c] = 1  # the second object in its own colour
    scale, ones = torch.tensor(20.0), torch.ones(3)
    assert named(right, scale, scenes, ones) < 1e-3
    wrong = right.clone()
    wrong[2] = F.one_hot(torch.tensor(3 * c + red), n * c)
    assert named(wrong, scale, scenes, ones) > 5
    # Two of a kind have no name in the singular, so nothing is asked of the second picture.
    wrong = right.clone()
    wrong[1] = F.one_hot(torch.tensor(0), n * c)
    assert named(wrong, scale, scenes, ones) < 1e-3
    # Weights count, and what has none does not.
    wrong[2] = F.one_hot(torch.tensor(3 * c + red), n * c)
    assert named(wrong, scale, scenes, torch.tensor([1.0, 1.0, 0.0])) < 1e-3


def test_a_name_that_is_right_as_well_is_not_held_against_a_picture(world: World) -> None:
    """An apple in its own coat is "an apple" and "a red apple"."""
    captioner = Captioner(world.specs)
    words = WordTokenizer(captioner.vocabulary(), clip.CONTEXT_LENGTH)
    n, c = world.num_objects, len(COLOURS)
    named = Named(captioner, words, n * c)
    named.table.copy_(torch.eye(n * c))
    kind, colour = next((m, k) for m in range(n) for k in range(1, c) if captioner.allowed[m, k, 0])
    scenes = scenes_of(world, [[kind, -1, -1, -1]], [[0, 0, 0, 0]])
    both = torch.zeros(1, n * c)
    both[0, [kind * c, kind * c + colour]] = 1
    assert named(both, torch.tensor(20.0), scenes, torch.ones(1)) < 1e-3
    other = next(k for k in range(1, c) if not captioner.allowed[kind, k, 0])
    both[0, kind * c + other] = 1
    assert named(both, torch.tensor(20.0), scenes, torch.ones(1)) > 0.5
