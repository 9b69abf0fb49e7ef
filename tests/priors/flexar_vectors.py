"""The conformance vectors of FlexAR, and the model that they belong to, reading given T5 states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tfgen.priors.flexar import FlexAR

VECTORS = Path(__file__).parents[1] / "vectors"
SETS = ("flexar_tiny", "flexar_tiny_gated")
PROMPTS = ("first", "second")


def vectors(name: str) -> dict[str, Tensor]:
    with np.load(VECTORS / name / "vectors.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


class GivenText:
    """In the place of T5: the hidden states of PROMPTS and of the empty text. Keeps its calls."""

    def __init__(self, name: str) -> None:
        self.given = vectors(name)
        self.calls: list[list[str]] = []

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.calls.append(list(prompts))
        rows = [self._row(prompt) for prompt in prompts]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    def _row(self, prompt: str) -> tuple[Tensor, Tensor]:
        kind, row = ("cond", PROMPTS.index(prompt)) if prompt else ("uncond", 0)
        return self.given[f"t5_hidden_{kind}"][row], self.given[f"t5_mask_{kind}"][row]


def load(name: str, folder: Path | None = None) -> FlexAR:
    return FlexAR.from_pretrained(folder or VECTORS / name, text_encoder=GivenText(name))


def variant(
    name: str,
    folder: Path,
    config: Callable[[dict], None] = lambda tree: None,
    tensors: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
) -> Path:
    """A copy of a checkpoint in which `config` and `tensors` have changed the files' contents."""
    folder.mkdir(exist_ok=True)
    tree = yaml.safe_load((VECTORS / name / "config.yaml").read_text())
    weights = load_file(VECTORS / name / "model.safetensors")
    config(tree)
    tensors(weights)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return folder


def trunk(tree: dict) -> dict:
    return models(tree)["ar_image_model"]["trunk"]


def models(tree: dict) -> dict:
    return tree["model"]["meta_model"]["models"]
