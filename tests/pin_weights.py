"""What the packaged weights must give, and the script that pins it after new weights are landed.

python -m tests.pin_weights     # rewrites tests/data/pinned.json
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen.hub import WEIGHTS
from tfgen.judge import Judge
from tfgen.priors.autoregressive import FILE_NAME, AutoregressivePrior
from tfgen.tokenizers.grid import GridTokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.verifiers.clip import ClipVerifier

PINNED = Path(__file__).parent / "data" / "pinned.json"
PROMPTS = ["a red fox in snow", "two cats on grass", "a blue car in a city", "a rocket in space"]


def hashes() -> dict[str, str]:
    """SHA-256 of every packaged file, by its path in the weights folder (text aside)."""
    files = sorted(p for p in WEIGHTS.rglob("*") if p.suffix in (".safetensors", ".json"))
    names = (str(p.relative_to(WEIGHTS).as_posix()) for p in files)
    return {
        n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in zip(names, files, strict=True)
    }


def outputs() -> dict[str, Any]:
    """Fixed tokens decoded, rendered, scored, judged and encoded again."""
    tokenizer = SpritesTokenizer.load(WEIGHTS / "sprites")
    verifier = ClipVerifier.load(WEIGHTS / "sprites-clip")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.vocab_size, (4, tokenizer.num_tokens), generator=generator)
    pictures = tokenizer.decode(tokens[:, :8])
    means = torch.nn.functional.adaptive_avg_pool2d(pictures, 4)
    rendered = torch.nn.functional.adaptive_avg_pool2d(tokenizer.render(tokens[:1]), 4)
    return {
        "tokens": tokens.tolist(),
        "decoded": means.flatten().tolist(),
        "rendered": rendered.flatten().tolist(),
        "scores": [verifier.score(pictures, verifier.prepare(p)).tolist() for p in PROMPTS],
        **judged(pictures),
        "log_probs": likelihood("sprites", tokens) + likelihood("sprites-grid", tokens),
        **gridded(tokens, pictures),
        "encoded": tokenizer.encode(pictures).tolist(),
    }


def judged(pictures: Tensor) -> dict[str, Any]:
    """Where the judge sees objects, and its probabilities of backgrounds."""
    with torch.inference_mode():
        answers = Judge.load(WEIGHTS / "sprites-judge").model(pictures)
    centres, backgrounds = torch.sigmoid(answers.centre), answers.background.softmax(1)
    return {"centres": rounded(centres), "backgrounds": rounded(backgrounds)}


def gridded(tokens: Tensor, pictures: Tensor) -> dict[str, Any]:
    """The same tokens decoded, and pictures encoded, by the grid tokenizer."""
    grid = GridTokenizer.load(WEIGHTS / "sprites-grid")
    means = torch.nn.functional.adaptive_avg_pool2d(grid.decode(tokens[:, :8]), 4)
    return {"grid_decoded": rounded(means), "grid_encoded": grid.encode(pictures).tolist()}


def likelihood(model: str, tokens: Tensor) -> list[float]:
    """What a model's autoregressive prior says of each token, each row with a prompt."""
    prior = AutoregressivePrior.load(WEIGHTS / model / FILE_NAME)
    rows = zip(PROMPTS, tokens[:, None], strict=True)
    return rounded(torch.cat([prior.condition(p).sequence_log_prob(row) for p, row in rows]))


def rounded(values: Tensor) -> list[float]:
    return [round(v, 5) for v in values.flatten().tolist()]


if __name__ == "__main__":
    PINNED.write_text(json.dumps({"hashes": hashes(), **outputs()}) + "\n")
