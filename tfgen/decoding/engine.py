"""The hot loop: tokens -> picture -> verifier input -> embedding, and which engine runs it.

`auto` is passes side by side on a CPU (`ThreadedEngine`), and kernels and CUDA graphs on a GPU
(`KernelEngine`), if they run there; `eager` is the plain PyTorch path anywhere (`PlainEngine`);
`kernels` is an error where they do not run; `kernels-fp8` makes the drafts of a screening in FP8;
`bf16` is passes side by side with products in bfloat16 (`Bfloat16Engine`), on a CPU that has them.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tfgen.errors import InputError, unknown
from tfgen.search.evaluator import Engine, PlainEngine, fewer_rows, too_little_memory
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier

ENGINES = ("auto", "eager", "kernels", "kernels-fp8", "bf16")
EngineMaker = Callable[[Tokenizer, Verifier], Engine]


class EngineWarning(UserWarning):
    """Why a GPU does less than it could."""


class DecodeEngine(ABC):
    """An `Engine` of a search (see `Evaluator`) for any tokenizer that decodes.

    It owns what makes passes fast (threads; packed weights, static buffers, CUDA graphs), says how
    many rows a pass has, and never changes a result but by rounding.
    """

    coarse = False
    """Whether its rounding shows in a score that is reported, as `Engine.coarse`."""

    name: str
    """Which it is, as `Engine.name`."""

    rows: int
    """Rows of a pass, as `Engine.rows`."""

    passes: int
    """Passes it likes to be given at a time, as `Engine.passes`."""

    def __init__(self, tokenizer: Tokenizer, verifier: Verifier) -> None:
        self.tokenizer, self.verifier = tokenizer, verifier
        self.rows = tokenizer.decode_rows

    @abstractmethod
    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """Each Int64[rows, k], k the same in all -> of each, Float32[rows, d] on the device."""

    def draft(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> the tokenizer's drafts of these, as `Tokenizer.draft`."""
        return self.tokenizer.draft(tokens)

    def encode_again(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Int64[N, k], as `Tokenizer.encode_again`."""
        return self.tokenizer.encode_again(tokens)

    def bucket(self, length: int) -> int:
        """The length that prefixes of `length` tokens are padded to. Here: none are."""
        return length

    def embed_padded(self, passes: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
        """`embed` of passes whose row i holds lengths[i] tokens (Int64[rows]), all of one bucket
        and padded to it."""
        return self.embed(passes)

    @torch.inference_mode()
    def embed_prefixes(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Any number of prefixes of mixed lengths, Int64[N, K] of which row i's first lengths[i]
        (Int64[N], 1 to K; None: all K) count -> embeddings Float32[N, d] on the device.

        Prefixes of one bucket share passes of `rows` rows, the last one filled up. Where the device
        runs out of memory, `rows` is halved, for later calls too. Raises InputError on tokens out
        of range, TfgenError where there is no memory for a single row.
        """
        self.tokenizer.check(tokens)
        if lengths is None:
            lengths = torch.full((len(tokens),), tokens.shape[1])
        if len(lengths) != len(tokens) or not bool(
            ((1 <= lengths) & (lengths <= tokens.shape[1])).all()
        ):
            raise InputError(
                f"lengths must be {len(tokens)} whole numbers from 1 to {tokens.shape[1]}, one a "
                f"row of tokens, not {lengths.tolist()}."
            )
        buckets = torch.tensor([self.bucket(k) for k in lengths.tolist()])
        rows: dict[int, Tensor] = {}  # the embedding of each prefix
        for bucket in buckets.unique().tolist():
            mine = (buckets == bucket).nonzero()[:, 0]
            padded = resized(tokens[mine], bucket)
            rows.update(zip(mine.tolist(), self._in_passes(padded, lengths[mine]), strict=True))
        return torch.stack([rows[i] for i in range(len(tokens))])

    def _in_passes(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        while True:
            n = len(tokens)
            at = torch.arange(-(-n // self.rows) * self.rows).clamp(max=n - 1)
            try:
                passes, each = tokens[at].split(self.rows), lengths[at].split(self.rows)
                return torch.cat(self.embed_padded(passes, each))[:n]
            except torch.OutOfMemoryError as error:
                if self.rows == 1:
                    raise too_little_memory(self.tokenizer) from error
            self.rows = fewer_rows(self.rows, self.tokenizer.device)


def resized(tokens: Tensor, length: int) -> Tensor:
    """[N, k] -> [N, length], cut or filled up with zeros."""
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]))


def fitting_rows(wanted: int, free: int, peak: Callable[[int], int]) -> int:
    """Rows of a pass that fit the memory: `wanted`, halved as often as it takes, and at least 1.

    free: bytes that may be used; peak: bytes that a pass of so many rows needs at most. Passes of 4
    and of 8 rows are tried, and a tenth is left free. If there is no memory for one of 4, it is 1;
    for one of 8, at most 4. As results depend on the rows by rounding, there are never more than
    wanted, however much is free.
    """
    if wanted <= 8:
        return wanted
    few = _tried(peak, 4)
    if few is None:
        return 1
    more = _tried(peak, 8)
    if more is None:
        wanted, more = 4, 2 * few
    each = max(0, more - few) / 4
    while wanted > 1 and few + each * (wanted - 4) > 0.9 * free:
        wanted = (wanted + 1) // 2
    return wanted


def _tried(peak: Callable[[int], int], rows: int) -> int | None:
    """peak(rows); None where it runs out of memory, of which torch then keeps none that it does not
    use."""
    try:
        return peak(rows)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # outside the except clause, whose error holds tensors
    return None


def engine_maker(engine: str, device: torch.device) -> EngineMaker:
    """What makes the engine of a search on this device, by name (one of ENGINES).

    Raises InputError on another name, and where what is asked for cannot run. Warns
    (EngineWarning) where `auto` has a GPU and kernels do not run on it.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "eager":
        return PlainEngine
    if engine == "auto" and device.type == "cpu":
        from tfgen.decoding.threads import ThreadedEngine

        return ThreadedEngine
    if engine == "bf16":
        from tfgen.decoding.bfloat16 import Bfloat16Engine, why_no_bfloat16

        if reason := why_no_bfloat16(device):
            raise InputError(f"The engine bf16 cannot run: {reason}. Use --engine auto or eager.")
        return Bfloat16Engine
    from tfgen.decoding.kernel_engine import KernelEngines  # and Triton, which takes a while
    from tfgen.decoding.triton_support import why_no_float8, why_no_kernels

    float8 = engine == "kernels-fp8"
    reason = why_no_kernels(device) or (why_no_float8(device) if float8 else None)
    if reason is None:
        return KernelEngines(float8)
    if engine != "auto":
        raise InputError(f"The engine {engine} cannot run: {reason}. Use --engine auto or eager.")
    warnings.warn(
        f"Decoding is slower than it could be, as kernels do not run here: {reason}.",
        EngineWarning,
        stacklevel=3,
    )
    return PlainEngine
