"""Triton where there is one: torch brings it with its CUDA builds for Linux, and only with those.

Kernels are written against the names here and defined whether or not there is a Triton; `fused`
says whether they can run on a tensor's device, and everything else takes the PyTorch reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["fused", "jit", "next_power_of_2", "tl", "triton", "warps"]


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
