"""Build the bank of `sprites`: the retrieval prior's token sequences of training scenes.

    python -m tfgen.training.bank --tokenizer FOLDER --verifier FOLDER --scenes 50000

Writes bank.safetensors into the tokenizer's folder. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tfgen.priors.bank import FILE_NAME, Bank
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.world import World
from tfgen.verifiers.clip import ClipVerifier

SEED = 8
BATCH = 100  # scenes of a part
PAIRS = 0.5
"""The share of coloured pairs, see World: without it, one scene in twelve would be one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--verifier", type=Path, required=True, help="folder of the verifier")
    parser.add_argument("--tier", default="small")
    parser.add_argument("--scenes", type=int, default=50_000, help=f"rounded up to {BATCH}s")
    parser.add_argument("--pairs", type=float, default=PAIRS, help="share of coloured pairs")
    parser.add_argument(
        "--output", type=Path, help=f"default: {FILE_NAME} in the tokenizer's folder"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    tokenizer = SpritesTokenizer.load(args.tokenizer, args.device)
    verifier = ClipVerifier.load(args.verifier, args.device)
    world = World(args.tier, (tokenizer.image_size,), device=args.device, pairs=args.pairs)

    def pictures(part: int) -> Tensor:
        scenes = world.sample(BATCH, torch.Generator().manual_seed(SEED * 1_000_003 + part))
        return world.render(scenes, tokenizer.image_size).images

    parts = -(-args.scenes // BATCH)
    path = args.output or args.tokenizer / FILE_NAME
    source = {"world": args.tier, "seed": SEED, "scenes": parts * BATCH, "pairs": args.pairs}
    with tqdm(total=parts, unit="part", desc="encoding") as bar:
        bank = Bank.build(
            pictures,
            parts,
            tokenizer,
            verifier,
            path,
            source=source,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    print(f"{len(bank):,} scenes, {path.stat().st_size / 1e6:.2f} MB: {path}")


if __name__ == "__main__":
    main()
