"""CUDA graphs: a pass recorded once for each shape, and from then on started by one call.

A decode of FlexTok launches some ten thousand kernels, and one of the sprites model hundreds of
short ones; in a graph the host launches one thing. A graph reads and writes the memory it was
recorded with, so inputs are copied into static buffers and results out of them, on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Pass = Callable[[Tensor, Tensor], Tensor]
"""Tokens Int64[rows, bucket] and lengths Int64[rows] -> embeddings Float32[rows, d]."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Work -> what does it again, and where its result then lies. It need not do it the first time."""


@dataclass
class Slot:
    """One shape: its inputs, and once it is recorded how to replay it and where the result is."""

    tokens: Tensor
    lengths: Tensor
    replay: Callable[[], None] | None = None
    result: Tensor | None = None
    fails: bool = False


class GraphedPass:
    """A pass that is recorded per shape, (rows, bucket), and replayed.

    The first call of a shape runs as it is, which also compiles kernels and fills caches that a
    recording must find; the second records; whatever cannot be recorded goes on as it is, and a
    warning says so. Running out of memory is not among that: it reaches the caller.
    """

    def __init__(self, run: Pass, record: Record) -> None:
        self.run, self.record = run, record
        self.slots: dict[tuple[int, int], Slot] = {}

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens and lengths on the device -> a result of its own, which no later call changes."""
        key = (tokens.shape[0], tokens.shape[1])
        slot = self.slots.get(key)
        if slot is None:
            result = self.run(tokens, lengths)  # interrupted, it was no first call
            self.slots[key] = Slot(torch.empty_like(tokens), torch.empty_like(lengths))
            return result
        if slot.fails:
            return self.run(tokens, lengths)
        slot.tokens.copy_(tokens)
        slot.lengths.copy_(lengths)
        if slot.replay is None:
            try:
                slot.replay, slot.result = self.record(lambda: self.run(slot.tokens, slot.lengths))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                slot.fails = True
                reason = (str(error).splitlines() or [""])[0]
                warnings.warn(f"A pass runs without a CUDA graph: {reason}", stacklevel=2)
                return self.run(tokens, lengths)
        slot.replay()
        assert slot.result is not None
        return slot.result.clone()

    def clear(self) -> None:
        """Give up all graphs and their memory."""
        self.slots.clear()
        if isinstance(self.record, CudaRecord):
            self.record.renew()


class CudaRecord:
    """A `Record` of CUDA graphs, which share one pool of memory: they run one after the other, and
    a result is copied out before the next starts."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Another pool. To be called when the graphs of this one are gone: torch refuses to record
        into a pool that no graph uses any more while something, such as a workspace of cuBLAS, is
        left in it."""
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = work()
        return graph.replay, result
