"""How early do tokens say what is there: PSNR and the objects the judge names, by prefix length?

    python -m benchmarks.prefixes -o benchmarks/results --picture docs/prefixes.png
    python -m benchmarks.prefixes -o benchmarks/results --model sprites-grid

Writes DIR/prefixes-MODEL.json and .md. Needs the sprites (python -m tfgen.training.sprites), since
true scenes are rendered from them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen import hub
from tfgen.image_io import contact_sheet, save_sheet, to_image
from tfgen.judge import Judge
from tfgen.spriteeval.scoring import wilson
from tfgen.training.common import world_arguments
from tfgen.training.objects import PACKAGED_TIER
from tfgen.training.tokenizer import HELD_OUT_SEED, psnr
from tfgen.training.world import Scenes, World

from .harness import command, markdown, record, write_whole

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=hub.DEFAULT_MODEL, help="name or folder")
    parser.add_argument("--judge", type=Path, help="folder (default: the packaged judge)")
    world_arguments(parser, PACKAGED_TIER)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument(
        "--picture", help="where to write the picture of the first scenes' prefixes"
    )
    parser.add_argument("--columns", type=int, default=12, help="scenes in the picture")
    parser.set_defaults(jobs=1)
    args = parser.parse_args()
    tokenizer = hub.load_tokenizer(args.model, torch.device("cpu"))
    judge = Judge.load(args.judge)
    world = World(args.tier, (tokenizer.image_size,), free=args.free)
    scenes = world.sample(args.scenes, torch.Generator().manual_seed(HELD_OUT_SEED))
    images = world.render(scenes, tokenizer.image_size).images
    tokens = torch.cat([tokenizer.encode(part) for part in images.split(100)])
    lengths = [k for k in LENGTHS if k <= tokenizer.num_tokens]
    found: dict[str, dict[str, Any]] = {"true": named(judge, world, scenes, images)}
    rows = [images[: args.columns]]
    for k in lengths:
        decoded = torch.cat([tokenizer.decode(part[:, :k]) for part in tokens.split(100)])
        found[str(k)] = {"psnr": round(psnr(decoded, images).mean().item(), 2)}
        found[str(k)] |= named(judge, world, scenes, decoded)
        rows.append(decoded[: args.columns])
    result = {
        "model": args.model,
        "scenes": args.scenes,
        "prefixes": found,
        "codes_used": [len(column.unique()) for column in tokens.T],
        "run": record(args),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"prefixes-{Path(args.model).name}"
    write_whole(path.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
    write_whole(path.with_suffix(".md"), text(result).encode())
    print(json.dumps({k: v for k, v in result.items() if k != "run"}))
    if args.picture:
        tiles = [to_image(picture) for row in rows for picture in row]
        tiles = [tile.resize((96, 96)) for tile in tiles]
        names = ["true scene", *(f"k = {k}" for k in lengths)]
        labels = [name for name in names for _ in range(args.columns)]
        save_sheet(contact_sheet(tiles, labels, args.columns, gap=2, label_size=10), args.picture)


def named(judge: Judge, world: World, scenes: Scenes, images: Tensor) -> dict[str, Any]:
    """The share of pictures in which the judge names the scene's main object, the first in reading
    order, with Wilson's 95 % interval; and in which it names every kind that is there."""
    seen = [found for part in images.split(100) for found in judge.look(part)]
    main = whole = 0
    for objects, one in zip(scenes.objects.tolist(), seen, strict=True):
        there = {d.object for d in one.objects}
        kinds = [world.specs[m].name for m in objects if m >= 0]
        main += kinds[0] in there
        whole += set(kinds) <= there
    n = len(seen)
    low, high = wilson(main / n, n)
    shares = {"main": main / n, "low": low, "high": high, "all": whole / n}
    return {name: round(share, 4) for name, share in shares.items()}


def text(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    table = [
        [
            k,
            str(row.get("psnr", "")),
            f"{100 * row['main']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})",
            f"{100 * row['all']:.1f}",
        ]
        for k, row in result["prefixes"].items()
    ]
    columns = ["tokens", "PSNR, dB", "main object named, % (95 %)", "all kinds named, %"]
    run = result["run"]
    return (
        f"# What prefixes show: {result['model']}\n\n"
        f"{result['scenes']:,} held-out scenes, encoded and decoded from their first tokens, and "
        "what the judge names in them; *true* is the scene itself. The main object is the first in "
        f"reading order.\n\n`{run['command']}`\n\n{markdown(columns, table)}\n"
    )


if __name__ == "__main__":
    raise SystemExit(command(main))
