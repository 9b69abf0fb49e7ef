"""A grid tokenizer so small that it is made at once, with a random network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tfgen.tokenizers.grid_model import GridConfig, GridModel

SIZES: dict[str, Any] = {  # as a training config has them
    "levels": [4, 3],
    "grid": 2,
    "image_size": 32,
    "width": 16,
    "heads": 2,
    "encoder_depth": 1,
    "decoder_depth": 2,
    "encoder_widths": [8, 16],
    "decoder_widths": [16, 8],
}


def grid_model(seed: int = 0) -> GridModel:
    """A random network whose pictures differ from each other, not only in their last bits."""
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in SIZES.items()}
    torch.manual_seed(seed)
    model = GridModel(GridConfig(**sizes))
    for parameter in model.parameters():
        parameter.data *= 1.6
    return model


def write_grid(folder: Path, seed: int = 0) -> Path:
    """`grid_model` as a folder that GridTokenizer.load reads."""
    folder.mkdir()
    model = grid_model(seed)
    save_file(model.state_dict(), folder / "tokenizer.safetensors")
    config = {"kind": "grid", "model": asdict(model.cfg), "search_defaults": {}}
    (folder / "tokenizer.json").write_text(json.dumps(config))
    return folder
