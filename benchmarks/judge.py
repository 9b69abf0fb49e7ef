"""How far can the judge be trusted: is it right on true scenes, and does it see through wrong ones?

    python -m benchmarks.judge --scenes 2400 -o benchmarks/results

On held-out scenes, rendered and as the packaged tokenizer decodes them: how often does the judge
find right what is there, and how often what is not (one word of the caption swapped)? And how often
does it give a name to what has none: sprites it has never seen, chimeras, blobs? Writes judge.json
and judge.md. Needs the sprites (python -m tfgen.training.sprites).
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen import hub
from tfgen.judge import MIXED, OTHER, Judge, Seen, verdict
from tfgen.judge_prompt import NAME
from tfgen.spriteeval.scoring import wilson
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.common import world_arguments
from tfgen.training.judge import VISIBLE
from tfgen.training.judge_scenes import MAX_PLACED, OTHERS, JudgeWorld, Placed
from tfgen.training.judge_scenes import MIXED as MIXED_CLASS
from tfgen.training.objects import PACKAGED_TIER
from tfgen.training.places import arrangement
from tfgen.training.tokenizer import HELD_OUT_SEED
from tfgen.training.world import LAYOUT_INDEX, LAYOUTS, Scenes, World

from .trials import folder_print

SEED = HELD_OUT_SEED + 3  # not the scenes of the training log, nor those of the thresholds
AIMS = {"object": 0.97, "colour": 0.95, "relation": 0.95, "count": 0.93}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ACROSS = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}


@dataclass(frozen=True)
class Case:
    """A claim about the picture of a scene: what it is of, which scene, GenEval's metadata."""

    measure: str
    row: int
    metadata: dict[str, Any]


def thing(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def exactly(name: str, count: int, **more: Any) -> dict[str, Any]:
    """Metadata that ask for this many and no more."""
    return {"include": [thing(name, count, **more)], "exclude": [thing(name, count + 1)]}


def cases(world: World, scenes: Scenes, rng: random.Random) -> tuple[list[Case], list[Case]]:
    """What is true of scenes, and the same with one word swapped.

    object: which class, where there is one object, and count: how many, where all are alike;
    colour: of objects that are alike in a given colour; relation: of two kinds that stand surely
    so; binding: of two kinds in two colours; background.
    """
    right: list[Case] = []
    wrong: list[Case] = []
    names = [spec.name for spec in world.specs]
    stand = arrangement(scenes.boxes, sure=True)  # the objects are in reading order
    for row in range(len(scenes)):
        kinds = [m for m in scenes.objects[row].tolist() if m >= 0]
        tints = scenes.colours[row].tolist()[: len(kinds)]
        first = names[kinds[0]]
        another = rng.choice([n for m, n in enumerate(names) if m not in kinds])

        def claim(measure: str, true: dict, false: dict, row: int = row) -> None:
            right.append(Case(measure, row, true))
            wrong.append(Case(measure, row, false))

        if len(kinds) == 1:
            claim("object", exactly(first, 1), exactly(another, 1))
        if len(set(kinds)) == 1:
            n = len(kinds)
            other = rng.choice([k for k in (1, 2, 3, 4) if k != n])
            claim("count", exactly(first, n), exactly(first, other))
            if len(set(tints)) == 1 and tints[0]:
                colour = COLOURS[tints[0]]
                swapped = rng.choice([c for c in COLOURS[1:] if c != colour])
                include = {"include": [thing(first, n, color=colour)]}
                claim("colour", include, {"include": [thing(first, n, color=swapped)]})
        if len(kinds) == 2 and kinds[0] != kinds[1]:
            second = names[kinds[1]]
            if stand.first_left[row] or stand.first_above[row]:
                relation = "left of" if stand.first_left[row] else "above"
                a, b = first, second
                if rng.random() < 0.5:
                    a, b, relation = b, a, OPPOSITE[relation]
                swapped = (OPPOSITE if rng.random() < 0.5 else ACROSS)[relation]
                claim(
                    "relation",
                    {"include": [thing(b), thing(a, position=[relation, 0])]},
                    {"include": [thing(b), thing(a, position=[swapped, 0])]},
                )
            if 0 not in tints and tints[0] != tints[1]:
                c, d = (COLOURS[t] for t in tints)
                claim(
                    "binding",
                    {"include": [thing(first, color=c), thing(second, color=d)]},
                    {"include": [thing(first, color=d), thing(second, color=c)]},
                )
        place = BACKGROUNDS[scenes.background[row]].name
        elsewhere = rng.choice([b.name for b in BACKGROUNDS if b.name != place])
        claim("background", {"background": place}, {"background": elsewhere})
    return right, wrong


def share(outcomes: Sequence[bool]) -> dict[str, float]:
    """The share of what is true, with Wilson's 95 % interval."""
    value = sum(outcomes) / len(outcomes)
    low, high = wilson(value, len(outcomes))
    return {"share": round(value, 4), "low": round(low, 4), "high": round(high, 4),
            "of": len(outcomes)}  # fmt: skip


def found_right(seen: Sequence[Seen], claims: Sequence[Case]) -> dict[str, dict[str, float]]:
    """By measure, the share of claims that the judge finds right."""
    outcomes: dict[str, list[bool]] = {}
    for case in claims:
        right = verdict(seen[case.row], case.metadata).correct
        outcomes.setdefault(case.measure, []).append(right)
    return {measure: share(outcomes[measure]) for measure in sorted(outcomes)}


def misses(seen: Sequence[Seen], claims: Sequence[Case]) -> dict[str, int]:
    """The commonest reasons why true claims of one object are found wrong."""
    reasons: Counter[str] = Counter()
    for case in claims:
        if case.measure == "object" and not verdict(seen[case.row], case.metadata).correct:
            named = " and ".join(d.object for d in seen[case.row].objects) or "nothing"
            reasons[f"{case.metadata['include'][0]['class']}: {named}"] += 1
    return dict(reasons.most_common(12))


def intruders(world: JudgeWorld, n: int, generator: torch.Generator) -> tuple[Placed, list[dict]]:
    """Four of a kind of which one is of another kind, or in another colour, and the metadata that
    ask for four alike."""
    known = world.world.num_objects
    boxes = torch.zeros(n, MAX_PLACED, 3)
    boxes[:, :4] = torch.tensor(LAYOUTS[LAYOUT_INDEX["two by two"]].slots)
    objects = torch.full((n, MAX_PLACED), -1)
    objects[:, :4] = torch.randint(known, (n, 1), generator=generator)
    colours = torch.randint(1, len(COLOURS), (n, 1), generator=generator).repeat(1, MAX_PLACED)
    asked = [
        exactly(world.world.specs[m].name, 4, color=COLOURS[c])
        for m, c in zip(objects[:, 0].tolist(), colours[:, 0].tolist(), strict=True)
    ]
    rows, slots = torch.arange(n), torch.randint(4, (n,), generator=generator)
    step = torch.randint(1, known, (n,), generator=generator)
    tint = torch.randint(1, len(COLOURS) - 1, (n,), generator=generator)
    kind = torch.rand(n, generator=generator) < 0.5
    objects[rows, slots] = torch.where(kind, (objects[:, 0] + step) % known, objects[:, 0])
    other = 1 + (colours[:, 0] - 1 + tint) % (len(COLOURS) - 1)
    colours[rows, slots] = torch.where(kind, colours[:, 0], other)
    background = torch.randint(len(BACKGROUNDS), (n,), generator=generator)
    variant = torch.randint(world.world.variants, (n,), generator=generator)
    return Placed(background, variant, objects, colours, boxes), asked


def strange(world: JudgeWorld, judge: Judge, n: int, generator: torch.Generator) -> dict[str, Any]:
    """Scenes with one object that is *other*: how often the judge gives it a name, by sort; how
    often it takes a *mixed* object for one of plain colour; how often four pass of which one is an
    intruder."""

    def alone(placed: Placed) -> Placed:
        placed.objects[:, 1:] = -1
        return placed

    out: dict[str, Any] = {}
    for kind in world.sorts:
        placed = alone(world.sample(n, generator))
        placed.objects[:, 0] = world.other
        only = torch.tensor([float(kind == other) for other in OTHERS])
        seen = look(judge, world.paint(placed, generator, others=only).images)
        out[kind] = share([any(d.object != OTHER for d in s.objects) for s in seen])
    placed = alone(world.sample(n, generator, other=0.0, mixed=1.0))
    placed.objects[:, 0] = placed.objects[:, 0].clamp(min=0)
    pictures = world.paint(placed, generator)
    seen = look(judge, pictures.images)
    mixed = (pictures.colours == MIXED_CLASS).tolist()
    plain = [any(d.colour not in ("", MIXED) for d in s.objects) for s in seen]
    out["mixed colours"] = share([p for p, two in zip(plain, mixed, strict=True) if two])
    placed, asked = intruders(world, n, generator)
    seen = look(judge, world.paint(placed, generator).images)
    passed = [verdict(s, m).correct for s, m in zip(seen, asked, strict=True)]
    out["one of four differs"] = share(passed)
    return out


def scattered(world: JudgeWorld, judge: Judge, n: int, generator: torch.Generator) -> list[bool]:
    """Up to five objects of any kind anywhere: whether all are named, each as often as it is there,
    and nothing else. Scenes where one is mostly hidden are left out."""
    pictures = world.paint(world.sample(n, generator, other=0.0, mixed=0.0), generator)
    true: list[Counter[str]] = [Counter() for _ in range(n)]
    for row, m in zip(pictures.rows.tolist(), pictures.objects.tolist(), strict=True):
        true[row][judge.objects[m]] += 1
    hidden = set(pictures.rows[pictures.visible < VISIBLE].tolist())
    seen = look(judge, pictures.images)
    return [
        Counter(d.object for d in seen[row].objects) == true[row]
        for row in range(n)
        if row not in hidden
    ]


def look(judge: Judge, images: Tensor) -> list[Seen]:
    return [seen for part in images.split(100) for seen in judge.look(part)]


def decoded(tokenizer: SpritesTokenizer, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The pictures themselves, and as they are decoded from all tokens, and from eight."""
    yield "rendered", images
    tokens = torch.cat([tokenizer.encode(part) for part in images.split(100)])
    for k in sorted({tokenizer.num_tokens, min(8, tokenizer.num_tokens)}, reverse=True):
        parts = [tokenizer.decode(part[:, :k]) for part in tokens.split(100)]
        yield f"k = {k}", torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--judge", type=Path, help="folder (default: the packaged judge)")
    parser.add_argument("--model", default=hub.DEFAULT_MODEL, help="tokenizer: name or folder")
    world_arguments(parser, PACKAGED_TIER)
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--strangers", type=int, default=400, help="scenes of each sort")
    parser.add_argument("-o", "--output", type=Path, default=Path("results"), metavar="DIR")
    args = parser.parse_args()
    judge = Judge.load(args.judge)
    tokenizer = SpritesTokenizer.load(hub.locate(args.model))
    world = JudgeWorld.load(args.tier, held_out=True, free=args.free)
    scenes = world.world.sample(args.scenes, torch.Generator().manual_seed(SEED))
    right, wrong = cases(world.world, scenes, random.Random(SEED))
    images = world.world.render(scenes, world.image_size).images
    generator = torch.Generator().manual_seed(SEED + 1)
    folder = args.judge or hub.WEIGHTS / NAME
    result: dict[str, Any] = {"judge": folder_print(folder), "scenes": args.scenes}
    result |= {"right": {}, "wrong": {}, "misses": {}}
    for name, pictures in decoded(tokenizer, images):
        seen = look(judge, pictures)
        result["right"][name] = found_right(seen, right)
        result["wrong"][name] = found_right(seen, wrong)
        result["misses"][name] = misses(seen, right)
    result["all objects, anywhere"] = share(scattered(world, judge, args.scenes, generator))
    result["strange"] = strange(world, judge, args.strangers, generator)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "judge.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.output / "judge.md").write_text(text(result), encoding="utf-8")
    print(json.dumps(result))


def text(result: dict[str, Any]) -> str:
    """The tables as Markdown."""

    def percent(s: dict[str, float]) -> str:
        return f"{100 * s['share']:.1f} ({100 * s['low']:.1f}-{100 * s['high']:.1f})"

    measures = list(next(iter(result["right"].values())))
    lines = [
        "# The judge's own accuracy",
        "",
        f"`python -m benchmarks.judge --scenes {result['scenes']}`: held-out scenes of the sprite "
        "world, in percent with Wilson's 95 % intervals. Decoded pictures (k tokens) are measured "
        "against the scene that was encoded, so that what the tokenizer gets wrong counts too.",
        "",
        "| true claims found right | aim | " + " | ".join(result["right"]) + " | scenes |",
        "|---|---|" + "---|" * (len(result["right"]) + 1),
    ]
    for m in measures:
        aim = f"{100 * AIMS[m]:.0f}" if m in AIMS else ""
        cells = [percent(row[m]) for row in result["right"].values()]
        of = next(iter(result["right"].values()))[m]["of"]
        lines.append(f"| {m} | {aim} | " + " | ".join(cells) + f" | {of} |")
    lines += [
        "",
        "| false claims found right (one word swapped) | " + " | ".join(result["wrong"]) + " |",
        "|---|" + "---|" * len(result["wrong"]),
        *(
            f"| {m} | " + " | ".join(percent(row[m]) for row in result["wrong"].values()) + " |"
            for m in measures
        ),
        "",
        "| what has no name, or no one colour | taken for one that has |",
        "|---|---|",
        *(f"| {kind} | {percent(s)} |" for kind, s in result["strange"].items()),
        "",
        "Foreign sprites are of kinds that training never showed. Up to five objects of any kind "
        "and colour anywhere in the picture are all named, and nothing else, in "
        f"{percent(result['all objects, anywhere'])} of scenes.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
