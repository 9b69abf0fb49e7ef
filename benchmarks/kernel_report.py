"""What do the decoder's kernels ask of a GPU: registers, spills, bytes, and the time predicted?

    python -m benchmarks.kernel_report                    # the largest FlexTok, for an H100 or H200
    python -m benchmarks.kernel_report --model d12-d12 --batch 128 --arch 100

Needs Triton and no GPU: a decode is run through on the meta device, where nothing is computed; the
launches of each kernel are recorded as they would be on a GPU, and compiled for it by Triton and
ptxas. A spill is a number that finds no register and goes through memory. Predicted are bytes over
bandwidth, for kernels, and the larger of that and FLOPs over rate, for what PyTorch does between
them; all of it is to be checked on the device (decoder_throughput).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tfgen.decoding import (
    attention,
    float8,
    group_norm,
    kernels,
    picture_kernels,
    sampling_kernels,
    vae_step,
)
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.triton_support import FLOAT8_SINCE, triton
from tfgen.errors import InputError, TfgenError, whole_number
from tfgen.tokenizers.flextok_config import SIZES, FlexTokConfig, published
from tfgen.tokenizers.flextok_loading import Networks

from . import harness, roofline

QUESTION = __doc__.splitlines()[0]
MODULES = (
    kernels,
    attention,
    sampling_kernels,
    picture_kernels,
    group_norm,
    vae_step,
    float8,
)
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
}
STEPS = 20
CLIP = {  # preprocessing of OpenAI's and LAION's ViT
    "size": 224,
    "mean": (0.481, 0.458, 0.408),
    "std": (0.269, 0.261, 0.276),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Launch:
    """One kernel as it was launched: what Triton compiles it for, and what it moves."""

    name: str
    kernel: Any
    arguments: tuple[tuple[str, Any], ...]  # tensors as (type, whether 16 divides the address)
    options: tuple[tuple[str, Any], ...]
    programs: int
    bytes: int


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of a kernel."""

    kernel: str
    warps: int
    programs: int
    registers: int
    spilled: int  # bytes, stores and loads of a thread
    shared: int  # bytes of a program
    occupancy: float  # share of the warps that a multiprocessor holds, as registers allow
    bytes: int
    microseconds: float  # predicted, from bytes alone


class Recorder:
    """In the place of a kernel: keeps its launches and computes nothing."""

    def __init__(self, name: str, kernel: Any, launches: dict[Any, Launch]) -> None:
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*values: Any, num_warps: int, num_stages: int = 3, **constants: Any) -> None:
            named = dict(zip(self.kernel.arg_names, values, strict=False)) | constants
            arguments = tuple((name, _described(value)) for name, value in named.items())
            tensors = {id(value): value for value in values if isinstance(value, Tensor)}
            programs = 1
            for size in grid:
                programs *= size
            found = Launch(
                self.name,
                self.kernel,
                arguments,
                (("num_warps", num_warps), ("num_stages", num_stages)),
                programs,
                sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            )
            self.launches.setdefault((self.name, arguments, found.bytes), found)

        return launch


def _described(value: Any) -> Any:
    return ("tensor", TYPES[value.dtype]) if isinstance(value, Tensor) else value


@contextmanager
def recording() -> Iterator[dict[Any, Launch]]:
    """Kernels run on every device, and are only recorded."""
    launches: dict[Any, Launch] = {}
    patches = [patch.object(module, "fused", lambda x: True) for module in MODULES]
    for module in MODULES:
        for name, value in vars(module).items():
            if hasattr(value, "arg_names"):
                label = name.strip("_").removesuffix("_kernel")
                patches.append(patch.object(module, name, Recorder(label, value, launches)))
    for change in patches:
        change.start()
    try:
        yield launches
    finally:
        for change in reversed(patches):
            change.stop()


def launches_of(
    config: FlexTokConfig,
    batch: int,
    tokens: int,
    dtype: torch.dtype,
    residual: torch.dtype,
    float8: bool = True,
) -> list[Launch]:
    """Of a guided decode, from tokens to a CLIP's input, of a draft in FP8 where there is such, and
    of the attention kernel, which does not decode yet."""
    with torch.device("meta"):
        networks = Networks(config).eval().requires_grad_(False)
        networks.decoder.blocks.to(dtype)
        networks.vae.to(dtype).to(memory_format=torch.channels_last)
        tokenizer = FusedFlexTok(networks, residual=residual)
        prefixes = torch.zeros(batch, tokens, dtype=torch.int64)
    plan = picture_kernels.InputPlan.for_clip(CLIP, config.image_size, torch.device("cpu"))
    with recording() as found:
        latents = tokenizer.decode_latents(prefixes, steps=3)
        tokenizer.vae.decode(latents)
        if float8:
            tokenizer.in_float8().decode_latents(prefixes, steps=1, guidance=1.0)
        tokenizer.fused.attend = attention.norm_attention_triton
        tokenizer.decode_latents(prefixes, steps=1)
        pictures = torch.empty(batch, 3, config.image_size, config.image_size, device="meta")
        picture_kernels.verifier_input(pictures, plan, torch.float16, (-1.0, 1.0))
    largest: dict[Any, Launch] = {}  # of a kernel in one form, such as with and without momentum
    for launch in found.values():
        form = (launch.name, tuple(pair for pair in launch.arguments if pair[0].isupper()))
        if form not in largest or launch.bytes > largest[form].bytes:
            largest[form] = launch
    return list(largest.values())


def compile_launch(launch: Launch, arch: int, bytes_rate: float) -> Compiled:
    """Compile a kernel for the compute capability arch / 10. Raises TfgenError where it fails."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.errors import TritonError

    signature, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate(launch.arguments):
        if isinstance(value, tuple):
            signature[name] = f"*{value[1]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif name.isupper() or value == 1:  # what Triton makes a constant, too
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", arch, 32)
    try:
        made = triton.compile(source, target=target, options=dict(launch.options))
    except (TritonError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise TfgenError(
            f"Triton does not compile {launch.name} for compute capability {arch / 10:.1f}: {why}"
        ) from error
    registers, spilled = _ptxas(made.asm["ptx"], arch)
    warps = made.metadata.num_warps
    held = min(64, 65536 // (max(registers, 16) * 32) // warps * warps)
    label = ", ".join(
        name.lower() for name, value in launch.arguments if name.isupper() and value is True
    )
    return Compiled(
        f"{launch.name} ({label})" if label else launch.name,
        warps,
        launch.programs,
        registers,
        spilled,
        made.metadata.shared,
        held / 64,
        launch.bytes,
        launch.bytes / bytes_rate * 1e6,
    )


def _ptxas(ptx: str, arch: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills."""
    program = triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
    target = re.search(r"\.target (\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        done = subprocess.run(
            [program.path, "-v", f"--gpu-name={target[1] if target else f'sm_{arch}'}", str(path)]
            + ["-o", str(path.with_suffix(".cubin"))],
            capture_output=True,
            text=True,
        )
    used = re.search(r"Used (\d+) registers", done.stderr)
    if done.returncode or not used:
        raise TfgenError(f"ptxas failed for sm_{arch}: {done.stderr.strip().splitlines()[-1:]}.")
    return int(used[1]), sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION, allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="d18-d28", choices=SIZES, help="(default: d18-d28)")
    add("--batch", type=int, default=64, metavar="N", help="candidates decoded together (64)")
    add("--tokens", type=int, default=4, metavar="K", help="length of the prefixes (4)")
    add("--residual", default="float32", choices=("float32", "bfloat16"), help="(float32)")
    add("--arch", type=int, default=90, metavar="CC", help="compute capability x 10 (90: Hopper)")
    add("--tflops", type=float, default=roofline.H200[0] / 1e12, help="bfloat16 rate (790)")
    add("--bandwidth", type=float, default=roofline.H200[1] / 1e12, help="TB/s (4.3)")
    add("-o", "--output", type=Path, metavar="DIR", help="write kernel_report.json and .md there")
    args = parser.parse_args()
    whole_number("--batch", args.batch, 1)
    whole_number("--tokens", args.tokens, 1, 256)
    if triton is None or triton.knobs.runtime.interpret:
        raise InputError(
            "Kernels are compiled by Triton, which is missing or set to interpret: install torch "
            "for CUDA, and unset TRITON_INTERPRET."
        )
    rates = (args.tflops * 1e12, args.bandwidth * 1e12)
    config, residual = published(args.model), getattr(torch, args.residual)
    float8 = divmod(args.arch, 10) >= FLOAT8_SINCE
    launches = launches_of(config, args.batch, args.tokens, torch.bfloat16, residual, float8)
    compiled = [compile_launch(launch, args.arch, rates[1]) for launch in launches]
    parts = roofline.evaluation(
        config, 2 * args.batch, min(args.tokens + 1, 256), 2, residual.itemsize
    )
    whole = roofline.decode(
        config, args.batch, min(args.tokens + 1, 256), STEPS, rates, 2, residual.itemsize
    )
    text = report(compiled, parts, whole, rates, args)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        made = harness.record(argparse.Namespace(jobs=1))
        operations = [
            asdict(op) | {"seconds": seconds} for op, seconds, _ in roofline.predicted(parts, rates)
        ]
        rows = {
            "kernels": [asdict(row) for row in compiled],
            "evaluation": operations,
            "decode_seconds": whole,
        }
        settings = {"model": args.model, "batch": args.batch, "tokens": args.tokens}
        data = json.dumps({"made": made, "settings": settings, **rows}, indent=1)
        harness.write_whole(args.output / "kernel_report.json", data.encode() + b"\n")
        page = (
            f"# {QUESTION}\n\n{text}\n\nMade by `{made['command']}`, {made['date']}; "
            + ", ".join(
                f"{name} {version}" for name, version in made["versions"].items() if version
            )
        )
        harness.write_whole(args.output / "kernel_report.md", page.encode() + b"\n")


def report(
    compiled: list[Compiled],
    parts: list[roofline.Operation],
    whole: dict[str, float],
    rates: tuple[float, float],
    args: argparse.Namespace,
) -> str:
    """Two tables: the kernels compiled, and an evaluation predicted."""
    kernels_table = harness.markdown(
        ["kernel", "programs", "warps", "registers", "spilled", "shared", "occupancy", "MB", "µs"],
        [
            [
                row.kernel,
                f"{row.programs:,}",
                str(row.warps),
                str(row.registers),
                f"{row.spilled} B",
                f"{row.shared} B",
                f"{row.occupancy:.0%}",
                f"{row.bytes / 1e6:,.1f}",
                f"{row.microseconds:,.0f}",
            ]
            for row in compiled
        ],
    )
    rows = roofline.predicted(parts, rates)
    total = sum(seconds for _, seconds, _ in rows)
    parts_table = harness.markdown(
        ["operation", "times", "GFLOP", "MB", "ms", "share", "bound by"],
        [
            [
                op.name,
                str(op.times),
                f"{op.flops * op.times / 1e9:,.0f}",
                f"{op.bytes * op.times / 1e6:,.0f}",
                f"{seconds * 1e3:.2f}",
                f"{seconds / total:.1%}",
                "memory" if by_bytes else "compute",
            ]
            for op, seconds, by_bytes in rows
        ],
    )
    busy = sum(op.flops * op.times for op, _, _ in rows) / rates[0]
    head = (
        f"{args.model}, {args.batch} candidates with prefixes of {args.tokens} tokens, guided: "
        f"{2 * args.batch} evaluations in a batch; bfloat16, residual {args.residual}; compiled "
        f"for compute capability {args.arch / 10:.1f}; predicted for {rates[0] / 1e12:.0f} TFLOP/s "
        f"and {rates[1] / 1e12:.1f} TB/s, nothing measured."
    )
    foot = (
        f"One evaluation of the batch: {total * 1e3:.1f} ms predicted, {busy / total:.0%} of it "
        f"FLOPs at full rate; {total / args.batch * 1e3:.3f} ms a candidate and step. A decode of "
        f"{STEPS} steps, without the verifier: {sum(whole.values()) / args.batch * 1e3:.1f} ms a "
        "candidate, of them "
        + ", ".join(f"{name} {s / args.batch * 1e3:.2f}" for name, s in whole.items())
        + " (the VAE in bfloat16)."
    )
    return "\n\n".join([head, kernels_table, parts_table, foot])


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
