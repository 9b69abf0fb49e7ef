"""Count a frequency prior over pictures, which are encoded in parts: it may be stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen.errors import InputError
from tfgen.priors.frequency import FrequencyPrior
from tfgen.tables import Parts
from tfgen.tokenizers.base import Tokenizer

ROWS = 16  # pictures encoded at a time


def count_pictures(
    pictures: Callable[[int], Tensor],
    parts: int,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    source: Mapping[str, Any],
    min_count: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> FrequencyPrior:
    """Encode pictures, count their tokens and pairs of tokens, and write the prior to `path`.

    pictures: the number of a part, from 0, to its pictures, Float[n, 3, H, W] in [0, 1], n from 0.
    source: what they are, as JSON; it goes into the file. min_count: rarer pairs are dropped.
    progress: called with the parts done and all parts. May be stopped at any moment and called
    again with the same source and tokenizer: it goes on where it was.

    Raises InputError where there are fewer than two pictures in all.
    """
    path = Path(path).expanduser()
    identity = {
        "kind": "encoded pictures",
        "tokenizer": tokenizer.fingerprint(),
        "source": dict(source),
        "parts": parts,
    }
    saved, encoded = Parts(path, identity), []
    for index in range(parts):
        part = saved.load(index)
        if part is None:
            part = {"tokens": _encode(pictures(index), tokenizer)}
            saved.save(index, part)
        encoded.append(part["tokens"].long())
        if progress:
            progress(index + 1, parts)
    if (count := sum(map(len, encoded))) < 2:
        raise InputError(f"A frequency prior needs two pictures or more, not {count}.")
    prior = FrequencyPrior.fit(
        [tokens for tokens in encoded if len(tokens)],
        tokenizer.vocab_size,
        tokenizer.num_tokens,
        min_count=min_count,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"tokenizer": tokenizer.fingerprint(), "pictures": count, "source": dict(source)}
    prior.save(path, told)
    saved.remove()
    return prior


@torch.inference_mode()
def _encode(images: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Float[n, 3, H, W] -> Int32[n, num_tokens]."""
    if not len(images):
        return torch.zeros(0, tokenizer.num_tokens, dtype=torch.int32)
    parts = [tokenizer.encode(part.to(tokenizer.device)) for part in images.split(ROWS)]
    return torch.cat(parts).to("cpu", torch.int32)
