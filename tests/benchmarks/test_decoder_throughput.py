"""The throughput benchmark at toy size on the CPU: what it measures, writes and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import decoder_throughput, sprites_throughput
from tfgen.errors import InputError


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["decoder_throughput.py", *map(str, options)])
    decoder_throughput.main()


def test_both_engines_are_measured_in_one_run_and_decode_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ("--batch", 2, "--tokens", 3, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    run(monkeypatch, *options)
    found = json.loads((tmp_path / "decoder_throughput.json").read_text())
    assert found["settings"]["model"] == "tiny"
    eager, kernels = found["engines"]
    assert (eager["engine"], kernels["engine"]) == ("eager", "kernels")
    assert kernels["latent_error"] < 1e-4
    for row in (eager, kernels):
        # What an evaluation takes is a difference of two times; of so small a model it is noise.
        assert row["decoded"] > 0 and isinstance(row["evaluation_ms"], float)
        useful = found["gflop_per_candidate"] * row["decoded"] / 1e3
        assert row["tflops"] == pytest.approx(useful)
        assert row["matmul_share"] == pytest.approx(useful / found["matmul_tflops"])
        assert found["profiles"][row["engine"]][0][2] > 0
    assert found["vae_error_levels"] == 0
    assert {row["name"] for row in found["roofline"]} >= {"q, k, v", "attention", "swiglu"}
    page = (tmp_path / "decoder_throughput.md").read_text()
    assert capsys.readouterr().out.strip() in page
    assert "| kernels |" in page and "Made by `" in page


def test_a_bfloat16_vae_and_stream_cost_precision_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--batch", 1, "--steps", 1, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    run(monkeypatch, *options, "--vae", "bfloat16", "--residual", "bfloat16")
    found = json.loads((tmp_path / "decoder_throughput.json").read_text())
    assert 0 < found["vae_error_levels"] < 5
    assert 1e-4 < found["engines"][1]["latent_error"] < 0.1


def test_torch_compile_and_float8_may_be_measured_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(decoder_throughput, "COMPILER", "eager")  # needs no C++ compiler
    options = ("--batch", 2, "--steps", 2, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    run(monkeypatch, *options, "--engines", "float8", "compile", "eager")
    found = json.loads((tmp_path / "decoder_throughput.json").read_text())
    eager, compiled, float8 = found["engines"]
    names = [row["engine"] for row in found["engines"]]
    assert names == ["eager", "compile", "float8"]
    assert eager["latent_error"] == 0
    assert compiled["latent_error"] < 1e-4
    assert 1e-3 < float8["latent_error"] < 0.3


def test_the_sprites_are_measured_with_their_verifier(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sprites_throughput, "PASSES", 2)
    options = ("--batch", 2, "--runs", 1, "--seconds", 0, "--device", "cpu", "-o", tmp_path)
    run(monkeypatch, "--model", "sprites", *options)
    found = json.loads((tmp_path / "decoder_throughput.json").read_text())
    eager, kernels = found["engines"]
    assert (eager["engine"], kernels["engine"]) == ("eager", "kernels")
    assert found["settings"]["verifier"] == "sprites-clip"
    for row in (eager, kernels):
        assert row["batch"] == 2 and row["scored"] > 0
        assert row["tflops"] == pytest.approx(found["gflop_per_candidate"] * row["decoded"] / 1e3)
        assert row["latent_error"] < 1e-4
    assert "| kernels | 2 |" in (tmp_path / "decoder_throughput.md").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--batch", 0), "--batch must be a whole number from 1 up"),
        (("--steps", 0), "--steps must be a whole number from 1 up"),
        (("--tokens", 17), "--tokens must be a whole number from 1 to 16"),
        (("--seconds", -1), "--seconds must be a finite number from 0 up"),
        (("--verifier", "ViT-L-15", "--seconds", 0), "did you mean 'ViT-L-14'"),
    ],
)
def test_options_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: tuple, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        run(monkeypatch, *options, "--device", "cpu", "--model", "tiny")
