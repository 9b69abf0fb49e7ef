"""Where the verifier's model comes from: its folders, and open_clip's names; no network."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.verifiers.toy_clip import (
    MODEL,
    PREPROCESS,
    VOCABULARY,
    pictures,
    refused,
    write_model,
)
from tfgen.errors import TfgenError
from tfgen.verifiers import clip
from tfgen.verifiers.clip import ClipVerifier

# ---- files


def test_open_clips_logs_do_not_reach_the_user(
    general: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    ClipVerifier.load(general)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_is_of_the_weights(general: Path, copy: Path, tmp_path: Path) -> None:
    path = copy / "open_clip_model.safetensors"
    state = load_file(path)
    one = ClipVerifier.load(general).fingerprint()
    assert int(one, 16) >= 0
    save_file({k: v.half() for k, v in state.items()}, path)
    assert ClipVerifier.load(copy).fingerprint() == one
    other = write_model(tmp_path / "other", MODEL, seed=1)
    assert ClipVerifier.load(other).fingerprint() != one


def test_the_only_safetensors_file_may_have_any_name(copy: Path, general: Path) -> None:
    (copy / "open_clip_model.safetensors").rename(copy / "model.safetensors")
    assert ClipVerifier.load(copy).fingerprint() == ClipVerifier.load(general).fingerprint()
    shutil.copy(copy / "model.safetensors", copy / "second.safetensors")
    assert "it has 2" in refused(lambda: ClipVerifier.load(copy))


def test_open_clips_file_is_chosen_among_others(copy: Path, general: Path) -> None:
    """Repositories on the hub often hold the same weights in transformers' format too."""
    save_file({"x": torch.zeros(1)}, copy / "model.safetensors")
    assert ClipVerifier.load(copy).fingerprint() == ClipVerifier.load(general).fingerprint()


def spoil_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def spoil_text(path: Path) -> None:
    path.write_text("these are no weights")


def spoil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"run": "me"}))


def spoil_other_shapes(path: Path) -> None:
    save_file({k: v[..., :1].clone() if v.ndim else v for k, v in load_file(path).items()}, path)


def spoil_missing(path: Path) -> None:
    state = load_file(path)
    save_file({k: v for k, v in state.items() if not k.startswith("visual")}, path)


def spoil_foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def spoil_empty(path: Path) -> None:
    save_file({}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_truncate,
        spoil_text,
        spoil_pickle,
        spoil_other_shapes,
        spoil_missing,
        spoil_foreign,
        spoil_empty,
        Path.unlink,
    ],
)
def test_spoilt_weights_are_refused(copy: Path, spoil: Callable[[Path], object]) -> None:
    spoil(copy / "open_clip_model.safetensors")
    assert str(copy) in refused(lambda: ClipVerifier.load(copy))


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model_cfg": 3}',
        '{"model_cfg": {}}',
        json.dumps({"model_cfg": MODEL | {"taste": 1}}),
        json.dumps({"model_cfg": MODEL | {"vision_cfg": {"timm_model_name": "no_such"}}}),
        json.dumps({"model_cfg": MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"width": "w"}}}),
    ],
)
def test_a_spoilt_config_is_refused(copy: Path, config: str) -> None:
    (copy / "open_clip_config.json").write_text(config)
    assert str(copy) in refused(lambda: ClipVerifier.load(copy))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "open_clip_config.json" in refused(lambda: ClipVerifier.load(tmp_path))


def test_a_vocabulary_of_another_model_is_refused(worldly: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(worldly, tmp_path / "copy"))
    vocabulary = {"words": [*VOCABULARY, "zebra"], "context_length": 9}
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    assert "another model" in refused(lambda: ClipVerifier.load(folder))


# ---- open_clip's names


@pytest.mark.usefixtures("registered")
def test_a_model_by_name_with_the_path_of_its_weights(
    general: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = general / "open_clip_model.safetensors"
    absolute = ClipVerifier.load(f"Tiny-Clip/{file}")
    assert absolute.fingerprint() == ClipVerifier.load(general).fingerprint()
    assert absolute.name == f"Tiny-Clip/{file}"
    monkeypatch.chdir(general.parent)
    relative = ClipVerifier.load("Tiny-Clip/general/open_clip_model.safetensors")
    assert relative.fingerprint() == absolute.fingerprint()
    monkeypatch.setenv("HOME", str(general))
    home = ClipVerifier.load("Tiny-Clip/~/open_clip_model.safetensors")
    assert torch.equal(home.embed(pictures()), absolute.embed(pictures()))


@pytest.mark.usefixtures("registered")
def test_pickled_and_foreign_weights_of_a_named_model_are_refused(tmp_path: Path) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        path = tmp_path / name
        torch.save({"run": torch.zeros(1)}, path)
        assert "pickled" in refused(lambda path=path: ClipVerifier.load(f"Tiny-Clip/{path}"))
    path = tmp_path / "weights.npz"
    save_file({"weight": torch.zeros(3)}, path)
    assert ".safetensors" in refused(lambda: ClipVerifier.load(f"Tiny-Clip/{path}"))


@pytest.mark.usefixtures("registered")
def test_a_tag_is_fetched_and_brings_its_own_preprocessing_and_activation(
    general: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(general / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    verifier = ClipVerifier.load("Tiny-Clip/web_2b")
    assert asked == [("owner/tiny-web", "open_clip_model.safetensors")]
    assert verifier.preprocess["resize_mode"] == "squash"  # open_clip's default is "shortest"
    assert verifier.preprocess["mean"] == PREPROCESS["mean"]
    assert "QuickGELU" in str(verifier.model)
    assert "QuickGELU" not in str(ClipVerifier.load(general).model)
    assert verifier.prepare("a red fox in snow").captions  # the general contrast words


def test_a_repository_of_the_hub(general: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, file: str(general / file))
    monkeypatch.setattr(clip, "_tokenizer", lambda _: open_clip.tokenize)
    verifier = ClipVerifier.load("hf-hub:owner/tiny")
    assert verifier.name == "hf-hub:owner/tiny"
    assert verifier.fingerprint() == ClipVerifier.load(general).fingerprint()


@pytest.mark.usefixtures("registered")
def test_a_tag_with_pickled_weights_only_is_refused() -> None:
    assert "pickled" in refused(lambda: ClipVerifier.load("Tiny-Clip/pickled"))


def test_unknown_models_and_tags_are_refused_with_the_nearest() -> None:
    assert "ViT-B-32" in refused(lambda: ClipVerifier.load("ViT-B-23/openai"))
    assert "ViT-B-32" in refused(lambda: ClipVerifier.load("vit-b-32/openai"))
    message = refused(lambda: ClipVerifier.load("ViT-B-32/laion2b_s34b_b97k"))
    assert "laion2b_s34b_b79k" in message
    assert "openai" in refused(lambda: ClipVerifier.load("ViT-B-32"))
    assert "openai" in refused(lambda: ClipVerifier.load("ViT-B-32//no/such/file.safetensors"))


@pytest.mark.parametrize("source", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:owner/tiny"])
def test_weights_that_are_not_cached_cannot_be_had_offline(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE is set for all tests, in tests/conftest.py."""
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused(lambda: ClipVerifier.load(source), TfgenError)
    assert "open_clip_" in message and "--verifier" in message


def test_a_name_that_is_no_repository_is_refused() -> None:
    assert "OWNER/NAME" in refused(lambda: ClipVerifier.load("hf-hub:a/b/c"))
