"""Triton where there is one: torch brings it with its CUDA builds for Linux, and only with those.

Kernels are written against the names here and defined whether or not there is a Triton; `fused`
says whether they can run on a tensor's device, and everything else takes the PyTorch reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = [
    "fused",
    "jit",
    "next_power_of_2",
    "tl",
    "triton",
    "warps",
    "why_no_float8",
    "why_no_kernels",
]
FLOAT8_SINCE = (9, 0)  # the compute capability whose FP8 products have a scale for each row


def jit(function: Callable[..., Any]) -> Any:
    """triton.jit, or the function as it is, never to be called, where there is no Triton."""
    return function if triton is None else triton.jit(function)


def fused(x: Tensor) -> bool:
    """Whether kernels run on the device of x."""
    return triton is not None and x.is_cuda


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def warps(elements: int) -> int:
    """Of one program that holds this many elements: 16 each thread, 1 to 16 warps."""
    return min(16, max(1, elements // (16 * 32)))


@cache
def why_no_kernels(device: torch.device) -> str | None:
    """Why kernels cannot run on a device, as a clause without a full stop; None: they do.

    One is run to find out: Triton needs a C compiler at hand, and knows not every GPU.
    """
    if device.type != "cuda":
        return f"they need a CUDA device, and this is {device.type}"
    if triton is None:
        return f"they need Triton, which this torch ({torch.__version__}) does not bring"
    try:
        found = torch.empty(1, device=device)
        _fill_kernel[(1,)](found, 7.0)
        return None if found.item() == 7.0 else "Triton computes something else than it should"
    except Exception as error:  # of Triton, its compilers or the driver; whatever they raise
        lines = str(error).strip().splitlines() or [""]
        return f"Triton fails with {type(error).__name__}: {lines[-1][:120].rstrip('.')}"


def why_no_float8(device: torch.device) -> str | None:
    """Why a CUDA device has no FP8 products with scales of rows, as a clause; None: it has."""
    have = torch.cuda.get_device_capability(device)
    if have >= FLOAT8_SINCE:
        return None
    return f"FP8 needs compute capability 9.0 or more, and this GPU has {have[0]}.{have[1]}"


@jit
def _fill_kernel(out, value):
    tl.store(out, value)
