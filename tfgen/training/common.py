"""What training scripts share: configs, resumable checkpoints, EMA, the learning-rate schedule."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tfgen.hub import cache_folder as cache_folder  # where sprites and checkpoints live


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
    parser.add_argument("overrides", nargs="*", help="key=value settings over the config's")
    return parser


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
