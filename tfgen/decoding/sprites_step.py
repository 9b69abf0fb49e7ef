"""The sprites decoder without a wait for the host: all slots are painted, absent ones clear.

`sprites_model.paint` looks which objects there are, and paints only those, which is fastest on a
CPU. On a GPU the look itself, a copy to the host, takes longer than the painting it saves, and a
CUDA graph cannot hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.tokenizers.sprites_model import Layered, SpritesModel, place


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
