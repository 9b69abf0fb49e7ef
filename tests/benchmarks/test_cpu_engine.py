"""The CPU benchmark at a few candidates: what it measures, writes and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cpu_engine
from tfgen.decoding.bfloat16 import why_no_bfloat16
from tfgen.errors import InputError, TfgenError
from tfgen.tokenizers.subpixel import conv_enlarged

WAYS = ["one at a time", "one at a time, one thread", "batched", "eager", "engine"]
NARROW = [] if why_no_bfloat16(torch.device("cpu")) else ["bf16"]


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu_engine.py", *map(str, options)])
    cpu_engine.main()


def test_all_ways_are_measured_on_the_same_candidates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        cpu_engine,
        "whole_run",
        lambda engine, threads: (
            calls.append(engine)
            or {"whole": 9.0 if engine == "eager" else 3.0, "search": 2.0, "decodes": 7}
        ),
    )
    before = torch.get_num_threads()
    options = ("--candidates", 8, "--repeats", 2, "--runs", 2, "--cores", 1, "-o", tmp_path)
    run(monkeypatch, *options)
    assert torch.get_num_threads() == before
    found = json.loads((tmp_path / "cpu_engine.json").read_text())
    assert list(found["engines"]) == WAYS + NARROW
    base = found["engines"]["one at a time"]
    assert base["ratio"] == 1
    for name, row in found["engines"].items():
        assert row["error"] < (1e-2 if name == "bf16" else 1e-5)
        ratios = sorted(a / b for a, b in zip(row["rates"], base["rates"], strict=True))
        assert row["ratios"] == pytest.approx([ratios[0], ratios[-1]])
    assert calls == ["eager", "auto", *NARROW] * 2
    page = (tmp_path / "cpu_engine.md").read_text()
    assert capsys.readouterr().out.strip() in page
    assert "| --engine auto | 3.0 | 2.0 | 7 |" in page and "Made by `" in page
    assert found["made"]["machine"]["cpu"]


def test_the_straightforward_way_enlarges_and_then_convolves() -> None:
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 6)
    found = cpu_engine.enlarge_then_convolve(x, conv)
    assert found.shape == (2, 4, 10, 12)
    torch.testing.assert_close(found, conv_enlarged(x, conv))


def test_ways_that_differ_are_not_compared() -> None:
    work = {"one": lambda n: torch.zeros(n, 2), "other": lambda n: torch.ones(n, 2)}
    with pytest.raises(TfgenError, match="other and one differ by 1.0e"):
        cpu_engine.measure(work, 4, 1)


def test_the_default_run_is_that_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_engine.COMMAND == ("a red fox in snow", "--beam", "16")
    small = ("a red fox", "--beam", "1", "--candidates", "2", "--schedule", "1", "--no-atlas")
    small += ("--neighbours", "0", "--crossover", "0", "--reencode", "0")
    monkeypatch.setattr(cpu_engine, "COMMAND", small)
    found = cpu_engine.whole_run("auto", 1)
    assert found["decodes"] == 2
    assert 0 < found["search"] < found["whole"]
    monkeypatch.setattr(cpu_engine, "COMMAND", (" ",))
    with pytest.raises(TfgenError, match="The default run failed: .*prompt is empty"):
        cpu_engine.whole_run("auto", 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--candidates", 0), "--candidates must be a whole number from 1 up"),
        (("--runs", -1), "--runs must be a whole number from 0 up"),
        (("--tokens", 17), "--tokens must be a whole number from 1 to 16"),
        (("--cores", 10**6), "--cores must be a whole number from 1 to "),
    ],
)
def test_bad_values_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        run(monkeypatch, *options)
