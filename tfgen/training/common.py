"""What trainings share: the loop with its resumable checkpoints and its limit of time, EMA, the
learning-rate schedule."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tfgen.errors import TfgenError
from tfgen.hub import cache_folder as cache_folder  # where sprites and checkpoints live
from tfgen.packing import pack, unpack, write_whole
from tfgen.training.commands import world_arguments as world_arguments
from tfgen.training.stopping import TimeUp as TimeUp
from tfgen.training.stopping import is_over


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
    path: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    ema: EMA,
    step: int,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Module, EMA, Adam moments and what else a run goes on with, in one safetensors file, replaced
    atomically. Raises TfgenError where it cannot be written."""
    tensors = {f"module/{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema/{k}": v for k, v in ema.shadow.items()}
    parameters = [p for g in optimiser.param_groups for p in g["params"]]
    for i, p in enumerate(parameters):
        for key, value in optimiser.state.get(p, {}).items():
            tensors[f"optimiser/{i}/{key}"] = torch.as_tensor(value)
    tensors |= {f"extra/{k}": v for k, v in (extra or {}).items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_whole(tensors, path, {"step": str(step), "ema_steps": str(ema.steps)})


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    ema: EMA,
    extra: dict[str, Tensor] | None = None,
) -> int:
    """Restore what save_checkpoint wrote, or, but for the Adam moments, what `lightened` made of
    it; returns the step to continue from (0 without a file).

    extra: is given what else was saved. Raises TfgenError where the file is damaged or of another
    network.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata()
            tensors = {k: f.get_tensor(k) for k in f.keys()}
        return _restore(tensors, metadata, module, optimiser, ema, extra)
    except (SafetensorError, OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".:")
        raise TfgenError(
            f"The checkpoint {str(path)!r} is damaged, or of other networks than the config's "
            f"({reason}): delete it to begin anew."
        ) from error


def _restore(
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    ema: EMA,
    extra: dict[str, Tensor] | None,
) -> int:
    parameters = [p for g in optimiser.param_groups for p in g["params"]]
    flags = [g for g in optimiser.param_groups for _ in g["params"]]
    # Fused and capturable optimisers count steps on the parameter's device, others on the CPU.
    counts_there = {i for i, g in enumerate(flags) if g.get("fused") or g.get("capturable")}
    light = unpack({k[6:]: v for k, v in tensors.items() if k.startswith("light/")})
    module.load_state_dict(
        light or {k[7:]: v for k, v in tensors.items() if k.startswith("module/")}
    )
    for k, shadow in ema.shadow.items():
        shadow.copy_(light[k] if light else tensors[f"ema/{k}"])
    for k, v in tensors.items():
        if k.startswith("extra/") and extra is not None:
            extra[k[6:]] = v
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


SCRIBES = ("kind.weight", "to_codes.1.weight")
"""What the names of the weights end with that tokenizer.py's EXACT names."""


def lightened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A checkpoint in a tenth of its size or less, as tensors and metadata of a file that
    load_checkpoint reads: the averaged weights, packed, without Adam's moments. Raises TfgenError
    where it is damaged."""
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata()
            tensors = {k: f.get_tensor(k) for k in f.keys() if not k.startswith("optimiser/")}
    except (SafetensorError, OSError) as error:
        raise TfgenError(
            f"The checkpoint {str(path)!r} is damaged ({error}): delete it to begin anew."
        ) from error
    averaged = {k[7:]: v for k, v in tensors.items() if k.startswith("module/")}
    averaged |= {k[4:]: v for k, v in tensors.items() if k.startswith("ema/")}
    exact = [k for k in averaged if k.endswith(SCRIBES)]
    light = {f"light/{k}": v for k, v in pack(averaged, keep=exact).items()}
    kept = {k: v for k, v in tensors.items() if k.startswith(("extra/", "light/"))}
    return light | kept, metadata


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


SAVE_SECONDS = 60
"""A run's state is saved after so many seconds, too: a killed process loses no more."""
WARM_AGAIN = 100
"""Steps over which the learning rate rises where a run goes on without its Adam moments."""


class Training:
    """One training run, in as many calls as it takes: what each step does besides its loss.

    Looping over it gives the numbers of the steps to take now; the body computes the loss, calls
    `learn` once, and measures the model if it `is_milestone`. The state is saved after the body,
    when that is due. A call ends after the config's last step, after `until`, or, by TimeUp, after
    the first step at whose end the call `is_over`; so every call gets on by a step at least.
    Checkpoint and log lie in `folder`. Raises TfgenError where the run has diverged, or its state
    cannot be saved or restored.

    config: steps, ema (decay), log_every, save_every; deadline: on time.monotonic's clock. extra:
    tensors that the body wants to be saved and restored with the state.
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
        """optimiser: fused, which steps over what `found_inf` says."""
        self.module, self.optimiser, self.config = module, optimiser, config
        self.deadline, self.late = deadline, False
        self.ema = EMA(module, config["ema"])
        self.log = Log(folder / "log.jsonl")
        self.checkpoint = folder / "checkpoint.safetensors"
        self.extra: dict[str, Tensor] = {}
        self.start = self.done = load_checkpoint(
            self.checkpoint, module, optimiser, self.ema, self.extra
        )
        self.last = min(config["steps"], until or config["steps"])
        self._warm = bool(optimiser.state) or not self.start
        self._saved, self._saved_at = self.start, time.monotonic()
        # How many steps there were since the last sound one; counted where the loss is, as to ask
        # for it is to wait for the GPU.
        self._lost = torch.zeros((), device=next(module.parameters()).device)

    def forget_average(self) -> None:
        """Average from here on: to be called when other weights were put into the module."""
        self.ema = EMA(self.module, self.config["ema"])

    def __iter__(self) -> Iterator[int]:
        began = time.monotonic()
        for step in range(self.start, self.last):
            self.done = step + 1
            yield step
            overdue = time.monotonic() - self._saved_at >= SAVE_SECONDS
            if self.late or overdue or self._due():
                self._save()
            if self.late and self.done < self.last:
                pace = (time.monotonic() - began) / (self.done - self.start)
                raise TimeUp(self.done, self.last, pace)

    def learn(
        self, loss: Tensor, parts: dict[str, Tensor], rate: float, largest_norm: float = 1.0
    ) -> None:
        """Take a step of the optimiser at this learning rate, unless the gradient is not finite,
        and log the loss and its parts when that is due."""
        if not self._warm:
            rate *= min(1.0, (self.done - self.start) / WARM_AGAIN)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), largest_norm)
        lost = (~torch.isfinite(norm)).float()
        self.optimiser.found_inf = lost  # 1: this step changes nothing
        self.optimiser.step()
        self._lost = (self._lost + lost) * lost
        self.ema.update(self.module)
        if self.done % self.config["log_every"] == 0:
            self._check()
            self.log(self.done, loss=loss.item(), **{k: v.item() for k, v in parts.items()})
        self.late = is_over(self.deadline)

    def _check(self) -> None:
        """Raises TfgenError where the run has diverged: two steps with a loss or gradients that are
        not finite, or weights that are not. (One such step may be bad luck, but for the last.)"""
        lost = self._lost.item()
        weights = [p.sum() for p in self.module.parameters()]
        sound = bool(torch.isfinite(torch.stack(weights)).all())
        if lost < (1 if self.done == self.last else 2) and sound:
            return
        kept = "there is no checkpoint yet"
        if self._saved:
            kept = f"the checkpoint of step {self._saved:,} in {str(self.checkpoint)!r} is kept"
        raise TfgenError(
            f"The loss is not finite at step {self.done:,}, and {kept}: lower the config's peak_lr."
        )

    def _save(self) -> None:
        self._check()
        state = (self.module, self.optimiser, self.ema, self.done)
        save_checkpoint(self.checkpoint, *state, self.extra)
        self._saved, self._saved_at = self.done, time.monotonic()

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
