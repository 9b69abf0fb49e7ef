"""Count the frequency prior of a tokenizer over encoded training scenes.

    python -m tfgen.training.prior --tokenizer FOLDER --scenes 200000

Writes prior.safetensors into the tokenizer's folder. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tfgen.hub import load_tokenizer
from tfgen.priors.frequency import FILE_NAME, FrequencyPrior
from tfgen.tables import Parts
from tfgen.tokenizers.base import Tokenizer
from tfgen.training.commands import command_line, parsed, shown_by, world_arguments
from tfgen.training.world import World
from tfgen.training.writing import tokens_of

SEED = 4
BATCH = 100  # scenes encoded at a time
PART = 50  # batches saved at a time


def count(
    world: World,
    tokenizer: Tokenizer,
    scenes: int,
    path: Path,
    tier: str,
    min_count: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> FrequencyPrior:
    """Count over so many random scenes of the world, and write the prior to `path`.

    min_count: rarer pairs of tokens are dropped; progress: called with the batches done and all
    batches. May be stopped at any moment and called again: it goes on after its last part.
    """
    batches = -(-scenes // BATCH)
    told = {"scenes": str(scenes), "tier": tier, "tokenizer": tokenizer.fingerprint()}
    parts = Parts(path, {"kind": "training scenes", "seed": SEED, "free": world.free, **told})
    encoded = []
    for index, start in enumerate(range(0, batches, PART)):
        stop = min(start + PART, batches)
        part = parts.load(index)
        if part is None:
            rows = [encode(world, tokenizer, scenes, i) for i in range(start, stop)]
            part = {"tokens": torch.cat(rows).to(torch.int32)}
            parts.save(index, part)
        encoded.append(part["tokens"].long())
        if progress:
            progress(stop, batches)
    prior = FrequencyPrior.fit(
        encoded, tokenizer.vocab_size, tokenizer.num_tokens, min_count=min_count
    )
    prior.save(path, told)
    parts.remove()
    return prior


def encode(world: World, tokenizer: Tokenizer, scenes: int, batch: int) -> Tensor:
    """Tokens Int64[<= BATCH, T], on the CPU, of a batch of the scenes."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + batch)
    part = world.sample(min(BATCH, scenes - batch * BATCH), generator)
    return tokens_of(tokenizer, world, part).cpu()


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    world_arguments(parser, "small")
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument("--min-count", type=int, default=2, help="drop rarer pairs of tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parsed(parser)
    tokenizer = load_tokenizer(str(args.tokenizer), torch.device(args.device))
    world = World(args.tier, (tokenizer.image_size,), device=args.device, free=args.free)
    with tqdm(total=-(-args.scenes // BATCH), unit="batch", desc="encoding") as bar:
        prior = count(
            world,
            tokenizer,
            args.scenes,
            args.tokenizer / FILE_NAME,
            args.tier,
            args.min_count,
            shown_by(bar),
        )
    bits = -float(prior.expected_mean[-1]) / math.log(2)
    print(f"{bits:.2f} bits a token on held-out scenes, of {math.log2(tokenizer.vocab_size):.2f}")


if __name__ == "__main__":
    main()
