"""When passes are recorded and replayed, with a recorder that a CPU can have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tfgen.decoding.graphs import GraphedPass


class Recorder:
    """What is replayed is the work on the memory that it was recorded with."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.recorded, self.replays = error, 0, 0

    def __call__(self, work):
        if self.error is not None:
            raise self.error
        self.recorded += 1
        result = torch.full_like(work(), torch.nan)  # a recording computes nothing

        def replay() -> None:
            self.replays += 1
            result.copy_(work())

        return replay, result


def weighted(tokens: Tensor, lengths: Tensor) -> Tensor:
    """An embedding in which every input matters."""
    return torch.cat([tokens.float() * 10, lengths[:, None].float()], dim=1)


def inputs(seed: int, rows: int = 3, bucket: int = 4) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    tokens = torch.randint(9, (rows, bucket), generator=noise)
    return tokens, torch.randint(1, bucket + 1, (rows,), generator=noise)


def test_every_call_gives_what_the_pass_gives() -> None:
    record = Recorder()
    graphed = GraphedPass(weighted, record)
    for seed in range(4):
        assert torch.equal(graphed(*inputs(seed)), weighted(*inputs(seed)))
    assert (record.recorded, record.replays) == (1, 3)  # the first call ran as it is


def test_a_result_stays_when_the_graph_runs_again() -> None:
    graphed = GraphedPass(weighted, Recorder())
    results = [graphed(*inputs(seed)) for seed in range(4)]
    for seed, result in enumerate(results):
        assert torch.equal(result, weighted(*inputs(seed)))


def test_each_shape_has_its_own_recording() -> None:
    record = Recorder()
    graphed = GraphedPass(weighted, record)
    for rows, bucket in ((3, 4), (3, 8), (2, 4)) * 3:
        given = inputs(1, rows, bucket)
        assert torch.equal(graphed(*given), weighted(*given))
    assert record.recorded == 3


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once() -> None:
    graphed = GraphedPass(weighted, Recorder(RuntimeError("not permitted\nwhile capturing")))
    graphed(*inputs(0))
    with pytest.warns(UserWarning, match="without a CUDA graph: not permitted$"):
        assert torch.equal(graphed(*inputs(1)), weighted(*inputs(1)))
    assert torch.equal(graphed(*inputs(2)), weighted(*inputs(2)))  # and warns no more


def test_running_out_of_memory_is_for_the_caller() -> None:
    graphed = GraphedPass(weighted, Recorder(torch.OutOfMemoryError("too much")))
    graphed(*inputs(0))
    with pytest.raises(torch.OutOfMemoryError):
        graphed(*inputs(1))


def test_a_first_call_that_is_interrupted_was_none() -> None:
    record, interrupts = Recorder(), [KeyboardInterrupt()]

    def run(tokens: Tensor, lengths: Tensor) -> Tensor:
        if interrupts:
            raise interrupts.pop()
        return weighted(tokens, lengths)

    graphed = GraphedPass(run, record)
    with pytest.raises(KeyboardInterrupt):
        graphed(*inputs(0))
    assert torch.equal(graphed(*inputs(1)), weighted(*inputs(1)))
    assert record.recorded == 0  # caches were not filled before
    graphed(*inputs(2))
    assert record.recorded == 1


def test_cleared_graphs_are_recorded_again() -> None:
    record = Recorder()
    graphed = GraphedPass(weighted, record)
    for seed in range(3):
        graphed(*inputs(seed))
    graphed.clear()
    assert torch.equal(graphed(*inputs(5)), weighted(*inputs(5)))
    graphed(*inputs(6))
    assert record.recorded == 2
