"""Fixtures: a package whose weights are toys, so that most tests need no packaged weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any Triton kernel is defined

from tests.toy_models import TOKENS, VOCAB, SavedVerifier
from tfgen import hub
from tfgen.tokenizers import TOKENIZERS
from tfgen.verifiers import VERIFIERS


@pytest.fixture
def toy_weights(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts toys in the place of the packaged `sprites` and `sprites-clip`; returns their folder."""
    weights = tmp_path_factory.mktemp("weights")
    write_toy_model(weights / "sprites")
    (weights / "sprites-clip").mkdir()
    monkeypatch.setattr(hub, "WEIGHTS", weights)
    monkeypatch.setitem(TOKENIZERS, "toy", "tests.toy_models:SavedTokenizer")
    monkeypatch.setitem(VERIFIERS, "clip", "tests.toy_models:SavedVerifier")
    monkeypatch.setattr(SavedVerifier, "calls", 0)
    return weights


def write_toy_model(folder: Path, brightness: float = 1.0) -> Path:
    """A model folder as hub.load_tokenizer reads it. Another brightness is another fingerprint."""
    folder.mkdir()
    save_file({"brightness": torch.tensor([brightness])}, folder / "tokenizer.safetensors")
    config = {
        "kind": "toy",
        "search_defaults": {"beam": 2, "candidates": 3, "tokens": TOKENS, "prior": "uniform"},
        "vocab_size": VOCAB,
    }
    (folder / "tokenizer.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
