"""The network of `sprites-clip`, without open_clip.

Its files are open_clip's, and open_clip builds the same network from them and computes the same
numbers, bit for bit (tests/verifiers/test_sprites_clip.py). But to import open_clip, timm and
torchvision takes two seconds, more than a third of the time in which a picture could be made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tfgen.verifiers.sprites_tower import is_tower, make_tower

_VISION = {
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "",
}
_CONFIG = {  # what a config has, and nothing else; all else is left to open_clip
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg"},
    "vision_cfg": {*_VISION, "timm_model_name", "image_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"},
    "preprocess_cfg": {"mean", "std", "interpolation", "resize_mode"},
}


class SpritesClip(nn.Module):
    """A text transformer and the image tower, with the names that open_clip's CLIP gives them.

    config: the content of an open_clip_config.json that `is_of` says yes to.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        model, text = config["model_cfg"], config["model_cfg"]["text_cfg"]
        width, size = text["width"], model["vision_cfg"]["image_size"]
        self.context_length, self.vocab_size = text["context_length"], text["vocab_size"]
        self.visual = _Visual(model["vision_cfg"]["timm_model_name"], model["embed_dim"])
        self.visual.preprocess_cfg = {
            "size": (size, size),
            "mode": "RGB",
            **config["preprocess_cfg"],
            "fill_color": 0,
        }
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            _Block(width, text["heads"]) for _ in range(text["layers"])
        )
        self.token_embedding = nn.Embedding(self.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(self.context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, model["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        later = torch.full((self.context_length, self.context_length), -torch.inf).triu(1)
        self.register_buffer("attn_mask", later, persistent=False)

    @staticmethod
    def is_of(config: Mapping[str, Any]) -> bool:
        """Whether an open_clip config is of such a network, in all that it says."""
        model = config.get("model_cfg", {})
        parts = {"model_cfg": model, "preprocess_cfg": config.get("preprocess_cfg")}
        if isinstance(model, Mapping):
            parts |= {name: model.get(name) for name in ("vision_cfg", "text_cfg")}
        sound = all(isinstance(p, Mapping) and set(p) == _CONFIG[n] for n, p in parts.items())
        vision = model["vision_cfg"] if sound else {}
        plain = sound and all(vision[key] == value for key, value in _VISION.items())
        return plain and is_tower(vision["timm_model_name"])

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pictures Float[N, 3, S, S] -> Float[N, embed_dim]."""
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Int64[N, context_length] -> Float[N, embed_dim], read at each text's highest token,
        which is its end."""
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.transformer.resblocks:
            x = block(x, self.attn_mask)
        x = self.ln_final(x)
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection


class _Visual(nn.Module):
    """The tower, where open_clip has it."""

    preprocess_cfg: dict[str, Any]

    def __init__(self, tower: str, embed_dim: int):
        super().__init__()
        self.trunk = make_tower(tower, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)


class _Block(nn.Module):
    """A pre-norm transformer block (arXiv 2103.00020, section 2.4), causal by its mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))
