"""The pipeline on toy models; at the end, on the packaged ones."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import tfgen
from tests.conftest import write_toy_model
from tests.toy_models import RENDER_SIZE, TOKENS, VOCAB, SavedTokenizer, SavedVerifier
from tests.toys import rugged
from tfgen import InputError, Pipeline, TfgenError
from tfgen.ablation import with_prior
from tfgen.image_io import load_png
from tfgen.pipeline import PromptWarning
from tfgen.priors import FrequencyPrior
from tfgen.verifiers.base import Target
from tfgen.verifiers.rewording import Reworded

PROMPT = "a red fox in snow"


@pytest.fixture
def pipeline(toy_weights: Path) -> Pipeline:
    return Pipeline.load(device="cpu")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


# The public names


def test_importing_tfgen_imports_no_torch() -> None:
    done = run_python("import sys, tfgen; tfgen.TfgenError; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in tfgen.__all__:
        assert getattr(tfgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        tfgen.paint  # noqa: B018


# Generating


def test_the_best_prefix_of_all_steps_is_the_result(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT)
    assert result.score == max(step.best_score for step in result.steps)
    assert result.score == result.verifier_score == pytest.approx(rugged(tuple(result.tokens)))
    assert result.decodes == sum(len(step.pool.tokens) for step in result.steps)


def test_the_picture_is_the_rendering_of_the_tokens(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT)
    assert result.image.size == (RENDER_SIZE, RENDER_SIZE)
    tokens = torch.tensor([result.tokens])
    expected = (pipeline.tokenizer.render(tokens)[0] * 255).round().byte().permute(1, 2, 0)
    assert result.image.tobytes() == expected.numpy().tobytes()


def test_same_seed_same_file(pipeline: Pipeline, tmp_path: Path) -> None:
    files = [pipeline.generate(PROMPT, seed=3).save(tmp_path / f"{i}.png") for i in range(2)]
    (first, told), (second, told_again) = map(load_png, files)
    assert first.tobytes() == second.tobytes() and told == told_again
    assert files[0].read_bytes() == files[1].read_bytes()


def test_numbers_of_numpy_make_a_picture_that_can_be_saved(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    path = pipeline.generate(PROMPT, seed=np.int64(3), beam=np.int64(2)).save(tmp_path / "n.png")
    _, recipe = load_png(path)
    _, expected = load_png(pipeline.generate(PROMPT, seed=3, beam=2).save(tmp_path / "p.png"))
    assert recipe["tokens"] == expected["tokens"]
    assert (recipe["seed"], recipe["settings"]) == (3, expected["settings"])


@pytest.mark.parametrize("seed", [-1, 2.5, "3"])
def test_a_seed_that_is_none_is_refused(pipeline: Pipeline, seed: object) -> None:
    with pytest.raises(InputError, match="seed must be a whole number from 0 to"):
        pipeline.generate(PROMPT, seed=seed)


def test_another_seed_is_another_search(pipeline: Pipeline) -> None:
    first, second = (pipeline.generate(PROMPT, seed=seed).steps[0].pool for seed in (0, 1))
    assert not torch.equal(first.tokens, second.tokens)


def test_what_is_left_out_takes_the_models_default(pipeline: Pipeline) -> None:
    assert pipeline.settings().beam == 2
    assert pipeline.settings(beam=None, tokens=1).beam == 2
    assert pipeline.settings(beam=5).beam == 5
    assert pipeline.settings().schedule == "one"


def test_defaults_that_the_search_does_not_use_are_left_out(pipeline: Pipeline) -> None:
    pipeline = replace(pipeline, defaults={**pipeline.defaults, "refine": 1})
    assert pipeline.settings().refine == 1
    assert pipeline.settings(search="best-of-n").refine == 0
    with pytest.raises(InputError, match="refine means nothing to the search 'best-of-n'"):
        pipeline.settings(search="best-of-n", refine=1)


def named(prior: str | None, toy_weights: Path, **options: float) -> Pipeline:
    """The toy model, of which a frequency prior was counted, with this prior."""
    scenes = torch.randint(VOCAB, (9, TOKENS), generator=torch.Generator().manual_seed(0))
    counted = FrequencyPrior.fit([scenes], VOCAB, TOKENS)
    counted.save(toy_weights / "sprites" / "prior.safetensors")
    return Pipeline.load(device="cpu", prior=prior, **options)


def test_a_prior_that_is_named_is_used_where_the_model_has_no_strength(toy_weights: Path) -> None:
    assert named("frequency", toy_weights).settings().prior_strength == 1
    assert named("frequency", toy_weights).settings(prior_strength=0.5).prior_strength == 0.5
    for prior in (None, "uniform"):
        assert named(prior, toy_weights).settings().prior_strength == 0
    path = toy_weights / "sprites" / "tokenizer.json"
    config = json.loads(path.read_text())
    config["search_defaults"]["prior_strength"] = 2.0
    path.write_text(json.dumps(config))
    assert named("frequency", toy_weights).settings().prior_strength == 2


def test_a_prior_that_is_named_and_not_used_is_a_warning(toy_weights: Path) -> None:
    pipeline = named("frequency", toy_weights)
    with pytest.warns(PromptWarning, match="prior frequency makes no difference at prior stre"):
        pipeline.generate(PROMPT, prior_strength=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.generate(PROMPT)
        pipeline.generate(PROMPT, prior_strength=0, prior_weight=0.1)
        for prior in (None, "uniform"):
            named(prior, toy_weights).generate(PROMPT, prior_strength=0)
        uniform = named("uniform", toy_weights)  # as an ablation does, where λ = 0 is a column
        with_prior(uniform, "frequency").generate(PROMPT, prior_strength=0)


def test_a_search_is_not_taken_up_with_another_prior_of_the_kind(
    toy_weights: Path, tmp_path: Path
) -> None:
    pipeline = named("frequency", toy_weights)
    pipeline.generate(PROMPT, resume=tmp_path / "kept")
    pipeline.generate(PROMPT, resume=tmp_path / "kept")
    scenes = torch.zeros(9, TOKENS, dtype=torch.int64)
    FrequencyPrior.fit([scenes], VOCAB, TOKENS).save(tmp_path / "other.safetensors")
    other = Pipeline.load(device="cpu", prior=f"frequency:{tmp_path / 'other.safetensors'}")
    with pytest.raises(InputError, match="keeps another search: its prior fingerprint is"):
        other.generate(PROMPT, resume=tmp_path / "kept")


def test_a_screening_takes_the_place_of_the_models_shortlist(pipeline: Pipeline) -> None:
    pipeline = replace(pipeline, defaults={**pipeline.defaults, "shortlist": 1})
    assert pipeline.settings().shortlist == 1
    assert pipeline.settings(screen=True).shortlist == 0
    with pytest.raises(InputError, match="use screen with shortlist 0"):
        pipeline.settings(screen=True, shortlist=1)


def test_generate_loads_and_makes_one_picture(toy_weights: Path) -> None:
    result = tfgen.generate(PROMPT, device="cpu", beam=1, candidates=2, tokens=2, seed=4)
    assert [step.length for step in result.steps] == [1, 2]
    assert result.recipe["seed"] == 4


def test_the_recipe_says_what_made_the_picture(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT, negative=["a dog"], seed=9, beam=3)
    recipe = json.loads(json.dumps(result.recipe))
    assert recipe["prompt"] == PROMPT
    assert recipe["negative"] == ["a dog"]
    assert recipe["tokens"] == result.tokens
    assert recipe["model"] == {"name": "sprites", "fingerprint": "toy1"}
    assert recipe["verifier"] == {"name": "sprites-clip", "fingerprint": "0", "score": "contrast"}
    assert recipe["prior"] == {"name": "uniform"}
    assert recipe["settings"]["beam"] == 3
    assert recipe["tfgen"] == tfgen.__version__


def test_there_is_a_step_image_for_each_step(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT)
    images = result.step_images()
    assert len(images) == len(result.steps) == TOKENS
    best = max(range(TOKENS), key=lambda i: result.steps[i].best_score)
    assert images[best].tobytes() == result.image.tobytes()


def test_callback_sees_steps_and_progress_sees_decodes(pipeline: Pipeline) -> None:
    steps, decodes = [], []
    result = pipeline.generate(
        PROMPT, callback=steps.append, progress=lambda p: decodes.append(p.decodes)
    )
    assert steps == result.steps
    assert decodes[-1] == result.decodes


def test_negatives_reach_the_verifier(pipeline: Pipeline) -> None:
    pipeline.generate(PROMPT, negative=["a dog", "a cat"])
    assert tuple(pipeline.verifier.negatives) == ("a dog", "a cat")


def test_the_score_reaches_the_verifier(toy_weights: Path) -> None:
    assert Pipeline.load(device="cpu", score="cosine").verifier.scoring == "cosine"


def test_a_word_the_verifier_does_not_know_is_a_warning(pipeline: Pipeline) -> None:
    with pytest.warns(PromptWarning, match="'fizz'"):
        pipeline.generate("a fizz fox")


def test_a_prompt_is_searched_for_in_the_verifiers_words(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    prepare = SavedVerifier.prepare

    def spy(self: SavedVerifier, prompt: str, negatives: Sequence[str] = ()) -> Target:
        asked.append(prompt)
        return prepare(self, prompt, negatives)

    monkeypatch.setattr(SavedVerifier, "prepare", spy)
    monkeypatch.setattr(
        SavedVerifier, "reword", lambda self, prompt: Reworded(PROMPT, prompt, ("grumpy",))
    )
    with pytest.warns(PromptWarning, match=f"is read as '{PROMPT}', without 'grumpy'"):
        reworded = pipeline.generate("a grumpy vixen")
    assert asked == [PROMPT]
    assert reworded.tokens == pipeline.generate(PROMPT).tokens
    assert (reworded.recipe["prompt"], reworded.recipe["read_as"]) == ("a grumpy vixen", PROMPT)
    result = replace(pipeline, verbatim=True).generate("a grumpy vixen")
    assert asked[-1] == "a grumpy vixen" and "read_as" not in result.recipe


def test_negatives_are_read_alike(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"a vixen": ("a fox", None), "snow": ("a snowman in snow", "a snowman")}

    def reword(self: SavedVerifier, prompt: str) -> Reworded:
        text, added = said.get(prompt, (prompt, None))
        return Reworded(text, prompt, added=added)

    monkeypatch.setattr(SavedVerifier, "reword", reword)
    with pytest.warns(PromptWarning) as told:
        result = pipeline.generate(PROMPT, negative=["a vixen", "snow", "a fizz"])
    assert list(pipeline.verifier.negatives) == ["a fox", "snow", "a fizz"]  # no snowman to avoid
    assert result.recipe["negative"] == ["a vixen", "snow", "a fizz"]
    assert result.recipe["negative_read_as"] == ["a fox", "snow", "a fizz"]
    assert [str(one.message) for one in told] == [
        "The negative is read as 'a fox'.",
        "It does not know the word 'fizz'.",
    ]


def test_known_words_give_no_warning(pipeline: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.generate(PROMPT)


def test_ctrl_c_keeps_the_best_so_far(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(SavedVerifier, "interrupt_at", 3)
    result = pipeline.generate(PROMPT)
    assert result.interrupted and result.recipe["interrupted"]
    assert len(result.steps) == 2
    assert result.score == max(step.best_score for step in result.steps)
    assert tfgen.replay(result.save(tmp_path / "fox.png"), device="cpu").identical


def test_ctrl_c_before_the_first_score_goes_through(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedVerifier, "interrupt_at", 1)
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(PROMPT)


def test_out_of_memory_is_a_sentence(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(self: SavedTokenizer, tokens: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(SavedTokenizer, "render", render)
    with pytest.raises(TfgenError, match="Out of memory on cpu"):
        pipeline.generate(PROMPT)


# Bad input


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused_before_anything_is_loaded(prompt: str) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        tfgen.generate(prompt, model="no such model")


def test_a_prompt_longer_than_the_text_context_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="too long"):
        pipeline.generate("fox " * 100)


def test_a_setting_that_does_not_exist_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="did you mean 'beam'"):
        pipeline.generate(PROMPT, beams=16)


@pytest.mark.parametrize("settings", [{"beam": 0}, {"tokens": TOKENS + 1}, {"budget": 0}])
def test_a_setting_out_of_range_is_refused(pipeline: Pipeline, settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} must be"):
        pipeline.generate(PROMPT, **settings)


@pytest.mark.parametrize("negative", ["a dog", [""]])
def test_negatives_are_captions(pipeline: Pipeline, negative: list[str]) -> None:
    with pytest.raises(InputError, match="negative"):
        pipeline.generate(PROMPT, negative=negative)


def test_negatives_need_the_score_contrast(toy_weights: Path) -> None:
    pipeline = Pipeline.load(device="cpu", score="cosine")
    with pytest.raises(InputError, match="contrast"):
        pipeline.generate(PROMPT, negative=["a dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "sprits"}, "no tokenizer 'sprits'.*did you mean 'sprites'"),
        ({"verifier": "sprite-clip"}, "no verifier 'sprite-clip'.*did you mean 'sprites-clip'"),
        ({"prior": "unifrom"}, "no prior 'unifrom'.*did you mean 'uniform'"),
        ({"device": "gpu"}, "no device 'gpu'.*auto, cpu, cuda"),
        ({"score": "cosin"}, "no score 'cosin'.*did you mean 'cosine'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    toy_weights: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline.load(**{"device": "cpu", **options})


def test_cuda_without_a_cuda_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device.*--device cpu"):
        Pipeline.load(device="cuda")


def test_auto_is_the_cpu_where_there_is_no_cuda(
    toy_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Pipeline.load(device="auto").tokenizer.device.type == "cpu"


# Replay


@pytest.fixture
def png(pipeline: Pipeline, tmp_path: Path) -> Path:
    return pipeline.generate(PROMPT).save(tmp_path / "fox.png")


def change_recipe(png: Path, **changes: object) -> None:
    """Write the PNG again with other values in its recipe; None takes a key out."""
    with Image.open(png) as image:
        recipe = json.loads(image.info["tfgen"]) | changes
        recipe = {key: value for key, value in recipe.items() if value is not None}
        info = PngImagePlugin.PngInfo()
        info.add_itxt("tfgen", json.dumps(recipe))
        image.save(png, pnginfo=info)


def test_replay_makes_the_identical_picture(png: Path) -> None:
    again = tfgen.replay(png, device="cpu")
    assert again.identical and not again.edited
    with Image.open(png) as stored:
        assert again.image.tobytes() == stored.tobytes()


def test_a_recipe_that_tells_seconds_as_recipes_did_is_replayed(png: Path) -> None:
    change_recipe(png, seconds=1.5, accounts={"decodes": 24, "decode_seconds": 0.5})
    assert tfgen.replay(png, device="cpu").identical


def test_replay_loads_only_the_tokenizer(png: Path, toy_weights: Path) -> None:
    (toy_weights / "sprites-clip").rmdir()
    assert tfgen.replay(png, device="cpu").identical


def test_replay_tells_the_largest_difference_to_edited_pixels(png: Path) -> None:
    image = Image.open(png)
    image.load()
    info = PngImagePlugin.PngInfo()
    info.add_itxt("tfgen", image.info["tfgen"])
    red, green, blue = image.getpixel((5, 5))
    image.putpixel((5, 5), (red ^ 128, green, blue))
    image.save(png, pnginfo=info)

    again = tfgen.replay(png, device="cpu")
    assert not again.identical and again.edited
    assert again.max_difference == 128


def test_replay_of_a_picture_of_another_size_is_not_identical(png: Path) -> None:
    image = Image.open(png)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("tfgen", image.info["tfgen"])
    image.resize((8, 8)).save(png, pnginfo=info)
    again = tfgen.replay(png, device="cpu")
    assert not again.identical and again.max_difference is None


def test_replay_refuses_other_weights_and_says_which(png: Path, tmp_path: Path) -> None:
    other = write_toy_model(tmp_path / "other", brightness=0.5)
    with pytest.raises(InputError, match="other weights of 'sprites'.*toy1.*toy0.5.*--model"):
        tfgen.replay(png, model=str(other), device="cpu")


def test_replay_finds_the_weights_where_it_is_told(
    png: Path, tmp_path: Path, toy_weights: Path
) -> None:
    change_recipe(png, model={"name": "/gone/sprites", "fingerprint": "toy1"})
    with pytest.raises(InputError, match="/gone/sprites"):
        tfgen.replay(png, device="cpu")
    assert tfgen.replay(png, model=str(toy_weights / "sprites"), device="cpu").identical


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": "1, 2"},
        {"tokens": [1.5]},
        {"tokens": [10**30]},
        {"tokens": []},
        {"tokens": [10**6]},
        {"tokens": [-1]},
        {"tokens": [0] * (TOKENS + 1)},
        {"model": None},
        {"model": "sprites"},
        {"pixels_sha256": None},
    ],
)
def test_replay_refuses_a_damaged_recipe(png: Path, changes: dict[str, object]) -> None:
    change_recipe(png, **changes)
    with pytest.raises(InputError):
        tfgen.replay(png, device="cpu")


# With the packaged weights


def test_the_packaged_models_make_a_picture_that_replays(tmp_path: Path) -> None:
    result = tfgen.generate(PROMPT, device="cpu", beam=2, candidates=8, tokens=3, seed=0)
    assert result.decodes > 16
    assert min(result.image.size) >= 64
    assert len({result.image.getpixel((x, x)) for x in range(0, 64, 4)}) > 1
    assert tfgen.replay(result.save(tmp_path / "fox.png"), device="cpu").identical


def test_packaged_results_do_not_depend_on_batch_size() -> None:
    pipeline = Pipeline.load(device="cpu")
    settings = {"beam": 2, "candidates": 20, "tokens": 2}
    first, second = (pipeline.generate(PROMPT, batch_size=b, **settings) for b in (1, 64))
    assert first.tokens == second.tokens
    assert first.score == second.score


def test_the_packaged_verifier_warns_of_a_word_it_does_not_know() -> None:
    pipeline = Pipeline.load(device="cpu")
    with pytest.warns(PromptWarning, match="flurgle"):
        pipeline.generate("a red flurgle in snow", beam=1, candidates=2, tokens=1)


def test_the_packaged_verifier_refuses_a_prompt_beyond_its_context() -> None:
    with pytest.raises(InputError, match="long"):
        Pipeline.load(device="cpu", verbatim=True).generate("a red fox in snow and " * 100)
