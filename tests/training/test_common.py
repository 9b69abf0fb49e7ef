"""What the trainers share: checkpoints, the loop, and its limit of time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tfgen.training.common import (
    EMA,
    OUT_OF_TIME,
    Timer,
    TimeUp,
    Training,
    deadline_in,
    load_checkpoint,
    save_checkpoint,
)

CONFIG = {"steps": 6, "ema": 0.9, "log_every": 2, "save_every": 4}


def adam(module: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a module after a step."""
    module = nn.Linear(3, 2)
    optimiser = adam(module)
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    save_checkpoint(tmp_path / "checkpoint.safetensors", module, optimiser, EMA(module, 0.9), 1)
    return tmp_path / "checkpoint.safetensors"


@pytest.mark.filterwarnings("ignore:for (weight|bias). copying from a non-meta")
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_counted_where_the_optimiser_looks_for_them(
    checkpoint: Path, fused: bool
) -> None:
    """Fused Adam wants the count beside the parameter. The meta device stands in for a GPU."""
    module = nn.Linear(3, 2, device="meta")
    optimiser = adam(module, fused=False)  # a fused one can't be made there
    for group in optimiser.param_groups:
        group["fused"] = fused
    assert load_checkpoint(checkpoint, module, optimiser, EMA(module, 0.9)) == 1
    for parameter in module.parameters():
        state = optimiser.state[parameter]
        assert state["step"].device.type == ("meta" if fused else "cpu")
        assert state["exp_avg"].device == state["exp_avg_sq"].device == parameter.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fused_adam_goes_on_on_a_gpu(checkpoint: Path) -> None:
    module = nn.Linear(3, 2, device="cuda")
    optimiser = adam(module)
    load_checkpoint(checkpoint, module, optimiser, EMA(module, 0.9))
    module(torch.ones(1, 3, device="cuda")).sum().backward()
    optimiser.step()
    assert {float(state["step"]) for state in optimiser.state.values()} == {2.0}


def run(
    folder: Path, until: int | None = None, deadline: float | None = None
) -> tuple[Training, list[int], list[int]]:
    """A training of a toy in a folder; the steps taken, and those after which it is measured."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    training = Training(module, adam(module), CONFIG, folder, until, deadline)
    taken, measured = [], []
    try:
        for step in training:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            loss = (module(x) - 1).square().mean()
            training.learn(loss, {"twice": 2 * loss.detach()}, 0.1)
            taken.append(step)
            if training.is_milestone:
                measured.append(training.done)
    except TimeUp as up:
        assert (up.code, up.total) == (OUT_OF_TIME, 6)
        assert up.done == training.done == taken[-1] + 1 and up.pace >= 0
        return training, taken, measured
    training.finish()
    return training, taken, measured


def test_a_training_is_measured_when_it_is_saved_and_at_its_end(tmp_path: Path) -> None:
    training, taken, measured = run(tmp_path)
    assert taken == [0, 1, 2, 3, 4, 5] and measured == [4, 6]
    assert training.log.path.read_text().count('"loss"') == 3


def test_late_calls_take_a_step_each_and_come_to_the_same_end(tmp_path: Path) -> None:
    whole, *_ = run(tmp_path / "whole")
    calls = [run(tmp_path / "parts", deadline=time.monotonic()) for _ in range(6)]
    assert [taken for _, taken, _ in calls] == [[0], [1], [2], [3], [4], [5]]
    assert [measured for *_, measured in calls] == [[], [], [], [], [], [6]]  # there is no time
    for a, b in zip(whole.module.parameters(), calls[-1][0].module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run(tmp_path / "parts")[1] == []


def test_a_deadline_that_is_far_changes_nothing(tmp_path: Path) -> None:
    assert len(run(tmp_path / "a", deadline=deadline_in(1))[1]) == 6
    assert len(run(tmp_path / "b", until=3, deadline=deadline_in(None))[1]) == 3
    assert 50 < deadline_in(1) - time.monotonic() < 61


def test_a_timer_ends_the_work_on_a_table_but_not_with_its_last_part() -> None:
    timer = Timer(time.monotonic(), seconds=0)
    timer(10, 10)
    with pytest.raises(TimeUp) as up:
        timer(5, 10)
    assert (up.value.done, up.value.total) == (5, 10)
    Timer(None)(5, 10)
    Timer(time.monotonic())(5, 10)  # what earlier calls have done is gone through first
