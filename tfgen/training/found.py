"""What searches find for captions: pictures to train the verifier against.

    python -m tfgen.training.found --tier medium --model FOLDER --verifier FOLDER --out FILE

A verifier that is searched with is looked at from its weakest side: of two thousand pictures the
search takes the one that the verifier likes best, right or not. So that it learns to tell, real
searches with the model's own prior are made for random captions, and what came out at several
lengths is kept, with the caption it was found for. (Whether it is right, `reading` says.) Resumes
where it was stopped.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tfgen.pipeline import Pipeline
from tfgen.tables import Parts, open_table, save_table
from tfgen.training.captions import Captioner, Emphasis, Mentions
from tfgen.training.commands import command_line, parsed, world_arguments
from tfgen.training.groups import base_scene
from tfgen.training.negatives import padded
from tfgen.training.reading import SHORTEST
from tfgen.training.stopping import Timer
from tfgen.training.world import Scenes, World

PAIRS = 0.7
"""Share of the captions that are of two different objects, where searches fail most."""
ASKED = Emphasis(background=0.3, colour=0.6, natural=0.1, relation=0.7)
"""People rarely say where."""
KEPT, KEPT_LAST = 2, 6
"""Pictures kept of a step, and of the last one."""
PART = 20
"""Captions searched for between two savings."""

FILE_KIND = "found pictures"


@dataclass(frozen=True)
class Found:
    """Pictures that searches found.

    tokens: Int64[N, T], of which row i's first lengths[i] count; asked: Int64[N], of each the
    caption that it was found for, a row of `captions` and of `mentions`.
    """

    tokens: Tensor
    lengths: Tensor
    asked: Tensor
    captions: list[str]
    mentions: Mentions

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def open(cls, path: Path) -> Found:
        """Raises InputError on a file that is missing, damaged or of another kind."""
        tensors, header = open_table(path, FILE_KIND)
        mentions = Mentions(**{f: tensors[f] for f in Mentions.__dataclass_fields__})
        pictures = (tensors[name].long() for name in ("tokens", "lengths", "asked"))
        return cls(*pictures, header["captions"], mentions)


def find(pipeline: Pipeline, caption: str, seed: int, budget: int) -> tuple[Tensor, Tensor]:
    """The best of several steps of a search for the caption: tokens Int64[n, T], lengths
    Int64[n]."""
    # What a caption mentions is known, so it must be searched for word by word.
    steps = replace(pipeline, verbatim=True).generate(caption, seed=seed, budget=budget).steps
    rows: dict[tuple[int, ...], None] = {}
    for step in steps:
        if step.length >= SHORTEST:
            kept = KEPT_LAST if step is steps[-1] else KEPT
            best = step.pool.tokens[step.pool.kept[:kept]]
            rows |= dict.fromkeys(map(tuple, best.tolist()))
    return padded([torch.tensor(row) for row in rows], pipeline.tokenizer.num_tokens)


def search_for(
    world: World,
    pipeline: Pipeline,
    count: int,
    budget: int,
    seed: int,
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Search for `count` random captions, with so many decodes each, and write the file. A run that
    was stopped goes on where it was. progress: called with the captions done and all of them, once
    some more are saved."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = Scenes.cat([base_scene(world, PAIRS, generator) for _ in range(count)])
    captions, mentions = Captioner(world.specs).write(scenes, rng, ASKED)
    source = {"models": pipeline.fingerprints, "seed": seed, "budget": budget, "count": count}
    saved = Parts(path, {"kind": FILE_KIND, **source})
    tables = []
    for part, start in enumerate(range(0, count, PART)):
        table = saved.load(part)
        if table is None:
            table = _part(pipeline, captions[start : start + PART], start, budget)
            saved.save(part, table)
        tables.append(table)
        progress(min(start + PART, count), count)
    tensors = {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
    stated = {f: getattr(mentions, f) for f in Mentions.__dataclass_fields__}
    save_table(path, tensors | stated, {"kind": FILE_KIND, "captions": captions, **source})
    saved.remove()
    return Found.open(path)


def _part(
    pipeline: Pipeline, captions: Sequence[str], start: int, budget: int
) -> dict[str, Tensor]:
    found = [find(pipeline, c, start + i, budget) for i, c in enumerate(captions)]
    asked = [torch.full((len(tokens),), start + i) for i, (tokens, _) in enumerate(found)]
    columns = (
        torch.cat([tokens for tokens, _ in found]),
        torch.cat([lengths for _, lengths in found]),
        torch.cat(asked),
    )
    return dict(zip(("tokens", "lengths", "asked"), (c.int() for c in columns), strict=True))


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    world_arguments(parser, "small")
    parser.add_argument("--model", required=True, help="a tokenizer and its prior")
    parser.add_argument("--verifier", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=500, help="decodes for a caption")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parsed(parser)
    pipeline = Pipeline.load(args.model, verifier=args.verifier, device=args.device)
    size = pipeline.tokenizer.image_size
    world = World(args.tier, (size,), device=args.device, free=args.free)
    asked = (args.captions, args.budget, args.seed, args.out)
    found = search_for(world, pipeline, *asked, progress=Timer(None))
    print(f"{len(found)} pictures found for {len(found.captions)} captions.")


if __name__ == "__main__":
    main()
