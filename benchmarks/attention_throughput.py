"""Which attention is fastest for FlexTok's decoder: PyTorch's, or the kernel of ours, how cut?

    python -m benchmarks.attention_throughput    # d18-d28 on a GPU, a tiny one on a CPU
    python -m benchmarks.attention_throughput --model d12-d12 -o benchmarks/results

Each variant gets the same random product of a block's weights and gives what the block multiplies
next, so norms of heads and the bias of keys are in its time. `sdpa` is PyTorch's attention after
the kernel `norm_heads`, as the decoder has it; `sdpa-...` is that with one of its backends. `head`
is our kernel, with the norms inside, cut in several ways. A variant that this device or PyTorch
refuses is told as such. Errors are from float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tfgen.decoding.attention import Tile, norm_attention_reference, norm_attention_triton
from tfgen.decoding.kernels import attention
from tfgen.decoding.triton_support import triton
from tfgen.errors import finite_number, whole_number
from tfgen.pipeline import DEVICES, find_device
from tfgen.tokenizers.flextok_config import SIZES, published
from tfgen.tokenizers.flextok_model import MUP

from . import harness
from .decoder_throughput import TINY
from .throughput import device_name, rates, seconds, write

QUESTION = __doc__.splitlines()[0]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TILES = [
    Tile(queries, warps, stages)
    for (queries, warps), stages in product(((64, 4), (64, 8), (128, 8)), (1, 2, 3))
]
CALLS = 20  # between two looks at the clock
CHECKED = 4  # samples that are computed in float64, too

Attend = Callable[[Tensor, int, Tensor | None, float], Tensor]


def through(
    backend: SDPBackend, qkv: Tensor, heads: int, bias: Tensor | None, scale: float
) -> Tensor:
    with sdpa_kernel(backend):
        return attention(qkv, heads, bias, scale)


def variants(triton_runs: bool) -> dict[str, Attend]:
    """All that are compared, by name."""
    found: dict[str, Attend] = {"sdpa": attention}
    found |= {f"sdpa-{name}": partial(through, kind) for name, kind in BACKENDS.items()}
    if not triton_runs:
        return found
    for tile in TILES:
        name = f"head, {tile.queries} queries, {tile.warps} warps, {tile.stages} stages"
        found[name] = partial(norm_attention_triton, tile=tile)
    return found


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time all variants: what goes into the JSON file."""
    device, config = args.device, args.config
    trunk, registers = config.decoder, args.tokens + 1
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    seen = config.grid**2 + registers
    heads, scale = trunk.dim // trunk.head_dim, MUP / trunk.head_dim
    torch.manual_seed(0)
    qkv = torch.randn(args.samples, seen, 3 * trunk.dim, device=device).to(dtype)
    bias = torch.zeros(args.samples, seen, device=device)
    bias[:, -1] = 4.0  # as of a row that stands for many
    some = qkv[:CHECKED].double(), heads, bias[:CHECKED].double(), scale
    exact = norm_attention_reference(*some)
    flops = 4 * args.samples * seen**2 * trunk.dim
    matmul, bandwidth = rates(device, dtype, args.seconds)
    rows = []
    for name, attend in variants(device.type == "cuda" and triton is not None).items():
        calls = CALLS if device.type == "cuda" else 1

        def work(attend: Attend = attend, calls: int = calls) -> None:
            for _ in range(calls):
                attend(qkv, heads, bias, scale)

        try:
            error = (attend(*(qkv[:CHECKED], heads, bias[:CHECKED], scale)) - exact).abs().mean()
            took = seconds(work, device, args.seconds) / calls
        except Exception as refusal:  # of many kinds: no backend, no registers, no shared memory
            why = str(refusal).strip().splitlines() or [type(refusal).__name__]
            rows.append({"variant": name, "refused": why[0]})
            continue
        rows.append(
            {
                "variant": name,
                "microseconds": took * 1e6,
                "tflops": flops / took / 1e12,
                "error": (error / exact.abs().mean()).item(),
            }
        )
    settings = {"model": args.model, "samples": args.samples, "rows": seen, "heads": heads}
    return {
        "settings": settings | {"head_dim": trunk.head_dim, "device": device_name(device)},
        "matmul_tflops": matmul / 1e12,
        "bandwidth_tb": bandwidth / 1e12,
        "variants": rows,
    }


def report(found: dict[str, Any]) -> str:
    timed = [row for row in found["variants"] if "refused" not in row]
    usual = timed[0]["microseconds"]
    table = [
        [
            row["variant"],
            f"{row['microseconds']:,.1f}",
            f"{usual / row['microseconds']:.2f}x",
            f"{row['tflops']:,.2f}",
            f"{row['tflops'] / found['matmul_tflops']:.1%}",
            f"{row['error']:.1e}",
        ]
        for row in sorted(timed, key=lambda row: row["microseconds"])
    ]
    told = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    columns = ["variant", "microseconds", f"against {timed[0]['variant']}", "TFLOP/s"]
    columns += ["of a matrix product", "error"]
    parts = [f"{told}; a call each.", harness.markdown(columns, table)]
    refused = [row for row in found["variants"] if "refused" in row]
    if refused:
        lines = [[row["variant"], row["refused"][:100].replace("|", "/")] for row in refused]
        parts.append(harness.markdown(["refused", "why"], lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION, allow_abbrev=False)
    add = parser.add_argument
    add("--model", choices=["tiny", *SIZES], help="(default: d18-d28 on CUDA, else tiny)")
    add("--samples", type=int, metavar="N", help="with both conditions (128 on CUDA, else 2)")
    add("--tokens", type=int, default=4, metavar="K", help="length of the prefixes (4)")
    add("--device", default="auto", choices=DEVICES, help="(auto)")
    add("--seconds", type=float, default=0.2, help="of each measurement, at least (0.2)")
    add("-o", "--output", type=Path, metavar="DIR", help="write NAME.json and NAME.md there")
    add("--name", default="attention_throughput", help="of these files (attention_throughput)")
    args = parser.parse_args()
    args.device = find_device(args.device)
    on_gpu = args.device.type == "cuda"
    args.model = args.model or ("d18-d28" if on_gpu else "tiny")
    args.samples = (128 if on_gpu else 2) if args.samples is None else args.samples
    args.config = TINY if args.model == "tiny" else published(args.model)
    whole_number("--samples", args.samples, 1)
    whole_number("--tokens", args.tokens, 1, args.config.num_tokens)
    finite_number("--seconds", args.seconds, 0)
    found = run(args)
    text = report(found)
    print(text)
    if args.output:
        write(args.output, args.name, QUESTION, found, text)


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
