"""The hot loop on a CPU: several passes at once, each on one core.

Small networks gain little from splitting one convolution between cores (most of a pass is spent
between parallel regions); whole passes side by side keep all cores busy. It also takes the number
of cores out of the result: a pass is computed by one thread, so it rounds alike everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tfgen.decoding.cores import one_thread, usable_cores
from tfgen.decoding.engine import DecodeEngine
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier


class ThreadedEngine(DecodeEngine):
    """Runs passes side by side, one thread each.

    threads: passes at a time; by default the cores that this process may use, or fewer if the user
    told torch so (OMP_NUM_THREADS, torch.set_num_threads).
    """

    name = "threads"

    def __init__(
        self, tokenizer: Tokenizer, verifier: Verifier, threads: int | None = None
    ) -> None:
        super().__init__(tokenizer, verifier)
        self.passes = threads or min(torch.get_num_threads(), usable_cores())
        self._pool: ThreadPoolExecutor | None = None

    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """Each Int64[rows, k] -> of each, Float32[rows, d]."""
        with one_thread():
            if self.passes == 1 or len(passes) == 1:
                return [self._pass(tokens) for tokens in passes]
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self.passes, "tfgen-pass", initializer=torch.set_num_threads, initargs=(1,)
                )
            return list(self._pool.map(self._pass, passes))

    def encode_again(self, tokens: Tensor) -> Tensor:
        with one_thread():
            return super().encode_again(tokens)

    @torch.inference_mode()  # a setting of each thread
    def _pass(self, tokens: Tensor) -> Tensor:
        return self.verifier.embed(self.tokenizer.decode(tokens))
