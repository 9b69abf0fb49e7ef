"""tfgen bench ordered_vs_grid: two tokenizers, one protocol."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import ordered_vs_grid
from benchmarks.harness import Row
from benchmarks.ordered_vs_grid import AR, gain, report
from tests.benchmarks.conftest import PROMPTS
from tests.toy_grid import write_grid
from tfgen.errors import InputError
from tfgen.priors.autoregressive import FILE_NAME, AutoregressivePrior
from tfgen.priors.autoregressive_model import AutoregressiveConfig, AutoregressiveModel
from tfgen.priors.frequency import FrequencyPrior
from tfgen.verifiers.words import WordTokenizer


def add_prior(folder: Path, num_tokens: int) -> Path:
    words = WordTokenizer(["fox", "car", "cat", "blue", "elephants"], 8)
    torch.manual_seed(0)
    cfg = AutoregressiveConfig((4, 3), num_tokens, words.vocab_size, 8, width=16, heads=2, depth=1)
    AutoregressivePrior(AutoregressiveModel(cfg), words).save(folder / FILE_NAME)
    return folder


@pytest.fixture
def run(
    toys: dict[str, Path], options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the benchmark on the toys' prompts; returns what it prints."""
    monkeypatch.setattr(ordered_vs_grid, "load", lambda split: PROMPTS)
    shutil.copytree(toys["model"], tmp_path / "ordered")
    ordered = add_prior(tmp_path / "ordered", 8)
    grid = add_prior(write_grid(tmp_path / "grid"), 4)
    drawn = torch.randint(12, (200, 4), generator=torch.Generator().manual_seed(1))
    FrequencyPrior.fit([drawn], 12, 4).save(grid / "prior.safetensors")

    def run(*more: object) -> str:
        words = [*options, "-o", tmp_path / "out", "--model", ordered, "--grid", grid]
        monkeypatch.setattr(sys, "argv", ["x.py", *map(str, [*words, "--budgets", 32, *more])])
        ordered_vs_grid.main()
        return capsys.readouterr().out

    return run


def test_both_have_every_search_prior_and_prompt(run: Callable, tmp_path: Path) -> None:
    out = run("--prompts", 1)
    lines = (tmp_path / "out" / "ordered_vs_grid.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "run" not in row]
    cells = {(row["on"], row["prior"], row["search"]) for row in rows}
    kinds = [(p, s) for p in (AR, "frequency", "uniform") for s in ordered_vs_grid.SEARCHES]
    kinds.append((AR, "direct"))
    assert cells == {(on, *kind) for on in ("ordered", "grid") for kind in kinds}
    assert len(rows) == len(cells) and all(row["cost"] <= row["budget"] for row in rows)
    lengths = {(row["on"], len(row["by_step"])) for row in rows if row["search"] == "beam"}
    assert lengths == {("ordered", 8), ("grid", 4)}
    assert len({row["settings"]["models"]["tokenizer"] for row in rows}) == 2
    assert len({row["settings"]["models"]["verifier"] for row in rows}) == 1
    assert "- uniform, grid: " in out
    with Image.open(tmp_path / "out" / "ordered_vs_grid.png") as image:
        assert image.width > image.height
    with pytest.raises(InputError, match="--budgets must be 32 or more, not 8"):
        run("--budgets", 8)


def row(search: str, on: str, prompt: str, correct: bool) -> Row:
    budget = 1 if search == "direct" else 64
    return {
        "method": f"{search} {on}", "prior": AR, "search": search, "on": on, "budget": budget,
        "settings": {}, "prompt": prompt, "seed": 0, "correct": correct, "cost": float(budget),
        "verifier_score": 1.0, "by_step": [0.0, 1.0],
    }  # fmt: skip


def test_the_gain_is_paired_and_over_the_same_tokens() -> None:
    direct = [row("direct", "grid", "a", False), row("direct", "grid", "b", True)]
    beam = [row("beam", "grid", "a", True), row("beam", "grid", "c", True)]
    found = gain(beam, direct)
    assert found is not None and (found.value, found.count) == (1.0, 1)
    assert gain(beam, []) is None
    other = [row("direct", "ordered", "a", True), row("beam", "ordered", "a", True)]
    lines = {(line[1], line[3]): line for line in report([*direct, *beam, *other]).table}
    assert lines["beam", "grid"][5].startswith("1.00 [")
    assert lines["beam", "ordered"][5].startswith("0.00 [")
    assert lines["direct", "grid"][5] == ""
