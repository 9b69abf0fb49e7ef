"""How many candidates a second do the packaged sprites models decode and score?

`--model sprites` of decoder_throughput.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tfgen import hub
from tfgen.decoding.engine import resized
from tfgen.decoding.kernel_engine import KernelEngine
from tfgen.decoding.sprites_step import decode_all_slots
from tfgen.errors import whole_number
from tfgen.search import Engine, PlainEngine
from tfgen.tokenizers.sprites import SpritesTokenizer

from .throughput import Measured, device_name, forget_peak, peak_gb, profile, rates, seconds

PASSES = 16  # given to an engine together


@torch.inference_mode()
def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[Measured]]:
    """Measure both engines: what goes into the JSON file, and a row for each. `decoded` is pictures
    alone, of one pass without a CUDA graph. Raises InputError where --tokens is out of range."""
    device = args.device
    matmul, bandwidth = rates(device, torch.float32, args.seconds)
    tokenizer = hub.load_tokenizer(hub.DEFAULT_MODEL, device)
    whole_number("--tokens", args.tokens, 1, tokenizer.num_tokens)
    verifier = hub.load_verifier(hub.DEFAULT_VERIFIER, device, "contrast")
    flops = _flops(tokenizer, args.tokens)
    noise = torch.Generator().manual_seed(0)
    shape = (PASSES * args.batch, args.tokens)
    tokens = torch.randint(tokenizer.vocab_size, shape, generator=noise).to(device)
    rows: list[Measured] = []
    profiles: dict[str, list[tuple[str, int, float]]] = {}
    reference: Tensor | None = None
    for name, count in (("eager", args.plain_batch), ("kernels", args.batch)):
        forget_peak(device)
        passes = tokens[: PASSES * count].split(count)
        engine: Engine
        decode: Callable[[], Any]
        if name == "eager":
            engine = PlainEngine(tokenizer, verifier)
            decode = partial(tokenizer.decode, passes[0])
        else:
            engine = KernelEngine(tokenizer, verifier, rows=count)
            filled = resized(passes[0], tokenizer.num_tokens)
            lengths = torch.full((count,), args.tokens, device=device)
            decode = partial(engine._pictures, filled, lengths)
        decoded = count / seconds(decode, device, args.seconds, args.runs)
        seen = torch.cat(engine.embed(passes))  # which warms up
        embed = partial(engine.embed, passes)
        scored = PASSES * count / seconds(embed, device, args.seconds, args.runs, warm=2)
        reference = seen if reference is None else reference
        shared = min(len(seen), len(reference))
        error = (seen[:shared] - reference[:shared]).abs().mean() / reference.std()
        useful = flops * decoded
        rows.append(
            Measured(
                name,
                decoded,
                scored,
                1e3 / decoded,
                useful / 1e12,
                useful / matmul,
                peak_gb(device),
                error.item(),
                count,
            )
        )
        profiles[name] = profile(embed, device)
    settings = {name: getattr(args, name) for name in ("model", "batch", "tokens", "verifier")}
    found = {
        "settings": settings | {"device": device_name(device)},
        "matmul_tflops": matmul / 1e12,
        "bandwidth_tb": bandwidth / 1e12,
        "gflop_per_candidate": flops / 1e9,
        "engines": [asdict(row) for row in rows],
        "profiles": profiles,
        "roofline": [],
    }
    return found, rows


def _flops(tokenizer: SpritesTokenizer, length: int) -> int:
    """FLOPs of decoding one prefix."""
    padded = torch.zeros(1, tokenizer.num_tokens, dtype=torch.int64, device=tokenizer.device)
    lengths = torch.full((1,), length, device=tokenizer.device)
    with FlopCounterMode(display=False) as counter:
        decode_all_slots(tokenizer.model, tokenizer.code_embeddings()[padded], lengths)
    return counter.get_total_flops()
