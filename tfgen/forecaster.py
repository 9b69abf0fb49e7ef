"""The forecaster: what a prefix's picture will look like to the verifier, told from its tokens.

A small network, trained on what tokenizer and verifier make of mixtures of a bank's pictures; it
knows no text. A forecast takes less than a hundredth of a decode's time and errs, so a search only
chooses by it what to decode: every score that counts is still that of a decoded picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.decoding.threads import one_thread
from tfgen.errors import InputError, whole_number
from tfgen.hub import load_weights
from tfgen.packing import fingerprint, pack, unpack
from tfgen.tables import check_models, models_of, open_table, save_table
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier

FILE_NAME = "forecast.safetensors"
_KIND = "forecaster"
_ROWS = 1024  # at a time


class ForecastNetwork(nn.Module):
    """Code vectors of a prefix, absent tokens masked -> the embedding of its picture.

    tokens: of the longest prefix; features: of a code vector; dim: of an embedding; width, depth:
    of the residual blocks.
    """

    def __init__(self, tokens: int, features: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.sizes = {
            "tokens": tokens,
            "features": features,
            "dim": dim,
            "width": width,
            "depth": depth,
        }
        self.enter = nn.Linear(tokens * (features + 1), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.leave = nn.Linear(width, dim)

    def forward(self, codes: Tensor, keep: Tensor) -> Tensor:
        """codes Float[N, T, d], keep Bool[N, T] (True: token present) -> Float[N, dim]."""
        kept = keep[..., None].to(codes.dtype)
        x = F.silu(self.enter(torch.cat([codes * kept, 2 * kept - 1], dim=2).flatten(1)))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


class Forecaster:
    """Foretells embeddings, for one tokenizer and one verifier."""

    def __init__(
        self, network: ForecastNetwork, codes: Tensor, models: dict[str, Any], path: Path | None
    ) -> None:
        """codes: Float[vocab_size, features], the codebook; models: of `models_of`; path: of its
        file, for messages."""
        self.network = network.eval().requires_grad_(False).to(codes.device)
        self.codes, self.models, self.path = codes.float(), models, path

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer, verifier: Verifier) -> Forecaster:
        """The forecaster in a file. Raises InputError where there is none, or it is damaged, or
        made for other models."""
        path, models = Path(path), models_of(tokenizer, verifier)
        tensors, header = open_table(path, _KIND)
        check_models(header, models, path, _KIND, "train it again with tfgen.training.forecast")
        codes = tokenizer.code_embeddings()
        try:
            sizes = {name: whole_number(name, size, 1) for name, size in header["sizes"].items()}
            network = ForecastNetwork(**sizes)
            if sizes["tokens"] < tokenizer.num_tokens or sizes["features"] != codes.shape[1]:
                raise InputError("its sizes are not those of the tokenizer")
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise InputError(f"{str(path)!r} is not a usable {_KIND} ({error}).") from error
        load_weights(network, unpack(tensors), path)
        return cls(network, codes, models, path)

    @classmethod
    def find(
        cls, folder: Path | None, tokenizer: Tokenizer, verifier: Verifier
    ) -> Forecaster | None:
        """That of these models in the model's folder, if there is one. Raises InputError where it
        is damaged: without it, a search would find something else."""
        path = folder and folder / FILE_NAME
        if not path or not path.is_file():
            return None
        if open_table(path, _KIND)[1].get("models") != models_of(tokenizer, verifier):
            return None
        return cls.open(path, tokenizer, verifier)

    def fingerprint(self) -> str:
        """Of its weights, in hexadecimal: a search with another is another search."""
        return fingerprint(self.network)

    def save(self, path: Path) -> None:
        """Write it, packed. Raises TfgenError where it cannot be written."""
        header = {"kind": _KIND, "models": self.models, "sizes": self.network.sizes}
        save_table(path, pack(self.network.state_dict()), header)

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        """Int64[N, k], k up to the tokens it knows -> unit vectors Float32[N, dim], on the device
        of the tokenizer; on a CPU by one thread, so that they do not depend on the cores."""
        tokens = tokens.to(self.codes.device)
        keep = torch.arange(self.network.sizes["tokens"], device=tokens.device) < tokens.shape[1]
        padded = F.pad(tokens, (0, len(keep) - tokens.shape[1]))
        with one_thread():
            parts = [
                self.network(self.codes[part], keep.expand(len(part), -1))
                for part in padded.split(_ROWS)
            ]
        return F.normalize(torch.cat(parts).float(), dim=1)
