"""The frequency prior: how often true pictures use each token, and each token after another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from tfgen.errors import InputError
from tfgen.packing import as_any_new_file
from tfgen.priors.base import Prior
from tfgen.tokenizers.base import Tokenizer

FILE_NAME = "prior.safetensors"
HELD_OUT = 0.05  # the share of the scenes, the last ones, that is measured on and not counted
_FORMAT = "tfgen frequency prior 1"
_KAPPAS = tuple(2.0**i for i in range(15))


class FrequencyPrior(Prior):
    """A bigram per position, backed off to a unigram per position. Its tables live on the CPU.

    Both are Bayesian estimates. The unigram at position t, from N scenes of which n_t(x) have token
    x:

        u_t(x) = (n_t(x) + α) / (N + α V)

    The bigram, where n_t(w, x) scenes have w at t - 1 and x at t, shrinks towards it by κ
    pseudo-counts:

        p_t(x | w) = (n_t(w, x) + (κ + r_t(w)) u_t(x)) / (n_{t-1}(w) + κ)

    Pairs seen fewer than `min_count` times are not stored; r_t(w) is how many occurrences of w they
    were, so that their mass goes to the unigram. With every pair stored (r = 0) this is
    a · n_t(w, x) / n_{t-1}(w) + (1 - a) · u_t(x) with a = n_{t-1}(w) / (n_{t-1}(w) + κ).
    """

    name = "frequency"
    files = (FILE_NAME,)

    def __init__(
        self,
        unigram: np.ndarray,
        bigram: list[csr_array],
        kappa: float,
        alpha: float,
        metadata: dict | None = None,
    ) -> None:
        """From counts: `unigram` Int[num_tokens, vocab_size]; `bigram` for each position from the
        second on, [vocab_size, vocab_size] of (previous token, token)."""
        self.num_tokens, self.vocab_size = unigram.shape
        self.unigram = unigram.astype(np.int64)
        self.bigram = bigram
        self.kappa, self.alpha = float(kappa), float(alpha)
        self.metadata = metadata or {}
        self.expected_mean = np.full(
            self.num_tokens, np.nan
        )  # nats per token, by prefix length - 1
        self.expected_std = np.full(self.num_tokens, np.nan)
        scenes = self.unigram.sum(axis=1, keepdims=True)
        self._backoff = (self.unigram + alpha) / (scenes + alpha * self.vocab_size)  # u, [T, V]
        self._kept = [pairs.sum(axis=1) for pairs in bigram]  # per position: [V], by previous token

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | None = None) -> FrequencyPrior:
        """folder: of the model, or the prior's own file. Raises InputError where there is none, or
        where it was counted with another tokenizer."""
        if folder is None:
            raise InputError(
                "The frequency prior needs the model's folder, which holds its counts in "
                f"{FILE_NAME}: use the uniform prior instead."
            )
        source = folder.expanduser()
        source = source / FILE_NAME if source.is_dir() else source
        prior = cls.load(source)
        told = prior.metadata.get("tokenizer")
        if told is not None and told != tokenizer.fingerprint():
            raise InputError(
                f"{str(source)!r} was counted with another tokenizer (fingerprint {told}) than "
                f"{tokenizer.name} ({tokenizer.fingerprint()}), whose tokens mean something else: "
                "count it again with this one, with tfgen prior fit."
            )
        return prior

    @classmethod
    def fit(
        cls,
        batches: Iterable[Tensor],
        vocab_size: int,
        num_tokens: int,
        *,
        min_count: int = 2,
        kappa: float | None = None,
        alpha: float = 0.5,
    ) -> FrequencyPrior:
        """Count over encoded scenes, batches of Int64[N, num_tokens].

        The last 5 % of the scenes are held out: they measure how likely true scenes are (for
        `typicality`) and, unless `kappa` is given, choose it (the power of two that makes them
        likeliest).
        """
        scenes = [np.asarray(batch.cpu()) for batch in batches]
        tokens = np.concatenate(scenes) if scenes else np.empty((0, num_tokens), np.int64)
        if tokens.ndim != 2 or tokens.shape[1] != num_tokens or len(tokens) < 2:
            raise InputError(
                f"A frequency prior is counted over two or more scenes of {num_tokens} tokens, "
                f"not over an array of shape {tokens.shape}."
            )
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise InputError(
                f"Scenes hold tokens from {tokens.min()} to {tokens.max()}, but the codebook goes "
                f"from 0 to {vocab_size - 1}."
            )
        cut = len(tokens) - max(1, round(HELD_OUT * len(tokens)))
        counted, held_out = tokens[:cut], torch.from_numpy(tokens[cut:].astype(np.int64))

        unigram = np.stack([np.bincount(column, minlength=vocab_size) for column in counted.T])
        bigram = [
            _count_pairs(counted[:, t - 1], counted[:, t], vocab_size, min_count)
            for t in range(1, num_tokens)
        ]
        candidates = _KAPPAS if kappa is None else (kappa,)
        # One after the other: with a codebook of 64,000 each holds some 250 MB.
        priors = (cls(unigram, bigram, value, alpha) for value in candidates)
        prior = max(priors, key=lambda prior: float(prior.sequence_log_prob(held_out).mean()))

        lengths = np.arange(1, num_tokens + 1)
        means = prior.sequence_log_prob(held_out).double().numpy().cumsum(axis=1) / lengths
        prior.expected_mean, prior.expected_std = means.mean(axis=0), means.std(axis=0)
        prior.metadata = {
            "scenes": cut,
            "held_out": len(held_out),
            "min_count": min_count,
            "pairs": int(sum(pairs.nnz for pairs in bigram)),
            "held_out_log_prob": float(prior.expected_mean[-1]),
        }
        return prior

    def options(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint}

    @cached_property
    def _fingerprint(self) -> str:
        """A short hex hash of all tables."""
        numbers = (self.kappa, self.alpha, self.expected_mean.astype(np.float32).tolist())
        digest = hashlib.sha256(repr((self.unigram.shape, *numbers)).encode())
        for table in (self.unigram, *self.bigram):
            counts = csr_array(table)
            for part in (counts.indptr, counts.indices, counts.data):
                digest.update(part.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]

    def log_probs(self, prefixes: Tensor) -> Tensor:
        position = prefixes.shape[1]
        backoff = self._backoff[position]
        if position == 0:
            p = np.broadcast_to(backoff, (len(prefixes), self.vocab_size))
        else:
            previous = prefixes[:, -1].cpu().numpy()
            seen, backed_off = self._weights(position, previous)
            counts = self.bigram[position - 1][previous].toarray()  # [B, V]
            p = (counts + backed_off[:, None] * backoff) / (seen + self.kappa)[:, None]
        return torch.from_numpy(np.log(p)).float()

    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        array = tokens.cpu().numpy()
        p = np.empty(array.shape)
        for t in range(array.shape[1]):
            p[:, t] = self._backoff[t, array[:, t]]
            if t > 0:
                previous = array[:, t - 1]
                seen, backed_off = self._weights(t, previous)
                counts = np.asarray(self.bigram[t - 1][previous, array[:, t]]).ravel()
                p[:, t] = (counts + backed_off * p[:, t]) / (seen + self.kappa)
        return torch.from_numpy(np.log(p)).float()

    def _weights(self, position: int, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n(w) and the backoff's share κ + r(w), for each previous token w."""
        seen = self.unigram[position - 1, previous]
        return seen, self.kappa + seen - self._kept[position - 1][previous]

    def expected_log_prob(self, length: int) -> float:
        return float(self.expected_mean[length - 1])

    def save(self, path: str | os.PathLike, metadata: dict | None = None) -> None:
        """Write one safetensors file; `metadata` (JSON) says what it was counted from."""
        tables = {
            "unigram": self.unigram,
            "row_lengths": np.stack([np.diff(pairs.indptr) for pairs in self.bigram])
            if self.bigram
            else np.empty((0, self.vocab_size), np.int64),
            "next": np.concatenate([pairs.indices for pairs in self.bigram] or [[]]),
            "count": np.concatenate([pairs.data for pairs in self.bigram] or [[]]),
        }
        tables = {name: _smallest(table) for name, table in tables.items()}
        tables["expected_mean"] = self.expected_mean.astype(np.float32)
        tables["expected_std"] = self.expected_std.astype(np.float32)
        header = {"kappa": self.kappa, "alpha": self.alpha, **self.metadata, **(metadata or {})}
        # One JSON string, not one entry a value: safetensors writes entries in no fixed order.
        header = {"tfgen": json.dumps({"format": _FORMAT, **header}, sort_keys=True)}
        partial = f"{os.fspath(path)}.partial"
        save_file(tables, partial, metadata=header)
        as_any_new_file(partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> FrequencyPrior:
        """Read what `save` wrote; InputError where the file is missing, cut short or foreign."""
        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                metadata = json.loads((file.metadata() or {}).get("tfgen", "{}"))
                if metadata.pop("format", None) != _FORMAT:
                    raise ValueError("it was written by another program")
                tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls._from_tables(tables, metadata)
        except FileNotFoundError:
            raise InputError(
                f"There is no frequency prior {os.fspath(path)!r}: count one over pictures with "
                "tfgen prior fit, or use --prior uniform."
            ) from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{os.fspath(path)!r} is not a usable frequency prior ({error}): "
                "fetch it again, or count a new one with tfgen prior fit."
            ) from None

    @classmethod
    def _from_tables(cls, tables: dict[str, np.ndarray], metadata: dict) -> FrequencyPrior:
        unigram, lengths = tables["unigram"], tables["row_lengths"]
        columns, counts = tables["next"], tables["count"]
        kappa, alpha = float(metadata.pop("kappa")), float(metadata.pop("alpha"))
        for name in ("unigram", "row_lengths", "next", "count"):
            _require(tables[name].dtype.kind == "u", f"{name} holds no counts")
        _require(unigram.ndim == 2 and unigram.size > 0, "unigram is no table")
        num_tokens, vocab_size = unigram.shape
        _require(lengths.shape == (num_tokens - 1, vocab_size), "row_lengths has a wrong shape")
        _require(columns.shape == counts.shape == (int(lengths.sum()),), "pairs are missing")
        _require(0 < kappa < np.inf and 0 < alpha < np.inf, "its smoothing is no positive number")
        expected = [tables["expected_mean"], tables["expected_std"]]
        _require(
            all(a.shape == (num_tokens,) and np.isfinite(a).all() for a in expected),
            "its expected log-probabilities are no finite numbers",
        )
        bigram, start = [], 0
        for t, row_lengths in enumerate(lengths):
            bounds = np.concatenate([[0], np.cumsum(row_lengths, dtype=np.int64)])
            part = slice(start, start := start + int(bounds[-1]))
            pairs = csr_array(
                (counts[part].astype(np.int64), columns[part].astype(np.int64), bounds),
                shape=(vocab_size, vocab_size),
            )
            pairs.check_format()
            _require(pairs.has_canonical_format, "its pairs are out of order")
            _require((pairs.sum(axis=1) <= unigram[t]).all(), "pairs outnumber tokens")
            bigram.append(pairs)
        prior = cls(unigram, bigram, kappa, alpha, metadata)
        prior.expected_mean, prior.expected_std = (a.astype(np.float64) for a in expected)
        return prior


def _count_pairs(
    previous: np.ndarray, current: np.ndarray, vocab_size: int, min_count: int
) -> csr_array:
    ones = np.ones(len(previous), np.int64)
    pairs = coo_array((ones, (previous, current)), shape=(vocab_size, vocab_size)).tocsr()
    pairs.data[pairs.data < min_count] = 0
    pairs.eliminate_zeros()
    pairs.sort_indices()
    return pairs


def _smallest(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
