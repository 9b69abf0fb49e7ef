"""The networks of the `sprites-grid` tokenizer: an encoder and a decoder over a grid of cells.

Each token stands for one square cell of the picture, in raster order. Both networks are a small
transformer over the cells between convolutions; the decoder's cells look at given cells only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GridConfig:
    """Sizes of the model.

    levels: FSQ levels per token; grid: cells a side, so that a picture has grid ** 2 tokens;
    image_size: side of a picture, a multiple of every map's side; width: of a cell's description,
    a multiple of 8 and of heads; heads: of the attention between cells; encoder_depth,
    decoder_depth: transformer blocks; encoder_widths: channels of the maps from the finest to the
    one before the cells, each half as large as the one before; decoder_widths: channels of the maps
    after the cells, each twice as large as the one before. Channels are multiples of 8.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    grid: int = 4
    image_size: int = 64
    width: int = 192
    heads: int = 6
    encoder_depth: int = 2
    decoder_depth: int = 3
    encoder_widths: tuple[int, ...] = (64, 128)
    decoder_widths: tuple[int, ...] = (128, 64, 32)

    @property
    def num_tokens(self) -> int:
        return self.grid**2


class Block(nn.Module):
    """A transformer block, normalised before each half; `seen` masks the cells not to look at."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """x Float[N, T, width]; seen Bool[N, T]: the cells that exist for the others."""
        n, length, width = x.shape
        qkv = self.to_qkv(self.norm1(x)).view(n, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, width / heads]
        mask = None if seen is None else seen[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.leave(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class Refine(nn.Module):
    """A residual 3 x 3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class GridEncoder(nn.Module):
    """Pictures Float[N, 3, H, W] in [0, 1] -> unquantised codes Float[N, T, d]."""

    def __init__(self, cfg: GridConfig):
        super().__init__()
        self.patch = cfg.image_size // (cfg.grid << len(cfg.encoder_widths))
        widths = (*cfg.encoder_widths, cfg.width)
        layers: list[nn.Module] = [nn.Conv2d(3 * self.patch**2, widths[0], 3, padding=1)]
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            if i > 0:  # on the finest map it would cost more than all others together
                layers.append(Refine(before))
            layers += [nn.GroupNorm(8, before), nn.SiLU()]
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
        self.convs = nn.Sequential(*layers)
        self.positions = nn.Parameter(0.02 * torch.randn(cfg.num_tokens, cfg.width))
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.heads) for _ in range(cfg.encoder_depth))
        self.norm = nn.LayerNorm(cfg.width)
        self.to_codes = nn.Linear(cfg.width, len(cfg.levels))

    def describe(self, images: Tensor) -> Tensor:
        """What the encoder sees in each cell: Float[N, T, width]."""
        x = F.pixel_unshuffle(images * 2 - 1, self.patch)
        x = self.convs(x.contiguous(memory_format=torch.channels_last))
        x = x.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.to_codes(self.describe(images))


class GridDecoder(nn.Module):
    """Codes of a prefix, absent cells masked -> a picture, of which the given cells count."""

    def __init__(self, cfg: GridConfig):
        super().__init__()
        self.grid = cfg.grid
        self.enter = nn.Linear(len(cfg.levels), cfg.width)
        self.positions = nn.Parameter(0.02 * torch.randn(cfg.num_tokens, cfg.width))
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.heads) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(cfg.width)
        before = (cfg.width, *cfg.decoder_widths)
        self.enlarge = nn.ModuleList(
            nn.Conv2d(a, 4 * b, 1) for a, b in zip(before, cfg.decoder_widths, strict=False)
        )
        self.refine = nn.ModuleList(Refine(w) for w in cfg.decoder_widths)
        self.patch = cfg.image_size // (cfg.grid << len(cfg.decoder_widths))
        self.out = nn.Conv2d(cfg.decoder_widths[-1], 3 * self.patch**2, 3, padding=1)

    def describe(self, codes: Tensor, keep: Tensor) -> Tensor:
        """Codes Float[N, T, d], keep Bool[N, T] -> each cell's content, Float[N, T, width].

        The first cell must be kept: attention to nothing at all is not a number.
        """
        x = self.enter(codes) + self.positions
        for block in self.blocks:
            x = block(x, keep)
        # Zero where absent, so that the convolutions' edges cannot look there either.
        return self.norm(x) * keep[..., None]

    def paint(self, cells: Tensor) -> Tensor:
        """Float[N, T, width] -> pictures Float[N, 3, H, W] in [0, 1]."""
        x = cells.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = x.contiguous(memory_format=torch.channels_last)
        for enlarge, refine in zip(self.enlarge, self.refine, strict=True):
            x = refine(F.pixel_shuffle(enlarge(x), 2))
        return torch.sigmoid(F.pixel_shuffle(self.out(F.silu(x)), self.patch).float())


class GridModel(nn.Module):
    """Encoder and decoder; quantisation is the caller's."""

    def __init__(self, cfg: GridConfig):
        super().__init__()
        maps = max(len(cfg.encoder_widths), len(cfg.decoder_widths))
        if cfg.image_size % (cfg.grid << maps) or cfg.width % cfg.heads:
            raise ValueError(f"the sizes do not divide each other: {cfg}")
        self.cfg = cfg
        self.encoder = GridEncoder(cfg)
        self.decoder = GridDecoder(cfg)


FILL = 0.5
"""What a picture shows where it is not finished: mid-grey, zero after a network's usual scaling to
[-1, 1], and, unlike black or white, no background of the sprite world."""


def given(keep: Tensor, grid: int, size: int) -> Tensor:
    """Bool[N, T] -> Bool[N, 1, size, size]: the pixels of the cells that are kept."""
    cells = keep.unflatten(1, (grid, grid))[:, None]
    return cells.repeat_interleave(size // grid, 2).repeat_interleave(size // grid, 3)


def finished(images: Tensor, keep: Tensor, grid: int) -> Tensor:
    """Pictures Float[N, 3, H, W] with `FILL` in the cells that are not kept."""
    return images.where(given(keep, grid, images.shape[-1]), FILL)
