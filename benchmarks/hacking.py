"""Where reward hacking shows: a verifier's score that goes on rising without the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tfgen.spriteeval.scoring import Share

from .harness import Row
from .search_cost import common
from .trials import average

UNJUDGED = "Not all pictures were judged, so nothing is said of hacking."

Groups = dict[str, dict[int, list[Row]]]
"""Rows by the verifier that was searched with, and by budget."""


class Step(NamedTuple):
    """From one budget of a verifier to its next: what its score and right pictures gain, paired by
    prompt and seed; perfect: all were right, before and after, so that the judge cannot follow."""

    method: str
    before: int
    after: int
    score: Share
    right: Share
    perfect: bool

    @property
    def hacked(self) -> bool:
        return self.score.low > 0 and round(self.right.value, 9) <= 0 and not self.perfect


def steps(groups: Groups) -> list[Step]:
    """All pairs of neighbouring budgets with two prompts or more in common."""
    found = []
    for method, budgets in groups.items():
        for before, after in zip(budgets, list(budgets)[1:], strict=False):
            old, new = common(budgets[before], budgets[after])
            if len({row["prompt"] for row in old}) < 2:  # there is no interval
                continue
            gains = [change(old, new, name) for name in ("verifier_score", "correct")]
            perfect = all(row["correct"] for row in [*old, *new])
            found.append(Step(method, before, after, *gains, perfect))
    return found


def change(old: Sequence[Row], new: Sequence[Row], name: str) -> Share:
    """The mean gain in a value on the same prompts and seeds, with Student's interval."""
    was = {(row["prompt"], row["seed"]): float(row[name]) for row in old}
    gains = [row | {"gain": float(row[name]) - was[row["prompt"], row["seed"]]} for row in new]
    return average(gains, "gain")


def hacking(groups: Groups) -> list[str]:
    """Where it shows: paragraphs."""
    found = steps(groups)
    if not found:
        return [
            "Nothing can be said of hacking: no verifier has two budgets with two prompts or more "
            "in common."
        ]
    shows = [step for step in found if step.hacked]
    head = (
        "Hacking shows where, from one budget to the next, the verifier's own score rises beyond "
        "the 95 % interval of its change, and the judge's rate does not go up, or falls (changes "
        "are on the same prompts and seeds; where all pictures are right already, the judge cannot "
        f"follow). That is so in {len(shows)} of {len(found)} steps"
    )
    if not shows:
        return [f"{head}."]
    lines = [
        f"- {step.method}, {step.before:,} to {step.after:,} decodes: score "
        f"{signed(step.score, 3)}, right {signed(step.right, 2)}"
        for step in shows
    ]
    tail = (
        "Where the interval of the change in right pictures reaches above 0, more prompts may "
        "still show that the judge follows."
    )
    return [f"{head}:", "\n".join(lines), tail]


def signed(value: Share, places: int) -> str:
    """A change with its interval."""
    return f"{value.value:+.{places}f} [{value.low:+.{places}f}, {value.high:+.{places}f}]"
