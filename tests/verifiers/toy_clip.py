"""Small open_clip models with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.verifiers.contrast import ContrastWords

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}
PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
WORDS = ContrastWords(
    objects=[
        {"name": "fox", "plural": "foxes", "synonyms": []},
        {"name": "cat", "plural": "cats", "synonyms": ["kitty cat"]},
    ],
    colours=["red", "blue", "gray"],
    backgrounds=[["in snow"], ["on a wide beach"]],
    counts=[["a", "the"], ["two"]],
    relations=[],
)
VOCABULARY = ["a", "beach", "blue", "cat", "cats", "fox", "foxes", "gray", "in", "on", "red"]
VOCABULARY += ["snow", "the", "two", "wide"]


def write_model(folder: Path, model: dict, seed: int = 0, preprocess: dict = PREPROCESS) -> Path:
    """A folder as open_clip itself writes it."""
    folder.mkdir()
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    state = open_clip.model.CLIP(**model).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    return folder


def pictures(n: int = 5, size: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def refused(load: Callable[[], object], kind: type[TfgenError] = InputError) -> str:
    """The message of the error that `load` raises, which is one sentence."""
    with pytest.raises(TfgenError) as error:
        load()
    message = str(error.value)
    assert type(error.value) is kind, message
    assert "\n" not in message and len(message) < 600 and message.endswith("."), message
    return message
