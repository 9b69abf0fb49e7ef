"""Where models come from."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.conftest import write_toy_model
from tests.toy_models import TOKENS, VOCAB
from tfgen import InputError, TfgenError, hub

CPU = torch.device("cpu")


# Names


def test_a_packaged_name_is_a_folder_of_the_package(toy_weights: Path) -> None:
    assert hub.locate("sprites") == toy_weights / "sprites"
    assert hub.locate("sprites-clip", "verifier") == toy_weights / "sprites-clip"


def test_the_path_of_a_folder_is_that_folder(tmp_path: Path) -> None:
    assert hub.locate(str(tmp_path)) == tmp_path


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'flextok-d12-in1k'") as caught:
        hub.locate("flextok-d12-in1")
    known = [name for name, model in hub.MODELS.items() if model.role == "tokenizer"]
    assert all(name in str(caught.value) for name in known)
    assert "local folder" in str(caught.value)


def test_a_verifier_is_no_model_and_a_model_is_no_verifier() -> None:
    with pytest.raises(InputError, match="no tokenizer 'sprites-clip'"):
        hub.locate("sprites-clip")
    with pytest.raises(InputError, match="no verifier 'sprites'.*open_clip"):
        hub.locate("sprites", "verifier")


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        hub.locate(str(tmp_path / "gone"))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a file"):
        hub.locate(str(tmp_path / "model.safetensors"))


def test_a_broken_installation_is_a_failure_not_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "gone")
    with pytest.raises(TfgenError, match="install tfgen again") as caught:
        hub.locate("sprites")
    assert caught.value.exit_code == 1


# Loading by name


def test_a_tokenizer_loads_by_name_and_from_a_folder(toy_weights: Path, tmp_path: Path) -> None:
    assert hub.load_tokenizer("sprites", CPU).fingerprint() == "toy1"
    folder = write_toy_model(tmp_path / "mine", brightness=0.25)
    assert hub.load_tokenizer(str(folder), CPU).fingerprint() == "toy0.25"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tfgen model.*tokenizer.json"):
        hub.load_tokenizer(str(tmp_path), CPU)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="no JSON"):
        hub.load_tokenizer(str(tmp_path), CPU)


def test_a_kind_of_tokenizer_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "quantum"}))
    with pytest.raises(InputError, match="'quantum'.*sprites"):
        hub.load_tokenizer(str(tmp_path), CPU)


def test_the_uniform_prior_fits_the_tokenizer(toy_weights: Path) -> None:
    prior = hub.load_prior("uniform", "sprites", hub.load_tokenizer("sprites", CPU))
    assert (prior.vocab_size, prior.num_tokens) == (VOCAB, TOKENS)


def test_a_model_without_a_frequency_prior_says_so(toy_weights: Path) -> None:
    with pytest.raises(InputError, match="frequency prior"):
        hub.load_prior("frequency", "sprites", hub.load_tokenizer("sprites", CPU))


def test_an_unknown_prior_is_refused(toy_weights: Path) -> None:
    with pytest.raises(InputError, match="no prior 'frequent'.*did you mean 'frequency'"):
        hub.load_prior("frequent", "sprites", hub.load_tokenizer("sprites", CPU))


def test_a_verifier_is_a_packaged_name_a_folder_or_an_open_clip_name(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(name: str) -> str:
        return hub.load_verifier(name, CPU, "contrast").source

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "clip").mkdir(parents=True)
    assert source("sprites-clip") == str(toy_weights / "sprites-clip")
    assert source("my/clip") == str(Path("my/clip"))
    assert source("ViT-B-32/laion2b_s34b_b79k") == "ViT-B-32/laion2b_s34b_b79k"
    with pytest.raises(InputError, match="no folder"):
        source("./gone/clip")


# Reading weights


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(12.0).view(3, 4), "bias": torch.zeros(3)}, path)
    return path


def test_good_weights_are_read(weights_file: Path) -> None:
    assert torch.equal(hub.read_safetensors(weights_file)["weight"], torch.arange(12.0).view(3, 4))


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_weights_are_refused(weights_file: Path, kept: int) -> None:
    weights_file.write_bytes(weights_file.read_bytes()[:kept])
    with pytest.raises(InputError, match="truncated, damaged"):
        hub.read_safetensors(weights_file)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 3) + b"{]}"],
)
def test_foreign_weights_are_refused(weights_file: Path, content: bytes) -> None:
    weights_file.write_bytes(content)
    with pytest.raises(InputError, match="no safetensors file"):
        hub.read_safetensors(weights_file)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights file"):
        hub.read_safetensors(tmp_path / "gone.safetensors")


def test_a_git_lfs_pointer_is_recognized(weights_file: Path) -> None:
    weights_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match="git lfs pull"):
        hub.read_safetensors(weights_file)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(InputError, match="pickled checkpoint.*convert it to safetensors"):
        hub.read_safetensors(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_torch_checkpoint_is_refused_under_any_name(weights_file: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, weights_file)
    with pytest.raises(InputError, match="pickled checkpoint"):
        hub.read_safetensors(weights_file)


def test_weights_that_fit_fill_the_module(weights_file: Path) -> None:
    module = nn.Linear(4, 3)
    hub.load_weights(module, hub.read_safetensors(weights_file), weights_file)
    assert torch.equal(module.weight, torch.arange(12.0).view(3, 4))


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        (nn.Linear(4, 3, bias=False), "bias is unknown"),
        (nn.Linear(5, 3), r"weight is \[3, 4\] instead of \[3, 5\]"),
        (nn.Sequential(nn.Linear(4, 3)), "0.weight is missing, 0.bias is missing.*and 1 more"),
    ],
)
def test_weights_of_another_model_are_refused(
    weights_file: Path, module: nn.Module, fault: str
) -> None:
    with pytest.raises(InputError, match=f"another model.*{fault}"):
        hub.load_weights(module, hub.read_safetensors(weights_file), weights_file)


# The list of models


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cache_repository(cache: Path, hub_id: str, file_name: str, size: int) -> None:
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b").write_bytes(bytes(size))
    (snapshot / file_name).symlink_to(repository / "blobs" / "b")


def rows() -> dict[str, dict]:
    return {row["name"]: row for row in hub.list_models()}


def test_packaged_models_are_listed_with_their_size(toy_weights: Path, hub_cache: Path) -> None:
    row = rows()["sprites"]
    assert row["where"] == "packaged"
    assert row["bytes"] == sum(file.stat().st_size for file in (toy_weights / "sprites").iterdir())
    assert row["licence"] == "Apache-2.0"


def test_hub_models_are_listed_with_their_id_whether_or_not_cached(hub_cache: Path) -> None:
    cache_repository(hub_cache, "EPFL-VILAB/flextok_d12_d12_in1k", "model.safetensors", 1234)
    cached, other = (rows()[name] for name in ("flextok-d12-in1k", "flextok-d18-in1k"))
    assert (cached["where"], cached["bytes"]) == ("cached", 1234)
    assert (other["where"], other["bytes"]) == ("hub", None)
    assert other["hub_id"] == "EPFL-VILAB/flextok_d18_d18_in1k"
    assert other["parameters"] == 949_700_000


def test_open_clip_models_in_the_cache_are_listed_and_others_are_not(hub_cache: Path) -> None:
    cache_repository(hub_cache, "laion/CLIP-tiny", "open_clip_model.safetensors", 99)
    cache_repository(hub_cache, "someone/chatbot", "model.safetensors", 99)
    assert rows()["hf-hub:laion/CLIP-tiny"]["role"] == "verifier"
    assert not any("chatbot" in name for name in rows())


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """One of 128 bytes begins as a pickle does."""
    path = tmp_path / "weights.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(128)
    path.write_bytes(struct.pack("<Q", 128) + header.encode() + struct.pack("<f", 2.5))
    assert path.read_bytes().startswith(b"\x80")
    assert hub.read_safetensors(path)["a"].tolist() == [2.5]
