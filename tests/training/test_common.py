"""What the trainers share: checkpoints, the loop, and its limit of time."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tfgen import packing
from tfgen.errors import InputError, TfgenError
from tfgen.packing import write_whole
from tfgen.training import common, stopping
from tfgen.training.commands import check_device, command_line, deadline_in
from tfgen.training.common import EMA, Training, lightened, load_checkpoint, save_checkpoint
from tfgen.training.stopping import OUT_OF_TIME, Timer, TimeUp

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


# ---- steps that are not finite


def diverging(folder: Path, bad: set[int], steps: int = 6) -> Training:
    """A training whose loss is not finite in these steps."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    training = Training(module, adam(module), CONFIG | {"steps": steps}, folder)
    for step in training:
        loss = (module(torch.ones(1, 3)) - 1).square().mean()
        training.learn(loss * (math.nan if step in bad else 1.0), {}, 0.1)
    return training


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    training = diverging(tmp_path / "bad", {1, 3})
    assert torch.isfinite(training.module.weight).all()
    plain = diverging(tmp_path / "plain", set(), steps=4)
    assert {float(s["step"]) for s in training.optimiser.state.values()} == {4.0}
    assert torch.equal(training.module.weight, plain.module.weight)


@pytest.mark.parametrize("bad", [{4, 5}, {5}])
def test_a_training_that_diverged_ends_and_its_last_checkpoint_stays(
    tmp_path: Path, bad: set[int]
) -> None:
    with pytest.raises(TfgenError, match="not finite at step 6, and the checkpoint of step 4 in"):
        diverging(tmp_path, bad)
    module = nn.Linear(3, 1)
    loaded = load_checkpoint(
        tmp_path / "checkpoint.safetensors", module, adam(module), EMA(module, 0.9)
    )
    assert loaded == 4 and torch.isfinite(module.weight).all()
    with pytest.raises(TfgenError, match="step 2, and there is no checkpoint yet: lower the"):
        diverging(tmp_path / "other", {0, 1})


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    training = Training(module, adam(module), CONFIG, tmp_path, deadline=time.monotonic())
    with pytest.raises(TfgenError, match="lower the config's peak_lr"):
        for _ in training:
            training.learn(module(torch.ones(1, 3)).square().mean(), {}, math.inf)
    assert not training.checkpoint.exists()


# ---- checkpoints and what may become of them


@pytest.mark.parametrize("damage", ["cut", "foreign", "other sizes", "other optimiser"])
def test_a_damaged_checkpoint_is_told(checkpoint: Path, damage: str) -> None:
    module = nn.Linear(3 if damage != "other sizes" else 4, 2)
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    elif damage == "foreign":
        checkpoint.write_bytes(b"junk")
    elif damage == "other optimiser":
        module.bias = None
    with pytest.raises(TfgenError, match="is damaged, or of other networks.*delete it to begin"):
        load_checkpoint(checkpoint, module, adam(module), EMA(module, 0.9))


@pytest.mark.parametrize("fault", [SafetensorError("No space left"), OSError(28, "No space left")])
def test_a_full_disk_is_told_and_the_old_file_stays(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    kept = checkpoint.read_bytes()

    def full(_: Any, path: Path, *__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise fault

    monkeypatch.setattr(packing, "save_file", full)
    with pytest.raises(TfgenError, match="checkpoint.safetensors' .No space left.: make room"):
        save_checkpoint(
            checkpoint, nn.Linear(3, 2), adam(nn.Linear(3, 2)), EMA(nn.Linear(3, 2), 0), 2
        )
    assert checkpoint.read_bytes() == kept and list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_checkpoint_may_be_read_by_whom_other_files_may(checkpoint: Path) -> None:
    (checkpoint.parent / "other").write_text("")
    assert checkpoint.stat().st_mode == (checkpoint.parent / "other").stat().st_mode


def test_what_else_a_run_needs_is_restored_with_its_state(tmp_path: Path) -> None:
    def begun() -> Training:
        module = nn.Linear(3, 1)
        return Training(module, adam(module), CONFIG, tmp_path, until=1)

    training = begun()
    for _ in training:
        training.learn(training.module(torch.ones(1, 3)).mean(), {}, 0.1)
        training.extra = {"mined": torch.arange(3)}  # after the step, and still saved with it
    assert begun().extra["mined"].tolist() == [0, 1, 2]


def test_a_light_checkpoint_holds_the_average_and_the_step(tmp_path: Path) -> None:
    training, *_ = run(tmp_path, until=4)  # ends with the averaged weights in the module
    tensors, metadata = lightened(training.checkpoint)
    size = training.checkpoint.stat().st_size
    write_whole(tensors, training.checkpoint, metadata)
    assert training.checkpoint.stat().st_size < size / 2
    module = nn.Linear(3, 1)
    again = Training(module, adam(module), CONFIG, tmp_path)
    assert again.start == 4 and again.ema.steps == 4
    for a, b in zip(module.parameters(), training.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again.ema.shadow["weight"], module.weight.detach())
    rates = []
    for _ in again:
        again.learn(module(torch.ones(1, 3)).mean(), {}, 0.5)
        rates.append(again.optimiser.param_groups[0]["lr"])
    assert rates == [0.5 * n / common.WARM_AGAIN for n in (1, 2)]
    assert lightened(training.checkpoint)[1]["step"] == "6"


def test_the_state_is_saved_after_some_seconds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "SAVE_SECONDS", 0)
    module = nn.Linear(3, 1)
    training = Training(module, adam(module), CONFIG, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        for step in training:
            training.learn(module(torch.ones(1, 3)).mean(), {}, 0.1)
            if step == 2:  # killed in the third step
                raise KeyboardInterrupt
    assert Training(module, adam(module), CONFIG, tmp_path).start == 2


# ---- signals and arguments


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_call_after_its_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    @command_line
    def main() -> None:
        module = nn.Linear(3, 1)
        training = Training(module, adam(module), CONFIG, tmp_path)
        for step in training:
            if step == 2:
                os.kill(os.getpid(), number)
            training.learn(module(torch.ones(1, 3)).mean(), {}, 0.1)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == (130 if number == signal.SIGINT else OUT_OF_TIME)
    told = capfd.readouterr().err
    assert "ending what is begun" in told and stopping.SAVED in told and "Traceback" not in told
    module = nn.Linear(3, 1)
    assert Training(module, adam(module), CONFIG, tmp_path).start == 3
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_a_call_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    @command_line
    def main() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and "Stopped at once" in capfd.readouterr().err


def test_a_signal_ends_the_work_on_a_table() -> None:
    with stopping.at_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TimeUp):
            Timer(None)(5, 10)
    with stopping.at_signals():
        Timer(None)(5, 10)


@pytest.mark.parametrize("minutes", [math.nan, -3.0, math.inf])
def test_minutes_are_a_finite_number(minutes: float) -> None:
    with pytest.raises(InputError, match="--minutes must be a finite number from 0 up"):
        deadline_in(minutes)


def test_a_device_is_a_cpu_or_a_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        check_device(name)
    with pytest.raises(InputError, match="the last one here is cuda:1"):
        check_device("cuda:2")
    for name in ("meta", "abacus"):
        with pytest.raises(InputError, match="give cpu or cuda"):
            check_device(name)
