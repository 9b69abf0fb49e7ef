"""What training scripts share: configs, the loop with its resumable checkpoints and its limit of
time, EMA, the learning-rate schedule."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tfgen.hub import cache_folder as cache_folder  # where sprites and checkpoints live

OUT_OF_TIME = 3
"""The exit code of a call whose time was up: the same command goes on."""


def load_config(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """A JSON config with `key=value` overrides (values in JSON; bare words are strings)."""
    config = json.loads(Path(path).read_text())
    for item in overrides:
        key, _, value = item.partition("=")
        if key not in config:
            raise SystemExit(f"{path} has no setting {key!r}; it has {', '.join(sorted(config))}.")
        try:
            config[key] = json.loads(value)
        except json.JSONDecodeError:
            config[key] = value
    return config


def arguments(doc: str, run: str) -> argparse.ArgumentParser:
    """A parser with what every training script takes; its first line of help is that of `doc`."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--config", required=True, help="JSON config")
    parser.add_argument("--run", default=run, help="name of the run in the cache folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--until", type=int, help="stop at this step (the schedule stays the config's)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"stop after so many, with a checkpoint and exit code {OUT_OF_TIME}",
    )
    parser.add_argument("overrides", nargs="*", help="key=value settings over the config's")
    return parser


def world_arguments(parser: argparse.ArgumentParser, tier: str) -> None:
    """Which world a command without a config draws its scenes from; tier: the default."""
    parser.add_argument("--tier", default=tier)
    parser.add_argument(
        "--free", type=float, default=0.0, help="share of scenes whose objects stand anywhere"
    )


def deadline_in(minutes: float | None) -> float | None:
    """The moment, on time.monotonic's clock, that is so many minutes from now; None: never."""
    return None if minutes is None else time.monotonic() + 60 * minutes


class TimeUp(SystemExit):
    """A call's time is over, and what it did is saved: the same command goes on from there.

    done, total: steps; pace: seconds a step, as this call measured them.
    """

    def __init__(self, done: int, total: int, pace: float):
        super().__init__(OUT_OF_TIME)
        self.done, self.total, self.pace = done, total, pace


class Timer:
    """Ends work on a table when the deadline is past: the `progress` to be called, with the rows
    done and all rows, once a part of them is saved. Raises TimeUp, but not for the last part, nor
    in the first seconds, in which it gets past the parts of earlier calls."""

    def __init__(self, deadline: float | None, seconds: float = 2.0):
        self.before, self.done = time.monotonic(), 0
        self.deadline = None if deadline is None else max(deadline, self.before + seconds)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline and done < total:
            raise TimeUp(done, total, (now - self.before) / max(1, done - self.done))
        self.before, self.done = now, done


class EMA:
    """Exponential moving average of a module's parameters, with the usual warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.shadow = {k: v.detach().clone() for k, v in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        names, values = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_([self.shadow[k] for k in names], list(values), rate)

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state with averaged parameters."""
        return {**module.state_dict(), **self.shadow}


HEADS_ALONE = 300
"""First steps of a run that begins with trained networks, in which the loss of new heads stays with
the heads: they know nothing yet, and would spoil the rest. As long as the warm-up."""


def learning_rate(
    step: int, steps: int, peak: float, warmup: int = 300, flat: float = 0.5
) -> float:
    """Linear warm-up, constant until `flat` of the steps, then a cosine to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    t = max(0.0, (step / steps - flat) / (1 - flat))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(t, 1.0))))


def save_checkpoint(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, ema: EMA, step: int
) -> None:
    """Module, EMA and Adam moments in one safetensors file, replaced atomically."""
    tensors = {f"module/{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema/{k}": v for k, v in ema.shadow.items()}
    parameters = [p for g in optimiser.param_groups for p in g["params"]]
    for i, p in enumerate(parameters):
        for key, value in optimiser.state.get(p, {}).items():
            tensors[f"optimiser/{i}/{key}"] = torch.as_tensor(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, partial, metadata={"step": str(step), "ema_steps": str(ema.steps)})
    os.replace(partial, path)


def load_checkpoint(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, ema: EMA
) -> int:
    """Restore what save_checkpoint wrote; returns the step to continue from (0 without a file)."""
    if not path.exists():
        return 0
    parameters = [p for g in optimiser.param_groups for p in g["params"]]
    flags = [g for g in optimiser.param_groups for _ in g["params"]]
    # Fused and capturable optimisers count steps on the parameter's device, others on the CPU.
    counts_there = {i for i, g in enumerate(flags) if g.get("fused") or g.get("capturable")}
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
        tensors = {k: f.get_tensor(k) for k in f.keys()}
    module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module/")})
    for k, v in tensors.items():
        if k.startswith("ema/"):
            ema.shadow[k[4:]].copy_(v)
        elif k.startswith("optimiser/"):
            _, i, key = k.split("/")
            parameter = parameters[int(i)]
            if key != "step":  # fused optimisers read moments in the parameter's memory layout
                v = torch.empty_like(parameter).copy_(v)
            elif int(i) in counts_there:
                v = v.to(parameter.device)
            optimiser.state[parameter][key] = v
    ema.steps = int(metadata["ema_steps"])
    return int(metadata["step"])


class Log:
    """Lines of `step key value ...` on stdout, also appended to a JSONL file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.start = path, time.time()

    def __call__(self, step: int, **values: Any) -> None:
        record = {"step": step, "seconds": round(time.time() - self.start, 1), **values}
        with self.path.open("a") as f:
            f.write(json.dumps(record) + "\n")
        parts = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        print("  ".join(parts), file=sys.stdout, flush=True)


class Training:
    """One training run, in as many calls as it takes: what each step does besides its loss.

    Looping over it gives the numbers of the steps to take now; the body computes the loss, calls
    `learn` once, and measures the model if it `is_milestone`. A call ends after the config's last
    step, after `until`, or, by TimeUp, after the first step that is over past the deadline; so
    every call gets on by a step at least. Checkpoint and log lie in `folder`.

    config: steps, ema (decay), log_every, save_every; deadline: on time.monotonic's clock.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        config: dict[str, Any],
        folder: Path,
        until: int | None = None,
        deadline: float | None = None,
    ):
        self.module, self.optimiser, self.config = module, optimiser, config
        self.deadline, self.late = deadline, False
        self.ema = EMA(module, config["ema"])
        self.log = Log(folder / "log.jsonl")
        self.checkpoint = folder / "checkpoint.safetensors"
        self.start = self.done = load_checkpoint(self.checkpoint, module, optimiser, self.ema)
        self.last = min(config["steps"], until or config["steps"])

    def forget_average(self) -> None:
        """Average from here on: to be called when other weights were put into the module."""
        self.ema = EMA(self.module, self.config["ema"])

    def __iter__(self) -> Iterator[int]:
        began = time.monotonic()
        for step in range(self.start, self.last):
            self.done = step + 1
            yield step
            if self.late and self.done < self.last:
                pace = (time.monotonic() - began) / (self.done - self.start)
                raise TimeUp(self.done, self.last, pace)

    def learn(
        self, loss: Tensor, parts: dict[str, Tensor], rate: float, largest_norm: float = 1.0
    ) -> None:
        """Take a step of the optimiser at this learning rate, log the loss and its parts, and save
        the state, each when it is due."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), largest_norm)
        self.optimiser.step()
        self.ema.update(self.module)
        if self.done % self.config["log_every"] == 0:
            self.log(self.done, loss=loss.item(), **{k: v.item() for k, v in parts.items()})
        self.late = self.deadline is not None and time.monotonic() >= self.deadline
        if self.late or self._due():
            save_checkpoint(self.checkpoint, self.module, self.optimiser, self.ema, self.done)

    def _due(self) -> bool:
        return self.done % self.config["save_every"] == 0 or self.done == self.last

    @property
    def is_milestone(self) -> bool:
        """Whether the model is to be measured after this step: each time the state is saved, unless
        that is because the time is up."""
        return self._due() and (not self.late or self.done == self.last)

    def averaged(self, fresh: nn.Module) -> nn.Module:
        """Another module of the same sizes, with the averaged weights."""
        fresh.load_state_dict(self.ema.state_dict(self.module))
        return fresh

    def finish(self) -> None:
        """Give the module the averaged weights."""
        self.module.load_state_dict(self.ema.state_dict(self.module))
