"""Accuracy by task, overall, and intervals that can be checked by hand."""

from __future__ import annotations

import random

import pytest
from PIL import Image
from torch import Tensor

from tfgen.judge import Detection, Seen
from tfgen.spriteeval import SIX_TASKS, Metadata
from tfgen.spriteeval.scoring import Outcome, Share, mean, run, share, summarise, wilson


def outcomes(tag: str, right: int, wrong: int) -> list[Outcome]:
    return [Outcome(tag, f"{tag} {i}", 0, i < right) for i in range(right + wrong)]


def test_wilson_agrees_with_the_textbook() -> None:
    # Newcombe 1998, table I: the score method for 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1.0, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


class ColourJudge:
    """Sees a fox in a red picture, and nothing in any other."""

    def look(self, images: Tensor) -> list[Seen]:
        fox = Detection("fox", "red", (0.0, 0.0, 1.0, 1.0), 1.0)
        red = ((images[:, 0] == 1) & (images[:, 1:] == 0).all(dim=1)).all(dim=(1, 2))
        return [Seen([fox] if is_red else [], "snow", 1.0) for is_red in red.tolist()]


def test_a_run_makes_and_judges_a_picture_for_each_prompt_and_seed() -> None:
    prompts = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": f"a {name}"}
        for name in ("fox", "cat")
    ]
    asked = []

    def picture(metadata: Metadata, seed: int) -> Image.Image:
        asked.append((metadata["prompt"], seed))
        return Image.new("RGB", (6, 4), "red" if seed else "blue")

    found = list(run(prompts, picture, ColourJudge(), seeds=(0, 1)))
    assert asked == [("a fox", 0), ("a fox", 1), ("a cat", 0), ("a cat", 1)]
    assert [(o.prompt, o.seed) for o in found] == asked
    assert [o.correct for o in found] == [False, True, False, False]
    assert [o.reason for o in found if o.correct] == [""]
    assert "expected 1 cat, found 0" in found[-1].reason


def test_accuracy_is_by_task_and_overall_the_mean_of_genevals_six() -> None:
    rights = dict(zip(SIX_TASKS, (40, 30, 20, 10, 0, 5), strict=True))
    rows = [o for tag, right in rights.items() for o in outcomes(tag, right, 40 - right)]
    rows += outcomes("background", 0, 10)
    summary = summarise(rows)
    assert list(summary.tasks) == [*SIX_TASKS, "background"]
    assert summary.tasks["two_object"].value == 30 / 40
    assert summary.tasks["background"] == share([[False]] * 10)
    assert summary.overall is not None
    assert summary.overall.value == pytest.approx(sum(rights.values()) / 40 / 6)
    assert summary.overall.count == 240
    assert summary.overall.low < summary.overall.value < summary.overall.high


def test_tasks_count_alike_however_many_pictures_they_have() -> None:
    rows = [o for tag in SIX_TASKS[:5] for o in outcomes(tag, 1, 0)]
    rows += outcomes("color_attr", 0, 1000)
    overall = summarise(rows).overall
    assert overall is not None and overall.value == pytest.approx(5 / 6)


def test_without_one_of_the_six_tasks_there_is_no_overall() -> None:
    rows = [o for tag in SIX_TASKS[:5] for o in outcomes(tag, 1, 1)]
    assert summarise(rows).overall is None


def test_one_picture_a_prompt_is_wilson() -> None:
    one = share([[True]] * 30 + [[False]] * 10)
    assert (one.low, one.high) == wilson(0.75, 40)


def test_pictures_that_always_agree_count_as_one() -> None:
    """Three seeds with the same verdict tell no more of a prompt than one."""
    three = share([[True] * 3] * 30 + [[False] * 3] * 10)
    low, high = wilson(0.75, 40)
    assert (three.low, three.high) == (pytest.approx(low), pytest.approx(high))
    assert three.count == 120


def test_pictures_that_know_nothing_of_each_other_count_each() -> None:
    rng = random.Random(0)
    groups = [[rng.random() < 0.5 for _ in range(3)] for _ in range(400)]
    found = share(groups)
    low, high = wilson(found.value, 1200)
    assert found.high - found.low == pytest.approx(high - low, rel=0.05)


def test_all_right_is_no_surer_than_the_number_of_prompts() -> None:
    found = share([[True] * 3] * 40)
    assert (found.low, found.high) == wilson(1.0, 40)


def test_the_interval_covers_the_truth_in_95_of_100_runs() -> None:
    """Prompts that succeed with chance 0 to 1, three seeds each: truth one half."""
    rng = random.Random(1)
    covered = 0
    for _ in range(600):
        chances = [rng.random() for _ in range(40)]
        found = share([[rng.random() < chance for _ in range(3)] for chance in chances])
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_the_mean_of_one_share_is_itself_and_of_four_is_twice_as_sure() -> None:
    one = Share(0.5, 0.4, 0.6, 100)
    assert mean([one]) == one
    four = mean([one] * 4)
    assert (four.value, four.low, four.high, four.count) == (0.5, 0.45, 0.55, 400)


def test_no_pictures_have_no_share() -> None:
    with pytest.raises(ValueError, match="at least one"):
        share([])
