"""The configs that are shipped: each tier has all, and their networks fit what is packaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfgen.judge_model import JudgeConfig, JudgeModel
from tfgen.packing import pack
from tfgen.priors.autoregressive_model import AutoregressiveConfig, AutoregressiveModel
from tfgen.tokenizers.grid_model import GridConfig, GridModel
from tfgen.tokenizers.sprites_model import SpritesConfig, SpritesModel
from tfgen.tokenizers.sprites_reading import Holds
from tfgen.training import (
    clip_model,
    recipe,
)
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import Captioner
from tfgen.training.colours import COLOURS
from tfgen.training.objects import load_objects
from tfgen.training.stages import STAGES

READS = {"reads", "told", "named", "factors"}
"""What configs of a verifier that reads the scene have beside the others'."""


@pytest.mark.parametrize("tier", ["small", "medium", "full"])
def test_every_tier_has_its_configs(tier: str) -> None:
    configs = recipe.Book(Path("nowhere"), tier, recipe.CONFIGS).configs
    assert configs.keys() == {stage.name for stage in STAGES}
    # Scenes in layouts combine (grafts.py), those anywhere hardly do, so a bank has none of those;
    # atlas and forecaster see no scenes.
    none = ("atlas", "bank", "forecast")
    free = {c.get("free", 0.0) for name, c in configs.items() if name not in none}
    assert free == ({0.5} if tier == "full" else {0.0})
    assert configs["bank"].get("free", 0.0) == 0
    small = recipe.Book(Path("nowhere"), "small", recipe.CONFIGS).configs
    for name, config in configs.items():
        assert set(small[name]) <= set(config), name
        assert set(config) <= set(small[name]) | {"free", "held_out", "bf16"} | READS, name


@pytest.mark.parametrize("tier", ["medium", "full"])
def test_a_cpus_configs_are_of_the_packaged_models_sizes(tier: str) -> None:
    configs = recipe.Book(Path("nowhere"), tier, recipe.CONFIGS / "cpu").configs
    small = recipe.Book(Path("nowhere"), "small", recipe.CONFIGS).configs
    for name, config in configs.items():
        assert set(config) - {"start", "held_out", "bf16", "free"} - READS <= set(small[name]), name
        for sizes in ("model", "width", "widths", "neck"):
            ours, theirs = config.get(sizes), small[name].get(sizes)
            if sizes == "model" and name in ("apart", "tokenizer"):
                kinds = {"kinds": len(load_objects(tier))}
                many = {"scribe": 1024, "memory": 4} if tier == "full" else {}
                assert ours == theirs | kinds | many, name
            else:
                assert ours == theirs, name
    starts = {name: config["start"] for name, config in configs.items() if "start" in config}
    assert starts == {"apart": "sprites", "clip": "sprites-clip", "judge": "sprites-judge"}


def test_the_networks_of_the_full_tier_leave_room_for_its_tables_in_40_megabytes() -> None:
    configs = recipe.Book(Path("nowhere"), "full", recipe.CONFIGS).configs
    objects = load_objects("full")
    words = len(Captioner(list(objects)).vocabulary()) + 4

    def sizes(stage: str) -> dict[str, Any]:
        model = configs[stage]["model"]
        return {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}

    ordered = SpritesConfig(**sizes("tokenizer"))
    assert ordered.encoder_widths == SpritesConfig().encoder_widths  # those of the verifier's tower
    reader = AutoregressiveConfig(
        ordered.levels, ordered.num_tokens, words, 24, **sizes("autoregressive")
    )
    judge = configs["judge"]
    numbers = (len(objects) + 1, len(COLOURS) + 1, len(BACKGROUNDS))
    assert configs["clip"]["reads"]
    holds = Holds(ordered.slots, ordered.kinds, ordered.colours, ordered.grounds)
    packed = [
        SpritesModel(ordered),
        clip_model.create(words, configs["clip"]["width"], holds),
        GridModel(GridConfig(**sizes("grid"))),
        AutoregressiveModel(reader),
        AutoregressiveModel(reader),
    ]
    referee = JudgeModel(JudgeConfig(64, tuple(judge["widths"]), judge["neck"], *numbers))
    files = [list(pack(model.state_dict()).values()) for model in packed]
    files.append([t.half() for t in referee.state_dict().values()])
    megabytes = [sum(t.numel() * t.element_size() for t in tensors) / 1e6 for tensors in files]
    assert all(a < b for a, b in zip(megabytes, (14, 10, 7, 3, 3, 3), strict=True)), megabytes
    assert sum(megabytes) < 36.3
