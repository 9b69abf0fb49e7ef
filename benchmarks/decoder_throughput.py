"""How many candidates a second does FlexTok decode, through the kernels and without them?

    python -m benchmarks.decoder_throughput      # d18-d28 on a GPU, a tiny one on a CPU
    python -m benchmarks.decoder_throughput --model d12-d12 --batch 128 --steps 10 --tokens 1
    python -m benchmarks.decoder_throughput --residual bfloat16 --vae bfloat16 -o benchmarks/results
    python -m benchmarks.decoder_throughput --model sprites --batch 512

Weights are random, of the published sizes: time does not depend on them. All engines run in the
same process, one after the other, on the same tokens, so that their ratio means something; `eager`
is `FlexTok`, `kernels` is `FusedFlexTok`, `attention` is that with an attention kernel of ours,
`compile` is `FlexTok` with its blocks through torch.compile, and `float8` is `FusedFlexTok` with
the products of its blocks in FP8, which only drafts are made with; how alike they rank is told, by
scores along a random direction of the verifier's. `sprites` is the packaged tokenizer with the
packaged verifier: a batch is then one of several passes that are given to an engine together.
Useful work is counted as benchmarks.flextok_flops does, without what is redundant. Shares are of
what this device does in the same run: a large matrix product in the decoder's dtype, and a copy.
Where the time went is what torch's profiler says of one decode; where it should have gone is the
roofline at the measured rates (benchmarks.roofline).
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfgen import hub
from tfgen.decoding.attention import TILE, Tile, norm_attention
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.kernel_engine import KernelEngine
from tfgen.errors import finite_number, unknown, whole_number
from tfgen.pipeline import DEVICES, find_device
from tfgen.search import Engine, PlainEngine
from tfgen.search.screening import rank_correlation
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_config import SIZES, FlexTokConfig, Trunk, published
from tfgen.tokenizers.flextok_loading import Networks
from tfgen.verifiers.base import Verifier

from . import harness, roofline, sprites_throughput
from .flextok_flops import decode_flops
from .throughput import (
    Measured,
    device_name,
    forget_peak,
    peak_gb,
    profile,
    rates,
    report,
    seconds,
    write,
)

QUESTION = __doc__.splitlines()[0]
ENGINES = ("eager", "kernels", "attention", "compile", "float8")
USUAL = ("eager", "kernels")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TINY = FlexTokConfig(  # the sizes of tests/vectors/flextok_tiny
    Trunk(64, 2, 32),
    Trunk(64, 2, 32),
    num_tokens=16,
    encoder_table=(4, 4),
    decoder_table=(4, 4),
    vae={"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
)
COMPILER = "inductor"


def make(config: FlexTokConfig, device: torch.device, dtype: torch.dtype, vae: torch.dtype):
    """A FlexTok with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        networks = Networks(config).eval().requires_grad_(False)
    networks.decoder.blocks.to(dtype)
    networks.vae.to(vae).to(memory_format=torch.channels_last)
    return FlexTok(networks)


def engine_of(name: str, tokenizer: FlexTok, residual: torch.dtype, tile: Tile = TILE) -> FlexTok:
    if name == "eager":
        return tokenizer
    if name == "compile":
        compiled = copy.copy(tokenizer)
        decoder = compiled.decoder = copy.copy(tokenizer.decoder)
        decoder._modules = dict(decoder._modules)
        decoder.blocks = nn.ModuleList(copy.copy(block) for block in decoder.blocks)
        for block in decoder.blocks:  # one compilation for all, where the whole takes minutes
            block.compile(dynamic=False, backend=COMPILER)
        return compiled
    fused = FusedFlexTok.of(tokenizer, residual)
    if name == "attention":
        fused.fused = copy.copy(fused.fused)
        fused.fused.attend = partial(norm_attention, tile=tile)
    return fused.in_float8() if name == "float8" else fused


def measure(
    name: str,
    tokenizer: FlexTok,
    verifier: Verifier | None,
    tokens: Tensor,
    reference: Tensor | None,
    flops: float,
    matmul: float,
    least: float,
    runs: int,
) -> tuple[Measured, Tensor, Tensor | None]:
    """Times of one engine, its latents and what the verifier embeds of its pictures. reference: the
    latents of eager, perhaps of fewer candidates; flops: of a candidate."""
    device, sampling = tokenizer.device, tokenizer.sampling
    forget_peak(device)
    settings = {"steps": sampling.steps, "guidance": sampling.guidance, "apg": sampling.apg}
    latents = tokenizer.decode_latents(tokens, **settings)
    pictured = seconds(lambda: tokenizer.pictures(latents), device, 0, runs)
    decoded = seconds(lambda: tokenizer.decode(tokens), device, least, runs, warm=0)  # it is warm
    scored, seen = None, None
    if verifier is not None:
        plain = name in ("eager", "compile")
        engine: Engine = (
            PlainEngine(tokenizer, verifier)
            if plain
            else KernelEngine(tokenizer, verifier, rows=len(tokens))
        )

        def score() -> None:
            nonlocal seen
            seen = engine.embed([tokens])[0]

        warm = 1 if plain else 2  # a graph is recorded in the second
        scored = len(tokens) / seconds(score, device, least, runs, warm)
    evaluations = sampling.steps * (2 if sampling.guided else 1)
    reference = latents if reference is None else reference
    shared = min(len(latents), len(reference))
    error = (latents[:shared] - reference[:shared]).abs().mean() / reference.std()
    useful = flops * len(tokens) / decoded
    row = Measured(
        name,
        len(tokens) / decoded,
        scored,
        (decoded - pictured) / len(tokens) / evaluations * 1e3,
        useful / 1e12,
        useful / matmul,
        peak_gb(device),
        error.item(),
        len(tokens),
    )
    return row, latents, seen


def vae_error(tokenizer: FlexTok, latents: Tensor) -> float:
    """Mean distance, in 8-bit levels, of the VAE's pictures from those of float32."""
    exact = copy.copy(tokenizer)
    exact.vae = copy.deepcopy(tokenizer.vae).float()
    some = latents[:8]
    return 255 * (tokenizer.pictures(some) - exact.pictures(some)).abs().mean().item()


def random_verifier(name: str, device: torch.device) -> Verifier | None:
    """A packaged verifier, or an open_clip model of that architecture with random weights."""
    if name == "none":
        return None
    if name in hub.MODELS:
        return hub.load_verifier(name, device, "cosine")
    import open_clip

    from tfgen.verifiers.clip import GENERAL_WORDS, ClipVerifier
    from tfgen.verifiers.contrast import ContrastWords

    if name not in open_clip.list_models():
        raise unknown("open_clip model", name, ["none", "ViT-L-14", "ViT-H-14", "ViT-B-32"])
    with torch.device(device):  # random numbers for a large one take a CPU many seconds
        model = open_clip.create_model(name, device=device)
    words = ContrastWords.load(GENERAL_WORDS)
    return ClipVerifier(model, open_clip.get_tokenizer(name), words, name=name, score="cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--model",
        choices=["tiny", "sprites", *SIZES],
        help="(default: d18-d28 on CUDA, else tiny)",
    )
    add("--batch", type=int, metavar="N", help="candidates decoded together (64 on CUDA, else 4)")
    add("--plain-batch", type=int, metavar="N", help="that of eager and compile (as --batch)")
    add("--tokens", type=int, default=4, metavar="K", help="length of the prefixes (4)")
    add("--steps", type=int, metavar="N", help="Euler steps (20 on CUDA, else 2)")
    add("--guidance", type=float, default=7.5, help="scale (7.5); 1 is without")
    add("--cfg", action="store_true", help="plain guidance in place of APG")
    add("--engines", nargs="+", default=list(USUAL), choices=ENGINES, help="(eager kernels)")
    add("--dtype", choices=["float32", "bfloat16"], help="of the blocks (bfloat16 on CUDA)")
    add("--residual", default="float32", choices=["float32", "bfloat16"], help="of the kernels'")
    add("--tile", nargs=3, type=int, default=astuple(TILE), metavar=("QUERIES", "WARPS", "STAGES"),
        help="how the engine attention is cut ({} {} {})".format(*astuple(TILE)))  # fmt: skip
    add("--vae", default="float32", choices=DTYPES, help="dtype of the VAE (float32)")
    add("--verifier", help="open_clip architecture, packaged name or none (ViT-L-14 on CUDA)")
    add("--device", default="auto", choices=DEVICES, help="(auto)")
    add("--seconds", type=float, default=5.0, help="of each measurement, at least (5)")
    add("--runs", type=int, default=3, metavar="N", help="of each measurement, at least (3)")
    add("-o", "--output", type=Path, metavar="DIR", help="write NAME.json and NAME.md there")
    add("--name", default="decoder_throughput", help="of these files (decoder_throughput)")
    args = parser.parse_args()
    args = with_defaults(args)
    found, rows = sprites_throughput.run(args) if args.model == "sprites" else run(args)
    text = report(found, rows)
    print(text)
    if args.output:
        write(args.output, args.name, QUESTION, found, text)


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """What was not given, as it suits the device. Raises InputError on values out of range."""
    args.device = find_device(args.device)
    on_gpu = args.device.type == "cuda"
    sprites = args.model == "sprites"
    for name, gpu, cpu in (
        ("model", "d18-d28", "tiny"),
        ("batch", 128 if sprites else 64, 4),
        ("steps", 20, 2),
        ("dtype", "bfloat16", "float32"),
        (
            "verifier",
            hub.DEFAULT_VERIFIER if sprites else "ViT-L-14",
            hub.DEFAULT_VERIFIER if sprites else "none",
        ),
    ):
        if getattr(args, name) is None:
            setattr(args, name, gpu if on_gpu else cpu)
    whole_number("--batch", args.batch, 1)
    args.plain_batch = args.batch if args.plain_batch is None else args.plain_batch
    whole_number("--plain-batch", args.plain_batch, 1, args.batch)
    whole_number("--runs", args.runs, 1)
    whole_number("--steps", args.steps, 1)
    finite_number("--seconds", args.seconds, 0)
    if not sprites:
        args.config = TINY if args.model == "tiny" else published(args.model)
        whole_number("--tokens", args.tokens, 1, args.config.num_tokens)
    return args


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[Measured]]:
    """Measure all that is asked for: what goes into the JSON file, and a row for each engine."""
    device, config, least = args.device, args.config, args.seconds
    dtype, residual = DTYPES[args.dtype], DTYPES[args.residual]
    matmul, bandwidth = rates(device, dtype, least)
    tokenizer = make(config, device, dtype, DTYPES[args.vae])
    tokenizer = tokenizer.with_sampling(steps=args.steps, guidance=args.guidance, apg=not args.cfg)
    verifier = random_verifier(args.verifier, device)
    with torch.device("meta"):
        skeleton = FlexTok(Networks(config).eval().requires_grad_(False))
    flops = decode_flops(skeleton, args.tokens, args.steps)
    noise = torch.Generator().manual_seed(0)
    shape = (args.batch, args.tokens)
    prefixes = torch.randint(tokenizer.vocab_size, shape, generator=noise).to(device)

    rows: list[Measured] = []
    profiles: dict[str, list[tuple[str, int, float]]] = {}
    reference: Tensor | None = None
    scores: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name in sorted(args.engines, key=ENGINES.index):  # the others are compared with eager
            engine = engine_of(name, tokenizer, residual, Tile(*args.tile))
            mine = prefixes[: args.plain_batch] if name in ("eager", "compile") else prefixes
            row, latents, seen = measure(
                name, engine, verifier, mine, reference, flops, matmul, least, args.runs
            )
            reference = latents if name == "eager" else reference
            if seen is not None:
                direction = torch.randn(seen.shape[1], generator=torch.Generator().manual_seed(1))
                scores[name] = seen.float() @ direction.to(seen.device)
            base = scores.get("kernels")
            if base is not None and name != "kernels":
                rank = rank_correlation(scores[name], base[: len(mine)])
                row = replace(row, rank=rank)
            rows.append(row)
            profiles[name] = profile(lambda e=engine, some=mine: e.decode(some), device)
        picture_error = vae_error(tokenizer, latents)
    registers = min(args.tokens + 1, config.num_tokens)
    predicted = roofline.predicted(
        roofline.evaluation(config, 2 * args.batch, registers, dtype.itemsize, residual.itemsize),
        (matmul, bandwidth),
    )
    found = {
        "settings": settings_of(args),
        "matmul_tflops": matmul / 1e12,
        "bandwidth_tb": bandwidth / 1e12,
        "gflop_per_candidate": flops / 1e9,
        "vae_error_levels": picture_error,
        "engines": [asdict(row) for row in rows],
        "profiles": profiles,
        "roofline": [asdict(op) | {"seconds": spent} for op, spent, _ in predicted],
    }
    return found, rows


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    names = ["model", "batch", "plain_batch", "tokens", "steps", "guidance"]
    names += ["dtype", "residual", "vae", "verifier", "tile"]
    settings = {name: getattr(args, name) for name in names}
    return settings | {"apg": not args.cfg, "device": device_name(args.device)}


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
