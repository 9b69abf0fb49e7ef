"""The atlas: what every one-token prefix looks like to the verifier, computed once.

The picture of a one-token prefix does not depend on the prompt. With the embeddings of all of them
stored, the first step of a search is exhaustive, one matrix product, and costs no decode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.hub import cache_folder
from tfgen.search.evaluator import Engine, PlainEngine
from tfgen.tables import Parts, check_models, models_of, open_table, save_table
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier

FILE_NAME = "atlas.safetensors"
_KIND = "atlas"
_PART = 256  # codes saved at a time, rounded to whole passes


class Atlas:
    """The embeddings of all one-token prefixes: an `EmbeddingSource` that knows just those.

    They are stored as float16. That rounds scores by less than 1e-3 of their spread (measured on
    the embedded models, see tests/test_atlas.py), and a search counts the rounded score as the
    prefix's score: what the atlas knows is never decoded, so there is no exact score beside it that
    it could disagree with.

    A tokenizer that decodes from noise shows other pictures for each seed of a search, and so has
    an atlas for each seed.
    """

    def __init__(
        self, embeddings: Tensor, header: dict[str, Any], path: Path | None = None
    ) -> None:
        """embeddings: Float16[vocab_size, d]; header: what `build` wrote beside them, to `path`."""
        self.embeddings, self.header, self.path = embeddings, header, path
        self.vocab_size = len(embeddings)

    @classmethod
    def open(
        cls, path: str | Path, tokenizer: Tokenizer, verifier: Verifier, seed: int = 0
    ) -> Atlas:
        """Memory-map the atlas of these models (`seed`: of the search, for a noisy decoder).

        Raises InputError where there is none, or it is damaged or stale.
        """
        models = models_of(tokenizer, verifier, seed)
        return cls._open(Path(path), models, tokenizer.vocab_size)

    @classmethod
    def find(cls, folder: Path | None, models: dict[str, Any], vocab_size: int) -> Atlas | None:
        """The atlas of these models (of `models_of`) that lies in the model's folder or in the
        cache folder, if any. One of other models is passed over, as is a damaged one."""
        for path in (folder and folder / FILE_NAME, cached_path(models)):
            try:
                if path:
                    return cls._open(path, models, vocab_size)
            except InputError:
                continue
        return None

    @classmethod
    def _open(cls, path: Path, models: dict[str, Any], vocab_size: int) -> Atlas:
        tensors, header = open_table(path, _KIND)
        check_models(header, models, path, _KIND, "build it again with tfgen atlas build")
        embeddings = tensors.get("embeddings")
        if embeddings is None or embeddings.ndim != 2 or len(embeddings) != vocab_size:
            raise InputError(f"{str(path)!r} is not a usable {_KIND}: build it again.")
        return cls(embeddings, header, path)

    @classmethod
    def build(
        cls,
        tokenizer: Tokenizer,
        verifier: Verifier,
        path: str | Path,
        *,
        seed: int = 0,
        engine: Engine | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Atlas:
        """Decode and embed every code, and write the atlas to `path`.

        May be stopped at any moment and called again: it goes on where it was (see `Parts`). Passes
        have the shape that a search's have, so that an embedding is the search's own, rounded to
        float16. engine: as for `Evaluator`. progress: called with the codes done and all codes.

        Raises TfgenError where it cannot be written, or the device has too little memory.
        """
        path, models = Path(path), models_of(tokenizer, verifier, seed)
        tokenizer = tokenizer.for_seed(seed)
        engine = engine or PlainEngine(tokenizer, verifier)
        total, batch = tokenizer.vocab_size, engine.rows * engine.passes
        step = max(1, _PART // batch) * batch  # codes of a part
        parts = Parts(path, {"kind": _KIND, "models": models, "codes": total, "step": step})
        tables = []
        for index, start in enumerate(range(0, total, step)):
            part = parts.load(index)
            if part is None:
                codes = torch.arange(start, min(start + step, total), device=tokenizer.device)
                done = []
                for some in codes.split(batch):
                    done.append(_embed(engine, some).half().cpu())
                    if progress:
                        progress(start + sum(map(len, done)), total)
                part = {"embeddings": torch.cat(done)}
                parts.save(index, part)
            elif progress:
                progress(min(start + step, total), total)
            tables.append(part["embeddings"])
        header = {
            "kind": _KIND,
            "models": models,
            "names": {"tokenizer": tokenizer.name, "verifier": verifier.name},
        }
        save_table(path, {"embeddings": torch.cat(tables)}, header)
        parts.remove()
        return cls._open(path, models, total)

    def get(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Int64[N, k] -> known Bool[N], embeddings Float32[N, d] on the CPU: all for k = 1, none
        for longer prefixes."""
        if tokens.shape[1] != 1:
            return torch.zeros(len(tokens), dtype=torch.bool), torch.zeros(len(tokens), 0)
        known = torch.ones(len(tokens), dtype=torch.bool)
        return known, self.embeddings[tokens[:, 0].cpu()].float()

    def put(self, tokens: Tensor, embeddings: Tensor) -> None:
        """Nothing: an atlas is complete."""


def cached_path(models: dict[str, Any]) -> Path:
    """Where the atlas of these models (of `models_of`) lies unless the user says otherwise."""
    seed = "" if models["seed"] is None else f"-seed-{models['seed']}"
    name = f"{models['tokenizer']}-{models['verifier']}{seed}.safetensors"
    return cache_folder() / "atlas" / name


@torch.inference_mode()
def _embed(engine: Engine, codes: Tensor) -> Tensor:
    """Int64[N] -> Float32[N, d], in passes of exactly `engine.rows` rows."""
    missing = -len(codes) % engine.rows
    filled = torch.cat([codes, codes[-1:].expand(missing)])[:, None]
    try:
        return torch.cat(engine.embed(filled.split(engine.rows)))[: len(codes)]
    except torch.OutOfMemoryError as error:
        raise TfgenError(
            f"The device {codes.device} has too little free memory for {engine.rows} pictures at "
            "a time: free some, or use --device cpu."
        ) from error
