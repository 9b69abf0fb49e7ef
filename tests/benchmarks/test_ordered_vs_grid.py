"""tfgen bench ordered_vs_grid: two tokenizers, one protocol."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import ordered_vs_grid
from benchmarks.harness import Row
from benchmarks.ordered_vs_grid import AR, ceilings, gain, report
from benchmarks.trials import Setup
from tests.benchmarks.conftest import PROMPTS
from tests.toy_grid import write_grid
from tfgen.errors import InputError
from tfgen.pipeline import Pipeline
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


def test_the_notes_tell_what_full_reconstructions_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"main": 0.1, "low": 0.05, "high": 0.2, "psnr": 21.38, "all": 0.1}
    prefixes = {"true": value | {"main": 1.0}, "8": value | {"main": 0.02}, "16": value}
    (tmp_path / "prefixes-blurry.json").write_text(json.dumps({"prefixes": prefixes}))
    monkeypatch.setattr(ordered_vs_grid, "RESULTS", tmp_path)
    (note,) = ceilings({"ordered": "unmeasured", "grid": "blurry"})
    assert "grid 0.100 [0.050, 0.200], PSNR 21.4 dB" in note and "ordered" not in note
    assert ceilings({"grid": str(tmp_path / "folder")}) == []
    rows = [row("beam", "grid", "a", True)]
    assert note in report(rows, {"grid": "blurry"}).notes


def test_a_stopped_run_goes_on_where_it_was(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, count = ordered_vs_grid.Decoded.search, 0

    def stop(self: ordered_vs_grid.Decoded, *args: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return search(self, *args)

    path = tmp_path / "out" / "ordered_vs_grid.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(ordered_vs_grid.Decoded, "search", stop)
        with pytest.raises(ordered_vs_grid.harness.Interrupted, match="3 of 20 rows"):
            run("--prompts", 1)
    before = path.read_bytes()
    run("--prompts", 1)
    after = path.read_bytes()
    assert after.startswith(before) and after.count(b'"method"') == 20


def test_each_search_is_made_with_its_own_tokenizer_and_prior(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, str, str]] = []
    generate = Pipeline.generate

    def watch(self: Pipeline, prompt: str, **options: Any) -> Any:
        result = generate(self, prompt, **options)
        settings = result.settings
        made.append((self.tokenizer.num_tokens, self.prior.name, settings.search))
        assert settings.tokens == self.tokenizer.num_tokens
        assert settings.schedule == "one" and not settings.atlas and settings.prior_weight == 0
        return result

    monkeypatch.setattr(Pipeline, "generate", watch)
    run("--prompts", 1)
    lines = (tmp_path / "out" / "ordered_vs_grid.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "run" not in row]
    tokens = {"ordered": 8, "grid": 4}
    search = {"direct": "best-of-n", "best-of-N": "best-of-n"}
    assert made == [
        (tokens[row["on"]], row["prior"], search.get(row["search"], row["search"])) for row in rows
    ]


def test_both_are_judged_on_pictures_as_they_are_decoded(
    toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(str(toys["model"]), str(toys["verifier"]), "cpu", judge=None)
    trials = ordered_vs_grid.Decoded(setup)

    def larger(tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(tokens), 3, 256, 256)

    monkeypatch.setattr(trials.pipeline.tokenizer, "render", larger)
    assert trials.picture([0] * 8, 0).size == (64, 64)
