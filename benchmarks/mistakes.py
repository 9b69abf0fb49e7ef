"""What is wrong in the pictures that alignment found wrong, and which right ones may be memory?

    python -m benchmarks.mistakes -o benchmarks/results       # of DIR/alignment.jsonl

Writes DIR/mistakes.md. Nothing is searched: the judge's reasons are in the rows. Whether the
retrieval prior's bank has a prompt's pair of coloured objects is known because the scenes it was
made of come from a seed. The autoregressive prior, which has no bank, is a control: if it does
worse on pairs that the bank lacks, they are harder.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tfgen import hub
from tfgen.errors import InputError
from tfgen.priors.bank import FILE_NAME, Bank
from tfgen.training.bank import BATCH, scenes_of
from tfgen.training.colours import COLOURS
from tfgen.training.objects import load_objects
from tfgen.training.world import World

from .harness import Report, Results, Row, command, current, record, write_report
from .trials import accuracy, shown

QUESTION = __doc__.splitlines()[0]
TASK = "color_attr"  # GenEval's, of two objects of two colours
KINDS = {  # of mistakes, by the judge's reasons (tfgen.judge.verdict), the first that fits
    "missing": r"expected \d+ [a-z ]+, found \d+$",
    "too many": r"expected at most ",
    "elsewhere": r"expected .+, which it is not$",
    "background": r"expected background ",
    "in no one colour": r"expected .+, found .*\bmixed\b",
    "in another colour": r"expected .+, found ",
}
Pair = frozenset[tuple[str, str]]  # of (object, colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("results"), metavar="DIR",
        help="where alignment.jsonl is, and mistakes.md will be (default: results)",
    )  # fmt: skip
    parser.add_argument("--model", default=hub.DEFAULT_MODEL, help="whose bank: name or folder")
    parser.set_defaults(jobs=1)
    args = parser.parse_args()
    path = args.output / "alignment.jsonl"
    rows = judged(path)
    made = report(rows, coloured_pairs(hub.locate(args.model) / FILE_NAME))
    print(write_report(args.output / "mistakes", QUESTION, made, [record(args)]))


def judged(path: Path) -> list[Row]:
    """Raises InputError where there are none."""
    rows: list[Row] = []
    if path.is_file():
        with Results(path) as kept:
            rows = [row for row in kept.rows.values() if "correct" in row]
    if not rows:
        raise InputError(f"{str(path)!r} has no judged pictures: run tfgen bench alignment first.")
    return rows


def coloured_pairs(path: Path) -> set[Pair]:
    """The pairs of different objects in the bank's scenes, each in a colour that is not its own.

    Raises InputError where the bank was not made by tfgen.training.bank.
    """
    source = Bank.open(path).header["source"]
    if "world" not in source:
        raise InputError(f"{str(path)!r} is of other pictures than scenes of the sprite world.")
    specs = list(load_objects(source["world"]))
    world = World(  # it only draws: nothing is painted
        source["world"], sizes=(), sprites=torch.zeros(len(specs), 4, 1, 1), specs=specs,
        free=source.get("free", 0.0), pairs=source["pairs"],
    )  # fmt: skip
    pairs: set[Pair] = set()
    for part in range(source["scenes"] // BATCH):
        scenes = scenes_of(world, part, source["seed"])
        two = torch.stack([scenes.objects[:, :2], scenes.colours[:, :2]], 2)  # [BATCH, 2, 2]
        for (one, colour), (other, its) in two.tolist():
            if one != other and min(one, other) >= 0 and min(colour, its) > 0:
                pairs.add(
                    frozenset(
                        {(specs[one].name, COLOURS[colour]), (specs[other].name, COLOURS[its])}
                    )
                )
    return pairs


def asked_pair(metadata: Mapping[str, Any]) -> Pair:
    """What a prompt of the task asks for."""
    return frozenset((entry["class"], entry["color"]) for entry in metadata["include"])


def kind_of(reason: str) -> str:
    """Which of KINDS a judge's reason tells. Raises ValueError for none of them."""
    for kind, pattern in KINDS.items():
        if re.match(pattern, reason):
            return kind
    raise ValueError(f"not a judge's reason: {reason!r}")


def report(rows: Sequence[Row], banked: set[Pair]) -> Report:
    """A line for each configuration and split: mistakes by kind, and coloured pairs by whether the
    bank has them."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in current(rows, lambda row: (row["split"], row["method"])):
        groups.setdefault((row["split"], row["method"]), []).append(row)
    table = []
    for (split, method), group in sorted(groups.items()):
        wrong = Counter(kind_of(row["reason"]) for row in group if not row["correct"])
        pairs = [row for row in group if row["tag"] == TASK]
        has, lacks = (
            told([row for row in pairs if (asked_pair(row["metadata"]) in banked) is known])
            for known in (True, False)
        )
        counts = map(str, (len(group), wrong.total(), *(wrong[kind] for kind in KINDS)))
        scores = (
            f"{fmean(row['verifier_score'] for row in group if row['correct'] is right):.2f}"
            if 0 < wrong.total() < len(group)
            else ""
            for right in (True, False)
        )
        table.append([method, split, *counts, *scores, has, lacks])
    columns = ["configuration", "prompts", "pictures", "wrong", *KINDS]
    columns += ["score of the right", "of the wrong", "pairs in the bank", "other pairs"]
    notes = [
        "By the judge, its first objection to each picture. Missing: fewer objects that it can "
        "name than were asked for. Score: the verifier's, a mean.",
        f"Pairs: how many are right of the task {TASK}. The bank has a pair if one scene in it "
        "shows these two objects in these two colours; its scenes have "
        f"{len(banked):,} such pairs. Intervals: Wilson's, 95 %, a prompt's seeds counted as alike "
        "as they are.",
    ]
    return Report(columns, table, notes)


def told(rows: Sequence[Row]) -> str:
    """How many are right of how many, and the share with its interval."""
    if not rows:
        return ""
    return f"{sum(row['correct'] for row in rows)} of {len(rows)}: {shown(accuracy(rows))}"


if __name__ == "__main__":
    raise SystemExit(command(main))
