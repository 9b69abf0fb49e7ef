"""The autoregressive prior: a small transformer trained to predict tokens from a text.

This is the trained text-conditioned model that search without one is compared with. Sampled by
itself (`sample`) it is that baseline; as a prior it proposes tokens that fit the prompt already.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfgen.decoding.cores import one_thread
from tfgen.errors import InputError, finite_number, whole_number
from tfgen.hub import load_weights, read_safetensors, safetensors_metadata
from tfgen.packing import fingerprint, pack, unpack, write_tensors
from tfgen.priors.autoregressive_model import (
    AutoregressiveConfig,
    AutoregressiveModel,
    KeysValues,
)
from tfgen.priors.base import Prior
from tfgen.priors.flexar_sampling import check_filters, filtered
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.words import WordTokenizer

FILE_NAME = "autoregressive.safetensors"
_FORMAT = "tfgen autoregressive prior 1"
_INT8 = 100_000  # weights of a matrix that is stored as int8; its bits a token are the same by 0.01
_MAX_PREFIXES = 8192  # remembered at one time; about 15 kB each
_PASS_ROWS = 32  # of a pass on a CPU, see `_compute`; twice a usual beam, at 1.3 times its time
_SCORED_ROWS = 256  # sequences scored at one time, so that they do not push out the search's own


class AutoregressivePrior(Prior):
    """p(next token | text, prefix), with classifier-free guidance.

    With guidance scale s, the logits are u + s (c - u), of those with the text (c) and with the
    empty text (u): 1 is the model as trained, 0 forgets the text, above 1 follows it more closely
    than the model believes ("Classifier-Free Diffusion Guidance", arXiv 2207.12598, on logits).
    Before `condition` there is no text, and guidance makes no difference.

    Prefixes that were asked for are remembered with their keys and values, so that a longer one
    costs its last token only. A word outside the vocabulary is read as the one unknown word; the
    verifier of the sprite world, which has the same vocabulary, warns of it.
    """

    name = "autoregressive"
    files = (FILE_NAME,)

    def __init__(
        self,
        model: AutoregressiveModel,
        words: WordTokenizer,
        expected: tuple[Sequence[float], Tensor] | None = None,
        guidance: float = 1.0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """expected: guidance scales, rising, and Float[scales, num_tokens], the mean log p per
        token of true scenes' prefixes at each scale."""
        self.model = model.eval().requires_grad_(False)
        self._table = model.table()  # once, and not for every token
        self.words, self.expected, self.metadata = words, expected, metadata or {}
        self.vocab_size, self.num_tokens = model.cfg.vocab_size, model.cfg.num_tokens
        self.guidance = finite_number("guidance", guidance, 0)
        self.prompt: str | None = None
        self.filters: tuple[float, int, float] = (1.0, 0, 0.0)  # temperature, top_k, top_p
        self._start()

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | None = None) -> AutoregressivePrior:
        path = None if folder is None else folder / FILE_NAME
        if path is None or not path.is_file():
            raise InputError(
                f"The model {tokenizer.name} has no autoregressive prior"
                f"{'' if path is None else f' (there is no {str(path)!r})'}: "
                "use another prior, or train one with python -m tfgen.training.autoregressive."
            )
        prior = cls.load(path, tokenizer.device)
        if (prior.vocab_size, prior.num_tokens) != (tokenizer.vocab_size, tokenizer.num_tokens):
            raise InputError(
                f"{str(path)!r} predicts {prior.num_tokens} tokens of a codebook of "
                f"{prior.vocab_size}, but {tokenizer.name} has {tokenizer.num_tokens} of "
                f"{tokenizer.vocab_size}: use the files that belong together."
            )
        return prior

    # one prompt

    def condition(
        self, prompt: str, similarities: Callable[[Tensor], Tensor] | None = None
    ) -> AutoregressivePrior:
        if not self.words.fits(prompt):
            raise InputError(
                f"{prompt!r} has {len(self.words.split(prompt))} words; the autoregressive prior "
                f"reads at most {self.words.context_length - 2}: shorten it."
            )
        return self._changed(prompt=prompt)

    def with_guidance(self, scale: float) -> AutoregressivePrior:
        return self._changed(guidance=finite_number("guidance", scale, 0))

    def options(self) -> dict[str, Any]:
        return {"guidance": self.guidance, "fingerprint": fingerprint(self.model)}

    def _changed(self, **attributes: Any) -> AutoregressivePrior:
        other = copy.copy(self)
        for name, value in attributes.items():
            setattr(other, name, value)
        other._start()
        return other

    @torch.inference_mode()
    def _start(self) -> None:
        """Read the text, and forget all prefixes."""
        scales = {"": 1.0}
        if self.prompt is not None:
            scales = {self.prompt: self.guidance, "": 1 - self.guidance}
        device = self.model.bias.device
        self._texts: list[tuple[float, KeysValues]] = []  # each text and its share of the logits
        for text, scale in scales.items():
            if scale != 0:
                row = self.words(text)
                row = row[:, : int((row != 0).sum())].to(device)
                with one_thread():
                    self._texts.append((scale, self.model.read(row)[0]))
        self._levels = [_Level() for _ in range(self.num_tokens)]

    # probabilities

    def log_probs(self, prefixes: Tensor) -> Tensor:
        if sum(len(level.rows) for level in self._levels) > _MAX_PREFIXES:
            self._levels = [_Level() for _ in range(self.num_tokens)]
        rows = self._rows(prefixes.to("cpu"))
        return self._levels[prefixes.shape[1]].log_probs[rows]

    @torch.inference_mode()
    def _rows(self, prefixes: Tensor) -> Tensor:
        """Int64[B, k], on the CPU -> Int64[B]: their rows of level k, computed where new."""
        level = self._levels[prefixes.shape[1]]
        keys = [row.tobytes() for row in prefixes.to(torch.int32).numpy()]
        new: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in level.rows:
                new.setdefault(key, i)
        if new:
            self._compute(level, prefixes[list(new.values())])
            level.rows.update({key: len(level.rows) + i for i, key in enumerate(new)})
        return torch.tensor([level.rows[key] for key in keys], dtype=torch.int64)

    def _compute(self, level: _Level, prefixes: Tensor) -> None:
        """Add to a level what follows prefixes Int64[n, k] that it lacks.

        In passes of one shape on a CPU, on one thread: what a prefix's row rounds to would else
        depend on the others that are asked for with it, and on the number of cores. On CUDA it
        does, where one large pass is far quicker.
        """
        n, length = prefixes.shape
        size = _PASS_ROWS if self.model.bias.device.type == "cpu" else n
        parents = [self._rows(prefixes[:, :i]) for i in range(length)]
        pairs, log_probs = [], []
        with one_thread():
            for index in torch.arange(n).split(size):
                filled = torch.cat([index, index[-1:].expand(size - len(index))])
                before = [self._levels[i].pairs[rows[filled]] for i, rows in enumerate(parents)]
                passed = self._pass(prefixes[filled], before)
                for whole, part in zip((pairs, log_probs), passed, strict=True):
                    whole.append(part[: len(index)])
        level.append(torch.cat(pairs), torch.cat(log_probs))

    def _pass(self, prefixes: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of prefixes Int64[n, k] and the keys and values of their first k - 1 places, or of
        the beginning: those of the last place, and log p of the next token; see `_Level`."""
        n, length = prefixes.shape
        last = prefixes[:, -1:] if length else torch.full((n, 1), -1)
        last, logits, pairs = last.to(self.model.bias.device), 0.0, []
        for stream, (scale, text) in enumerate(self._texts):
            past = None
            if length:
                own = torch.stack([part[:, stream] for part in before], dim=1)
                # [n, length, blocks, 2, heads, d] -> of each block, [2, n, heads, length, d]
                past = [(k, v) for k, v in own.permute(2, 3, 0, 4, 1, 5)]
            streamed, kept = self.model(last, text, past=past, table=self._table)
            logits = logits + scale * streamed[:, 0]
            pairs.append(torch.stack([torch.stack(pair, dim=1) for pair in kept], dim=1)[..., 0, :])
        return torch.stack(pairs, dim=1), logits.log_softmax(dim=1)

    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        return torch.cat([self._sequence_log_prob(part) for part in tokens.split(_SCORED_ROWS)])

    def expected_log_prob(self, length: int) -> float:
        if self.expected is None:
            return super().expected_log_prob(length)
        scales, means = self.expected
        scale = 0.0 if self.prompt is None else self.guidance
        return float(np.interp(scale, scales, means[:, length - 1].cpu().numpy()))

    # draws

    def _log_probs64(self, prefixes: Tensor) -> Tensor:
        return filtered(super()._log_probs64(prefixes), *self.filters).log_softmax(dim=1)

    def with_filters(
        self, temperature: float = 1.0, top_k: int = 0, top_p: float = 0.0
    ) -> AutoregressivePrior:
        """The same prior, whose proposals and completions are drawn from fewer tokens.

        temperature: divides the log-probabilities; above 0. top_k, top_p: see `filtered`; 0 is off.
        What `log_probs` and the ranking say stays as it is.
        """
        check_filters(temperature, top_k, top_p)
        return self._changed(filters=(temperature, top_k, top_p))

    def sample(
        self,
        prompt: str | None,
        count: int,
        seed: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        guidance: float | None = None,
    ) -> Tensor:
        """Draw whole sequences from the model, without search: Int64[count, num_tokens].

        prompt: None draws from the model of the empty text. guidance: None is the prior's own.
        Sequences are drawn independently of each other, so that some may be the same.
        """
        prior = self if guidance is None else self.with_guidance(guidance)
        prior = prior.with_filters(temperature, top_k, top_p)
        prior = prior._changed(prompt=None) if prompt is None else prior.condition(prompt)
        generator = torch.Generator().manual_seed(whole_number("seed", seed, 0, 2**63 - 1))
        empty = torch.empty(whole_number("count", count, 1), 0, dtype=torch.int64)
        return prior.complete(empty, self.num_tokens, 1.0, generator)

    # the file

    def save(self, path: str | os.PathLike[str], **metadata: Any) -> None:
        """Write one safetensors file, float16 and int8; `metadata` (JSON) says how it was made."""
        scales, means = self.expected or ([], torch.empty(0, self.num_tokens))
        header = {
            **self.metadata,
            **metadata,
            "format": _FORMAT,
            "model": asdict(self.model.cfg),
            "guidance": self.guidance,
            "expected_at": list(scales),
            "vocabulary": {
                "words": self.words.words,
                "context_length": self.words.context_length,
                "variants": self.words.variants,
            },
        }
        tensors = {f"model/{k}": v for k, v in pack(self.model.state_dict(), _INT8).items()}
        tensors["expected"] = means.float().contiguous()
        partial = f"{os.fspath(path)}.partial"
        # One JSON string, not one entry a value: safetensors writes entries in no fixed order.
        write_tensors(tensors, partial, metadata={"tfgen": json.dumps(header, sort_keys=True)})
        os.replace(partial, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> AutoregressivePrior:
        """Read what `save` wrote; InputError where the file is missing, damaged or foreign."""
        tensors = read_safetensors(path)
        try:
            header = json.loads(safetensors_metadata(path).get("tfgen", "{}"))
            if header.pop("format", None) != _FORMAT:
                raise ValueError("it was written by another program")
            sizes, vocabulary = header.pop("model"), header.pop("vocabulary")
            known = {field.name for field in fields(AutoregressiveConfig)}
            if not set(sizes) <= known:
                raise ValueError(f"its sizes are not among {', '.join(sorted(known))}")
            cfg = AutoregressiveConfig(**sizes | {"levels": tuple(sizes["levels"])})
            model = AutoregressiveModel(cfg)
            words = WordTokenizer(**vocabulary)
            if (words.vocab_size, words.context_length) != (cfg.words, cfg.context_length):
                raise ValueError("its vocabulary is of another size")
            expected = (header.pop("expected_at"), tensors.pop("expected"))
            if expected[1].shape != (len(expected[0]), cfg.num_tokens):
                raise ValueError("its expected log-probabilities have another shape")
            guidance = header.pop("guidance")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{os.fspath(path)!r} is not a usable autoregressive prior ({error}): "
                "get the file again, or train one with python -m tfgen.training.autoregressive."
            ) from None
        weights = unpack({k.removeprefix("model/"): v for k, v in tensors.items()})
        load_weights(model, weights, os.fspath(path))
        usable = expected if expected[0] else None
        return cls(model.to(device), words, usable, guidance, header)


class _Level:
    """All known prefixes of one length: their last place's keys and values, and what may follow."""

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        self.pairs = torch.empty(0)  # [n, streams, blocks, 2, heads, d]
        self.log_probs = torch.empty(0)  # [n, V]

    def append(self, pairs: Tensor, log_probs: Tensor) -> None:
        known = len(self.rows) > 0
        self.pairs = torch.cat([self.pairs, pairs]) if known else pairs
        self.log_probs = torch.cat([self.log_probs, log_probs]) if known else log_probs
