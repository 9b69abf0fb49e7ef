"""What does each prefix of held-out scenes decode to: PSNR by length, and a picture?

    python benchmarks/prefixes.py --picture tfgen/weights/sprites/prefixes.png

Needs the sprites (python -m tfgen.training.sprites), since true scenes are rendered from them.
"""

from __future__ import annotations

import argparse
import json

import torch

from tfgen import hub
from tfgen.image_io import contact_sheet, save_sheet, to_image
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.tokenizer import HELD_OUT_SEED, psnr
from tfgen.training.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=hub.DEFAULT_MODEL, help="name or folder")
    parser.add_argument("--tier", default="small")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument(
        "--picture", help="where to write the picture of the first scenes' prefixes"
    )
    parser.add_argument("--columns", type=int, default=12, help="scenes in the picture")
    args = parser.parse_args()
    tokenizer = SpritesTokenizer.load(hub.locate(args.model))
    world = World(args.tier, (tokenizer.image_size,))
    scenes = world.sample(args.scenes, torch.Generator().manual_seed(HELD_OUT_SEED))
    images = world.render(scenes, tokenizer.image_size).images
    tokens = torch.cat([tokenizer.encode(part) for part in images.split(100)])
    lengths = [k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if k <= tokenizer.num_tokens]
    rows, table = [images[: args.columns]], {}
    for k in lengths:
        decoded = torch.cat([tokenizer.decode(part[:, :k]) for part in tokens.split(100)])
        table[k] = round(psnr(decoded, images).mean().item(), 2)
        rows.append(decoded[: args.columns])
    used = [len(column.unique()) for column in tokens.T]
    print(json.dumps({"scenes": args.scenes, "psnr": table, "codes_used": used}))
    if args.picture:
        tiles = [to_image(picture) for row in rows for picture in row]
        tiles = [tile.resize((96, 96)) for tile in tiles]
        names = ["true scene", *(f"k = {k}" for k in lengths)]
        labels = [name for name in names for _ in range(args.columns)]
        save_sheet(contact_sheet(tiles, labels, args.columns, gap=2, label_size=10), args.picture)


if __name__ == "__main__":
    main()
