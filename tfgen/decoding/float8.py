"""Matrix products in FP8 (e4m3), for drafts: twice the rate of bfloat16, three bits of mantissa.

Each row of the inputs, and each output of the weights, has its own scale, so that a picture depends
on no other of its batch. Only screening uses it: what is decoded in full never is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl, warps

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST = 1e-12
LONGEST_ROW = 2**15
"""Elements of a row that one program can hold; longer ones take the reference."""


@dataclass(frozen=True)
class Float8Weight:
    """A weight Float[O, I] as values [O, I] in e4m3 times a scale of each output, Float32[O, 1]."""

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Float8Weight:
        return cls(*quantise_rows_reference(weight))


def float8_linear(x: Tensor, weight: Float8Weight) -> Tensor:
    """x @ weight.T, both rounded to FP8 by rows: Float[..., I] -> Float[..., O] in x's dtype.

    Sums are float32; on CUDA the result is rounded to bfloat16. O and I are multiples of 16.
    """
    values, scale = quantise_rows(x.flatten(0, -2))
    product = scaled_product if x.is_cuda else scaled_product_reference
    return product(values, scale, weight).to(x.dtype).unflatten(0, x.shape[:-1])


def scaled_product(values: Tensor, scale: Tensor, weight: Float8Weight) -> Tensor:
    """BFloat16[rows, O]."""
    return torch._scaled_mm(
        values,
        weight.values.T,
        scale_a=scale,
        scale_b=weight.scale.T,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def scaled_product_reference(values: Tensor, scale: Tensor, weight: Float8Weight) -> Tensor:
    """Float32[rows, O]."""
    return (values.float() * scale) @ (weight.values.float() * weight.scale).T


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows Float[rows, n] -> values in e4m3, [rows, n], and the scale of each, Float32[rows, 1]:
    x is about values * scale, where the largest value of a row is 448.

    Moves rows n (e + 1) bytes: a row stays in registers between its maximum and its rounding.
    """
    if not fused(x) or x.shape[1] > LONGEST_ROW:
        return quantise_rows_reference(x)
    return quantise_rows_triton(x)


def quantise_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=LEAST) / LARGEST
    return (x / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def quantise_rows_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, n = x.shape
    values = torch.empty(rows, n, dtype=FLOAT8, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = next_power_of_2(n)
    if rows:
        _quantise_rows_kernel[(rows,)](
            x.contiguous(), values, scale, n, LARGEST, LEAST, BLOCK=block, num_warps=warps(block)
        )
    return values, scale


@jit
def _quantise_rows_kernel(x, values, scale, n, largest, least, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < n
    value = tl.load(x + row * n + i, mask=inside, other=0.0).to(tl.float32)
    by = tl.maximum(tl.max(tl.abs(value), axis=0), least) / largest
    rounded = tl.minimum(tl.maximum(value / by, -largest), largest)
    tl.store(values + row * n + i, rounded.to(values.dtype.element_ty), mask=inside)
    tl.store(scale + row, by)
