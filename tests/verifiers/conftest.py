"""Folders of small open_clip models."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest

from tests.verifiers.toy_clip import (
    MODEL,
    PREPROCESS,
    VOCABULARY,
    WORDS,
    write_model,
)


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with open_clip's own text tokenizer."""
    return write_model(tmp_path_factory.mktemp("clip") / "general", MODEL)


@pytest.fixture(scope="module")
def worldly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a small world: a closed vocabulary and contrast words of its own."""
    text = MODEL["text_cfg"] | {"vocab_size": len(VOCABULARY) + 4, "context_length": 9}
    folder = write_model(tmp_path_factory.mktemp("clip") / "worldly", MODEL | {"text_cfg": text})
    vocabulary = {"words": VOCABULARY, "context_length": 9, "variants": {}}
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    (folder / "contrast.json").write_text(json.dumps(asdict(WORDS)))
    return folder


@pytest.fixture
def copy(general: Path, tmp_path: Path) -> Path:
    """A copy of the general model that a test may spoil."""
    return Path(shutil.copytree(general, tmp_path / "copy"))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the small model one that open_clip knows by name, with two tags."""
    tags = {
        "web_2b": PREPROCESS | {"url": "", "hf_hub": "owner/tiny-web/", "quick_gelu": True},
        "pickled": PREPROCESS | {"url": "https://example.org/tiny.pt", "hf_hub": ""},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-Clip", MODEL)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-Clip", tags)
