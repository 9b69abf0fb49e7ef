"""What do the standard prompts look like, uncurated, by search and by the baselines?

    python benchmarks/gallery.py -o docs/gallery.png                       # the defaults
    python benchmarks/gallery.py -o random.png --method random             # random tokens
    python benchmarks/gallery.py -o best.png --method best-of-n            # as many decodes

Random tokens are uniform. Best-of-N draws whole sequences of them and keeps the one the verifier
likes best; N is what the default search costs if no candidate comes up twice, so no less than what
it spends. Scores and decodes go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from tfgen.atlas import Atlas
from tfgen.errors import InputError
from tfgen.image_io import contact_sheet, save_sheet
from tfgen.pipeline import Pipeline
from tfgen.priors.uniform import UniformPrior
from tfgen.search.plan import Plan, start_prefixes, step_lengths, usable_neighbours

PROMPTS = Path(__file__).parent.parent / "tests" / "data" / "prompts.txt"
METHODS = ("default", "best-of-n", "random")


def method_settings(pipeline: Pipeline, method: str) -> dict[str, Any]:
    """Search settings of a method; best-of-N gets no fewer decodes than the default search, which
    is that of the pipeline."""
    if method == "default":
        return {}
    samples = most_decodes(pipeline) if method == "best-of-n" else 1
    return {"search": "best-of-n", "samples": samples, "prior_strength": 1.0, "prior_weight": 0.0}


def most_decodes(pipeline: Pipeline) -> int:
    """What the pipeline's usual search costs if no candidate comes up twice: its steps, neighbours,
    rounds of crossover and re-encoding."""
    settings, tokenizer, prior = pipeline.settings(), pipeline.tokenizer, pipeline.prior
    settings = replace(settings, neighbours=usable_neighbours(settings, prior))
    start = start_prefixes(settings, tokenizer)
    lengths = step_lengths(settings, tokenizer, prior, start.shape[1])
    plan = Plan(settings, start, lengths, tokenizer.vocab_size, tokenizer.num_tokens)
    models = pipeline.fingerprints | {"seed": None}
    atlas = settings.atlas and Atlas.find(pipeline.folder, models, tokenizer.vocab_size)
    free = plan.wants[0] if atlas and lengths[0] == 1 else 0  # an atlas knows that step's pictures
    return plan.total - free


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
    pipeline = Pipeline.load(device=args.device)
    settings = method_settings(pipeline, args.method)
    if args.method != "default":
        pipeline = replace(pipeline, prior=UniformPrior.for_tokenizer(pipeline.tokenizer))
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
