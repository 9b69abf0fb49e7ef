"""What a recipe is cooked of at toy size: configs, sprites, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.toy_grid import SIZES as GRID_SIZES
from tests.toy_world import SIZES, shapes
from tfgen.training import (
    apart,
)
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.objects import load_objects
from tfgen.training.recipe import main

COMMON = {"tier": "small", "variants": 1, "log_every": 1, "save_every": 100}
LEARNED = COMMON | {"steps": 2, "batch": 2, "peak_lr": 1e-3, "ema": 0.5, "bf16": False, "seed": 1}
CLIP = {k: v for k, v in LEARNED.items() if k != "batch"} | {
    "groups": 1,
    "width": 32,
    "flat": 0.4,
    "head_weight": 0.3,
    "decoded_share": 0.5,
    "negatives": 3,
    "odd": 2,
    "mine_every": 1,
    "held_out": 2,
    "reads": True,
    "named": 0.5,
}
# The tokenizer's encoder becomes the verifier's tower, and so is of the usual size.
MODEL = SIZES | {"image_size": 64, "encoder_widths": [32, 64, 128, 192], "scribe": 16}
MODEL |= {"kinds": len(load_objects("small")), "colours": len(COLOURS)}
MODEL |= {"grounds": len(BACKGROUNDS), "levels": [8, 3, 4]}
MODEL |= {"memory": 2, "ground_memory": 2}
PART = {"steps": 2, "batch": 8, "peak_lr": 1e-3}
CONFIGS: dict[str, dict[str, Any]] = {
    "apart_small": {k: v for k, v in LEARNED.items() if k not in PART}
    | {"attribute_weight": 0.1, "grafts": 0.4, **dict.fromkeys(apart.PARTS, PART)}
    | {"model": MODEL},
    "tokenizer_small": LEARNED | {"attribute_weight": 0.1, "model": MODEL},
    "renderer_small": LEARNED | {"backgrounds": 1},
    "prior_small": {"tier": "small", "variants": 1, "scenes": 60, "min_count": 1},
    "clip_small": CLIP | {"told": 1},
    "clip_small_decoded": CLIP,
    "clip_small_odd": CLIP,
    "clip_small_pairs": CLIP | {"pairs": 0.8},
    "clip_small_found": CLIP | {"chimeras": 1, "found": 4},
    "found_small": {
        "tier": "small",
        "seed": 1,
        "variants": 1,
        "scenes": 60,
        "pairs": 0.5,
        "captions": 2,
        "budget": 40,
    },
    "judge_small": LEARNED
    | {
        "flat": 0.4,
        "decoded_share": 0.5,
        "other": 0.5,
        "mixed": 0.1,
        "widths": [8, 8, 16, 16],
        "neck": 16,
        "threshold_scenes": 4,
    },
    "bank_small": {"tier": "small", "variants": 1, "scenes": 60, "pairs": 0.5},
    "forecast_small": {k: v for k, v in LEARNED.items() if k not in ("bf16", "variants")}
    | {"pictures": 2100, "tokens": 8, "width": 8, "depth": 1},
    "autoregressive_small": LEARNED
    | {
        "flat": 0.4,
        "drop_texts": 0.1,
        "drop_words": 0.0,
        "held_out": 2,
        "guidance": 2.0,
        "model": {"width": 16, "heads": 2, "depth": 1},
    },
    "grid_small": LEARNED | {"attribute_weight": 0.1, "model": GRID_SIZES},
}


def write_sprites(path: Path, count: int) -> Path:
    """A file of sprites of the table's first objects, as `tfgen.training.sprites` builds one."""
    specs = load_objects()[:count]
    sprites = shapes(16)[torch.arange(count) % 5].contiguous()
    save_file({"sprites": sprites}, path, {"names": json.dumps([spec.name for spec in specs])})
    return path


class Kitchen:
    """Toy configs, sprites and folders, and the command over them."""

    def __init__(self, folder: Path):
        self.configs, self.out = folder / "configs", folder / "out"
        self.configs.mkdir(parents=True)
        for name, config in CONFIGS.items():
            (self.configs / f"{name}.json").write_text(json.dumps(config))
        self.sprites = write_sprites(folder / "sprites.safetensors", len(load_objects("small")))

    def cook(self, *options: str, **changed: Path) -> int:
        given = {"out": self.out, "sprites": self.sprites, "configs": self.configs} | changed
        paths = [part for k, v in given.items() for part in (f"--{k}", str(v))]
        return main(["--tier", "small", "--device", "cpu", *paths, *options])

    def weights(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in sorted(self.out.rglob("*.safetensors"))
        }

    def state(self, stage: str) -> dict[str, Any]:
        return json.loads((self.out / "stages" / stage / "state.json").read_text())
