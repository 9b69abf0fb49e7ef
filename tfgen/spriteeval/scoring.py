"""From pictures to a table: a judge's verdicts, accuracy by task, and how sure it is.

Accuracy is GenEval's (arXiv 2310.11513): by task the share of right pictures, overall the mean of
the six tasks. Intervals are ours; GenEval reports none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from tfgen.spriteeval.files import SIX_TASKS, Metadata

if TYPE_CHECKING:
    from tfgen.judge import Judge, Verdict

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Outcome:
    """What the judge said of one picture."""

    tag: str
    prompt: str
    seed: int
    correct: bool
    reason: str = ""


@dataclass(frozen=True)
class Share:
    """A share of right pictures, with its 95 % interval; `count` is the number of pictures."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Summary:
    """Accuracy by task, in the order of the prompts, and overall: the mean of GenEval's six tasks,
    None where one of them is missing."""

    tasks: dict[str, Share]
    overall: Share | None


def judge_picture(judge: Judge, image: Image.Image, metadata: Metadata) -> Verdict:
    """Whether an RGB picture shows what its prompt asks for, and if not, why."""
    from tfgen.judge import verdict

    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())  # uint8 [H, W, 3]
    images = pixels.permute(2, 0, 1)[None].float() / 255  # [1, 3, H, W]
    return verdict(judge.look(images)[0], metadata)


def run(
    prompts: Iterable[Metadata],
    picture: Callable[[Metadata, int], Image.Image],
    judge: Judge,
    seeds: Sequence[int] = (0,),
) -> Iterator[Outcome]:
    """Make and judge a picture for each prompt and seed; `picture(metadata, seed)` makes one."""
    for metadata in prompts:
        for seed in seeds:
            said = judge_picture(judge, picture(metadata, seed), metadata)
            yield Outcome(metadata["tag"], metadata["prompt"], seed, said.correct, said.reason)


def summarise(outcomes: Iterable[Outcome]) -> Summary:
    """The table of a run. The order of the outcomes makes no difference but to that of tasks."""
    by_task: dict[str, dict[str, list[bool]]] = {}
    for outcome in outcomes:
        prompts = by_task.setdefault(outcome.tag, {})
        prompts.setdefault(outcome.prompt, []).append(outcome.correct)
    tasks = {tag: share(list(prompts.values())) for tag, prompts in by_task.items()}
    six = [tasks[tag] for tag in SIX_TASKS if tag in tasks]
    return Summary(tasks, mean(six) if len(six) == len(SIX_TASKS) else None)


def share(groups: Sequence[Sequence[bool]]) -> Share:
    """The share of right pictures, each group one prompt's pictures, with Wilson's interval.

    Pictures of one prompt resemble each other: a prompt that fails with one seed tends to fail with
    the next. So the interval is that of fewer pictures: their number is divided by the design
    effect 1 + (m - 1) ρ (Kish 1965), where ρ is the intraclass correlation of m pictures a prompt,
    estimated from them. Where all are right, or all wrong, nothing is known of ρ, and it counts as
    1: the interval is that of as many pictures as there are prompts.
    """
    right, count = sum(map(sum, groups)), sum(map(len, groups))
    if count == 0:
        raise ValueError("a share needs at least one picture")
    size = count / len(groups)
    effective = count / (1 + (size - 1) * _correlation(groups, right, count))
    low, high = wilson(right / count, effective)
    return Share(right / count, low, high, count)


def _correlation(groups: Sequence[Sequence[bool]], right: int, count: int) -> float:
    """The intraclass correlation of right and wrong, by analysis of variance, within 0 and 1."""
    if right in (0, count):
        return 1.0
    if count == len(groups) or len(groups) == 1:
        return 1.0 if len(groups) == 1 else 0.0
    p = right / count
    between = sum(len(g) * (sum(g) / len(g) - p) ** 2 for g in groups) / (len(groups) - 1)
    within = sum(sum(g) * (1 - sum(g) / len(g)) for g in groups) / (count - len(groups))
    squares = sum(len(g) ** 2 for g in groups)
    size = (count - squares / count) / (len(groups) - 1)
    return min(max((between - within) / (between + (size - 1) * within), 0.0), 1.0)


def wilson(value: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share seen in `count` independent trials (JASA 1927)."""
    z2 = Z95**2
    centre = (value + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * math.sqrt(value * (1 - value) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    low = 0.0 if value == 0 else max(centre - half, 0.0)
    return low, 1.0 if value == 1 else min(centre + half, 1.0)


def mean(shares: Sequence[Share]) -> Share:
    """The mean of independent shares, each counting alike.

    Its interval squares and adds the distances of the shares to their limits (Newcombe 1998).
    """
    n = len(shares)
    value = sum(s.value for s in shares) / n
    low = value - math.sqrt(sum((s.value - s.low) ** 2 for s in shares)) / n
    high = value + math.sqrt(sum((s.high - s.value) ** 2 for s in shares)) / n
    return Share(value, max(low, 0.0), min(high, 1.0), sum(s.count for s in shares))
