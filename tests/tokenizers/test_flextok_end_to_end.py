"""From a prompt to a PNG and back with a FlexTok checkpoint and an open_clip model, both of random
weights; and a prior over one's own pictures for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.cli.running import Run, is_one_sentence
from tests.tokenizers.flextok_checks import FOLDER, model, write_checkpoint
from tests.verifiers.toy_clip import MODEL, write_model
from tfgen import InputError, Pipeline, hub, replay
from tfgen.image_io import load_png, save_png
from tfgen.priors import FrequencyPrior
from tfgen.tokenizers import flextok as flextok_module
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_config import SEARCH_DEFAULTS
from tfgen_cli import main

PROMPT = "a red fox in snow"
SEARCH = {"beam": 3, "candidates": 2, "tokens": 2, "seed": 5}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("clip") / "clip", MODEL)


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return Run(code, *capsys.readouterr())

    return run


def options(settings: dict[str, Any]) -> list[object]:
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def picture(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tfgen PROMPT --model FOLDER` wrote."""
    path = tmp_path_factory.mktemp("made") / "fox.png"
    command = [PROMPT, "--model", FOLDER, "--verifier", clip, *options(SEARCH), "-o", path]
    assert main([*map(str, command)]) == 0
    return path


def test_from_a_prompt_to_a_picture(picture: Path) -> None:
    image, recipe = load_png(picture)
    assert image.size == (64, 64)
    assert recipe["decodes"] == 2 * 3 * 2
    assert 1 <= len(recipe["tokens"]) <= 2
    assert all(0 <= token < 64_000 for token in recipe["tokens"])
    assert recipe["model"]["fingerprint"] == model().fingerprint()
    shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3)
    right = model().for_seed(5).decode(torch.tensor([recipe["tokens"]]))[0]
    assert (shown.permute(2, 0, 1) / 255 - right).abs().max() <= 1 / 255


def test_a_replay_is_identical(run: Callable[..., Run], picture: Path) -> None:
    assert run("replay", picture).code == 0
    made = replay(picture, device="cpu")
    assert made.identical and not made.edited


def test_the_seed_of_the_search_is_the_noise_of_the_picture(picture: Path, tmp_path: Path) -> None:
    image, recipe = load_png(picture)
    save_png(image, tmp_path / "other.png", recipe | {"seed": 6})
    assert not replay(tmp_path / "other.png", device="cpu").identical


def test_a_picture_of_another_checkpoint_is_not_replayed(picture: Path, tmp_path: Path) -> None:
    other = write_checkpoint(
        tmp_path / "other", tensors=lambda s: s["vae.vae.post_quant_conv.bias"].add_(1)
    )
    with pytest.raises(InputError, match="made with other weights"):
        replay(picture, model=str(other))


def test_tokens_do_not_depend_on_the_batch_size_nor_on_memory(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(str(FOLDER), verifier=str(clip), device="cpu")
    pipeline = replace(pipeline, tokenizer=pipeline.tokenizer.with_sampling(steps=2))
    first = pipeline.generate(PROMPT, **SEARCH)
    assert pipeline.generate(PROMPT, **SEARCH, batch_size=100).tokens == first.tokens

    original, rows = FlexTok.decode, []

    def decode(self: FlexTok, tokens: Tensor, *rest: Any, **settings: Any) -> Tensor:
        rows.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("no more")
        return original(self, tokens, *rest, **settings)

    monkeypatch.setattr(FlexTok, "decode", decode)
    small = pipeline.generate(PROMPT, **SEARCH)
    assert rows[:3] == [8, 4, 2]
    assert small.decodes == first.decodes
    assert small.score == pytest.approx(first.score, abs=1e-4)


def test_blocks_are_bfloat16_on_cuda_and_float32_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, torch.dtype]] = []

    def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
        asked.append((device.type, dtype))
        return model().networks

    monkeypatch.setattr(flextok_module, "load_networks", load)
    for device in ("cpu", "cuda"):
        hub.load_tokenizer(str(FOLDER), torch.device(device))
    assert asked == [("cpu", torch.float32), ("cuda", torch.bfloat16)]


def test_a_pass_fills_a_gpu_and_not_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = model()
    assert tokenizer.decode_rows == 8
    monkeypatch.setattr(FlexTok, "device", torch.device("cuda"))
    assert tokenizer.decode_rows == 64


def test_a_flextok_searches_with_its_own_defaults(clip: Path) -> None:
    pipeline = Pipeline.load(str(FOLDER), verifier=str(clip), device="cpu")
    settings = pipeline.settings()
    for name, value in SEARCH_DEFAULTS.items():
        if name not in ("prior", "verifier"):
            assert getattr(settings, name) == value
    assert pipeline.prior.name == "uniform"


def test_the_default_verifier_is_one_that_open_clip_has_and_that_is_no_pickle() -> None:
    import open_clip

    name, _, tag = SEARCH_DEFAULTS["verifier"].partition("/")
    assert open_clip.get_pretrained_cfg(name, tag)["hf_hub"].startswith("laion/")
    assert "hf_tokenizer_name" not in open_clip.get_model_config(name)["text_cfg"]


# A prior over one's own pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        pixels = (torch.rand(9, 12, 3, generator=generator) * 255).byte().numpy()
        place = folder / "deeper" if i % 2 else folder
        Image.fromarray(pixels).resize((96, 72)).save(place / f"{i}.png")
    (folder / "note.png").write_text("no picture")
    return folder


def test_a_prior_is_fitted_to_a_folder_and_searched_with(
    run: Callable[..., Run], clip: Path, pictures: Path
) -> None:
    done = run("prior", "fit", pictures, "--model", FOLDER, "-o", "prior.safetensors")
    assert done.code == 0, done.err
    assert "note.png' is no picture that can be read" in done.err
    assert "bits a token" in done.err
    prior = FrequencyPrior.load("prior.safetensors")
    assert (prior.vocab_size, prior.num_tokens) == (64_000, 16)
    assert prior.metadata["pictures"] == 5
    search = {"beam": 1, "candidates": 2, "tokens": 1, "prior-strength": 20}
    search["prior"] = "frequency:prior.safetensors"
    done = run(PROMPT, "--model", FOLDER, "--verifier", clip, *options(search), "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["prior"]["name"] == "frequency"
    # At this strength a token that was seen is 3 ** 20 times as likely as any that was not.
    assert prior.unigram[0, report["tokens"][0]] > 0


def test_a_fit_that_was_stopped_encodes_only_what_is_left(
    run: Callable[..., Run], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfgen.priors import bank, frequency

    monkeypatch.setattr(bank, "_PART", 2)
    original, encoded = FlexTok.encode, []

    def encode(self: FlexTok, images: Tensor, *rest: Any) -> Tensor:
        if sum(encoded) >= 4 and stop:
            raise KeyboardInterrupt
        encoded.append(len(images))
        return original(self, images, *rest)

    monkeypatch.setattr(FlexTok, "encode", encode)
    command = ("prior", "fit", pictures, "--model", FOLDER, "-o", "prior.safetensors")
    stop = True
    stopped = run(*command)
    assert stopped.code == 130
    assert "the same command goes on there" in stopped.err
    assert not Path("prior.safetensors").exists()
    stop, first = False, sum(encoded)
    assert run(*command, "--quiet").code == 0
    assert first == 4 and sum(encoded) == 5
    assert frequency.FrequencyPrior.load("prior.safetensors").metadata["pictures"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone", "-o", "p"], "no folder 'gone'"),
        ([".", "-o", "p"], "no pictures"),
        (["PICTURES", "-o", "."], "it is a folder"),
        (["PICTURES", "-o", "gone/p"], "no folder 'gone'"),
        (["PICTURES", "-o", "p", "--min-count", "0"], "--min-count"),
    ],
)
def test_a_fit_that_cannot_be_is_one_sentence(
    run: Callable[..., Run], pictures: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(pictures) if word == "PICTURES" else word for word in arguments]
    done = run("prior", "fit", *arguments, "--model", FOLDER)
    assert done.code == 2 and message in done.err and is_one_sentence(done.err)


# Files that are wrong


def test_wrong_files_are_one_sentence_on_the_command_line(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    cut = write_checkpoint(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99_999])
    other = write_checkpoint(tmp_path / "other", config=lambda c: c["vae"].update(tiling=True))
    for folder, message in ((cut, "truncated"), (other, "vae.tiling = True")):
        done = run(PROMPT, "--model", folder)
        assert done.code == 2 and message in done.err and is_one_sentence(done.err)
