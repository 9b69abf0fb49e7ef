"""The FLOPs of a decoded candidate at the published sizes are those that were worked out by hand
(the sections named here are flextok_cost.md's), within 2 %."""

from __future__ import annotations

import json
import sys
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flextok_flops
from benchmarks.flextok_flops import PATHS

EVALUATION = {"d12-d12": 0.0969, "d18-d18": 0.3159, "d18-d28": 1.1597}  # section 1, TFLOP
PLAIN = {"d12-d12": 4.50, "d18-d18": 13.26, "d18-d28": 47.01}  # section 2, 20 steps
PLAIN_10 = {"d12-d12": 2.56, "d18-d18": 6.94, "d18-d28": 23.82}  # section 2, 10 steps
COLLAPSED_4 = {"d12-d12": 2.44, "d18-d18": 6.63, "d18-d28": 22.95}  # section 3, k = 4
WITHIN = 0.02

skeleton = cache(flextok_flops.skeleton)


@cache
def counted(size: str, path: str) -> tuple[float, float]:
    """TFLOP of the first step with the VAE, and of each step more; prefixes of 4 tokens."""
    tokenizer = skeleton(size)
    tokenizer.collapse, tokenizer.share_first = PATHS[path]
    first, each = flextok_flops.count(tokenizer, 4)
    return first / 1e12, each / 1e12


@pytest.mark.parametrize("size", PLAIN)
def test_one_evaluation_of_the_decoder_is_half_a_guided_step(size: str) -> None:
    _, each = counted(size, "plain")
    assert each / 2 == pytest.approx(EVALUATION[size], rel=WITHIN)


@pytest.mark.parametrize("size", PLAIN)
def test_a_plain_candidate(size: str) -> None:
    first, each = counted(size, "plain")
    assert first + 19 * each == pytest.approx(PLAIN[size], rel=WITHIN)
    assert first + 9 * each == pytest.approx(PLAIN_10[size], rel=WITHIN)


@pytest.mark.parametrize("size", PLAIN)
def test_a_collapsed_candidate(size: str) -> None:
    first, each = counted(size, "collapsed")
    assert first + 19 * each == pytest.approx(COLLAPSED_4[size], rel=WITHIN)


def test_the_largest_decoder_needs_half_the_work() -> None:
    plain, collapsed = (counted("d18-d28", path) for path in ("plain", "collapsed"))
    ratio = (plain[0] + 19 * plain[1]) / (collapsed[0] + 19 * collapsed[1])
    assert ratio == pytest.approx(2.05, rel=WITHIN)  # section 3


def test_steps_after_the_first_are_alike() -> None:
    tokenizer = skeleton("d12-d12")
    tokenizer.collapse, tokenizer.share_first = PATHS["collapsed"]
    tokenizer = tokenizer.for_seed(0)
    tokenizer.prepare(3)
    with FlopCounterMode(display=False) as counter:
        tokenizer.decode(torch.zeros(1, 4, dtype=torch.int64, device="meta"), steps=3)
    first, each = counted("d12-d12", "collapsed")
    assert counter.get_total_flops() / 1e12 == pytest.approx(first + 2 * each, rel=1e-12)


def test_the_benchmark_prints_a_row_for_each_size_path_and_length(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flextok_flops, "count", lambda tokenizer, tokens: (2 * tokens, tokens))
    monkeypatch.setattr(flextok_flops, "skeleton", lambda size: skeleton("d12-d12"))
    monkeypatch.setattr(sys, "argv", ["flops", "--sizes", "d18-d28", "--tokens", "1", "4"])
    flextok_flops.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == ["plain", "shared", "collapsed", "collapsed"]
    assert [row.get("tokens") for row in rows] == [None, None, 1, 4]
    assert rows[3] == {
        "size": "d18-d28",
        "path": "collapsed",
        "steps": 20,
        "tflop": (2 * 4 + 19 * 4) / 1e12,
        "tokens": 4,
    }
