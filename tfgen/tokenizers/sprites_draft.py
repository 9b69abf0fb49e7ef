"""Drafts of `sprites`: the same layers at half the size, from the same weights.

The last stage of a painter works on a picture that was enlarged by repeating pixels. A draft works
on the small one, with each kernel averaged over the 2 x 2 outputs that a pixel turns into: exactly
the average of those outputs as far as the network is linear, and close to it where it is not.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites_model import Painter, SpritesModel, modulated
from tfgen.tokenizers.subpixel import conv_enlarged


def half_size(model: SpritesModel) -> SpritesModel:
    """The model with painters of half the size; all other parts are shared."""
    half = copy.copy(model)
    half._modules = dict(model._modules)
    half.background, half.object = HalfPainter(model.background), HalfPainter(model.object)
    return half


class HalfPainter(nn.Module):
    """A description Float[N, latent] -> what `painter` paints, at half its side."""

    def __init__(self, painter: Painter):
        super().__init__()
        self.painter = painter
        self.last, self.out = averaged(painter.convs[-1]), averaged(painter.out)

    def forward(self, latent: Tensor) -> Tensor:
        p = self.painter
        x = p.seed(latent).unflatten(1, (p.widths[0], p.start, p.start))
        x = x.contiguous(memory_format=torch.channels_last)
        styles = p.styles(latent)[..., None, None].split([2 * w for w in p.widths], dim=1)
        for i, (conv, norm, style) in enumerate(zip(p.convs, p.norms, styles, strict=True)):
            if i == len(p.convs) - 1:
                x = self.last(x)
            else:
                x = conv_enlarged(x, conv) if i > 0 else conv(x)
            x = modulated(norm(x), style)
        return F.pixel_shuffle(self.out(x), 2)


def averaged(conv: nn.Conv2d) -> nn.Conv2d:
    """The 3 x 3 convolution that gives the mean of each 2 x 2 outputs which `conv`, 3 x 3 too,
    gives of a picture enlarged twice by repeating pixels; zero padding included."""
    # Of the two enlarged rows that a row turns into, the upper one sees the rows before, at, at,
    # the lower one those at, at, after: [small row, row of the kernel].
    share = conv.weight.new_tensor([[0.5, 0.0, 0.0], [0.5, 1.0, 0.5], [0.0, 0.0, 0.5]])
    mean = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1).to(conv.weight.device)
    weight = torch.einsum("yr,oirs,xs->oiyx", share, conv.weight, share)
    mean.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    mean.bias = conv.bias
    return mean.requires_grad_(False)
