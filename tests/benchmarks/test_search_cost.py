"""tfgen bench search_cost: every method within its budget, and who reaches what for how much."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import search_cost
from benchmarks.harness import Row
from benchmarks.methods import METHODS, Usual
from benchmarks.search_cost import BUDGETS, FULL_BUDGETS, report, savings
from tests.benchmarks.conftest import PROMPTS
from tests.toys import HoldingPrior, ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import InputError
from tfgen.search import SearchSettings, search

USUAL = Usual(tokens=8, strength=0.8, weight=0.3, crossover=2)
HELD = torch.randint(200, (64, 8), generator=torch.Generator().manual_seed(0))


# The methods


@pytest.mark.parametrize("name", METHODS)
def test_a_method_uses_its_budget_and_no_more(name: str) -> None:
    method, tokenizer = METHODS[name], ToyTokenizer(200, 8)
    verifier, prior = ToyVerifier(tokenizer, rugged), HoldingPrior(HELD, 200)
    prior.table = (prior.table / 10).log_softmax(dim=1)  # hardly any draw comes twice
    for budget in [method.only] if method.only else BUDGETS:
        wanted = method.settings(budget, USUAL) | {"budget": budget, "atlas": False}
        if method.defaults:
            wanted |= {"prior_strength": USUAL.strength, "crossover": USUAL.crossover}
        # Toys have neither code vectors nor drafts nor a forecaster.
        wanted |= {"shortlist": 0, "screen": False, "forecast": 1}
        settings = SearchSettings(**wanted)
        result = search(verifier.prepare("a"), tokenizer, prior, verifier, settings)
        assert 0.8 * budget <= result.accounts.cost <= budget, budget


def test_sotos_beam_is_as_published_but_for_size() -> None:
    settings = SearchSettings(**METHODS["SoTo beam"].settings(32768, USUAL))
    assert (settings.beam, settings.candidates) == (5, 910)
    assert (settings.first_step, settings.keep) == ("candidates", "last")
    assert not settings.distinct and not settings.atlas
    assert settings.prior_strength == settings.prior_weight == 0


def test_an_idea_alone_is_the_plain_beam_but_for_it() -> None:
    plain = METHODS["beam"].settings(1024, USUAL)
    for name, idea in [
        ("beam + frequency", {"prior_strength"}),
        ("beam + frequency + typicality", {"prior_strength", "prior_weight"}),
        ("beam + retrieval", {"prior_strength"}),
        ("beam + retrieval + crossover", {"prior_strength", "beam", "candidates", "crossover"}),
        ("beam + retrieval + re-encoding", {"prior_strength", "reencode", "reencode_loss"}),
        ("beam + atlas", {"atlas", "candidates"}),
        ("beam + shortlist", {"shortlist"}),
        ("beam + shortlist by gradient", {"shortlist", "shortlist_by"}),
        ("beam + forecasts", {"forecast"}),
        ("beam + retrieval + forecasts", {"prior_strength", "forecast"}),
        ("beam + screening", {"screen"}),
        ("beam + refinement", {"refine"}),
    ]:
        settings = METHODS[name].settings(1024, USUAL)
        assert {k for k in settings if settings[k] != plain.get(k)} == idea, name


# Running it


@pytest.fixture
def run(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the benchmark on the toys' prompts; returns what it prints."""
    monkeypatch.setattr(search_cost, "load", lambda split: PROMPTS)
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))

    def run(*more: object) -> str:
        words = [*options, "-o", tmp_path / "out", *more]
        monkeypatch.setattr(sys, "argv", ["search_cost.py", *map(str, words)])
        search_cost.main()
        return capsys.readouterr().out

    return run


def rows(tmp_path: Path) -> list[Row]:
    lines = (tmp_path / "out" / "search_cost.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "run" not in row]


SOME = ("random", "SoTo beam", "beam + frequency", "default")


def test_every_method_gets_every_prompt_and_budget(run: Callable, tmp_path: Path) -> None:
    out = run("--methods", *SOME, "--budgets", 64, 32, "--prompts", 1, "--seeds", 2)
    counts = Counter((row["method"], row["budget"]) for row in rows(tmp_path))
    others = {(name, budget): 2 for name in SOME[1:] for budget in (32, 64)}
    assert counts == {("random", 1): 2, **others}
    assert all(row["cost"] <= row["budget"] for row in rows(tmp_path))
    assert [row["budget"] for row in rows(tmp_path)] == sorted(
        row["budget"] for row in rows(tmp_path)
    )
    lines = [line for line in out.splitlines() if line.startswith("|")][2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [
        name for name in SOME for _ in range(1 if name == "random" else 2)
    ]
    with Image.open(tmp_path / "out" / "search_cost.png") as image:
        assert image.height > image.width


def test_samples_are_decoded_once_for_all_prompts(run: Callable, tmp_path: Path) -> None:
    run("--methods", "best-of-n", "--budgets", 32, "--prompts", 3)
    first, *others = rows(tmp_path)
    assert first["decodes"] == first["cost"] == 32 - first["cached"]
    assert all((row["decodes"], row["cost"]) == (0, first["cost"]) for row in others)
    assert len({tuple(row["tokens"]) for row in rows(tmp_path)}) > 1


def test_methods_can_be_added_one_by_one(run: Callable, tmp_path: Path) -> None:
    options = ("--budgets", 32, "--prompts", 1)
    run("--methods", "beam", *options)
    out = run("--methods", "random", *options)
    assert "| beam |" in out and "| random |" in out and len(rows(tmp_path)) == 2


def test_the_default_is_three_small_budgets(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: dict[str, Any] = {}

    def stop(
        _: Any, __: Any, names: Any, budgets: Any, split: str, prompts: Any, seeds: int
    ) -> None:
        planned.update(methods=names, budgets=budgets, prompts=len(prompts), seeds=seeds)
        raise InputError("Stop.")

    monkeypatch.setattr(search_cost, "plan", stop)
    monkeypatch.setattr(search_cost, "load", lambda split: PROMPTS * 30)
    for options, budgets, prompts, seeds in [
        ([], BUDGETS, 8, 1),
        (["--full"], FULL_BUDGETS, 104, 1),
    ]:
        with pytest.raises(InputError, match="Stop"):
            run(*options)
        assert planned == {
            "methods": None,
            "budgets": list(budgets),
            "prompts": prompts,
            "seeds": seeds,
        }


def test_methods_that_the_models_lack_are_told_and_left_out(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: METHODS[name] for name in ("random", "beam + atlas", "beam + retrieval")}
    monkeypatch.setattr(search_cost, "METHODS", some)
    run("--budgets", 32, "--prompts", 1)
    assert [row["method"] for row in rows(tmp_path)] == ["random"]
    with pytest.raises(InputError, match="no atlas: tfgen atlas build makes one"):
        run("--methods", "beam + atlas", "--budgets", 32)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--methods", "beams"], "no method 'beams'; did you mean 'beam'"),
        (["--budgets", 8], "--budgets must be 32 or more, with 8 tokens, not 8"),
    ],
)
def test_what_cannot_be_is_refused(run: Callable, asked: list[Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        run(*asked)


# The report


def row(method: str, budget: int, prompt: str, score: float, correct: bool = True) -> Row:
    return {
        "method": method, "budget": budget, "settings": {"budget": budget}, "prompt": prompt,
        "seed": 0, "cost": float(budget), "verifier_score": score, "correct": correct,
    }  # fmt: skip


def groups(*rows: Row) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for one in rows:
        found.setdefault((one["method"], one["budget"]), []).append(one)
    return found


def test_savings_tell_the_first_budget_that_reaches_sotos_best() -> None:
    notes = savings(
        groups(
            row("SoTo beam", 64, "a", 0.0),
            row("SoTo beam", 1024, "a", 2.0, correct=False),
            row("ours", 64, "a", 1.9),
            row("ours", 256, "a", 2.0),
            row("ours", 512, "a", 3.0),
            row("dear", 1024, "a", 3.0),
            row("poor", 256, "a", 1.0),
        )
    )
    assert notes[0] == "The verifier score of SoTo beam at a budget of 1,024 is reached by"
    assert notes[1:] == [
        "- ours: 256 decodes, 4.0 times fewer; right 1.00 [0.21, 1.00] against 0.00 [0.00, 0.79]"
    ]


def test_savings_are_of_the_prompts_that_both_were_given() -> None:
    notes = savings(
        groups(
            row("SoTo beam", 1024, "a", 2.0),
            row("SoTo beam", 1024, "b", -50.0),
            row("ours", 64, "a", 1.0),
        )
    )
    assert notes == []


def test_without_sotos_beam_nothing_is_saved() -> None:
    assert savings(groups(row("ours", 64, "a", 1.0))) == []


def test_rows_of_older_weights_are_not_counted() -> None:
    old = row("beam", 64, "a", -9.0) | {"settings": {"budget": 64, "models": "old"}}
    found = report([old, row("beam", 64, "b", 1.0), row("beam", 64, "c", 3.0)])
    ((name, budget, cost, right, score, _, prompts, pictures),) = found.table
    assert (name, budget, cost, prompts, pictures) == ("beam", "64", "64", "2", "2")
    assert score.startswith("2.00 [") and right.startswith("1.00 [")


def test_the_size_of_a_step_is_told() -> None:
    sizes = [{"beam": 1, "candidates": 3}, {"candidates": 2}, {"search": "best-of-n"}]
    assert [search_cost.size(search) for search in sizes] == ["1 x 3", "16 x 2", ""]


def test_rows_that_no_method_makes_tell_their_options() -> None:
    def with_search(method: str, budget: int, **search: Any) -> Row:
        settings = {"search": {"budget": budget, **search}}
        return row(method, budget, "a", 1.0) | {"settings": settings}

    rows = [
        with_search("default", 64, schedule="geometric", beam=1, forecast_in="crossover"),
        with_search("default", 256, schedule="geometric", beam=2, forecast_in="crossover"),
        with_search("beam", 64, beam=1),
    ]
    assert not any("no methods" in note for note in report(rows).notes)
    rows += [
        with_search("earlier", 64, beam=1),
        with_search("earlier", 256, beam=9),
        with_search("in all", 64, schedule="geometric", beam=1),
        with_search("in all", 1024, schedule="geometric", beam=1),  # beside no default
    ]
    head, lines = report(rows).notes[-2:]
    assert "--split dev --budget N --beam B --candidates C" in head
    assert lines.splitlines() == [
        "- earlier: `--schedule one --forecast-in all`",
        "- in all: `--forecast-in all`",
    ]


def test_the_default_in_its_own_shape_is_the_models_own() -> None:
    method = METHODS["default, own shape"]
    assert method.defaults and method.prior is None and method.settings(64, USUAL) == {}


def test_savings_are_against_the_best_budget_not_the_largest() -> None:
    notes = savings(
        groups(
            row("SoTo beam", 64, "a", 0.5),
            row("SoTo beam", 256, "a", 2.0),
            row("SoTo beam", 1024, "a", 1.0),
            row("ours", 64, "a", 2.0),
        )
    )
    assert notes[0] == "The verifier score of SoTo beam at a budget of 256 is reached by"
    assert notes[1].startswith("- ours: 64 decodes, 4.0 times fewer")
