"""A judge of the toy world: small enough to train for a few steps in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.toy_world import SPECS, make_world, shapes
from tfgen.judge_model import JudgeConfig, JudgeModel
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.judge import export
from tfgen.training.judge_scenes import JudgeWorld

SIZE = 32
OTHER_CLASS = len(SPECS)
CONFIG: dict[str, Any] = {
    "seed": 3,
    "steps": 40,
    "batch": 8,
    "peak_lr": 0.03,
    "flat": 0.5,
    "ema": 0.9,
    "decoded_share": 0.25,
    "other": 0.15,
    "mixed": 0.06,
    "widths": [8, 8, 16, 16],
    "neck": 16,
    "log_every": 1,
    "save_every": 1000,
}


def make_judge_world() -> JudgeWorld:
    """The toy world, to which two of its shapes are foreign when they lie on their side."""
    return JudgeWorld(make_world(SIZE), shapes()[2:4].transpose(2, 3).flip(3), SIZE)


def judge_model() -> JudgeModel:
    """A random network of CONFIG's sizes."""
    torch.manual_seed(0)
    return JudgeModel(
        JudgeConfig(SIZE, (8, 8, 16, 16), 16, len(SPECS) + 1, len(COLOURS) + 1, len(BACKGROUNDS))
    )


def write_judge(folder: Path) -> Path:
    """`judge_model` as a folder that Judge.load reads."""
    export(judge_model(), make_judge_world(), None, folder, scenes=2)
    return folder
