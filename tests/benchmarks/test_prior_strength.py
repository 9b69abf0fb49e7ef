"""tfgen bench prior_strength: every prior, λ and w on the same prompts and decodes, at toy size."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import prior_strength
from benchmarks.harness import Row
from benchmarks.prior_strength import Cell, report
from tests.benchmarks.conftest import PROMPTS
from tests.benchmarks.test_alignment import cells
from tfgen.errors import InputError
from tfgen.pipeline import Pipeline

SMALL = ("--decodes", 32, "--prompts", 2)
GRID = ("--strengths", 0, 1, "--weights", 0, 0.5, "--weights-at", 0, 1)


@pytest.fixture
def run(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the benchmark on the toys' prompts; returns what it prints."""
    monkeypatch.setattr(prior_strength, "load", lambda split: PROMPTS)
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))

    def run(*more: object) -> str:
        words = [*options, "-o", tmp_path / "out", *SMALL, *more]
        monkeypatch.setattr(sys, "argv", ["prior_strength.py", *map(str, words)])
        prior_strength.main()
        return capsys.readouterr().out

    return run


def rows(tmp_path: Path) -> list[Row]:
    lines = (tmp_path / "out" / "prior_strength.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "run" not in row]


def test_every_cell_has_every_prompt_at_the_same_decodes(run: Callable, tmp_path: Path) -> None:
    lines = cells(run("--priors", "uniform", "unigram", "frequency", *GRID))
    grid = [("0", "0.5"), ("1", "0"), ("1", "0.5")]
    named = [(prior, *cell) for prior in ("unigram", "frequency") for cell in grid]
    assert [(line["prior"], line["λ"], line["w"]) for line in lines] == [
        ("uniform", "0", "0"),
        *named,
    ]
    assert {line["pictures"] for line in lines} == {"2"}
    assert all(16 < row["cost"] <= 32 for row in rows(tmp_path))
    assert all(line["decodes"].endswith(" of 32") for line in lines)
    assert lines[0]["score over uniform"] == "" and lines[1]["score over uniform"] != ""
    with Image.open(tmp_path / "out" / "prior_strength.png") as image:
        assert image.width > image.height


def test_prior_strength_and_weight_reach_the_search(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Cell] = []
    generate = Pipeline.generate

    def watch(self: Pipeline, prompt: str, **options: Any) -> Any:
        result = generate(self, prompt, **options)
        settings = result.settings
        asked.append(Cell(self.prior.name, settings.prior_strength, settings.prior_weight))
        assert settings.budget == 32 and not settings.atlas
        return result

    monkeypatch.setattr(Pipeline, "generate", watch)
    run("--priors", "unigram", "frequency", "--prompts", 1, *GRID)
    assert asked == [Cell(row["method"], row["strength"], row["weight"]) for row in rows(tmp_path)]
    assert set(asked) == {
        Cell("uniform", 0, 0),
        *(Cell(p, *at) for p in ("unigram", "frequency") for at in ((0, 0.5), (1, 0), (1, 0.5))),
    }
    proposals = {tuple(row["tokens"]) for row in rows(tmp_path)}
    assert len(proposals) > 1  # what is searched differs


def test_a_stopped_run_goes_on_with_all_cells_of_the_next_prompt(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--priors", "unigram", *GRID)
    generate, count = Pipeline.generate, 0

    def stop(self: Pipeline, prompt: str, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return generate(self, prompt, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "generate", stop)
        with pytest.raises(prior_strength.harness.Interrupted, match="5 of 8 rows"):
            run(*options)
    before = rows(tmp_path)
    assert [row["prompt"] for row in before] == [PROMPTS[0]["prompt"]] * 4 + [PROMPTS[2]["prompt"]]
    run(*options)
    assert rows(tmp_path)[:5] == before and len(rows(tmp_path)) == 8


def test_priors_that_the_model_lacks_are_told_and_left_out(
    run: Callable, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture
) -> None:
    run("--prompts", 1, "--strengths", 1, "--weights", 0)
    found = {row["method"] for row in rows(tmp_path)}
    assert found == {"uniform", "unigram", "frequency"}  # the toys have no bank and no model
    with pytest.raises(InputError, match="bank"):
        run("--priors", "retrieval")


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--priors", "bigrams", "--decodes", 64], "There is no prior 'bigrams'"),
        (["--strengths", -1], "--strengths must be .* not -1"),
        (["--weights", "nan"], "--weights must be .* not nan"),
        (["--weights-at", -2], "--weights-at must be .* not -2"),
        (["--decodes", 31], "--decodes must be 32 or more, with 8 tokens, not 31"),
    ],
)
def test_what_cannot_be_is_refused(run: Callable, asked: list[Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        run(*asked)


# The report


def row(cell: Cell, prompt: str, score: float, correct: bool = True, decodes: int = 64) -> Row:
    return {
        "method": cell.prior, "strength": cell.strength, "weight": cell.weight,
        "decodes_allowed": decodes, "settings": {"decodes": decodes}, "prompt": prompt, "seed": 0,
        "cost": 60.0, "seconds": 1.0, "verifier_score": score, "correct": correct,
    }  # fmt: skip


def test_a_prior_is_compared_with_uniform_on_the_prompts_of_both() -> None:
    uniform, prior = Cell("uniform", 0, 0), Cell("frequency", 1, 0)
    found = report(
        [
            row(uniform, "a", 1.0, False),
            row(uniform, "b", 2.0, False),
            row(uniform, "c", 90.0),
            row(prior, "a", 2.0, True),
            row(prior, "b", 3.0, False),
            row(prior, "a", 9.0, True, decodes=128),
        ]
    )
    lines = [dict(zip(found.columns, line, strict=True)) for line in found.table]
    assert [line["decodes"] for line in lines] == ["60 of 64", "60 of 64", "60 of 128"]
    assert lines[1]["score over uniform"] == "+1.00 [+1.00, +1.00]"
    assert lines[1]["right over uniform"].startswith("+0.50 [")
    assert lines[1]["right"].startswith("0.50 [") and lines[1]["verifier score"].startswith("2.50")
    assert lines[0]["score over uniform"] == lines[2]["score over uniform"] == ""
