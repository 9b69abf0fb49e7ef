"""How well does the forecaster rank candidates that nobody has decoded yet, and at what cost?

    python -m benchmarks.forecast -o benchmarks/results

Prefixes are mixtures of the bank's pictures, as in its training, of another seed. All are decoded
and foretold; for prompts of SpriteEval's dev split their scores are compared. Recall: of the best
16 by the verifier, the share that is among so many of the best by forecast.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tfgen.errors import InputError, whole_number
from tfgen.forecaster import Forecaster
from tfgen.pipeline import Pipeline
from tfgen.search.screening import rank_correlation
from tfgen.spriteeval import load
from tfgen.spriteeval.files import take
from tfgen.training.forecast import PART, draw, for_prefixes

from . import harness

QUESTION = __doc__.splitlines()[0]
SEED = 99  # not that of the training
BEST = 16
SHARES = (4, 16, 64)
LENGTHS = (2, 4, 8, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION, allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="sprites", help="a name or a folder")
    add("--prompts", type=int, default=40, metavar="N", help="of SpriteEval's dev split (40)")
    add("--parts", type=int, default=4, metavar="N", help=f"of {PART} prefixes, a length (4)")
    add("-o", "--output", type=Path, metavar="DIR", help="write forecast.json and .md there")
    args = parser.parse_args()
    whole_number("--prompts", args.prompts, 1)
    whole_number("--parts", args.parts, 1)
    pipeline = Pipeline.load(args.model)
    forecaster = Forecaster.find(pipeline.folder, pipeline.tokenizer, pipeline.verifier)
    if forecaster is None:
        raise InputError(f"The model {args.model} has no forecaster: name one that has.")
    prompts = [metadata["prompt"] for metadata in take(load("dev"), args.prompts)]
    rows = [measure(pipeline, forecaster, prompts, args.parts, length) for length in LENGTHS]
    text = report(rows, args)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        made = harness.record(argparse.Namespace(jobs=1))
        data = json.dumps({"made": made, "rows": rows}, indent=1)
        harness.write_whole(args.output / "forecast.json", data.encode() + b"\n")
        versions = (f"{name} {version}" for name, version in made["versions"].items() if version)
        page = f"# {QUESTION}\n\n{text}\n\nMade by `{made['command']}`, {made['date']}; "
        page += ", ".join(versions)
        harness.write_whole(args.output / "forecast.md", page.encode() + b"\n")


def measure(
    pipeline: Pipeline, forecaster: Forecaster, prompts: list[str], parts: int, length: int
) -> dict[str, float]:
    """Of prefixes of one length."""
    bank, verifier = pipeline.prior.bank, pipeline.verifier
    scenes = bank.tokens(torch.arange(len(bank)))
    generator = torch.Generator().manual_seed(SEED + length)
    tokens = torch.cat([draw(scenes, length, generator)[0] for _ in range(parts)])[:, :length]
    tokens = tokens.unique(dim=0)
    tokens = tokens[torch.randperm(len(tokens), generator=generator)]
    engine = for_prefixes(pipeline.engine(pipeline.tokenizer, verifier))
    decoding, seen = timed(lambda: engine.embed_prefixes(tokens))
    foretelling, foretold = timed(lambda: forecaster.embed(tokens))
    error = (foretold.cpu() - seen.cpu()).square().sum(dim=1).mean()
    found: dict[str, list[float]] = {"rank correlation": []}
    for prompt in prompts:
        target = verifier.prepare(prompt)
        true, told = (verifier.score_embeddings(x, target).float().cpu() for x in (seen, foretold))
        found["rank correlation"].append(rank_correlation(told, true) or 0.0)
        best, place = true.topk(BEST).indices, told.argsort(descending=True).argsort()
        for share in SHARES:
            recall = (place[best] < len(tokens) // share).float().mean()
            found.setdefault(f"recall of 1/{share}", []).append(float(recall))
    return {
        "tokens": length,
        "prefixes": len(tokens),
        "unexplained": float(error / seen.var(dim=0, correction=0).sum()),
        **{name: sum(values) / len(values) for name, values in found.items()},
        "decodes a forecast": foretelling / decoding,
    }


@torch.inference_mode()
def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def report(rows: list[dict[str, float]], args: argparse.Namespace) -> str:
    names = list(rows[0])
    table = harness.markdown(
        names,
        [
            [f"{row[n]:,}" if isinstance(row[n], int) else f"{row[n]:.3f}" for n in names]
            for row in rows
        ],
    )
    return (
        f"{args.prompts} prompts; scores without the prior's share. Unexplained: of the variance "
        "of the embeddings. Decodes a forecast: the time of one forecast by that of one decode "
        "and look of the verifier, on this machine, the forecast on one core, the decode on all."
        f"\n\n{table}"
    )


if __name__ == "__main__":
    main()
