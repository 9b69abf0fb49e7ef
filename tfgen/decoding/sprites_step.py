"""The sprites decoder without a wait for the host: all slots are painted, absent ones clear.

`sprites_model.paint` looks which objects there are, and paints only those, which is fastest on a
CPU. On a GPU the look itself, a copy to the host, takes longer than the painting it saves, and a
CUDA graph cannot hold it. Norm, modulation and activation of a painter's stage are one there
(`group_norm`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tfgen.decoding.group_norm import group_norm
from tfgen.tokenizers.sprites_model import Layered, Painter, SpritesModel, place
from tfgen.tokenizers.subpixel import conv_enlarged


class FusedPainter(Painter):
    """A painter whose stages end in one kernel."""

    @classmethod
    def of(cls, painter: Painter) -> FusedPainter:
        """The same painter, which shares all weights."""
        found = copy.copy(painter)
        found.__class__ = cls
        return found

    def features(self, latent: Tensor) -> Tensor:
        x = self.seed(latent).unflatten(1, (self.widths[0], self.start, self.start))
        x = x.contiguous(memory_format=torch.channels_last)
        styles = self.styles(latent).split([2 * w for w in self.widths], dim=1)
        for i, (conv, norm, style) in enumerate(zip(self.convs, self.norms, styles, strict=True)):
            x = conv_enlarged(x, conv) if i > 0 else conv(x)
            x = group_norm(x, norm.num_groups, None, style, eps=norm.eps, silu=True)
        return x


def with_fused_painters(model: SpritesModel) -> SpritesModel:
    """The same model, which shares all weights, for `decode_all_slots`."""
    found = copy.copy(model)
    found._modules = model._modules | {
        name: FusedPainter.of(getattr(model, name)) for name in ("background", "object")
    }
    return found


def decode_all_slots(model: SpritesModel, codes: Tensor, lengths: Tensor) -> Tensor:
    """What `SpritesTokenizer.decode_lengths` decodes, up to rounding: code vectors
    Float[N, num_tokens, d], of which row i's first lengths[i] (Int64[N]) count ->
    Float32[N, 3, H, W] in [0, 1]."""
    keep = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
    layered, _ = model.layers(codes, keep)
    return paint_all_slots(model, layered).clamp(0, 1)


def paint_all_slots(model: SpritesModel, layered: Layered) -> Tensor:
    """As `sprites_model.paint`: Float[N, 3, H, W]."""
    image, (n, slots) = layered.background, layered.present.shape
    canvases = model.canvases(layered.slots.flatten(0, 1))
    layers = place(canvases, layered.boxes.flatten(0, 1), image.shape[-1])
    layers = layers.unflatten(0, (n, slots))  # [N, slots, 4, H, W]
    layers = torch.where((layered.present > 0)[..., None, None, None], layers, 0.0)
    for layer in layers.unbind(1):  # lower slots are painted first
        image = image * (1 - layer[:, 3:]) + layer[:, :3]
    return image
