"""`sprites`: the embedded ordered 1D tokenizer, trained on the sprite world.

64 x 64 pictures <-> `num_tokens` FSQ tokens, coarse to fine: every prefix decodes, in one forward
pass, to a whole picture. The networks are in `sprites_model`; how they were made, in the model card
beside the weights.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.errors import InputError
from tfgen.hub import load_weights, read_json, read_safetensors
from tfgen.packing import fingerprint, unpack
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.fsq import FSQ
from tfgen.tokenizers.sprites_draft import half_size
from tfgen.tokenizers.sprites_model import SpritesConfig, SpritesModel, paint
from tfgen.tokenizers.sprites_render import SpritesRenderer

WEIGHTS_FILE, CONFIG_FILE = "tokenizer.safetensors", "tokenizer.json"
RENDERER_FILE = "renderer.safetensors"


class SpritesTokenizer(Tokenizer):
    """An ordered tokenizer whose decoder paints a background and up to four objects."""

    name = "sprites"
    draft_cost = 0.77  # measured on a CPU core at 1 to 8 tokens: 0.75 to 0.80

    def __init__(self, model: SpritesModel, renderer: SpritesRenderer | None = None):
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.fsq = FSQ(model.cfg.levels)
        self.vocab_size = self.fsq.vocab_size
        self.num_tokens = model.cfg.num_tokens
        self.image_size = model.cfg.image_size
        self.renderer = renderer and renderer.eval().requires_grad_(False)
        self.render_size = renderer.size if renderer else self.image_size

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> SpritesTokenizer:
        """Load tokenizer.json, tokenizer.safetensors and, if it is there, renderer.safetensors.

        Raises InputError for files that are missing, damaged, or of another model.
        """
        folder = Path(folder)
        cfg, model = _create(folder / CONFIG_FILE)
        tensors = unpack(read_safetensors(folder / WEIGHTS_FILE))
        load_weights(model, tensors, folder / WEIGHTS_FILE)
        renderer = None
        if (folder / RENDERER_FILE).is_file():
            renderer = SpritesRenderer(cfg).to(device)
            tensors = unpack(read_safetensors(folder / RENDERER_FILE))
            load_weights(renderer, tensors, folder / RENDERER_FILE)
        return cls(model.to(device), renderer)

    @property
    def device(self) -> torch.device:
        return self.model.to_places.weight.device

    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def picture_fingerprint(self) -> str:
        return fingerprint(*filter(None, (self.model, self.renderer)))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        return self.decode_lengths(F.pad(tokens, (0, self.num_tokens - tokens.shape[1])), lengths)

    @torch.no_grad()
    def decode_lengths(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Decode prefixes of different lengths at once.

        tokens Int64[N, num_tokens], of which row i's first lengths[i] count; lengths Int64[N].
        """
        return self._decode(self.fsq.to_codes(tokens), lengths)

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Code vectors Float[N, k, d] in [-1, 1] -> pictures; differentiable."""
        n, length, _ = embeddings.shape
        codes = F.pad(embeddings, (0, 0, 0, self.num_tokens - length))
        return self._decode(codes, torch.full((n,), length, device=codes.device))

    @torch.no_grad()
    def draft(self, tokens: Tensor) -> Tensor:
        """At half the size; see `sprites_draft`."""
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        codes = self.fsq.to_codes(F.pad(tokens, (0, self.num_tokens - tokens.shape[1])))
        return self._decode(codes, lengths, self._half)

    @cached_property
    def _half(self) -> SpritesModel:
        return half_size(self.model)

    def _decode(self, codes: Tensor, lengths: Tensor, model: SpritesModel | None = None) -> Tensor:
        model = model or self.model
        keep = torch.arange(self.num_tokens, device=codes.device) < lengths[:, None]
        layered, _ = model.layers(codes, keep)
        return paint(model, layered).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.fsq.to_tokens(self.fsq.quantise(self.model.encoder(images)))

    @torch.no_grad()
    def render(self, tokens: Tensor) -> Tensor:
        if self.renderer is None:
            return self.decode(tokens)
        codes = self.fsq.to_codes(F.pad(tokens, (0, self.num_tokens - tokens.shape[1])))
        keep = torch.arange(self.num_tokens, device=codes.device) < tokens.shape[1]
        layered, trunk = self.model.layers(codes, keep.expand(len(codes), -1))
        return self.renderer.paint(self.model, layered, trunk).clamp(0, 1)

    def code_embeddings(self) -> Tensor:
        return self.fsq.to_codes(torch.arange(self.vocab_size, device=self.device))


def _create(path: Path) -> tuple[SpritesConfig, SpritesModel]:
    """The network that a tokenizer.json describes, its weights not loaded yet."""
    sizes = read_json(path).get("model")
    known = {f.name for f in fields(SpritesConfig)}
    if not isinstance(sizes, dict) or not set(sizes) <= known:
        raise InputError(
            f"{str(path)!r} does not describe a sprites tokenizer: its "
            f'"model" must be an object with keys among {", ".join(sorted(known))}.'
        )
    cfg = SpritesConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
    try:
        FSQ(cfg.levels)
        return cfg, SpritesModel(cfg)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"{str(path)!r} describes a sprites tokenizer that cannot be made ({error}): "
            "use the file that belongs to the weights."
        ) from error
