"""tfgen bench ar_baseline: the trained prior, searches without it, and no search at all."""

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
from PIL import Image

from benchmarks import ar_baseline
from benchmarks.ar_baseline import AR, ARMS, NEAREST, Arms, report
from benchmarks.harness import Row
from benchmarks.trials import Setup
from tests.benchmarks.conftest import PROMPTS
from tfgen.errors import InputError
from tfgen.hub import load_tokenizer, load_verifier
from tfgen.pipeline import Pipeline
from tfgen.priors.autoregressive import FILE_NAME as AR_FILE
from tfgen.priors.autoregressive import AutoregressivePrior
from tfgen.priors.autoregressive_model import AutoregressiveConfig, AutoregressiveModel
from tfgen.priors.bank import FILE_NAME as BANK_FILE
from tfgen.priors.bank import Bank
from tfgen.verifiers.words import WordTokenizer

CPU = torch.device("cpu")
BUDGET = 32  # of 8 tokens
HAVE = [name for name in ARMS if "atlas" not in name]


@pytest.fixture(scope="module")
def model(toys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a bank and an autoregressive prior."""
    folder = tmp_path_factory.mktemp("ar") / "model"
    shutil.copytree(toys["model"], folder)
    tokenizer = load_tokenizer(str(folder), CPU)
    verifier = load_verifier(str(toys["verifier"]), CPU, "contrast")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(12, (20, 8), generator=generator)
    Bank.build(
        lambda part: tokenizer.decode(drawn), 1, tokenizer, verifier, folder / BANK_FILE, source={}
    )
    words = WordTokenizer(["fox", "car", "cat", "blue", "elephants"], 8)
    torch.manual_seed(0)
    cfg = AutoregressiveConfig((4, 3), 8, words.vocab_size, 8, width=16, heads=2, depth=1)
    AutoregressivePrior(AutoregressiveModel(cfg), words).save(folder / AR_FILE)
    return folder


@pytest.fixture
def run(
    model: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the benchmark on the toys' prompts; returns what it prints."""
    monkeypatch.setattr(ar_baseline, "load", lambda split: PROMPTS)

    def run(*more: object) -> str:
        words = [*options, "-o", tmp_path / "out", "--model", model, "--budgets", BUDGET, *more]
        monkeypatch.setattr(sys, "argv", ["ar_baseline.py", *map(str, words)])
        ar_baseline.main()
        return capsys.readouterr().out

    return run


def rows(tmp_path: Path) -> list[Row]:
    lines = (tmp_path / "out" / "ar_baseline.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "run" not in row]


def test_every_arm_is_measured_within_its_budget_and_once(run: Callable, tmp_path: Path) -> None:
    out = run("--prompts", 2)
    found = rows(tmp_path)
    assert Counter(row["method"] for row in found) == dict.fromkeys(HAVE, 2)
    for row in found:
        single = ARMS[row["method"]].only
        assert row["cost"] <= (single or BUDGET) and row["waited"] >= row["seconds"] > 0
    direct = [row for row in found if row["method"] == "AR sample"]
    assert all(row["cost"] == 1 and row["settings"]["prior"] == AR for row in direct)
    lines = [line for line in out.splitlines() if line.startswith("|")][2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == HAVE
    assert "Right more often than all that takes fewer seconds:" in out
    with Image.open(tmp_path / "out" / "ar_baseline.png") as image:
        assert image.width > image.height
    run("--prompts", 2)
    assert rows(tmp_path) == found


def test_nearest_is_the_bank_picture_that_the_verifier_scores_best(
    model: Path, toys: dict[str, Path]
) -> None:
    setup = Setup(str(model), str(toys["verifier"]), "cpu", judge=str(toys["judge"]))
    trials = Arms(setup)
    row = trials.nearest(PROMPTS[0], 0)
    bank, verifier = Bank.open(model / BANK_FILE), trials.pipeline.verifier
    scores = verifier.score_embeddings(bank.embeddings(slice(0, 20)), verifier.prepare("a fox"))
    assert row["tokens"] == bank.tokens(scores.argmax()[None])[0].tolist()
    picture = trials.pipeline.tokenizer.decode(torch.tensor([row["tokens"]]))
    score = float(verifier.score(picture, verifier.prepare("a fox"))[0])
    assert row["verifier_score"] == pytest.approx(score, abs=1e-4)
    assert row["cost"] == 1 and row["correct"] in (True, False)


def test_arms_that_the_models_lack_are_told_or_refused(
    toys: dict[str, Path], run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run("--model", toys["model"], "--prompts", 1)
    assert {row["method"] for row in rows(tmp_path)} == {"beam, uniform", "beam, frequency"}
    with pytest.raises(InputError, match="no autoregressive prior"):
        run("--model", toys["model"], "--arms", "AR sample")
    with pytest.raises(InputError, match="no arm 'nearer'.*'nearest'"):
        run("--arms", "nearer")
    with pytest.raises(InputError, match="--budgets must be 32 or more, with 8 tokens, not 8"):
        run("--budgets", 8)


def row(arm: str, budget: int, waited: float, correct: bool) -> Row:
    return {
        "method": arm, "budget": budget, "settings": {"budget": budget}, "prompt": "a", "seed": 0,
        "cost": float(budget), "waited": waited, "verifier_score": 1.0, "correct": correct,
    }  # fmt: skip


def test_where_each_wins_is_read_off_the_rows() -> None:
    found = report(
        [
            row(NEAREST, 1, 0.9, False),
            row("AR + beam", 64, 0.5, True),
            row("beam, retrieval", 256, 0.2, True),
        ]
    )
    front = "nearest (1: 0.00 [0.00, 0.79]), AR + beam (64: 1.00 [0.21, 1.00])."
    assert found.notes[1].endswith(f"fewer decodes: {front}")
    assert found.notes[2].endswith("fewer seconds: beam, retrieval (0.20: 1.00 [0.21, 1.00]).")
    ((name, budget, decodes, seconds, *_), *_) = found.table
    assert (name, budget, decodes, seconds) == ("AR + beam", "64", "64", "0.50")


def test_loading_the_bank_is_not_part_of_what_nearest_is_waited_for(
    model: Path, toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Arms(Setup(str(model), str(toys["verifier"]), "cpu", judge=None))
    clock = 0.0
    load = trials.with_prior

    def slow(name: str | None) -> Any:
        nonlocal clock
        clock += 100.0
        return load(name)

    monkeypatch.setattr(trials, "with_prior", slow)
    monkeypatch.setattr(ar_baseline.time, "perf_counter", lambda: clock)
    assert trials.nearest(PROMPTS[0], 0)["waited"] == 0.0


def test_each_arm_is_searched_with_its_own_prior(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []
    generate = Pipeline.generate

    def watch(self: Pipeline, prompt: str, **options: Any) -> Any:
        result = generate(self, prompt, **options)
        made.append((self.prior.name, result.settings.search))
        if self.prior.name != "uniform":
            assert result.settings.prior_strength == 1
        return result

    monkeypatch.setattr(Pipeline, "generate", watch)
    run("--prompts", 1)
    found = [row["method"] for row in rows(tmp_path) if row["method"] != NEAREST]
    assert dict(zip(found, made, strict=True)) == {
        "AR sample": (AR, "best-of-n"),
        "AR + best-of-N": (AR, "best-of-n"),
        "AR + beam": (AR, "beam"),
        "AR + beam, re-encoding": (AR, "beam"),
        "AR + lookahead": (AR, "lookahead"),
        "beam, uniform": ("uniform", "beam"),
        "beam, frequency": ("frequency", "beam"),
        "best-of-N, retrieval": ("retrieval", "best-of-n"),
        "beam, retrieval": ("retrieval", "beam"),
        "beam, retrieval, neighbours": ("retrieval", "beam"),
        "beam, retrieval, crossover": ("retrieval", "beam"),
        "beam, retrieval, re-encoding": ("retrieval", "beam"),
    }
