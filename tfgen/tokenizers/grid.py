"""`sprites-grid`: a 2D-grid tokenizer of the sprite world, the control for the ordered one.

64 x 64 pictures <-> 4 x 4 FSQ tokens in raster order, one a cell of 16 x 16 pixels. A prefix shows
the finished top of the picture, as those of common image tokenizers do: the cells so far, and
`FILL` in the rest. It is there to compare with; pictures are better searched for with `sprites`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.errors import InputError
from tfgen.hub import load_weights, read_json, read_safetensors
from tfgen.packing import fingerprint, unpack
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.fsq import FSQ
from tfgen.tokenizers.grid_model import GridConfig, GridModel, finished

WEIGHTS_FILE, CONFIG_FILE = "tokenizer.safetensors", "tokenizer.json"


class GridTokenizer(Tokenizer):
    """A tokenizer whose tokens are the cells of a grid, from left to right and top to bottom.

    A given cell is decoded from all given cells, whether before or after it, so that the finished
    part may still change a little as cells come in; it never depends on absent ones.
    """

    name = "sprites-grid"

    def __init__(self, model: GridModel):
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.fsq = FSQ(model.cfg.levels)
        self.vocab_size = self.fsq.vocab_size
        self.num_tokens = model.cfg.num_tokens
        self.image_size = self.render_size = model.cfg.image_size

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> GridTokenizer:
        """Load tokenizer.json and tokenizer.safetensors.

        Raises InputError for files that are missing, damaged, or of another model.
        """
        folder = Path(folder)
        model = _create(folder / CONFIG_FILE)
        tensors = unpack(read_safetensors(folder / WEIGHTS_FILE))
        load_weights(model, tensors, folder / WEIGHTS_FILE)
        return cls(model.to(device))

    @property
    def device(self) -> torch.device:
        return self.model.decoder.positions.device

    def fingerprint(self) -> str:
        return fingerprint(self.model)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        return self.decode_embeddings(self.fsq.to_codes(tokens))

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Code vectors Float[N, k, d] in [-1, 1] -> pictures; differentiable."""
        n, length, _ = embeddings.shape
        decoder, grid = self.model.decoder, self.model.cfg.grid
        keep = (torch.arange(self.num_tokens, device=embeddings.device) < length).expand(n, -1)
        codes = F.pad(embeddings, (0, 0, 0, self.num_tokens - length))
        return finished(decoder.paint(decoder.describe(codes, keep)), keep, grid)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.fsq.to_tokens(self.fsq.quantise(self.model.encoder(images)))

    def code_embeddings(self) -> Tensor:
        return self.fsq.to_codes(torch.arange(self.vocab_size, device=self.device))


def _create(path: Path) -> GridModel:
    """The network that a tokenizer.json describes, its weights not loaded yet."""
    sizes = read_json(path).get("model")
    known = {f.name for f in fields(GridConfig)}
    if not isinstance(sizes, dict) or not set(sizes) <= known:
        raise InputError(
            f"{str(path)!r} does not describe a grid tokenizer: its "
            f'"model" must be an object with keys among {", ".join(sorted(known))}.'
        )
    cfg = GridConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
    try:
        FSQ(cfg.levels)
        return GridModel(cfg)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"{str(path)!r} describes a grid tokenizer that cannot be made ({error}): "
            "use the file that belongs to the weights."
        ) from error
