"""tfgen bench verifiers: each verifier searched with, all of them and the judge looking on."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import verifiers
from benchmarks.harness import Interrupted, Row
from benchmarks.verifiers import Spec, confidence, kinship, report, usual
from tests.benchmarks.conftest import PROMPTS
from tests.benchmarks.test_alignment import cells
from tfgen.errors import InputError
from tfgen.hub import load_tokenizer, load_verifier
from tfgen.judge import Detection, Seen
from tfgen.pipeline import Pipeline
from tfgen.verifiers.clip import WEIGHTS_FILE
from tfgen.verifiers.views import Views

CPU = torch.device("cpu")


@pytest.fixture
def clip(toys: dict[str, Path], tmp_path: Path) -> Path:
    """A verifier of the toys that a test may change."""
    return Path(shutil.copytree(toys["verifier"], tmp_path / "clip"))


@pytest.fixture
def run(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the benchmark on the toys' prompts; returns what it prints."""
    monkeypatch.setattr(verifiers, "load", lambda split: PROMPTS)
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))
    models = ("--model", toys["model"], "--judge", toys["judge"], "--device", "cpu")

    def run(*more: object, budgets: tuple[object, ...] = ("--budgets", 32)) -> str:
        words = [*models, "--jobs", 1, "--quiet", "-o", tmp_path / "out", *budgets, *more]
        monkeypatch.setattr(sys, "argv", ["verifiers.py", *map(str, words)])
        verifiers.main()
        return capsys.readouterr().out

    return run


def lines(tmp_path: Path) -> list[Row]:
    """The rows in the file, with those that later ones replace."""
    text = (tmp_path / "out" / "verifiers.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if "run" not in row]


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({k: v * 1.5 for k, v in tensors.items()}, folder / WEIGHTS_FILE)


# Running it


def test_each_verifier_is_searched_with_and_measured_by_the_others(
    run: Callable, tmp_path: Path, clip: Path, toys: dict[str, Path]
) -> None:
    names = [f"{clip}:contrast", f"{clip}:contrast:2", f"{clip}:cosine"]
    out = run("--verifiers", *reversed(names), "--budgets", 64, 32, "--prompts", 2)
    found = lines(tmp_path)
    assert Counter((row["method"], row["budget"]) for row in found) == {
        (name, budget): 2 for name in names for budget in (32, 64)
    }
    assert [row["budget"] for row in found] == [32] * 6 + [64] * 6
    assert all(16 < row["cost"] <= row["budget"] for row in found)

    tokenizer = load_tokenizer(str(toys["model"]), CPU)
    contrast, cosine = (load_verifier(str(clip), CPU, score) for score in ("contrast", "cosine"))
    measuring = dict(zip(names, [contrast, Views(contrast, 2), cosine], strict=True))
    for row in found:
        assert set(row["others"]) == set(names) - {row["method"]}
        said = {row["method"]: row["verifier_score"]}
        said |= {name: other["score"] for name, other in row["others"].items()}
        with torch.inference_mode():
            image = tokenizer.decode(torch.tensor([row["tokens"]]))
            for name, verifier in measuring.items():
                score = float(verifier.score(image, verifier.prepare(row["prompt"]))[0])
                assert said[name] == pytest.approx(score, abs=1e-4)
        assert 0 <= row["confidence"] <= 1 and row["correct"] in (True, False)

    table = cells(out)
    assert [(line["searched with"], line["budget"]) for line in table] == [
        (name, budget) for name in names for budget in ("32", "64")
    ]
    for line in table:
        assert [name for name in names if line[f"by {name}"] == "own"] == [line["searched with"]]
    mean = sum(row["others"][names[2]]["score"] for row in found[:6] if row["method"] == names[0])
    assert table[0][f"by {names[2]}"].startswith(f"{mean / 2:.3f} [")
    with Image.open(tmp_path / "out" / "verifiers.png") as image:
        assert image.width > image.height
    run("--verifiers", *names, "--budgets", 64, 32, "--prompts", 2)
    assert lines(tmp_path) == found


def test_searches_differ_in_the_verifier_alone(
    run: Callable, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    searches: list[Any] = []
    generate = Pipeline.generate

    def watch(self: Pipeline, prompt: str, **options: Any) -> Any:
        result = generate(self, prompt, **options)
        made.append((self.score, self.verifier.looks))
        searches.append((self.prior.name, result.settings))
        return result

    monkeypatch.setattr(Pipeline, "generate", watch)
    run("--verifiers", clip, f"{clip}:cosine", f"{clip}:contrast:3", "--prompts", 1)
    assert made == [("contrast", 1), ("cosine", 1), ("contrast", 3)]
    ((prior, settings), *others) = searches
    assert others == [(prior, settings)] * 2
    assert (prior, settings.search, settings.budget) == ("uniform", "beam", 32)
    assert not settings.atlas and settings.refine == settings.shortlist == 0
    assert settings.prior_strength == settings.prior_weight == 0


def test_an_added_verifier_measures_old_pictures_without_a_search(
    run: Callable,
    tmp_path: Path,
    clip: Path,
    toys: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Path(shutil.copytree(clip, tmp_path / "other"))
    change_weights(other)
    run("--verifiers", clip, "--prompts", 2)
    before = lines(tmp_path)
    assert [row["others"] for row in before] == [{}, {}]
    monkeypatch.setattr(Pipeline, "generate", None)
    out = run("--verifiers", clip, "--prompts", 2, "--measure", f"{other}:cosine")
    after = lines(tmp_path)[2:]
    assert [row | {"others": {}} for row in after] == before
    first = [row["others"][f"{other}:cosine"] for row in after]
    assert first[0]["network"] != before[0]["network"]
    assert cells(out)[0][f"by {other}:cosine"] and "share one network" not in out

    change_weights(other)  # under the same name
    views = f"{clip}:contrast:3"
    run("--verifiers", clip, "--prompts", 2, "--measure", f"{other}:cosine", views)
    again = lines(tmp_path)[4:]
    tokenizer = load_tokenizer(str(toys["model"]), CPU)
    looks = Views(load_verifier(str(clip), CPU, "contrast"), 3)
    for row, was in zip(again, first, strict=True):
        assert set(row["others"]) == {f"{other}:cosine", views}
        assert row["others"][f"{other}:cosine"]["network"] != was["network"]
        image = tokenizer.decode(torch.tensor([row["tokens"]]))
        score = float(looks.score(image, looks.prepare(row["prompt"]))[0])
        assert row["others"][views]["score"] == pytest.approx(score, abs=1e-4)
    run("--verifiers", clip, "--prompts", 2, "--measure", views)  # has all that is asked for
    assert len(lines(tmp_path)) == 6
    run("--verifiers", clip, "--prompts", 2, "--measure", f"{clip}:cosine")
    for row, was in zip(lines(tmp_path)[6:], again, strict=True):  # older ones are kept
        assert row["others"].pop(f"{clip}:cosine") and row == was


def test_pictures_are_judged_later_without_a_search(
    run: Callable, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run("--verifiers", clip, f"{clip}:cosine", "--prompts", 1, "--no-judge")
    before = lines(tmp_path)
    assert "correct" not in before[0] and verifiers.UNJUDGED in out
    monkeypatch.setattr(Pipeline, "generate", None)
    run("--verifiers", clip, f"{clip}:cosine", "--prompts", 1)
    for row, was in zip(lines(tmp_path)[2:], before, strict=True):
        assert row["correct"] in (True, False) and 0 <= row["confidence"] <= 1
        assert {name: row[name] for name in was} == was


def test_a_stopped_run_goes_on_where_it_was(
    run: Callable, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--verifiers", clip, f"{clip}:cosine", "--prompts", 2)
    generate, count = Pipeline.generate, 0

    def stop(self: Pipeline, prompt: str, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return generate(self, prompt, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "generate", stop)
        with pytest.raises(Interrupted, match="3 of 4 rows"):
            run(*options)
    before = lines(tmp_path)
    assert len({row["prompt"] for row in before[:2]}) == 1  # both verifiers have it
    run(*options)
    assert lines(tmp_path)[:3] == before and len(lines(tmp_path)) == 4


def test_the_default_is_three_budgets_and_three_ways_to_score(
    run: Callable, toys: dict[str, Path], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []

    def stop(panel: Any, budgets: Any, prompts: Any, seeds: int) -> None:
        planned[:] = [tuple(budgets), len(prompts), seeds]
        raise InputError("Stop.")

    monkeypatch.setattr(verifiers, "plan", stop)
    monkeypatch.setattr(verifiers, "load", lambda split: PROMPTS * 30)
    for options, wanted in [
        ([], [(64, 256, 1024), 48, 1]),
        (["--full"], [(64, 256, 1024, 4096), 104, 1]),
    ]:
        with pytest.raises(InputError, match="Stop"):
            run("--verifiers", clip, *options, budgets=())
        assert planned == wanted
    assert usual(str(toys["model"])) == [
        *("sprites-clip:contrast", "sprites-clip:cosine", "sprites-clip:contrast:5"),
    ]


# Names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sprites-clip", ("sprites-clip", "contrast", 1)),
        ("sprites-clip:cosine", ("sprites-clip", "cosine", 1)),
        ("~/a/clip:contrast:5", ("~/a/clip", "contrast", 5)),
        ("hf-hub:owner/name:cosine:2", ("hf-hub:owner/name", "cosine", 2)),
        ("ViT-B-32/laion2b_s34b_b79k", ("ViT-B-32/laion2b_s34b_b79k", "contrast", 1)),
    ],
)
def test_a_verifier_is_named_with_its_score_and_views(text: str, wanted: tuple) -> None:
    spec = Spec.of(text)
    assert spec == wanted and Spec.of(str(spec)) == spec


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--verifiers", "sprites-clip:contrats"], "'sprites-clip:contrats' names no verifier"),
        (["--verifiers", ""], "'' names no verifier: write NAME, NAME:SCORE or"),
        (["--verifiers", "sprites-clip:cosine:8"], "from 1 to 5, not 8"),
        (["--measure", "sprites-clip:cosine:0"], "from 1 to 5, not 0"),
        (["--verifiers", "sprites-clp:cosine"], "no verifier 'sprites-clp'; did you mean"),
        (["--budgets", 8], "--budgets must be 32 or more, with 8 tokens, not 8"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Callable, clip: Path, options: list[Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        run("--verifiers", clip, *options)


# The judge's confidence


def test_confidence_is_of_what_is_asked_for() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    objects = [
        Detection(name, "", box, sure)
        for name, sure in [("cat", 0.5), ("cat", 0.9), ("cat", 0.7), ("dog", 1.0)]
    ]
    seen = Seen(objects, "snow", 0.6)
    two_cats = {"include": [{"class": "cat", "count": 2}]}
    assert confidence(seen, two_cats) == pytest.approx(0.8)
    apart = {"include": [{"class": "cat", "count": 1}] * 2}
    assert confidence(seen, apart) == pytest.approx(0.8)
    assert confidence(seen, {"include": [{"class": "fox", "count": 1}]}) == 0
    four = {"include": [{"class": "cat", "count": 4}], "background": "snow"}
    assert confidence(seen, four) == pytest.approx((0.9 + 0.7 + 0.5 + 0 + 0.6) / 5)
    sand = {"include": [{"class": "dog", "count": 1}], "background": "sand"}
    assert confidence(seen, sand) == pytest.approx(0.5)


# The report


def row(budget: int, prompt: str, score: float, correct: bool, **more: Any) -> Row:
    return {
        "method": "a", "budget": budget, "settings": {"budget": budget, "models": "m"},
        "prompt": prompt, "seed": 0, "network": "n", "cost": float(budget), "confidence": 0.5,
        "verifier_score": score, "correct": correct, "others": {},
    } | more  # fmt: skip


def said(scores: tuple[list[float], list[float]], right: tuple[list[int], list[int]]) -> str:
    """What the notes tell of a verifier with these scores and right pictures at two budgets."""
    rows = [
        row(budget, f"prompt {i}", score, bool(correct))
        for budget, *values in zip((64, 256), scores, right, strict=True)
        for i, (score, correct) in enumerate(zip(*values, strict=True))
    ]
    return "\n\n".join(report(rows).notes)


UP, NOISE = ([0.0, 5.0, 9.0], [1.0, 6.1, 10.2]), ([0.0, 5.0, 9.0], [3.0, 4.5, 9.0])


@pytest.mark.parametrize(
    ("scores", "right", "shows"),
    [
        (UP, ([1, 0, 0], [0, 0, 1]), True),  # stays
        (UP, ([1, 1, 1], [1, 0, 1]), True),  # falls
        (UP, ([0, 0, 0], [0, 0, 0]), True),
        (UP, ([1, 0, 0], [1, 0, 1]), False),  # follows
        (UP, ([1, 1, 1], [1, 1, 1]), False),  # cannot follow
        (NOISE, ([1, 1, 0], [0, 0, 0]), False),  # the score rises within its interval only
        ((UP[1], UP[0]), ([1, 1, 0], [0, 0, 0]), False),  # the score falls
    ],
)
def test_hacking_is_a_score_that_rises_without_the_judge(
    scores: tuple, right: tuple, shows: bool
) -> None:
    notes = said(scores, right)
    assert f"That is so in {int(shows)} of 1 steps" in notes
    assert ("- a, 64 to 256 decodes: score +1.100 [+0.852, +1.348], right " in notes) == shows


def test_a_step_is_of_prompts_that_both_budgets_have_and_of_one_network() -> None:
    rows = [row(64, p, 0.0, True) for p in "xy"] + [row(256, p, 1.0, False) for p in "xz"]
    assert "Nothing can be said of hacking" in "\n".join(report(rows).notes)
    rows.append(row(256, "y", 1.0, False))
    rows[2]["correct"] = rows[3]["correct"] = True  # z is not to save y
    assert "right -0.50 [" in "\n".join(report(rows).notes)
    newer = {"settings": {"budget": 256, "models": "newer"}, "network": "newer"}
    rows += [row(256, p, 1.0, False, **newer) for p in "xy"]
    found = report(rows)
    assert "Nothing can be said of hacking" in "\n".join(found.notes)
    assert [line[1] for line in found.table] == ["256"]


def test_a_measurement_that_some_pictures_lack_or_have_of_old_weights_is_not_averaged() -> None:
    def by(score: float, network: str) -> dict[str, Any]:
        return {"others": {"b": {"score": score, "network": network}}}

    rows = [row(64, "x", 0.0, True, **by(9.0, "old")), row(64, "y", 0.0, True, **by(1.0, "new"))]
    rows += [row(256, "x", 0.0, True, **by(1.0, "new")), row(256, "y", 0.0, True)]
    rows += [row(512, p, 0.0, True, **by(float(p == "x"), "new")) for p in "xy"]
    found = report(rows)
    column = found.columns.index("by b")
    assert [line[column][:5] for line in found.table] == ["", "", "0.500"]


def test_verifiers_of_one_network_are_told_to_be_so() -> None:
    (note,) = kinship({"a:cosine": "1", "b:cosine": "2", "a:contrast": "1"}, True)
    assert note.startswith("a:contrast, a:cosine share one network: they are not independent")
    assert "The judge is independent" in note and "b:" not in note
    assert kinship({"a": "1", "b": "2"}, False) == []


def test_the_figure_has_all_scores_above_and_the_judge_below() -> None:
    def by(name: str, score: float) -> dict[str, Any]:
        return {"others": {name: {"score": score, "network": "n"}}}

    rows = [row(n, p, n / 64, n == 64, **by("b", -n / 64)) for n in (64, 192) for p in "xy"]
    rows += [row(64, p, 0.0, False, method="b", **by("a", 1.0)) for p in "xy"]
    canvas = Figure()
    report(rows).figure(canvas)
    above_a, above_b, below_a, below_b = (axes.containers for axes in canvas.axes)
    assert [len(panel) for panel in (above_a, above_b, below_a, below_b)] == [2] * 4
    own, other = (container.lines[0] for container in above_a)
    assert list(own.get_ydata()) == [-1, 1] and list(other.get_ydata()) == [1, -1]
    assert own.get_linewidth() > other.get_linewidth()
    assert list(below_a[0].lines[0].get_ydata()) == [1, 0]
    assert [text.get_text() for text in canvas.axes[2].get_xticklabels()] == ["64", "192"]
