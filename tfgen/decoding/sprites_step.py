"""The sprites decoder without a wait for the host: all slots are painted, absent ones clear.

`sprites_model.paint` looks which objects there are, and paints only those, which is fastest on a
CPU. On a GPU the look itself, a copy to the host, takes longer than the painting it saves, and a
CUDA graph cannot hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_model import Layered, SpritesModel, place


def decode_all_slots(tokenizer: SpritesTokenizer, tokens: Tensor, lengths: Tensor) -> Tensor:
    """`SpritesTokenizer.decode_lengths`, up to rounding: tokens Int64[N, num_tokens], of which row
    i's first lengths[i] (Int64[N]) count -> Float32[N, 3, H, W] in [0, 1]."""
    model = tokenizer.model
    keep = torch.arange(tokenizer.num_tokens, device=tokens.device) < lengths[:, None]
    layered, _ = model.layers(tokenizer.fsq.to_codes(tokens), keep)
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
