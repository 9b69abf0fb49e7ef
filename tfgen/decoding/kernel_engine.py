"""The hot loop on a GPU: tokens to embeddings through kernels and CUDA graphs, without a wait."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tfgen.decoding.engine import DecodeEngine, fitting_rows, resized
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.graphs import CudaRecord, GraphedPass, Record
from tfgen.decoding.group_norm import with_fused_norms
from tfgen.decoding.picture_kernels import InputPlan, verifier_input
from tfgen.decoding.sprites_step import decode_all_slots, with_fused_painters
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.clip import ClipVerifier

SHORTEST_BUCKET = 4
PASSES = 8  # queued while the device computes, before the host waits for their scores


class KernelEngine(DecodeEngine):
    """Decodes a FlexTok through `FusedFlexTok`, and hands pictures to a CLIP through
    `verifier_input`. GroupNorms of these, and of the sprites model, go through `group_norm`.
    Whatever is neither goes its usual way.

    Prefixes are padded to buckets: of FlexTok to powers of two from SHORTEST_BUCKET, as its work
    grows with their length; of the sprites model, whose does not, all to the longest. On CUDA each
    (rows, bucket) becomes a CUDA graph, where decoder and verifier are known to run without the
    host. One copy takes all tokens of a call to the device, and nothing waits for it.
    """

    name = "kernels"

    def __init__(
        self,
        tokenizer: Tokenizer,
        verifier: Verifier,
        residual: torch.dtype = torch.float32,
        *,
        rows: int | None = None,
        record: Record | None = None,
        float8_drafts: bool = False,
    ) -> None:
        """residual: see `FusedDecoder`. rows: of a pass; None: the tokenizer's, or as many as fit
        the memory that is free on the GPU. record: what records passes; None: CUDA graphs on a GPU,
        and nothing elsewhere. float8_drafts: a FlexTok's drafts are in FP8."""
        if isinstance(tokenizer, FlexTok) and not isinstance(tokenizer, FusedFlexTok):
            tokenizer = FusedFlexTok.of(tokenizer, residual)
            tokenizer.float8_drafts = float8_drafts
        if float8_drafts:
            self.name = "kernels-fp8"
        super().__init__(tokenizer, verifier)
        device = tokenizer.device
        on_gpu = device.type == "cuda"
        self.passes = PASSES if on_gpu else 1
        self.plan: InputPlan | None = None
        if isinstance(verifier, ClipVerifier):
            self.sight = copy.copy(verifier)
            self.sight.model = with_fused_norms(verifier.model)
            self.plan = InputPlan.for_clip(verifier.preprocess, tokenizer.image_size, device)
        if isinstance(tokenizer, SpritesTokenizer):
            self.painting = with_fused_painters(tokenizer.model)
            self.codebook = tokenizer.code_embeddings()  # to make codes of tokens, a host is needed
        self.padded = isinstance(tokenizer, (FusedFlexTok, SpritesTokenizer))
        self.graphs: GraphedPass | None = None
        if record is None and on_gpu:
            record = CudaRecord()
        if record is not None and self.padded and self.plan is not None:
            self.graphs = GraphedPass(self._run, record)
        if rows is not None:
            self.rows = rows
        elif on_gpu:
            self.rows = self._fitting_rows(_free_memory(device))

    def bucket(self, length: int) -> int:
        if isinstance(self.tokenizer, SpritesTokenizer):
            return self.tokenizer.num_tokens
        if not isinstance(self.tokenizer, FusedFlexTok):
            return length
        power = 1 << (length - 1).bit_length()
        return min(max(power, SHORTEST_BUCKET), self.tokenizer.num_tokens)

    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """Each Int64[rows, k] -> of each, Float32[rows, d]."""
        length = passes[0].shape[1]
        padded = [resized(tokens, self.bucket(length)) for tokens in passes]
        device = passes[0].device  # a copy from there to here would wait for what is queued
        lengths = [torch.full((len(tokens),), length, device=device) for tokens in passes]
        return self.embed_padded(padded, lengths)

    @torch.inference_mode()
    def embed_padded(self, passes: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
        sizes = [len(tokens) for tokens in passes]
        columns = [torch.cat(list(passes)), torch.cat(list(lengths)).to(passes[0].device)[:, None]]
        sent = self._send(torch.cat(columns, dim=1))  # [rows of all passes, bucket + 1]
        run = self.graphs or self._run
        with self._graphs_given_up():
            return [
                run(part[:, :-1].contiguous(), part[:, -1].contiguous())
                for part in sent.split(sizes)
            ]

    def draft(self, tokens: Tensor) -> Tensor:
        with self._graphs_given_up():
            return super().draft(tokens)

    def encode_again(self, tokens: Tensor) -> Tensor:
        with self._graphs_given_up():
            return super().encode_again(tokens)

    @contextmanager
    def _graphs_given_up(self) -> Iterator[None]:
        """Where the body runs out of memory, that of the graphs is free for an attempt with fewer
        rows."""
        try:
            yield
        except torch.OutOfMemoryError:
            if self.graphs is not None:
                self.graphs.clear()
            raise

    def _send(self, tokens: Tensor) -> Tensor:
        """To the device, without a wait: from pinned memory, which such a copy needs."""
        if self.tokenizer.device.type == "cuda" and tokens.device.type == "cpu":
            tokens = tokens.pin_memory()
        return tokens.to(self.tokenizer.device, non_blocking=True)

    def _run(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """One pass, of what is on the device: Int64[rows, bucket], Int64[rows]."""
        images, value_range = self._pictures(tokens, lengths)
        if self.plan is None:
            return self.verifier.embed(images)
        return self.sight.embed_input(verifier_input(images, self.plan, value_range=value_range))

    def _pictures(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Pictures and the range of their values."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, FusedFlexTok):
            if self.plan is None:
                return tokenizer.pictures(tokenizer.latents(tokens, lengths)), (0.0, 1.0)
            return tokenizer.vae.decode(tokenizer.latents(tokens, lengths)), (-1.0, 1.0)
        if isinstance(tokenizer, SpritesTokenizer):
            return decode_all_slots(self.painting, self.codebook[tokens], lengths), (0.0, 1.0)
        return tokenizer.decode(tokens), (0.0, 1.0)

    def _fitting_rows(self, free: int) -> int:
        """Rows that fit `free` bytes. A graph keeps the memory of the pass that it recorded, and
        what runs as it is, such as the first pass of another bucket, takes as much beside it."""
        return fitting_rows(self.rows, free // (2 if self.graphs else 1), self._peak_memory)

    @torch.inference_mode()
    def _peak_memory(self, rows: int) -> int:
        """Bytes that a pass of the shortest bucket takes at most, beside what is allocated already.
        A FlexTok is tried with two steps: more take the time, but no more memory."""
        device, whole = self.tokenizer.device, self.tokenizer
        if isinstance(whole, FusedFlexTok):
            self.tokenizer = whole.with_sampling(steps=2)
        try:
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            length = self.bucket(1)
            tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
            self._run(tokens, torch.ones(rows, dtype=torch.int64, device=device))
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
        finally:
            self.tokenizer = whole


def _free_memory(device: torch.device) -> int:
    """Bytes that torch may still allocate: free ones, and those it holds without using them."""
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + held


class KernelEngines:
    """Makes the engine of each search of a pipeline. Searches with the very same models share one,
    with its graphs; those of a FlexTok with another noise share the rows of a pass."""

    def __init__(self, float8_drafts: bool = False) -> None:
        self.float8_drafts = float8_drafts
        self._last: KernelEngine | None = None
        self._models: tuple[Tokenizer, Verifier] | None = None

    def __call__(self, tokenizer: Tokenizer, verifier: Verifier) -> KernelEngine:
        known = self._models
        if self._last is not None and known is not None and verifier is known[1]:
            if tokenizer is known[0]:
                return self._last
            rows = self._last.rows if type(tokenizer) is type(known[0]) else None
        else:
            rows = None
        self._last = None  # its memory is free for the next
        self._last = KernelEngine(tokenizer, verifier, rows=rows, float8_drafts=self.float8_drafts)
        self._models = (tokenizer, verifier)
        return self._last
