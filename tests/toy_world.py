"""A sprite world made of plain shapes, and models of it that know nothing: no npm, no time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tfgen.tokenizers.sprites_model import SpritesConfig, SpritesModel
from tfgen.training import clip
from tfgen.training.captions import Captioner
from tfgen.training.objects import ObjectSpec
from tfgen.training.world import World
from tfgen.verifiers.words import WordTokenizer

SPECS = [
    ObjectSpec("fox", "1", (), "foxes", ("red", "orange"), "small"),
    ObjectSpec("cat", "2", ("kitty",), "cats", ("orange",), "small"),
    ObjectSpec("elephant", "3", (), "elephants", ("gray",), "small"),
    ObjectSpec("car", "4", ("automobile",), "cars", ("red",), "small"),
    ObjectSpec("pine tree", "5", ("pine", "fir tree"), "pine trees", ("green",), "small"),
]
FOX, CAT, ELEPHANT, CAR, TREE = range(len(SPECS))
SIZES: dict[str, Any] = {  # of a tokenizer, as a training config has them
    "levels": [4, 3],
    "num_tokens": 8,
    "image_size": 32,
    "canvas_size": 16,
    "width": 32,
    "depth": 1,
    "latent": 16,
    "encoder_widths": [8, 16, 16],
    "background_widths": [16, 16, 8],
    "object_widths": [16, 8],
}
CLIP: dict[str, Any] = {  # a config of the verifier's training
    "seed": 2,
    "steps": 40,
    "groups": 1,
    "width": 32,
    "peak_lr": 0.05,
    "flat": 0.3,
    "ema": 0.9,
    "head_weight": 0.3,
    "decoded_share": 0.5,
    "negatives": 6,
    "odd": 2,
    "mine_every": 2,
    "bf16": False,
    "log_every": 1,
    "save_every": 1000,
}


def shapes(size: int = 24) -> Tensor:
    """A shaded shape for each of SPECS: uint8 [M, 4, size, size], premultiplied RGBA."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = axis[None, :].expand(size, size), axis[:, None].expand(size, size)
    masks = (x**2 + y**2 < 0.9, x.abs() < 0.6, y.abs() < 0.6, (x - y).abs() < 0.5, y > x.abs())
    colours = ((0.9, 0.4, 0.1), (0.7, 0.7, 0.2), (0.5, 0.5, 0.5), (0.8, 0.1, 0.1), (0.1, 0.6, 0.2))
    shade = 0.6 + 0.4 * (x + 1) / 2
    sprites = []
    for mask, colour in zip(masks, colours, strict=True):
        rgb = torch.tensor(colour)[:, None, None] * shade * mask
        sprites.append(torch.cat([rgb, mask.float()[None]]))
    return (torch.stack(sprites) * 255).round().to(torch.uint8)


def make_world(size: int = 32, free: float = 0.0) -> World:
    return World(sizes=(size,), variants=2, sprites=shapes(), specs=SPECS, free=free)


def tokenizer_model(image_size: int = 32) -> SpritesModel:
    """A random network of SIZES."""
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in SIZES.items()}
    torch.manual_seed(0)
    return SpritesModel(SpritesConfig(**sizes | {"image_size": image_size}))


def write_tokenizer(folder: Path, image_size: int = 32) -> Path:
    """`tokenizer_model` as a folder that SpritesTokenizer.load reads."""
    folder.mkdir()
    model = tokenizer_model(image_size)
    save_file(model.state_dict(), folder / "tokenizer.safetensors")
    config = {"kind": "sprites", "model": asdict(model.cfg), "search_defaults": {}}
    (folder / "tokenizer.json").write_text(json.dumps(config))
    return folder


def write_verifier(folder: Path, world: World) -> Path:
    """A random `sprites-clip` of the world, written as a trained one is."""
    captioner = Captioner(world.specs)
    words = WordTokenizer(captioner.vocabulary(), clip.CONTEXT_LENGTH)
    torch.manual_seed(0)
    trainer = clip.ClipTrainer(words.vocab_size, 32, world.num_objects, 0.0).eval()
    clip.export(trainer, words, captioner, 32, folder)
    return folder


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two models' weights."""
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)
