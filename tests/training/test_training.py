"""Tokenizer and verifier trained at toy size: they learn, resume, and write what is loaded."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.toy_world import CLIP, SIZES, apart, make_world, tokenizer_model, weights, write_verifier
from tfgen.errors import InputError
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training import clip, clip_batches, clip_model, groups, tokenizer
from tfgen.training.captions import Captioner, fits
from tfgen.training.colours import COLOURS
from tfgen.training.commands import load_config
from tfgen.training.common import cache_folder, learning_rate
from tfgen.training.negatives import embed
from tfgen.training.world import LAYOUT_INDEX, MAX_OBJECTS, Scenes, World
from tfgen.verifiers.clip import ClipVerifier
from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.words import WordTokenizer

CONFIGS = Path(tokenizer.__file__).parent / "configs"
TOKENIZER = {
    "seed": 1,
    "steps": 40,
    "batch": 8,
    "peak_lr": 0.05,
    "ema": 0.9,
    "attribute_weight": 0.08,
    "grafts": 0.0,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
    "model": SIZES,
}


@pytest.fixture(scope="module")
def small() -> World:
    return make_world(32)


@pytest.fixture(scope="module")
def world() -> World:
    """Pictures of the size that `sprites-clip` sees."""
    return make_world(64)


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the evaluation on held-out scenes, which costs more than a toy training."""
    monkeypatch.setattr(clip, "evaluate", lambda *_: {})
    monkeypatch.setattr(tokenizer, "evaluate", lambda *_: {})


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in log(folder) if "loss" in row]


# ---- the tokenizer


@pytest.mark.usefixtures("unjudged")
def test_a_tokenizer_that_resumes_is_the_one_that_never_stopped(
    small: World, tmp_path: Path
) -> None:
    whole = tokenizer.train(TOKENIZER, tmp_path / "whole", "cpu", small, until=6)
    tokenizer.train(TOKENIZER, tmp_path / "parts", "cpu", small, until=3)
    begun = losses(tmp_path / "parts")
    parts = tokenizer.train(TOKENIZER, tmp_path / "parts", "cpu", small, until=6)
    assert losses(tmp_path / "parts")[:3] == begun
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert apart(weights(parts), weights(whole)) < 1e-5


@pytest.mark.usefixtures("unjudged")
def test_a_tokenizer_learns_a_few_scenes(
    small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = small.sample(8, torch.Generator().manual_seed(0))
    monkeypatch.setattr(small, "sample", lambda *_: few)
    monkeypatch.setattr(tokenizer, "learning_rate", lambda *_: 3e-3)
    tokenizer.train(TOKENIZER, tmp_path, "cpu", small, until=30)
    seen = losses(tmp_path)
    assert len(seen) == 30
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])


def test_a_trained_tokenizer_is_judged_and_written_as_the_package_loads_it(
    small: World, tmp_path: Path
) -> None:
    trainer = tokenizer.train(TOKENIZER, tmp_path / "run", "cpu", small, until=2)
    judged = log(tmp_path / "run")[-1]
    assert judged["step"] == 2
    assert all(0 < judged[f"psnr@{k}"] < 60 for k in (1, 2, 4, 8))
    assert len(judged["codes"]) == 8 and max(judged["codes"]) <= 12

    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"search_defaults": {"beam": 3}}')
    tokenizer.export(trainer, folder)
    assert json.loads((folder / "tokenizer.json").read_text())["search_defaults"] == {"beam": 3}
    loaded = SpritesTokenizer.load(folder)
    images = small.render(small.sample(4, torch.Generator().manual_seed(0)), 32).images
    tokens = loaded.encode(images)
    assert tokens.shape == (4, 8)
    same = (tokens == trainer.fsq.to_tokens(trainer.eval().encode(images))).float().mean()
    assert same > 0.9  # stored in half precision
    shown = trainer.decode(trainer.fsq.to_codes(tokens), 5)
    assert torch.allclose(loaded.decode(tokens[:, :5]), shown.clamp(0, 1), atol=0.02)


@pytest.mark.usefixtures("unjudged")
def test_a_tokenizer_begins_with_the_networks_of_one_of_fewer_objects(
    small: World, tmp_path: Path
) -> None:
    first = tokenizer.train(TOKENIZER, tmp_path / "first", "cpu", small, until=2)
    tokenizer.export(first, tmp_path / "known")
    other = TOKENIZER | {"seed": 9, "peak_lr": 0.0}
    config = other | {"start": str(tmp_path / "known")}
    second = tokenizer.train(config, tmp_path / "second", "cpu", small, until=1)
    assert apart(weights(first.model), weights(second.model)) < 2e-3  # packed in float16 between
    anew = tokenizer.train(other, tmp_path / "anew", "cpu", small, until=1)
    assert apart(weights(first.model), weights(anew.model)) > 0.1
    # What begins with another goes on from its own checkpoint, not from that other again.
    shutil.rmtree(tmp_path / "known")
    tokenizer.train(config, tmp_path / "second", "cpu", small, until=2)


def gradients(trainer: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trainer.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in trainer.named_parameters() if p.grad is not None}


def test_new_heads_of_a_tokenizer_learn_without_moving_its_networks(small: World) -> None:
    trainer = tokenizer.TokenizerTrainer(tokenizer_model().cfg, small.num_objects, 0.5)
    scenes = small.sample(4, torch.Generator().manual_seed(0))
    lengths = torch.full((4,), trainer.cfg.num_tokens)
    together = gradients(trainer, trainer(small, scenes, lengths)[0])
    trainer.heads_alone = True
    alone = gradients(trainer, trainer(small, scenes, lengths)[0])
    trainer.attribute_weight = 0.0
    without = gradients(trainer, trainer(small, scenes, lengths)[0])
    for name, gradient in alone.items():
        of_head = name.startswith(("read_", "see_"))
        expected = together if of_head else without
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
    name = "model.encoder.convs.0.weight"
    assert not torch.allclose(together[name], alone[name], rtol=1e-3)


@pytest.mark.usefixtures("unjudged")
def test_a_tokenizer_does_not_begin_with_other_networks(small: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'sprites' has other networks than the config"):
        tokenizer.train(TOKENIZER | {"start": "sprites"}, tmp_path, "cpu", small)


def test_half_of_the_scenes_keep_a_short_prefix_and_a_fifth_all_tokens(small: World) -> None:
    trainer = tokenizer.TokenizerTrainer(tokenizer_model().cfg, small.num_objects, 0.1)
    share = trainer.length_weights / trainer.length_weights.sum()
    assert share[:4].sum() == pytest.approx(0.6, abs=0.12)
    assert share[-1] == pytest.approx(0.2, abs=0.05)
    assert (share > 0).all()


# ---- the verifier


@pytest.mark.usefixtures("unjudged")
def test_a_verifier_that_resumes_is_the_one_that_never_stopped(
    world: World, tmp_path: Path
) -> None:
    whole, _ = clip.train(CLIP, tmp_path / "whole", "cpu", world, until=4)
    clip.train(CLIP, tmp_path / "parts", "cpu", world, until=2)
    parts, _ = clip.train(CLIP, tmp_path / "parts", "cpu", world, until=4)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert apart(weights(parts), weights(whole)) < 1e-5


@pytest.mark.usefixtures("unjudged")
def test_a_verifier_that_resumes_goes_on_with_what_it_mined(world: World, tmp_path: Path) -> None:
    decoder = SpritesTokenizer(tokenizer_model(64))
    config = CLIP | {"mine_every": 1, "negatives": 6}
    whole, _ = clip.train(config, tmp_path / "whole", "cpu", world, decoder, until=3)
    for until in (1, 2, 3):
        parts, _ = clip.train(config, tmp_path / "parts", "cpu", world, decoder, until=until)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert apart(weights(parts), weights(whole)) < 1e-5


@pytest.mark.usefixtures("unjudged")
def test_a_verifier_learns_a_few_scenes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    few = groups.grouped(world, Captioner(world.specs), 1, generator, rng)
    monkeypatch.setattr(clip_batches, "grouped", lambda *_: few)
    monkeypatch.setattr(clip, "learning_rate", lambda *_, **__: 1e-3)
    clip.train(CLIP, tmp_path, "cpu", world, until=16)
    seen = losses(tmp_path)
    assert sum(seen[-4:]) < 0.8 * sum(seen[:4])


def test_batches_drawn_ahead_by_other_processes_are_the_same(world: World) -> None:
    captioner = Captioner(world.specs)
    words = WordTokenizer(captioner.vocabulary(), clip.CONTEXT_LENGTH)
    decoder = SpritesTokenizer(tokenizer_model(64))
    batches = clip_batches.Batches(world, captioner, words, CLIP, decoder)
    here, there = (list(batches.each(range(2, 5), 5, workers)) for workers in (0, 2))
    assert [step for step, _ in there] == [2, 3, 4]
    for (_, a), (_, b) in zip(here, there, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.text, b.text)
        assert torch.equal(a.scenes.objects, b.scenes.objects)
        assert torch.equal(a.mentions.colours, b.mentions.colours)
        assert torch.equal(a.negatives, b.negatives) and torch.equal(a.decoded, b.decoded)


@pytest.mark.usefixtures("unjudged")
def test_the_second_stage_goes_on_from_the_first_on_what_a_search_shows(
    world: World, tmp_path: Path
) -> None:
    first, _ = clip.train(CLIP, tmp_path / "first", "cpu", world, until=2)
    decoder = SpritesTokenizer(tokenizer_model(64))
    begin = tmp_path / "first" / "checkpoint.safetensors"
    second, _ = clip.train(CLIP, tmp_path / "second", "cpu", world, decoder, begin, until=2)
    rows = [row for row in log(tmp_path / "second") if "loss" in row]
    assert all(row["nothing"] > 0 for row in rows)
    assert "nothing" not in log(tmp_path / "first")[0]
    assert 0 < apart(weights(second), weights(first)) < 0.1


@pytest.mark.usefixtures("unjudged")
def test_chimeras_are_mined_only_where_the_config_asks_for_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(clip_batches, "mistaken_chimeras", lambda *args: asked.append(args) or [])
    decoder = SpritesTokenizer(tokenizer_model(64))
    clip.train(CLIP, tmp_path / "without", "cpu", world, decoder, until=4)
    assert asked == []
    clip.train(CLIP | {"chimeras": 3}, tmp_path / "with", "cpu", world, decoder, until=4)
    assert [args[-1] for args in asked] == [3, 3]
    assert all(torch.equal(args[3], args[4][0]) for args in asked)  # the host is of the batch


def test_training_starts_from_an_exported_verifier(
    world: World, tmp_path: Path, unjudged: None
) -> None:
    first, words = clip.train(CLIP, tmp_path / "first", "cpu", world, until=1)
    clip.export(first, words, Captioner(world.specs), CLIP["width"], tmp_path / "exported")
    config = CLIP | {"peak_lr": 0.0}
    second, _ = clip.train(
        config, tmp_path / "second", "cpu", world, model=tmp_path / "exported", until=1
    )
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("unjudged")
def test_new_heads_of_a_verifier_learn_without_moving_its_networks(
    exported: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(name: str, head_weight: float) -> clip.ClipTrainer:
        config = CLIP | {"head_weight": head_weight}
        return clip.train(config, tmp_path / name, "cpu", world, model=exported, until=1)[0]

    without, alone = begun("without", 0.0), begun("alone", 0.3)
    moved = apart(weights(alone.heads), weights(without.heads))
    assert moved > 1e-4 and alone.heads_alone
    assert apart(weights(alone.model), weights(without.model)) < 1e-6
    monkeypatch.setattr(clip, "HEADS_ALONE", 0)
    assert apart(weights(begun("together", 0.3).model), weights(without.model)) > 1e-4


def test_a_verifier_begins_with_what_one_of_fewer_words_knows(exported: Path) -> None:
    known = ClipVerifier.load(exported)
    own = known.tokenize.words
    words = WordTokenizer(["aardvark", *own[::-1], "zebra"], known.tokenize.context_length)
    model = clip_model.create(words.vocab_size, CLIP["width"]).eval()
    clip.begin_with(model, words, str(exported))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for text in ("a red fox", "two cats in the snow"):
            assert words.unknown(text) == []
            was = known.model.encode_text(known.tokenize([text]))
            torch.testing.assert_close(model.encode_text(words([text])), was, rtol=0, atol=1e-4)
        was = known.model.encode_image(images)
        torch.testing.assert_close(model.encode_image(images), was, rtol=0, atol=1e-4)


def test_training_begins_with_the_verifier_that_the_config_names(
    exported: Path, world: World, tmp_path: Path, unjudged: None
) -> None:
    config = CLIP | {"start": str(exported), "peak_lr": 0.0, "seed": 9}
    begun, _ = clip.train(config, tmp_path / "run", "cpu", world, until=1)
    for name, value in ClipVerifier.load(exported).model.state_dict().items():
        torch.testing.assert_close(begun.model.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="sprites-clip"):
        clip.train(CLIP | {"start": "sprites-clip"}, tmp_path / "other", "cpu", world)


def differing(scenes: Scenes) -> set[str]:
    """The attributes in which the scenes of a group differ."""
    return {
        f
        for f in ("background", "variant", "layout", "objects", "colours")
        if (getattr(scenes, f) != getattr(scenes, f)[:1]).any()
    }


@pytest.mark.parametrize(
    ("factor", "may_differ"),
    [
        ("object", {"objects"}),
        ("colour", {"colours"}),
        ("background", {"background"}),
        ("count", {"layout", "objects", "colours"}),  # the emptied slots
        ("arrangement", {"layout", "objects", "colours"}),
    ],
)
def test_a_group_differs_in_one_factor_only(
    world: World, factor: str, may_differ: set[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        base = world.sample(1, torch.Generator().manual_seed(seed))
        group = groups.vary(world, base, factor, generator)
        assert len(group) == groups.GROUP
        assert differing(group) <= may_differ
        if factor == "count":
            kinds = {k for k in group.objects.flatten().tolist() if k >= 0}
            assert len(kinds) == 1 and group.counts.unique().tolist() == [1, 2, 3, 4]
        if factor == "arrangement":
            assert (group.counts == 2).all()
            assert set(group.layout.tolist()) == {
                LAYOUT_INDEX["side by side"],
                LAYOUT_INDEX["stacked"],
            }


def test_who_says_no_colour_means_the_objects_own(world: World) -> None:
    """Else a search for apples comes upon black ones, as captions of such said no colour either."""
    captioner = Captioner(world.specs)
    colours = [float(factor == "colour") for factor in groups.FACTORS]
    scenes, captions, mentions = groups.grouped(
        world, captioner, 6, torch.Generator().manual_seed(0), random.Random(0), colours
    )
    named = torch.tensor([any(c in words.split() for c in COLOURS[1:]) for words in captions])
    odd = (scenes.colours > 0) & (scenes.objects >= 0)
    assert named[odd.any(1)].all() and not named.all()
    own = fits(mentions, scenes)[~named]
    assert own.any(1).all()
    natural = captioner.usual[scenes.objects.clamp(min=0), scenes.colours] | (scenes.objects < 0)
    assert not own[:, ~natural.all(1)].any()


def test_augmentation_keeps_the_picture_recognisable(world: World) -> None:
    images = world.render(world.sample(4, torch.Generator().manual_seed(0)), 64).images
    changed = groups.augment(images, torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0 and changed.max() <= 1
    off = (changed[:, None] - images).abs().flatten(2).mean(2)
    assert (off.argmin(1) == torch.arange(4)).all()
    assert (off.diagonal() > 0).all()


def test_accuracy_is_of_the_captions_that_beat_all_their_contrasts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onlooker who reads the ground truth is always right; one who sees nothing never is."""
    captioner = Captioner(world.specs)
    contrast = ContrastWords(**clip.contrast_words(captioner))
    words = WordTokenizer(captioner.vocabulary(), clip.CONTEXT_LENGTH)
    model = clip_model.create(words.vocab_size, 32).eval()
    captions = ["a blue fox", "a red car in snow"]
    scenes = world.sample(2, torch.Generator().manual_seed(0))
    scenes.colours[:] = 1
    blank = torch.zeros(2, 3, 64, 64)

    def judge(texts: list[str]) -> dict[str, float]:
        rows = words(texts)
        ideal = torch.nn.functional.one_hot(torch.arange(2), 8).float()
        monkeypatch.setattr(clip, "embed", lambda *_: ideal)

        def encode(tokens: Tensor) -> Tensor:
            return (tokens[:, None] == rows).all(2).float() @ ideal

        monkeypatch.setattr(model, "encode_text", encode)
        return clip.evaluate(model, words, contrast, scenes, captions, {"blank": blank})["blank"]

    right = judge(captions)
    assert right == {"object": 1.0, "colour": 1.0, "background": 1.0, "count": 1.0}
    assert set(judge(["a blue car", "a red car on a beach"]).values()) == {0.0}


# ---- the verifier's files


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_verifier(tmp_path_factory.mktemp("exported") / "toy-clip", world)


def test_open_clip_loads_the_same_verifier(exported: Path, world: World) -> None:
    verifier = ClipVerifier.load(exported)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    images = world.render(world.sample(3, torch.Generator().manual_seed(0)), 64).images
    images = (images * 255).round() / 255
    shown = [Image.fromarray((i * 255).round().byte().permute(1, 2, 0).numpy()) for i in images]
    texts = ["a red fox in snow", "two cats on a beach"]
    with torch.no_grad():
        seen = model.eval().encode_image(torch.stack([transform(i) for i in shown]), normalize=True)
        text = model.encode_text(verifier.tokenize(texts), normalize=True)
    assert torch.allclose(verifier.embed(images), seen, atol=1e-5)
    for row, prompt in zip(text, texts, strict=True):
        assert torch.allclose(verifier.prepare(prompt).text[0, 0], row, atol=1e-5)


def test_the_exported_verifier_has_the_worlds_words(exported: Path, world: World) -> None:
    verifier = ClipVerifier.load(exported)
    assert verifier.name == "toy-clip"
    assert [spec["name"] for spec in verifier.words.objects] == [s.name for s in world.specs]
    assert verifier.warnings("a red fox in snow") == []
    assert "'zebra'" in verifier.warnings("a zebra in snow")[0]
    with pytest.raises(InputError, match="at most 22 words"):
        verifier.prepare("fox " * 23)


@pytest.mark.usefixtures("unjudged")
def test_a_trained_verifier_sees_what_it_was_trained_to(world: World, tmp_path: Path) -> None:
    trainer, words = clip.train(CLIP, tmp_path / "run", "cpu", world, until=1)
    clip.export(trainer, words, Captioner(world.specs), CLIP["width"], tmp_path / "export")
    images = world.render(world.sample(3, torch.Generator().manual_seed(0)), 64).images
    seen = ClipVerifier.load(tmp_path / "export").embed(images)
    assert torch.allclose(seen, embed(trainer.model, images), atol=5e-3)


# ---- what both share


@pytest.mark.parametrize(
    "name", ["tokenizer_small.json", "clip_small.json", "clip_small_decoded.json"]
)
def test_configs_have_the_settings_that_the_scripts_read(name: str) -> None:
    config = load_config(CONFIGS / name, ["steps=7", "tier=full"])
    assert (config["steps"], config["tier"]) == (7, "full")
    toy = TOKENIZER if "model" in config else CLIP
    assert set(config) == {*toy, "tier"}
    with pytest.raises(InputError, match="no setting 'stepz'; did you mean 'steps'"):
        load_config(CONFIGS / name, ["stepz=7"])


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [learning_rate(step, 1000, 1.0, warmup=100, flat=0.5) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == 1.0
    assert set(rates[99:500]) == {1.0}
    assert all(a >= b for a, b in zip(rates[500:], rates[501:], strict=False))
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("TFGEN_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("TFGEN_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "tfgen"


def test_every_slot_of_the_layouts_fits_the_models(small: World) -> None:
    assert tokenizer_model().cfg.slots == MAX_OBJECTS
    assert (
        max(small.sample(300, torch.Generator().manual_seed(0)).counts)
        <= tokenizer_model().cfg.slots
    )
