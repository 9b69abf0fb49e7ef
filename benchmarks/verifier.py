"""How far can the verifier be trusted, factor by factor, and with true scenes against noise?

    python benchmarks/verifier.py --scenes 1000

For held-out scenes, clean and decoded from their first k tokens: how often does a picture fit its
own caption better than every caption with one thing said differently (all other words held right)?
And: for how many prompts does the reconstruction of the true scene outscore the best of 10,000
pictures of random tokens? Needs the sprites (python -m tfgen.training.sprites).
"""

from __future__ import annotations

import argparse
import json
import random

import torch

from tfgen import hub
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.captions import EVERYTHING, Captioner
from tfgen.training.clip import evaluate
from tfgen.training.common import world_arguments
from tfgen.training.objects import PACKAGED_TIER
from tfgen.training.tokenizer import HELD_OUT_SEED
from tfgen.training.world import World
from tfgen.verifiers.clip import ClipVerifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=hub.DEFAULT_MODEL, help="name or folder")
    parser.add_argument("--verifier", default=hub.DEFAULT_VERIFIER, help="name or folder")
    world_arguments(parser, PACKAGED_TIER)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=200, help="of the contest with noise")
    parser.add_argument("--noise", type=int, default=10_000, help="pictures of random tokens")
    args = parser.parse_args()
    tokenizer = SpritesTokenizer.load(hub.locate(args.model))
    verifier = ClipVerifier.load(hub.locate(args.verifier, "verifier"))
    world = World(args.tier, (tokenizer.image_size,), free=args.free)
    # Not the scenes that the training log is measured on.
    scenes = world.sample(args.scenes, torch.Generator().manual_seed(HELD_OUT_SEED + 2))
    captions, _ = Captioner(world.specs).write(scenes, random.Random(HELD_OUT_SEED + 2), EVERYTHING)
    clean = world.render(scenes, tokenizer.image_size).images
    tokens = torch.cat([tokenizer.encode(part) for part in clean.split(100)])

    def decoded(k: int) -> torch.Tensor:
        return torch.cat([tokenizer.decode(part[:, :k]) for part in tokens.split(100)])

    full = decoded(tokenizer.num_tokens)
    shown = {"clean": clean, "full": full, "k=8": decoded(8), "k=4": decoded(4)}
    told = evaluate(verifier.model, verifier.tokenize, verifier.words, scenes, captions, shown)
    for name, row in told.items():
        print(json.dumps({"pictures": name, "scenes": args.scenes, **row}), flush=True)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(
        tokenizer.vocab_size, (args.noise, tokenizer.num_tokens), generator=generator
    )
    noise = torch.cat([verifier.embed(tokenizer.decode(part)) for part in noise.split(100)])
    true = torch.cat([verifier.embed(part) for part in full[: args.prompts].split(100)])
    wins = 0
    for i, caption in enumerate(captions[: args.prompts]):
        target = verifier.prepare(caption)
        best = verifier.score_embeddings(noise, target).max()
        wins += bool(verifier.score_embeddings(true[i : i + 1], target)[0] > best)
    share = wins / args.prompts
    print(json.dumps({"true scene beats noise": share, "prompts": args.prompts, "of": args.noise}))


if __name__ == "__main__":
    main()
