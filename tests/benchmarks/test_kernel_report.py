"""The kernels compile for a GPU that is not here, and the roofline counts what PyTorch counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import kernel_report, roofline
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.triton_support import triton
from tfgen.errors import InputError, TfgenError
from tfgen.tokenizers.flextok_config import published
from tfgen.tokenizers.flextok_loading import Networks

ROOT = Path(__file__).parents[2]
KERNELS = {
    "assemble_registers",
    "residual_norm (norm)",
    "residual_norm (gate, norm)",
    "norm_heads (biased)",
    "norm_attention (biased, full)",
    "swiglu",
    "guided_step (guided, apg)",
    "guided_step (guided, apg, started)",
    "verifier_input",
    "quantise_rows",
    "channel_moments",
    "add_branches",
    "merged_moments (affine)",
    "merged_moments (affine, offset)",
    "apply_norm",
    "apply_norm (silu)",
    "guided_step",
}


@pytest.mark.skipif(triton is None, reason="there is no Triton to compile kernels with")
def test_all_kernels_compile_for_hopper_and_hardly_spill(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernel_report", "--model", "d12-d12"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path)],
        cwd=ROOT,
        env=env | {"TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "kernel_report.json").read_text())
    rows = {row["kernel"]: row for row in report["kernels"]}
    assert set(rows) == KERNELS
    attention = rows["norm_attention (biased, full)"]
    assert 0 < attention["spilled"] < 256  # bytes, while the keys are normed, before its loop
    others = [row for row in rows.values() if row is not attention]
    assert all(row["spilled"] == 0 and 0 < row["registers"] < 168 for row in others)
    tokens, dim = 2 * 64 * (256 + 5), 768
    assert rows["residual_norm (gate, norm)"]["programs"] == tokens
    moved = tokens * dim * (4 + 4 + 2 + 2)  # residual in and out, branch, result
    assert rows["residual_norm (gate, norm)"]["bytes"] == pytest.approx(moved, rel=0.01)
    assert "| swiglu |" in (tmp_path / "kernel_report.md").read_text()


COMPILE_A_TILE = """
import torch
from benchmarks import kernel_report
from tfgen.decoding.attention import Tile, norm_attention_triton

with kernel_report.recording() as found:
    qkv = torch.empty(2, 261, 3 * 128, device="meta", dtype=torch.bfloat16)
    norm_attention_triton(qkv, 2, None, 0.125, Tile(128, 8))
launches = [one for one in found.values() if one.name == "norm_attention"]
print([kernel_report.compile_launch(one, 90, 1e12).spilled for one in launches])
"""


@pytest.mark.skipif(triton is None, reason="there is no Triton to compile kernels with")
def test_attention_compiles_cut_otherwise(tmp_path: Path) -> None:
    """The interpreter takes what the compiler does not, such as a name for two shapes."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_A_TILE],
        cwd=ROOT,
        env=env | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] < 256


COMPILE_FLOAT8 = """
import torch
from benchmarks import kernel_report
from tfgen.decoding.float8 import quantise_rows_triton
from tfgen.errors import TfgenError

with kernel_report.recording() as found:
    quantise_rows_triton(torch.empty(8, 64, device="meta", dtype=torch.bfloat16))
(launch,) = found.values()
try:
    kernel_report.compile_launch(launch, 80, 1e12)
except TfgenError as error:
    print(error)
"""


@pytest.mark.skipif(triton is None, reason="there is no Triton to compile kernels with")
def test_what_a_gpu_has_not_is_told_in_a_sentence(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_FLOAT8],
        cwd=ROOT,
        env=env | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    told = "Triton does not compile quantise_rows for compute capability 8.0: "
    assert done.stdout.startswith(told) and done.stdout.count("\n") == 1, done.stderr


@pytest.mark.skipif(triton is None, reason="there is no Triton to record the launches of")
def test_a_gpu_without_fp8_has_no_drafts_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def launches(*args) -> list:
        asked.append(args[-1])
        raise TfgenError("enough")

    monkeypatch.setattr(kernel_report, "launches_of", launches)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    for arch in ("80", "90", "100"):
        monkeypatch.setattr(sys, "argv", ["kernel_report.py", "--arch", arch])
        with pytest.raises(TfgenError, match="enough"):
            kernel_report.main()
    assert asked == [False, True, True]


@pytest.mark.skipif(triton is None, reason="there is no Triton to be set to interpret")
def test_interpreted_kernels_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["kernel_report.py"])
    with pytest.raises(InputError, match="unset TRITON_INTERPRET"):
        kernel_report.main()


def test_the_roofline_has_the_flops_that_pytorch_counts() -> None:
    config, samples, registers = published("d18-d28"), 3, 5
    with torch.device("meta"), torch.no_grad():
        tokenizer = FusedFlexTok(Networks(config).eval())
        latents = torch.empty(samples, config.grid**2, config.patch**2 * config.channels)
        rows = torch.empty(samples, registers, config.decoder.dim)
        bias = torch.empty(samples, config.grid**2 + registers)
        modulation = tokenizer.decoder.modulation(torch.ones(1))
        with FlopCounterMode(display=False) as counter:
            tokenizer.fused(latents, rows, bias, modulation)
    counted = sum(op.flops * op.times for op in roofline.evaluation(config, samples, registers))
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_a_prediction_is_the_slower_of_flops_and_bytes() -> None:
    ops = [roofline.Operation("a", 8e12, 1e9, 2), roofline.Operation("b", 1e9, 5e12)]
    (_, first, by_bytes), (_, second, also) = roofline.predicted(ops, (4e12, 1e12))
    assert (first, by_bytes, second, also) == (4.0, False, 5.0, True)


def test_a_whole_decode_is_predicted_from_its_parts() -> None:
    config, rates = published("d12-d12"), (1e12, 1e30)  # so that FLOPs decide
    whole = roofline.decode(config, 2, 5, 3, rates)
    flops = sum(op.flops * op.times for op in roofline.evaluation(config, 2, 5))
    # Of one conditional evaluation in the first step, and both in two more.
    assert whole["evaluations"] == pytest.approx(5 * flops / 1e12, rel=1e-6)
    assert whole["VAE"] == pytest.approx(2 * 0.622, rel=0.01)  # TFLOP, counted for the spec
    bound = roofline.decode(config, 2, 5, 3, (1e30, 1e12))
    numbers = 2 * config.channels * config.grid**2 * config.patch**2
    assert bound["guidance"] == pytest.approx(3 * 6 * 4 * numbers / 1e12, rel=1e-6)
    assert bound["VAE"] == pytest.approx(2 * 2 * 857e6 / 1e12, rel=0.1)
