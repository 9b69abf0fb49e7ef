"""What a decode of a FlexTok is made of, in FLOPs: a multiply-add is two."""

from __future__ import annotations

from tfgen.tokenizers.flextok_config import FlexTokConfig


def evaluation_flops(config: FlexTokConfig, registers: int) -> int:
    """FLOPs of one evaluation of the decoder for one sample with so many registers: the products
    of its blocks, beside which all else is below a hundredth."""
    trunk = config.decoder
    seen = config.grid**2 + registers
    products = seen * trunk.dim * (4 * trunk.dim + 3 * trunk.hidden)
    attention = 2 * seen**2 * trunk.dim
    return 2 * trunk.depth * (products + attention)


def vae_flops(config: FlexTokConfig) -> int:
    """FLOPs of one picture in the decoder of the VAE: its convolutions, and the attention on its
    smallest side."""
    _, height, width = config.latent_shape
    pixels = height * width
    first, *others = widths = list(reversed(config.vae["block_out_channels"]))
    total = pixels * 9 * config.channels * first
    total += pixels * first * (2 * 18 * first + 4 * first + 2 * pixels)  # the block in the middle
    before = first
    for i, after in enumerate(widths):
        blocks = config.vae["layers_per_block"] + 1
        total += pixels * 9 * after * (before + (2 * blocks - 1) * after)
        if before != after:
            total += pixels * before * after  # a shortcut
        if i < len(others):  # enlarged, and convolved once more
            pixels *= 4
            total += pixels * 9 * after**2
        before = after
    return 2 * (total + pixels * 9 * before * 3)
