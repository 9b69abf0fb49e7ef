"""Count the frequency prior of a tokenizer over encoded training scenes.

    python -m tfgen.training.prior --tokenizer FOLDER --scenes 200000

Writes prior.safetensors into the tokenizer's folder.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tfgen.hub import load_tokenizer
from tfgen.priors.frequency import FILE_NAME, FrequencyPrior
from tfgen.tokenizers.base import Tokenizer
from tfgen.training.world import World

SEED = 4


def encoded(world: World, tokenizer: Tokenizer, scenes: int, batch: int = 100) -> Iterator[Tensor]:
    """Tokens Int64[batch, T] of `scenes` random scenes, batch by batch."""
    for i in tqdm(range(-(-scenes // batch)), unit="batch", desc="encoding"):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + i)
        part = world.sample(min(batch, scenes - i * batch), generator)
        yield tokenizer.encode(world.render(part, tokenizer.image_size).images).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--tier", default="small")
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument("--min-count", type=int, default=2, help="drop rarer pairs of tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    tokenizer = load_tokenizer(str(args.tokenizer), torch.device(args.device))
    world = World(args.tier, (tokenizer.image_size,), device=args.device)
    prior = FrequencyPrior.fit(
        encoded(world, tokenizer, args.scenes),
        tokenizer.vocab_size,
        tokenizer.num_tokens,
        min_count=args.min_count,
    )
    metadata = {"scenes": str(args.scenes), "tier": args.tier, "tokenizer": tokenizer.fingerprint()}
    prior.save(args.tokenizer / FILE_NAME, metadata)
    bits = -float(prior.expected_mean[-1]) / math.log(2)
    print(f"{bits:.2f} bits a token on held-out scenes, of {math.log2(tokenizer.vocab_size):.2f}")


if __name__ == "__main__":
    main()
