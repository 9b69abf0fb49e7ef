"""Time on one device: a call, its kernels, what the device can do; and tables made of these.

What decoder_throughput and attention_throughput share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import harness

LISTED = 16  # lines of the profile


@dataclass(frozen=True)
class Measured:
    """What one engine does."""

    engine: str
    decoded: float  # candidates a second, pictures
    scored: float | None  # candidates a second, embeddings of the verifier
    evaluation_ms: float  # of one sample's velocity, conditional or not
    tflops: float  # of useful work, decoding
    matmul_share: float
    peak_gb: float | None  # on a GPU
    latent_error: float  # mean distance of its latents from those of eager, over their deviation
    batch: int  # candidates decoded together
    rank: float | None = None  # correlation of its scores with those of the kernels


def seconds(
    work: Callable[[], Any], device: torch.device, least: float, runs: int = 3, warm: int = 1
) -> float:
    """Median time of `work`, over at least `runs` runs and `least` seconds, after `warm` of them
    that warm up."""
    times: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize()
    for _ in range(1000):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if len(times) >= warm + runs and sum(times[warm:]) > least:
            break
    return statistics.median(times[warm:])


def rates(device: torch.device, dtype: torch.dtype, least: float) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and bytes/s of a copy, on this device."""
    side, size = (8192, 2**29) if device.type == "cuda" else (512, 2**22)
    a = torch.randn(side, side, device=device).to(dtype)
    product = seconds(lambda: a @ a, device, least)
    b = torch.empty(size, dtype=torch.uint8, device=device)
    c = torch.empty_like(b)
    return 2 * side**3 / product, 2 * size / seconds(lambda: c.copy_(b), device, least)


def forget_peak(device: torch.device) -> None:
    """From here on the peak of memory counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float | None:
    """GB that were allocated at once since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def profile(work: Callable[[], Any], device: torch.device) -> list[tuple[str, int, float]]:
    """What one run spends its time in: kernel or operation, calls, ms; the largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profiling(activities=activities) as found:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    rows = [
        (
            event.key,
            event.count,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3,
        )
        for event in found.key_averages()
    ]
    return sorted(rows, key=lambda row: -row[2])[:LISTED]


def report(found: dict[str, Any], rows: list[Measured]) -> str:
    """The tables of the page."""
    base = next((row for row in rows if row.engine == "eager"), None)
    columns = ["engine", "batch", "decoded/s", "scored/s", "against eager", "ms an evaluation"]
    columns += ["useful TFLOP/s", "of a matrix product", "peak memory", "error", "rank"]
    table = [
        [
            row.engine,
            str(row.batch),
            f"{row.decoded:,.2f}",
            "" if row.scored is None else f"{row.scored:,.2f}",
            f"{row.decoded / base.decoded:.2f}x" if base else "",
            f"{row.evaluation_ms:.3f}",
            f"{row.tflops:.3f}",
            f"{row.matmul_share:.1%}",
            "" if row.peak_gb is None else f"{row.peak_gb:.1f} GB",
            f"{row.latent_error:.1e}",
            "" if row.rank is None else f"{row.rank:.3f}",
        ]
        for row in rows
    ]
    told = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    head = (
        f"{told}. Measured here: {found['matmul_tflops']:,.2f} TFLOP/s in a matrix product, "
        f"{found['bandwidth_tb']:.3f} TB/s in a copy. Useful work is "
        f"{found['gflop_per_candidate']:,.1f} GFLOP a candidate. "
    )
    if "vae_error_levels" in found:
        head += (
            f"The VAE's pictures are {found['vae_error_levels']:.2f} of 255 levels from those of "
            "float32. Error: of the latents, relative to their deviation, from eager's. Rank: "
            "correlation of the scores with those of the kernels."
        )
    else:
        head += "Error: of the embeddings, relative to their deviation, from eager's."
    parts = [head, harness.markdown(columns, table)]
    for name, lines in found["profiles"].items():
        total = sum(line[2] for line in lines)
        spent = [
            [key[:60].replace("|", "/"), str(count), f"{ms:,.2f}", f"{ms / total:.1%}"]
            for key, count, ms in lines
        ]
        parts.append(f"One decode, {name}: the {len(lines)} largest.")
        parts.append(harness.markdown(["kernel", "calls", "ms", "share of these"], spent))
    if not found["roofline"]:
        return "\n\n".join(parts)
    parts.append("One evaluation of both conditions, predicted from the rates above.")
    operations = [
        [
            row["name"],
            str(row["times"]),
            f"{row['flops'] * row['times'] / 1e9:,.2f}",
            f"{row['bytes'] * row['times'] / 1e6:,.2f}",
            f"{row['seconds'] * 1e3:.3f}",
        ]
        for row in found["roofline"]
    ]
    columns = ["operation", "times", "GFLOP", "MB", "ms"]
    parts.append(harness.markdown(columns, operations))
    return "\n\n".join(parts)


def write(folder: Path, name: str, question: str, found: dict[str, Any], text: str) -> None:
    """JSON and page, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    made = harness.record(argparse.Namespace(jobs=1))
    data = json.dumps({"made": made, **found}, indent=1)
    harness.write_whole(folder / f"{name}.json", data.encode() + b"\n")
    versions = ", ".join(f"{name} {value}" for name, value in made["versions"].items() if value)
    page = f"# {question}\n\n{text}\n\nMade by `{made['command']}`, {made['date']}; {versions}\n"
    harness.write_whole(folder / f"{name}.md", page.encode())
