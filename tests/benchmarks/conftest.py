"""A world of toys in folders, as options of a benchmark, and prompts in its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy_judge import write_judge
from tests.toy_world import make_world, write_tokenizer, write_verifier
from tfgen.priors.frequency import FrequencyPrior

PROMPTS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "fox", "count": 1}], "prompt": "a fox"},
    {"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "a car"},
    {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "blue"}],
        "prompt": "a blue cat",
    },
    {
        "tag": "counting",
        "include": [{"class": "elephant", "count": 2}],
        "exclude": [{"class": "elephant", "count": 3}],
        "prompt": "two elephants",
    },
]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a frequency prior, a verifier, a judge, and a file of prompts."""
    folder = tmp_path_factory.mktemp("toys")
    model = write_tokenizer(folder / "model", image_size=64)
    drawn = torch.randint(12, (200, 8), generator=torch.Generator().manual_seed(0))
    FrequencyPrior.fit([drawn], 12, 8).save(model / "prior.safetensors")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(entry) + "\n" for entry in PROMPTS))
    return {
        "model": model,
        "verifier": write_verifier(folder / "verifier", make_world(64)),
        "judge": write_judge(folder / "judge"),
        "prompts": prompts,
    }


@pytest.fixture
def options(toys: dict[str, Path]) -> list[str]:
    """Of a benchmark that is to use the toys, in this process."""
    named = ("model", "verifier", "judge")
    given = [word for name in named for word in (f"--{name}", str(toys[name]))]
    return [*given, "--device", "cpu", "--jobs", "1", "--quiet"]
