"""The sprites decoder for a CPU with bfloat16: the painters' products have operands of 16 bits.

All between the products stays in float32: torch's group norm of bfloat16 in channels-last takes
eight times as long as that of float32, and casts are cheap beside it. The trunk stays in float32,
too. It is a twentieth of the work, and decides what is present and where: rounded, a score of a
random prefix is off by up to 1.6, and else by up to 0.4.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_model import Layered, Painter, SpritesModel, resampling
from tfgen.tokenizers.subpixel import four_phases, interleave

GROUPS, EPSILON = 8, 1e-5  # of a painter's norms
AT_ONCE = 32
"""Descriptions that a painter paints at once. Tensors of more are so large that the
allocator gives their memory back, and a tenth of a pass is spent on faulting it in again."""


class Bfloat16Sprites(SpritesTokenizer):
    """A tokenizer whose painters compute in bfloat16. It is for decoding: it makes no drafts."""

    @classmethod
    def of(cls, tokenizer: SpritesTokenizer) -> Bfloat16Sprites:
        """The same tokenizer, which shares all weights but those of the painters."""
        found = copy.copy(tokenizer)
        found.__class__ = cls
        model = found.model = copy.copy(tokenizer.model)
        model._modules = dict(model._modules)
        model.background, model.object = (
            NarrowPainter(painter) for painter in (model.background, model.object)
        )
        return found

    def _decode(self, codes: Tensor, lengths: Tensor, model: SpritesModel | None = None) -> Tensor:
        keep = torch.arange(self.num_tokens, device=codes.device) < lengths[:, None]
        layered, _ = self.model.layers(codes, keep)
        return paint_narrow(self.model, layered).clamp_(0, 1)


class NarrowPainter(nn.Module):
    """A description Float[N, latent] -> Float32[N, out, side, side]: what `painter` paints.

    The kernels of `conv_enlarged` are summed up once, and not in every pass.
    """

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.widths, self.start = painter.widths, painter.start
        self.seed, self.styles, self.first, self.out = (
            copy.deepcopy(layer).bfloat16()
            for layer in (painter.seed, painter.styles, painter.convs[0], painter.out)
        )
        self.kernels = [  # (BFloat16[4 O, I, 2, 2], BFloat16[4 O]) of each stage but the first
            (
                four_phases(conv.weight).bfloat16().contiguous(memory_format=torch.channels_last),
                conv.bias.repeat(4).bfloat16(),
            )
            for conv in painter.convs[1:]
        ]

    def forward(self, latent: Tensor) -> Tensor:
        return torch.cat([self._paint(part) for part in latent.bfloat16().split(AT_ONCE)])

    def _paint(self, latent: Tensor) -> Tensor:
        styles = self.styles(latent).float().split([2 * w for w in self.widths], dim=1)
        x = self.seed(latent).unflatten(1, (self.widths[0], self.start, self.start))
        x = self.first(x.contiguous(memory_format=torch.channels_last)).float()
        x = modulated(x, styles[0])
        for (weight, bias), style in zip(self.kernels, styles[1:], strict=True):
            phases = F.conv2d(x.bfloat16(), weight, bias, padding=1)
            x = modulated(interleave(phases).float(), style)
        return F.pixel_shuffle(self.out(x.bfloat16()).float(), 2)


def modulated(x: Tensor, style: Tensor) -> Tensor:
    """SiLU of Float32[N, C, H, W] in channels-last, normalised over each of GROUPS groups of
    channels, under scales and shifts Float32[N, 2 C].

    Norm and modulation are one product and one sum: one read of the largest tensors less.
    """
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, H W, C]
    count = h * w * c // GROUPS
    mean, square = (
        sums.unflatten(1, (GROUPS, -1)).sum(2, keepdim=True) / count  # [N, GROUPS, 1]
        for sums in (pixels.sum(1), pixels.square().sum(1))
    )
    spread = torch.rsqrt((square - mean.square()).clamp(min=0) + EPSILON)
    scale, shift = (part.unflatten(1, (GROUPS, -1)) for part in style.chunk(2, dim=1))
    factor = spread * (1 + scale)
    shift = shift - mean * factor
    factor, shift = (part.reshape(n, c, 1, 1) for part in (factor, shift))
    return F.silu(torch.addcmul(shift, x, factor), inplace=True)


def paint_narrow(model: SpritesModel, layered: Layered) -> Tensor:
    """As `sprites_model.paint`, Float32[N, 3, H, W], with canvases placed by products in bfloat16.

    Objects come slot by slot, so that each slot's are a view. Writes over layered.background.
    """
    slots, rows = (layered.present.T > 0).nonzero(as_tuple=True)
    image = layered.background
    if len(rows) == 0:
        return image
    canvases = model.canvases(layered.slots[rows, slots])  # [P, 4, s, s]
    layers = place_narrow(canvases, layered.boxes[rows, slots], image.shape[-1])
    counts = slots.bincount().tolist()
    for layer, row in zip(layers.split(counts), rows.split(counts), strict=True):
        image.index_copy_(0, row, torch.addcmul(layer[:, :3], image[row], 1 - layer[:, 3:]))
    return image


def place_narrow(canvases: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`sprites_model.place` with operands in bfloat16: Float32[P, C, size, size]."""
    c, side = canvases.shape[1:3]
    weights = resampling(boxes[:, :2].T.flatten(), boxes[:, 2].repeat(2), side, size)
    across, down = weights.bfloat16().chunk(2)  # each [P, size, s]
    wide = torch.bmm(canvases.bfloat16().flatten(1, 2), across.mT).unflatten(1, (c, side))
    placed = torch.bmm(down, wide.transpose(1, 2).flatten(2))  # [P, size, C size]
    return placed.unflatten(2, (c, size)).transpose(1, 2).float()
