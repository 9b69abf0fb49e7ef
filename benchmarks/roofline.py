"""What a GPU must at least do for a decode through the kernels: FLOPs and bytes of each operation.

A multiply-add is two FLOPs; bytes are those that must cross the memory once, with weights. The time
predicted for an operation is the larger of what its FLOPs and its bytes take at the GPU's rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tfgen.tokenizers.flextok_config import FlexTokConfig
from tfgen.tokenizers.flextok_vae import VAE

H200 = (790e12, 4.3e12)  # FLOP/s in bfloat16, bytes/s; as given for it, and not measured here


@dataclass(frozen=True)
class Operation:
    """One operation, done `times` times."""

    name: str
    flops: float
    bytes: float
    times: int = 1

    def seconds(self, flops_rate: float, bytes_rate: float) -> float:
        """Of all of them, at these rates a second."""
        return self.times * max(self.flops / flops_rate, self.bytes / bytes_rate)


def evaluation(
    config: FlexTokConfig, samples: int, registers: int, element: int = 2, residual: int = 4
) -> list[Operation]:
    """One evaluation of the decoder (`FusedDecoder`) for a batch.

    registers: rows of each sample beside its patches. element, residual: bytes of a number in the
    blocks, and in the stream between them.
    """
    trunk, patches = config.decoder, config.grid**2
    dim, depth = trunk.dim, trunk.depth
    hidden = -(-trunk.hidden // 64) * 64
    features = config.patch**2 * config.channels
    tokens = samples * (patches + registers)

    def product(name: str, rows: int, inputs: int, outputs: int, size: int) -> Operation:
        moved = (rows * (inputs + outputs) + inputs * outputs) * size
        return Operation(name, 2 * rows * inputs * outputs, moved, depth)

    def moves(name: str, count: float, times: int = depth) -> Operation:
        return Operation(name, 0, count, times)

    seen = patches + registers
    return [
        product("q, k, v", tokens, dim, 3 * dim, element),
        moves("norm_heads", 4 * tokens * dim * element),
        Operation("attention", 4 * tokens * seen * dim, 4 * tokens * dim * element, depth),
        product("attention, out", tokens, dim, dim, element),
        product("MLP, up", tokens, dim, 2 * hidden, element),
        moves("swiglu", 3 * tokens * hidden * element),
        product("MLP, down", tokens, hidden, dim, element),
        moves("gate_residual_norm", tokens * dim * (2 * residual + 2 * element), 2 * depth),
        moves("norm_modulate", tokens * dim * (residual + element), 1),
        Operation(
            "patches in and out",
            4 * samples * patches * features * dim,
            samples * patches * (2 * features + 3 * dim) * 4 + tokens * dim * residual,
        ),
    ]


def step(config: FlexTokConfig, batch: int) -> Operation:
    """Guidance and the Euler update of a batch (`guided_step`, with momentum)."""
    channels, height, width = config.latent_shape
    return Operation("guided_step", 0, 6 * 4 * batch * channels * height * width)


def vae(config: FlexTokConfig, batch: int, element: int = 2) -> Operation:
    """The VAE's decode of a batch; bytes are what its layers read and write, `element` a number.

    Both are counted on the meta device, where nothing is computed.
    """
    numbers = 0

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal numbers
        numbers += output.numel() + sum(x.numel() for x in inputs if isinstance(x, Tensor))

    with torch.device("meta"), torch.no_grad():
        network = VAE(config).eval()
        for module in network.vae.modules():
            if not any(module.children()):
                module.register_forward_hook(note)
        with FlopCounterMode(display=False) as counter:
            network.decode(torch.empty(1, *config.latent_shape))
    weights = sum(p.numel() for p in network.vae.decoder.parameters())
    moved = (batch * numbers + weights) * element
    return Operation("VAE", batch * counter.get_total_flops(), moved)


def decode(
    config: FlexTokConfig,
    batch: int,
    registers: int,
    steps: int,
    rates: tuple[float, float],
    element: int = 2,
    residual: int = 4,
) -> dict[str, float]:
    """Seconds of each part of a guided decode of a batch, predicted at these rates. The first
    unconditional evaluation is that of all, so the first step has half the samples."""

    def seconds(operations: list[Operation]) -> float:
        return sum(time for _, time, _ in predicted(operations, rates))

    first, others = (
        seconds(evaluation(config, samples, registers, element, residual))
        for samples in (batch, 2 * batch)
    )
    return {
        "evaluations": first + (steps - 1) * others,
        "guidance": steps * seconds([step(config, batch)]),
        "VAE": seconds([vae(config, batch, element)]),
    }


def predicted(
    operations: list[Operation], rates: tuple[float, float]
) -> list[tuple[Operation, float, bool]]:
    """Each operation with its seconds at these rates, and whether its bytes decide."""
    flops_rate, bytes_rate = rates
    return [
        (op, op.seconds(flops_rate, bytes_rate), op.bytes / bytes_rate > op.flops / flops_rate)
        for op in operations
    ]
