"""Pictures that searches find, read as scenes, and what the verifier learns from them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toy_world import (
    CAR,
    FOX,
    make_world,
    tokenizer_model,
    write_tokenizer,
    write_verifier,
)
from tfgen.errors import InputError
from tfgen.pipeline import Pipeline
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_model import Layered
from tfgen.training import bank, clip, clip_batches, found
from tfgen.training.captions import Captioner, Emphasis, fits
from tfgen.training.clip_batches import Batch
from tfgen.training.colours import COLOURS
from tfgen.training.found import Found, find, search_for
from tfgen.training.lessons import WRONG, Lessons
from tfgen.training.negatives import Negatives
from tfgen.training.reading import CLEAR, SPOILT, Reader, Reading
from tfgen.training.stopping import Timer
from tfgen.training.world import LAYOUT_INDEX, Scenes, World

RED, BLUE = COLOURS.index("red"), COLOURS.index("blue")


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(64)


@pytest.fixture(scope="module")
def pipeline(world: World, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("models")
    model = write_tokenizer(folder / "sprites", 64)
    verifier = write_verifier(folder / "clip", world)
    return Pipeline.load(str(model), verifier=str(verifier), device="cpu")


def scenes_of(world: World, layout: str, objects: list[int], colours: list[int]) -> Scenes:
    """One scene, on the third variant of the second background that the world has."""
    pad = [0] * (4 - len(objects))
    row = [torch.tensor([v]) for v in (1, 1, LAYOUT_INDEX[layout])]
    return world.scenes(*row, torch.tensor([objects + pad]), torch.tensor([colours + pad]))


def painting(world: World, scenes: Scenes, noise: float = 0.0) -> SpritesTokenizer:
    """A tokenizer that decodes anything to these scenes: its painters paint what the world does, a
    little wrong."""
    tokenizer = SpritesTokenizer(tokenizer_model(64))
    model = tokenizer.model
    present, sprites = world.sprite_targets(scenes, model.cfg.canvas_size)
    generator = torch.Generator().manual_seed(0)
    sprites = sprites + noise * torch.randn(sprites.shape, generator=generator)
    latents = torch.zeros(*present.shape, 1)
    latents[present] = torch.arange(len(sprites)).float()[:, None]
    logits = torch.where(present, 1.0, -1.0)
    layered = Layered(world.backgrounds(scenes, 64), logits, scenes.boxes, latents)
    model.layers = lambda codes, keep: (layered, torch.zeros(len(scenes), 1))
    model.canvases = lambda latents: sprites[latents[:, 0].long()]
    return tokenizer


def read(world: World, tokenizer: SpritesTokenizer, n: int) -> Reading:
    return Reader(world, tokenizer).read(torch.zeros(n, 8, dtype=torch.int64), torch.full((n,), 8))


def test_a_painted_scene_is_read_as_what_it_is(world: World) -> None:
    scenes = world.sample(40, torch.Generator().manual_seed(0))
    reading = read(world, painting(world, scenes, noise=0.02), 40)
    for field in ("background", "variant", "layout", "objects"):
        assert torch.equal(getattr(reading.scenes, field), getattr(scenes, field)), field
    # A plain shape has few colours of its own: some of its recolourings are nearly the same.
    bank = world.sprite_bank(16).float() / 255
    there = scenes.objects >= 0
    for kind, painted, seen in zip(
        scenes.objects[there], scenes.colours[there], reading.scenes.colours[there], strict=True
    ):
        assert (bank[kind, painted] - bank[kind, seen]).abs().mean() < 0.01
    assert reading.clear.all() and not reading.spoilt.any()


def test_a_mixture_is_spoilt_and_so_is_nothing(world: World) -> None:
    pair = scenes_of(world, "side by side", [FOX, CAR], [RED, BLUE])
    tokenizer = painting(world, pair)
    whole = tokenizer.model.canvases
    tokenizer.model.canvases = lambda latents: whole(latents).mean(0).expand(2, -1, -1, -1)
    mixed = read(world, tokenizer, 1)
    assert mixed.spoilt.all() and not mixed.clear.any()
    alone = painting(world, pair)
    layered, trunk = alone.model.layers(None, None)
    alone.model.layers = lambda *_: (layered._replace(present=-layered.present.abs()), trunk)
    nothing = read(world, alone, 1)
    assert nothing.error.isinf().all() and nothing.spoilt.all()
    assert (nothing.scenes.objects == -1).all()


def test_one_spoilt_object_spoils_a_picture(world: World) -> None:
    pair = scenes_of(world, "side by side", [FOX, CAR], [RED, BLUE])
    tokenizer = painting(world, pair)
    whole = tokenizer.model.canvases

    def canvases(latents: Tensor) -> Tensor:
        fox, car = whole(latents)
        return torch.stack([fox, 0.5 * (fox + car)])

    tokenizer.model.canvases = canvases
    reading = read(world, tokenizer, 1)
    assert reading.scenes.objects[0, 0] == FOX
    assert reading.spoilt.all()


def test_reading_is_in_float32_where_training_is_not(world: World) -> None:
    scenes = world.sample(10, torch.Generator().manual_seed(1))
    tokenizer = painting(world, scenes, noise=0.02)
    plain = read(world, tokenizer, 10)
    with torch.autocast("cpu", torch.bfloat16):
        inside = read(world, tokenizer, 10)
    assert torch.equal(inside.error, plain.error)


def test_negatives_that_show_a_scene_are_none(world: World) -> None:
    decoder = SpritesTokenizer(tokenizer_model(64))
    true = torch.zeros(4, 8, dtype=torch.int64)

    class Half:
        """Every second picture shows something."""

        def read(self, tokens: Tensor, lengths: Tensor) -> Reading:
            error = torch.where(torch.arange(len(tokens)) % 2 == 0, CLEAR, SPOILT)
            return Reading(world.sample(len(tokens), torch.Generator()), error)

    seen: list[Tensor] = []
    decoder.decode_lengths = lambda tokens, lengths: seen.append(lengths) or tokens
    for reader in (None, Half()):
        Negatives(decoder, reader=reader).draw(90, true, torch.Generator().manual_seed(0))
    every, fewer = (lengths.tolist() for lengths in seen)
    left = [k for i, k in enumerate(every) if k < found.SHORTEST or i % 2 == 1]
    assert fewer == left and len(left) < len(every)


# ---- found pictures


def test_pictures_are_found_for_captions_with_what_they_were_asked_for(
    world: World, pipeline: Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / "found.safetensors"
    made = search_for(world, pipeline, 3, 60, 5, path)
    again = Found.open(path)
    assert again.captions == made.captions and len(made.captions) == 3
    assert set(made.asked.tolist()) == {0, 1, 2}
    assert torch.equal(again.tokens, made.tokens) and made.tokens.shape[1] == 8
    assert made.lengths.min() >= found.SHORTEST and made.lengths.max() == 8
    assert (made.tokens < pipeline.tokenizer.vocab_size).all()
    # They are the best of the steps: the last of them, the search's own.
    result = pipeline.generate(made.captions[1], seed=1, budget=60)
    best = result.steps[-1].pool
    mine = made.tokens[(made.asked == 1) & (made.lengths == 8)].tolist()
    assert best.tokens[best.kept[0]].tolist() in mine
    tokens, lengths = find(pipeline, made.captions[1], 1, 60)
    assert len({(*t[:k],) for t, k in zip(tokens.tolist(), lengths.tolist(), strict=True)}) == len(
        tokens
    )


def test_a_run_that_was_stopped_goes_on(
    world: World, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found, "PART", 1)
    whole = search_for(world, pipeline, 2, 40, 5, tmp_path / "whole.safetensors")
    asked: list[str] = []
    honest = found.find

    def once(pipeline: Pipeline, caption: str, seed: int, budget: int) -> tuple[Tensor, Tensor]:
        asked.append(caption)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return honest(pipeline, caption, seed, budget)

    monkeypatch.setattr(found, "find", once)
    path = tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search_for(world, pipeline, 2, 40, 5, path)
    assert not path.exists()
    resumed = search_for(world, pipeline, 2, 40, 5, path)
    assert asked == [*whole.captions, whole.captions[1]]
    assert torch.equal(resumed.tokens, whole.tokens) and torch.equal(resumed.asked, whole.asked)
    assert [p.name for p in tmp_path.iterdir() if "stopped" in p.name] == [path.name]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found pictures"):
        Found.open(tmp_path / "none")


def test_a_bank_that_is_there_is_not_built_again(
    world: World, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the stage `found` asks for it."""
    path, encoded = tmp_path / "bank.safetensors", []
    encode = bank.tokens_of

    def noted(*asked: object) -> Tensor:
        encoded.append(1)
        return encode(*asked)

    monkeypatch.setattr(bank, "has_scribe", lambda *_: True)
    monkeypatch.setattr(bank, "tokens_of", noted)

    def build(scenes: int) -> None:
        models = pipeline.tokenizer, pipeline.verifier
        built = bank.build(world, *models, scenes, path, "toy", Timer(None))
        assert len(built) == scenes

    build(200)
    build(200)
    assert len(encoded) == 2
    build(300)
    assert len(encoded) == 5
    path.write_bytes(b"junk")
    build(300)
    assert len(encoded) == 8


# ---- lessons


class Told:
    """A reader that has been told what each picture shows: token 0 is a row of the readings."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def read(self, tokens: Tensor, lengths: Tensor) -> Reading:
        return self.reading[tokens[:, 0]]


def lessons(world: World, n: int = 30) -> tuple[Lessons, Tensor]:
    """Of n scenes, thirds by turns: right; clear, but asked for as another scene; spoilt. And a
    last one that is neither clear nor spoilt. Also Int64[n], which third."""
    captioner = Captioner(world.specs)
    scenes = world.sample(n + 1, torch.Generator().manual_seed(3))
    captions, mentions = captioner.write(scenes, random.Random(0), Emphasis(colour=1.0))
    sort = torch.arange(n) % 3
    error = torch.tensor([CLEAR, 0.0, SPOILT])[sort]
    reading = Reading(scenes, torch.cat([error, torch.tensor([(CLEAR + SPOILT) / 2])]))
    fit = fits(mentions, scenes)
    asked = torch.arange(n + 1)
    for i in range(1, n, 3):
        asked[i] = next(j for j in range(n) if not fit[j, i])
    tokens = torch.arange(n + 1)[:, None].expand(-1, 8).clone()
    lengths = torch.full((n + 1,), 8)
    pictures = Found(tokens, lengths, asked, captions, mentions)
    return Lessons(pictures, Told(reading), captioner), sort


def test_a_lesson_tells_what_pictures_show_and_what_they_do_not(world: World) -> None:
    teacher, sort = lessons(world)
    assert teacher.right.tolist() == [i for i in range(30) if i % 3 == 0]
    assert teacher.wrong.tolist() == [i for i in range(30) if i % 3]
    lesson = teacher.draw(20, torch.Generator().manual_seed(0), random.Random(0))
    rows = lesson.tokens[:, 0]
    assert len(rows) == 20 == len(rows.unique()) and 30 not in rows
    assert (sort[rows] > 0).sum() == round(WRONG * 20)
    shown = len(lesson.captions)
    assert (sort[rows[:shown]] < 2).all() and (sort[rows[shown:]] == 2).all()
    told = teacher.reading.scenes[rows[:shown]]
    assert torch.equal(lesson.scenes.objects, told.objects)
    assert fits(lesson.mentions, lesson.scenes).diagonal().all()
    asked = {teacher.found.captions[teacher.found.asked[i]] for i in rows.tolist() if sort[i]}
    assert set(lesson.asked) == asked and len(lesson.asked) == len(asked)
    assert len(lesson.asked_mentions.count) == len(asked)


def test_an_odd_colour_is_not_what_a_caption_asks_for_that_says_none(world: World) -> None:
    captioner, colours = Captioner(world.specs), [0, RED, BLUE]  # a fox is red by nature
    scenes = Scenes.cat([scenes_of(world, "large", [FOX], [colour]) for colour in colours])
    captions, mentions = captioner.write(scenes, random.Random(0), Emphasis(0, 0, 0, 0, 0, 0))
    assert not any(word in caption for caption in captions for word in ("red", "blue"))
    tokens, rows = torch.arange(3)[:, None].expand(-1, 8).clone(), torch.arange(3)
    pictures = Found(tokens, torch.full((3,), 8), rows, captions, mentions)
    teacher = Lessons(pictures, Told(Reading(scenes, torch.zeros(3))), captioner)
    assert (teacher.right.tolist(), teacher.wrong.tolist()) == ([0, 1], [2])
    lesson = teacher.draw(3, torch.Generator().manual_seed(0), random.Random(0))
    assert "blue" in lesson.captions[lesson.tokens[:, 0].tolist().index(2)]
    fit = fits(lesson.asked_mentions, scenes)
    assert lesson.asked == [captions[2]] and fit.tolist() == [[True, True, False]]


def test_a_lesson_is_smaller_where_little_was_found(world: World) -> None:
    teacher, _ = lessons(world, 6)
    lesson = teacher.draw(40, torch.Generator(), random.Random(0))
    assert len(lesson.tokens) == 6 and len(lesson.captions) == 4


def test_the_verifier_learns_from_found_pictures(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what was found the batch is larger by the pictures that show something, the negatives by
    the spoilt ones, and the captions by what was asked for; and training runs."""
    teacher, _ = lessons(world)
    lesson = teacher.draw(8, torch.Generator().manual_seed(0), random.Random(0))
    monkeypatch.setattr(clip_batches, "Lessons", lambda *_: teacher)
    monkeypatch.setattr(teacher, "draw", lambda *_: lesson)
    monkeypatch.setattr(clip, "evaluate", lambda *_: {})
    batches = []
    forward = clip.ClipTrainer.forward

    def noted(self: clip.ClipTrainer, batch: Batch) -> object:
        batches.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(clip.ClipTrainer, "forward", noted)
    config = {
        "seed": 2, "steps": 2, "groups": 1, "width": 32, "peak_lr": 0.01, "flat": 0.3, "ema": 0.9,
        "head_weight": 0.3, "decoded_share": 0.5, "negatives": 6, "odd": 2, "found": 8,
        "mine_every": 9, "bf16": False, "log_every": 1, "save_every": 100,
    }  # fmt: skip
    decoder = SpritesTokenizer(tokenizer_model(64))
    clip.train(config, tmp_path / "with", "cpu", world, decoder, found=teacher.found, until=1)
    clip.train(config, tmp_path / "without", "cpu", world, decoder, until=1)
    taught, plain = batches
    shown, asked, text = len(lesson.captions), len(lesson.asked), taught.text
    assert len(taught.images) == len(taught.scenes) == len(plain.images) + shown
    assert len(taught.weights) == len(taught.images)
    assert len(text) == len(taught.images) + asked + 1
    assert len(taught.mentions.count) == len(text) - 1
    assert len(taught.negatives) == len(plain.negatives) + 8 - shown
    # The last text is the empty one, and that of the picture before the asked ones is its own.
    words = clip.WordTokenizer(Captioner(world.specs).vocabulary(), clip.CONTEXT_LENGTH)
    assert torch.equal(text[-1], words([""])[0])
    told = words(lesson.captions + lesson.asked)
    assert (text[-1 - len(told) : -1] == told).float().mean() > 0.9  # few words are forgotten


def test_the_empty_caption_is_learned_to_mean_spoilt_pictures(world: World) -> None:
    """The loss falls when spoilt pictures come nearer to the empty caption, and it rises when a
    scene's picture does."""
    torch.manual_seed(0)
    trainer = clip.ClipTrainer(40, 32, world.num_objects, 0.0)
    scenes = world.sample(2, torch.Generator().manual_seed(0))
    _, mentions = Captioner(world.specs).write(scenes, random.Random(0))
    vectors = torch.eye(256)
    trainer.model.visual.trunk.forward_features = lambda images: vectors[:3]  # the last: spoilt
    trainer.model.visual.trunk.head = torch.nn.Identity()

    def loss(empty: Tensor) -> dict[str, Tensor]:
        trainer.model.encode_text = lambda tokens: torch.cat([vectors[:2], empty[None]])
        images = torch.zeros(2, 3, 64, 64)
        batch = Batch(images, scenes, torch.ones(2), torch.zeros(3, 4), mentions, torch.Generator())
        batch.negatives = images[:1]
        return trainer(batch)[1]

    near, far, wrong = loss(vectors[2]), loss(vectors[5]), loss(vectors[0])
    assert near["nothing"] < far["nothing"] - 1
    assert wrong["by_image"] > near["by_image"] + 0.1
