"""The comparison of attentions at toy size on the CPU, where only PyTorch's run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import attention_throughput
from tfgen.errors import InputError


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["attention_throughput.py", *map(str, options)])
    attention_throughput.main()


def test_what_runs_is_timed_and_what_does_not_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(monkeypatch, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    found = json.loads((tmp_path / "attention_throughput.json").read_text())
    rows = {row["variant"]: row for row in found["variants"]}
    assert set(rows) == {"sdpa", *(f"sdpa-{name}" for name in attention_throughput.BACKENDS)}
    for name in ("sdpa", "sdpa-math"):
        assert rows[name]["microseconds"] > 0 and rows[name]["error"] < 1e-5
    assert "cudnn" in rows["sdpa-cudnn"]["variant"] and rows["sdpa-cudnn"]["refused"]
    page = (tmp_path / "attention_throughput.md").read_text()
    assert "| sdpa-math |" in page and "| refused | why |" in page


def test_a_wrong_attention_has_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def without_bias(qkv: Tensor, heads: int, bias: Tensor | None, scale: float) -> Tensor:
        return attention_throughput.attention(qkv, heads, None, scale)

    monkeypatch.setattr(attention_throughput, "variants", lambda _: {"wrong": without_bias})
    run(monkeypatch, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    found = json.loads((tmp_path / "attention_throughput.json").read_text())
    assert found["variants"][0]["error"] > 1e-2


def test_a_refusal_without_words_is_told_by_its_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> Tensor:
        raise MemoryError

    usual = attention_throughput.attention
    monkeypatch.setattr(
        attention_throughput, "variants", lambda _: {"sdpa": usual, "large": refused}
    )
    run(monkeypatch, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    found = json.loads((tmp_path / "attention_throughput.json").read_text())
    assert found["variants"][1] == {"variant": "large", "refused": "MemoryError"}


def test_with_triton_every_cut_of_the_kernel_is_compared() -> None:
    names = list(attention_throughput.variants(True))
    assert len(names) == 5 + len(attention_throughput.TILES)
    assert sum(name.startswith("head") for name in names) == len(attention_throughput.TILES)


@pytest.mark.parametrize(("option", "value"), [("--samples", 0), ("--tokens", 17)])
def test_options_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, option: str, value: int
) -> None:
    with pytest.raises(InputError, match=option):
        run(monkeypatch, option, value, "--device", "cpu")
