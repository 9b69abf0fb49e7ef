"""Kernels of the decoder's transformer blocks, each a PyTorch reference and a Triton kernel.

A block of FlexTok's decoder is four matrix products and one attention; between them lie norms,
modulation, gates and an activation, which as separate PyTorch operations move more bytes than the
products themselves. Here each of those is one pass over its rows. All of them compute in float32,
whatever they read and write. Modulation comes as a table for two groups of tokens, patches (the
first `patches` of each sample) and registers, and is never expanded to tokens.

Each docstring states the formula and the bytes moved, for N samples of S tokens of D features, with
e bytes an element; tables are read again by each token, but from the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl, warps

LN_EPS = 1e-5
QUERY_SHIFT = 0.5
"""What queries carry in the direction that norms leave empty, for a bias of the keys."""


# Norm and modulation, gate and residual


def norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, patches: int, dtype: torch.dtype | None = None
) -> Tensor:
    """LN(x) * (1 + scale) + shift, where LN has no parameters: Float[N, S, D] -> the same, in
    `dtype` (None: that of x).

    shift, scale: Float[2, D], rows for patches and registers. Moves N S D (e_in + e_out) bytes.
    """
    dtype = dtype or x.dtype
    if not fused(x):
        return norm_modulate_reference(x, shift, scale, patches).to(dtype)
    return norm_modulate_triton(x, shift, scale, patches, dtype)


def norm_modulate_reference(x: Tensor, shift: Tensor, scale: Tensor, patches: int) -> Tensor:
    shift, scale = (_per_token(table, x.shape[1], patches) for table in (shift, scale))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(wide, x.shape[-1:], eps=LN_EPS) * (1 + scale) + shift


def norm_modulate_triton(
    x: Tensor, shift: Tensor, scale: Tensor, patches: int, dtype: torch.dtype
) -> Tensor:
    h = torch.empty(x.shape, dtype=dtype, device=x.device)
    _residual_norm(x, None, None, None, h, shift, scale, patches)
    return h


def gate_residual(x: Tensor, branch: Tensor, gate: Tensor, patches: int) -> Tensor:
    """x + gate * branch: Float[N, S, D] each -> the same, in the dtype of x.

    gate: Float[2, D]. Moves N S D (2 e_x + e_branch) bytes.
    """
    if not fused(x):
        return gate_residual_reference(x, branch, gate, patches).to(x.dtype)
    return gate_residual_triton(x, branch, gate, patches)


def gate_residual_reference(x: Tensor, branch: Tensor, gate: Tensor, patches: int) -> Tensor:
    return x + _per_token(gate, x.shape[1], patches) * branch


def gate_residual_triton(x: Tensor, branch: Tensor, gate: Tensor, patches: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _residual_norm(x, branch, gate, out, None, None, None, patches)
    return out


def gate_residual_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    patches: int,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """y = x + gate * branch, and LN(y) * (1 + scale) + shift of the next branch, in one pass.

    Returns both Float[N, S, D], y in the dtype of x and the other in `dtype` (None: that of the
    branch). Moves N S D (2 e_x + e_branch + e_out) bytes, where two passes move e_x more.
    """
    dtype = dtype or branch.dtype
    if not fused(x):
        y = gate_residual(x, branch, gate, patches)
        return y, norm_modulate(y, shift, scale, patches, dtype)
    return gate_residual_norm_triton(x, branch, gate, shift, scale, patches, dtype)


def gate_residual_norm_triton(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    patches: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = torch.empty(x.shape, dtype=dtype, device=x.device)
    _residual_norm(x, branch, gate, y, h, shift, scale, patches)
    return y, h


def _per_token(table: Tensor, tokens: int, patches: int) -> Tensor:
    """[2, D] -> [tokens, D]."""
    return table[(torch.arange(tokens, device=table.device) >= patches).long()]


def _residual_norm(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    y: Tensor | None,
    h: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    patches: int,
) -> None:
    """One program a token. What is None is not read, computed or written."""
    n, tokens, dim = x.shape
    for rows in (x, gate, shift, scale):
        if rows is not None and rows.stride(-1) != 1:
            raise ValueError("the features of a token, or of a row of a table, must be adjacent")
    if n * tokens == 0:
        return
    block = next_power_of_2(dim)
    _residual_norm_kernel[(n * tokens,)](
        x,
        x if branch is None else branch.contiguous(),
        x if gate is None else gate,
        x if y is None else y,
        x if h is None else h,
        x if shift is None else shift,
        x if scale is None else scale,
        tokens,
        patches,
        dim,
        x.stride(0),
        x.stride(1),
        0 if gate is None else gate.stride(0),
        0 if shift is None else shift.stride(0),
        0 if scale is None else scale.stride(0),
        LN_EPS,
        GATE=branch is not None,
        NORM=h is not None,
        BLOCK=block,
        num_warps=warps(block),
    )


@jit
def _residual_norm_kernel(
    x,
    branch,
    gate,
    y,
    h,
    shift,
    scale,
    tokens,
    patches,
    dim,
    x_sample_stride,
    x_token_stride,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    GATE: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    token = row % tokens
    group = (token >= patches).to(tl.int32)
    i = tl.arange(0, BLOCK)
    inside = i < dim
    at = x + sample * x_sample_stride + token * x_token_stride + i
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if GATE:
        g = tl.load(gate + group * gate_stride + i, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(branch + row * dim + i, mask=inside, other=0.0).to(tl.float32)
        value += g * b
        tl.store(y + row * dim + i, value.to(y.dtype.element_ty), mask=inside)
    if NORM:
        mean = tl.sum(value, axis=0) / dim
        centred = tl.where(inside, value - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / dim
        normed = centred * tl.rsqrt(variance + eps)
        a = tl.load(scale + group * scale_stride + i, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(shift + group * shift_stride + i, mask=inside, other=0.0).to(tl.float32)
        result = normed * (1.0 + a) + b
        tl.store(h + row * dim + i, result.to(h.dtype.element_ty), mask=inside)


# Queries, keys and values


def norm_heads(
    qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys normed over each head's d features, and a bias of the keys inside them.

    qkv: Float[N, S, 3 D], of which the first third is the queries. key_bias: Float[N or 1, S],
    added to the logits of each key, or None. Returns three Float[N, heads, S, d], as they lie in
    memory when heads are split without copying, which is what attention kernels read best; the
    values are a view of qkv.

        q = LN(q) + a,    k = LN(k) + key_bias / (scale a d),    with a = QUERY_SHIFT

    LN, which has no parameters, leaves features that sum to zero, so neither constant changes
    LN(q) . LN(k), and their product adds key_bias / scale: scale q . k is the biased logit, and
    attention needs no mask. Moves 4 N S D e bytes.
    """
    if not fused(qkv):
        return norm_heads_reference(qkv, heads, key_bias, scale)
    return norm_heads_triton(qkv, heads, key_bias, scale)


def norm_heads_reference(
    qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, S, d] each
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k = (F.layer_norm(x.to(wide), x.shape[-1:], eps=LN_EPS) for x in (q, k))
    if key_bias is not None:
        q = q + QUERY_SHIFT
        k = k + (key_bias / (scale * QUERY_SHIFT * q.shape[3]))[:, None, :, None]
    return q.to(qkv.dtype), k.to(qkv.dtype), v


def norm_heads_triton(
    qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, tokens, width = qkv.shape
    dim = width // 3 // heads
    biased = key_bias is not None
    qk = torch.empty(n, tokens, 2, heads, dim, dtype=qkv.dtype, device=qkv.device)
    if biased:
        key_bias = key_bias.expand(n, -1)
    qkv = qkv.contiguous()
    head_block, block = next_power_of_2(heads), next_power_of_2(dim)
    if n * tokens:
        _norm_heads_kernel[(n * tokens, 2)](
            qkv[:, :, : 2 * heads * dim],
            qk,
            key_bias if biased else qkv,
            tokens,
            heads,
            dim,
            key_bias.stride(0) if biased else 0,
            key_bias.stride(1) if biased else 0,
            QUERY_SHIFT,
            1 / (scale * QUERY_SHIFT * dim),
            LN_EPS,
            BIASED=biased,
            HEADS=head_block,
            BLOCK=block,
            num_warps=warps(head_block * block),
        )
    q, k = qk.permute(2, 0, 3, 1, 4)
    return q, k, qkv.unflatten(2, (3, heads, -1))[:, :, 2].transpose(1, 2)


@jit
def _norm_heads_kernel(
    qkv,
    qk,
    bias,
    tokens,
    heads,
    dim,
    bias_sample_stride,
    bias_token_stride,
    query_shift,
    key_factor,
    eps,
    BIASED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)  # queries, keys
    head = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (i < dim)
    place = head * dim + i
    width = heads * dim
    value = tl.load(qkv + (row * 3 + part) * width + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1)[:, None] / dim
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / dim
    normed = centred * tl.rsqrt(variance + eps)
    if BIASED:
        at = (row // tokens) * bias_sample_stride + (row % tokens) * bias_token_stride
        normed += tl.where(part == 0, query_shift, tl.load(bias + at).to(tl.float32) * key_factor)
    tl.store(qk + (row * 2 + part) * width + place, normed.to(qk.dtype.element_ty), mask=inside)


def attention(qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention over normed queries and keys: Float[N, S, 3 D] -> Float[N, S, D].

    key_bias: see `norm_heads`. The attention itself is PyTorch's.
    """
    q, k, v = norm_heads(qkv, heads, key_bias, scale)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).flatten(2)


# The gated MLP


def swiglu(u: Tensor) -> Tensor:
    """silu(a) * b of u = [a, b]: Float[N, S, 2 h] -> Float[N, S, h]. Moves 3 N S h e bytes."""
    if not fused(u):
        return swiglu_reference(u)
    return swiglu_triton(u)


def swiglu_reference(u: Tensor) -> Tensor:
    a, b = u.chunk(2, dim=-1)
    return F.silu(a) * b


def swiglu_triton(u: Tensor) -> Tensor:
    hidden = u.shape[-1] // 2
    out = torch.empty(*u.shape[:-1], hidden, dtype=u.dtype, device=u.device)
    rows, block = out.numel() // max(1, hidden), min(1024, next_power_of_2(hidden))
    if rows:
        grid = (rows, -(-hidden // block))
        _swiglu_kernel[grid](u.contiguous(), out, hidden, BLOCK=block, num_warps=4)
    return out


@jit
def _swiglu_kernel(u, out, hidden, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < hidden
    a = tl.load(u + row * 2 * hidden + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(u + row * 2 * hidden + hidden + i, mask=inside, other=0.0).to(tl.float32)
    result = a * tl.sigmoid(a) * b
    tl.store(out + row * hidden + i, result.to(out.dtype.element_ty), mask=inside)


def pad_hidden(fc1: Tensor, fc3: Tensor, fc2: Tensor, multiple: int = 64) -> tuple[Tensor, Tensor]:
    """The weights of a gated MLP with a hidden width that fast matrix products like.

    fc1, fc3: [h, D]; fc2: [D, h]. Returns [2 h', D], for both halves of `swiglu`, and [D, h'],
    where h' is h rounded up to the multiple. What is added is zero, and silu(0) * 0 = 0, so the
    result is the same. FlexTok's largest decoder has h = 4778, whose bf16 rows are not aligned to
    16 bytes.
    """
    more = -fc1.shape[0] % multiple
    first = torch.cat([F.pad(weight, (0, 0, 0, more)) for weight in (fc1, fc3)])
    return first, F.pad(fc2, (0, more))
