"""Build the bank of `sprites`: the retrieval prior's token sequences of training scenes.

    python -m tfgen.training.bank --tokenizer FOLDER --verifier FOLDER --scenes 50000

Writes bank.safetensors into the tokenizer's folder. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tfgen.errors import InputError
from tfgen.priors.bank import FILE_NAME, Bank
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.commands import command_line, parsed, shown_by, world_arguments
from tfgen.training.world import Scenes, World
from tfgen.training.writing import has_scribe, tokens_of
from tfgen.verifiers.clip import ClipVerifier

SEED = 8
BATCH = 100  # scenes of a part
PAIRS = 0.5
"""The share of coloured pairs, see World: without it, one scene in fourteen would be one."""


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--verifier", type=Path, required=True, help="folder of the verifier")
    world_arguments(parser, "small")
    parser.add_argument("--scenes", type=int, default=50_000, help=f"rounded up to {BATCH}s")
    parser.add_argument("--pairs", type=float, default=PAIRS, help="share of coloured pairs")
    parser.add_argument(
        "--output", type=Path, help=f"default: {FILE_NAME} in the tokenizer's folder"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parsed(parser)
    tokenizer = SpritesTokenizer.load(args.tokenizer, args.device)
    verifier = ClipVerifier.load(args.verifier, args.device)
    shares = {"free": args.free, "pairs": args.pairs}
    world = World(args.tier, (tokenizer.image_size,), device=args.device, **shares)

    path = args.output or args.tokenizer / FILE_NAME
    with tqdm(total=-(-args.scenes // BATCH), unit="part", desc="encoding") as bar:
        bank = build(
            world,
            tokenizer,
            verifier,
            args.scenes,
            path,
            args.tier,
            shown_by(bar),
        )
    print(f"{len(bank):,} scenes, {path.stat().st_size / 1e6:.2f} MB: {path}")


def build(
    world: World,
    tokenizer: Tokenizer,
    verifier: ClipVerifier,
    scenes: int,
    path: Path,
    tier: str,
    progress: Callable[[int, int], None],
) -> Bank:
    """The bank of so many scenes, rounded up to BATCHes, as the world draws them, written to
    `path`; one of these models and scenes that is there already stays. progress: called with the
    parts done and all parts, once a part is saved."""

    def pictures(part: int) -> Tensor:
        return world.render(scenes_of(world, part), tokenizer.image_size).images

    def tokens(part: int) -> Tensor:
        return tokens_of(tokenizer, world, scenes_of(world, part))

    parts = -(-scenes // BATCH)
    source = {"world": tier, "seed": SEED, "scenes": parts * BATCH, "pairs": world.pairs}
    if world.free:
        source["free"] = world.free
    models = {"tokenizer": tokenizer.fingerprint(), "verifier": verifier.fingerprint()}
    if is_there(path, models, source):
        return Bank.open(path)
    known = tokens if has_scribe(tokenizer, world) else None
    return Bank.build(
        pictures, parts, tokenizer, verifier, path, source=source, tokens=known, progress=progress
    )


def is_there(path: Path, models: dict[str, str], source: dict[str, Any]) -> bool:
    """Whether there is a sound bank of these models and scenes."""
    try:
        header = Bank.open(path).header
    except InputError:
        return False
    return header.get("models") == models and header.get("source") == source


def scenes_of(world: World, part: int, seed: int = SEED) -> Scenes:
    """The BATCH scenes of a part, from 0."""
    return world.sample(BATCH, torch.Generator().manual_seed(seed * 1_000_003 + part))


if __name__ == "__main__":
    main()
