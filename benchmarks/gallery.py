"""What do the standard prompts look like, uncurated, by search and by the baselines?

    python benchmarks/gallery.py -o docs/gallery.png                       # the defaults
    python benchmarks/gallery.py -o random.png --method random             # random tokens
    python benchmarks/gallery.py -o best.png --method best-of-n            # as many decodes

Random tokens are uniform. Best-of-N draws whole sequences of them and keeps the one the verifier
likes best; N is no less than what the default search spends. Scores and decodes go to stdout as
JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tfgen.errors import InputError
from tfgen.image_io import contact_sheet, save_sheet
from tfgen.pipeline import Pipeline

PROMPTS = Path(__file__).parent.parent / "tests" / "data" / "prompts.txt"
METHODS = ("default", "best-of-n", "random")


def method_settings(pipeline: Pipeline, method: str) -> dict[str, Any]:
    """Search settings of a method; best-of-N gets no fewer decodes than the default search."""
    if method == "default":
        return {}
    usual = pipeline.settings()
    length = usual.tokens or pipeline.tokenizer.num_tokens
    samples = length * usual.beam * usual.candidates if method == "best-of-n" else 1
    return {"search": "best-of-n", "samples": samples, "prior_strength": 1.0, "prior_weight": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--method", choices=METHODS, default="default")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a prompt a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=160, help="pixels of each picture on the sheet")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="search settings")
    args = parser.parse_args()
    if not args.prompts.is_file():  # the standard prompts are in the checkout only
        raise InputError(f"There is no prompt file {str(args.prompts)!r}: give one to --prompts.")
    prior = None if args.method == "default" else "uniform"
    pipeline = Pipeline.load(prior=prior, device=args.device)
    settings = method_settings(pipeline, args.method)
    settings |= {key: json.loads(value) for key, _, value in (s.partition("=") for s in args.set)}
    prompts = [line.strip() for line in args.prompts.read_text().splitlines() if line.strip()]
    pictures, decodes, seconds = [], 0, 0.0
    for index, prompt in enumerate(prompts):
        # Random tokens do not depend on the prompt: one seed would give one picture throughout.
        seed = args.seed + (index if args.method == "random" else 0)
        result = pipeline.generate(prompt, seed=seed, **settings)
        pictures.append(result.image.resize((args.size, args.size), Image.Resampling.LANCZOS))
        decodes, seconds = decodes + result.decodes, seconds + result.seconds
        row = {"prompt": prompt, "score": round(result.score, 4), "decodes": result.decodes}
        print(json.dumps(row | {"seconds": round(result.seconds, 2)}), flush=True)
    save_sheet(contact_sheet(pictures, prompts, args.columns), args.output)
    rate = {"prompts": len(prompts), "decodes": decodes, "seconds": round(seconds, 1)}
    print(json.dumps(rate | {"decodes_per_second": round(decodes / seconds)}))


if __name__ == "__main__":
    main()
