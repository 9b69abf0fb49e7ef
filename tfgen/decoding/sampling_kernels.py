"""Kernels of a sampler's step and of its condition, each a PyTorch reference and a Triton kernel.

`guided_step` is guidance and the Euler update; `assemble_registers` turns tokens into the decoder's
registers. They compute in float32. Formulas: `flextok_guidance` and `flextok_registers`, of which
these are the fast forms.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl, warps
from tfgen.tokenizers.flextok_guidance import MOMENTUM, NORM_LIMIT, PARALLEL

LARGEST_SAMPLE = 2**15
"""Elements of a sample that one program can hold; larger latents take the reference."""


# Guidance and the Euler update


def guided_step(
    x: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    average: Tensor | None,
    scale: float,
    step: float,
    apg: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """One step of the sampler, x - step * v, where v is the guided velocity: Float32[N, n] each.

    With c and u the velocities, a the average of the step before (None: 0), and all norms and
    products over one sample:
      - unconditional None: v = c;
      - not apg: v = u + scale (c - u);
      - apg: a <- c - u + MOMENTUM a; g = a min(1, NORM_LIMIT / |a|); p = (g . c) c / |c|^2;
        v = c + (scale - 1) (g - p + PARALLEL p).
    unconditional may be of one sample, [1, n], for all. Elements may lie in any order, the same in
    all arguments. Returns the new x and average (None without apg).

    Moves 4 N n (2 + 2 + 2) bytes with apg: x, c, u and a are read, x and a written; once each, as a
    sample stays in registers between its sums and what they are for.
    """
    if not fused(x) or x.shape[1] > LARGEST_SAMPLE:
        return guided_step_reference(x, conditional, unconditional, average, scale, step, apg)
    return guided_step_triton(x, conditional, unconditional, average, scale, step, apg)


def guided_step_reference(
    x: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    average: Tensor | None,
    scale: float,
    step: float,
    apg: bool = True,
) -> tuple[Tensor, Tensor | None]:
    if unconditional is None:
        return x - step * conditional, None
    update = conditional - unconditional
    if not apg:
        return x - step * (unconditional + scale * update), None
    if average is not None:
        update = update + MOMENTUM * average
    average = update
    norm = update.norm(dim=1, keepdim=True)
    update = update * (NORM_LIMIT / norm.clamp(min=NORM_LIMIT))
    c = conditional.double()  # a small difference is what remains
    along = (update.double() * c).sum(1, keepdim=True) / c.square().sum(1, keepdim=True).clamp(
        min=1e-24
    )
    update = update - ((1 - PARALLEL) * along * c).to(update.dtype)
    return x - step * (conditional + (scale - 1) * update), average


def guided_step_triton(
    x: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    average: Tensor | None,
    scale: float,
    step: float,
    apg: bool = True,
) -> tuple[Tensor, Tensor | None]:
    n, size = x.shape
    guided = unconditional is not None
    apg = apg and guided
    new = torch.empty_like(x)
    new_average = torch.empty_like(x) if apg else None
    block = next_power_of_2(size)
    shared = guided and len(unconditional) == 1
    if n:
        _guided_step_kernel[(n,)](
            x.contiguous(),
            conditional.contiguous(),
            unconditional.contiguous() if guided else x,
            x if average is None else average.contiguous(),
            new,
            new_average if apg else x,
            size,
            0 if shared else size,
            scale,
            step,
            MOMENTUM,
            NORM_LIMIT,
            1 - PARALLEL,
            GUIDED=guided,
            APG=apg,
            STARTED=average is not None,
            BLOCK=block,
            num_warps=warps(block),
        )
    return new, new_average


@jit
def _guided_step_kernel(
    x,
    conditional,
    unconditional,
    average,
    new,
    new_average,
    size,
    unconditional_stride,
    scale,
    step,
    momentum,
    norm_limit,
    removed,
    GUIDED: tl.constexpr,
    APG: tl.constexpr,
    STARTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    c = tl.load(conditional + sample * size + i, mask=inside, other=0.0).to(tl.float32)
    v = c
    if GUIDED:
        u = tl.load(unconditional + sample * unconditional_stride + i, mask=inside, other=0.0)
        u = u.to(tl.float32)
        if APG:
            a = c - u
            if STARTED:
                before = tl.load(average + sample * size + i, mask=inside, other=0.0)
                a += momentum * before.to(tl.float32)
            tl.store(new_average + sample * size + i, a, mask=inside)
            norm = tl.sqrt(tl.sum(a * a, axis=0))
            g = a * (norm_limit / tl.maximum(norm, norm_limit))
            along = tl.sum(g * c, axis=0) / tl.maximum(tl.sum(c * c, axis=0), 1e-24)
            v = c + (scale - 1.0) * (g - removed * along * c)
        else:
            v = u + scale * (c - u)
    old = tl.load(x + sample * size + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(new + sample * size + i, old - step * v, mask=inside)


# Registers


def assemble_registers(
    tokens: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    mask_token: Tensor,
    levels: tuple[int, ...],
    total: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Registers of prefixes, and the bias of their keys: tokens to rows in one pass.

    tokens: Int64[N, K], of which row i's first lengths[i] (Int64[N], 0 to K) count. weight [D, d]
    and bias [D] of the layer that reads code vectors; positions [total, D]; mask_token [D]; levels:
    of the d digits, the first the least significant. size: rows kept, K < size <= total, or K =
    total = size.

    Row r < lengths[i] is weight @ code + bias + positions[r], where digit j of the code is
    (token // stride_j % level_j - half_j) / half_j with half_j = level_j // 2. The others are the
    mask token, and as keys stand for all total - lengths[i] masked registers: each has the bias
    ln((total - lengths[i]) / (size - lengths[i])). Returns rows Float32[N, size, D] and the bias
    Float32[N, size].

    Moves 4 N size D bytes, as what it reads stays in the cache.
    """
    arguments = (tokens, lengths, weight, bias, positions, mask_token, levels, total, size)
    if not tokens.shape[1] <= size <= total:
        raise ValueError(f"{size} registers cannot hold {tokens.shape[1]} tokens of {total}")
    if not fused(weight):
        return assemble_registers_reference(*arguments)
    return assemble_registers_triton(*arguments)


def assemble_registers_reference(
    tokens: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    mask_token: Tensor,
    levels: tuple[int, ...],
    total: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    base, strides = _digits(levels, tokens.device)
    half = base // 2
    codes = (tokens[..., None] // strides % base - half) / half.to(weight.dtype)  # [N, K, d]
    rows = codes @ weight.T + bias + positions[: tokens.shape[1]]
    kept = torch.arange(size, device=tokens.device) < lengths[:, None]  # [N, size]
    missing = rows.new_zeros(len(rows), size - rows.shape[1], rows.shape[2])
    rows = torch.where(kept[..., None], torch.cat([rows, missing], dim=1), mask_token)
    share = ((total - lengths) / (size - lengths).clamp(min=1)).to(weight.dtype)
    return rows, torch.where(kept, 0.0, share.clamp(min=1).log()[:, None])


def assemble_registers_triton(
    tokens: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    mask_token: Tensor,
    levels: tuple[int, ...],
    total: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    n, dim = len(tokens), weight.shape[0]
    base, strides = _digits(levels, tokens.device)
    rows = torch.empty(n, size, dim, dtype=torch.float32, device=weight.device)
    key_bias = torch.empty(n, size, dtype=torch.float32, device=weight.device)
    block = next_power_of_2(dim)
    if n:
        _assemble_registers_kernel[(n, size)](
            tokens.contiguous(),
            lengths,
            weight.contiguous(),
            bias,
            positions,
            mask_token,
            base,
            strides,
            rows,
            key_bias,
            tokens.shape[1],
            total,
            size,
            dim,
            DIGITS=len(levels),
            BLOCK=block,
            num_warps=warps(block),
        )
    return rows, key_bias


@cache  # so that no decode waits for a copy to the device
def _digits(levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Int64[d] levels and strides."""
    base = torch.tensor(levels, device=device)
    return base, torch.cat([base.new_ones(1), base.cumprod(0)[:-1]])


@jit
def _assemble_registers_kernel(
    tokens,
    lengths,
    weight,
    bias,
    positions,
    mask_token,
    base,
    strides,
    rows,
    key_bias,
    longest,
    total,
    size,
    dim,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    register = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    inside = i < dim
    length = tl.load(lengths + sample)
    kept = register < length
    token = tl.load(tokens + sample * longest + register, mask=kept, other=0)
    value = tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(positions + register * dim + i, mask=inside, other=0.0).to(tl.float32)
    for j in tl.static_range(DIGITS):
        level = tl.load(base + j)
        half = level // 2
        digit = token // tl.load(strides + j) % level
        code = (digit - half).to(tl.float32) / half.to(tl.float32)
        column = tl.load(weight + i * DIGITS + j, mask=inside, other=0.0).to(tl.float32)
        value += code * column
    masked = tl.load(mask_token + i, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(kept, value, masked)
    tl.store(rows + (sample * size + register) * dim + i, value, mask=inside)
    share = (total - length).to(tl.float32) / tl.maximum(size - length, 1).to(tl.float32)
    logit = tl.where(kept, 0.0, tl.log(tl.maximum(share, 1.0)))
    tl.store(key_bias + sample * size + register, logit)
