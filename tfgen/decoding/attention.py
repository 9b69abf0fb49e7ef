"""Attention of one kernel: norms of queries and keys, bias of the keys, softmax and values.

`kernels.attention` norms in one pass and leaves the rest to PyTorch, whose kernels cut sequences
into tiles of 128; a FlexTok's has some 260 tokens, so that a third of those tiles is empty. This
one has tiles of 64 and reads the product of a block's weights as it lies: the normed queries and
keys are never written, unless that is asked for, as norms once for all save the kernel's tiles from
doing theirs over and over. Which is fastest tells `tfgen bench attention_throughput`; nobody has
asked it on a GPU yet, and until then PyTorch's is what decodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding.kernels import LN_EPS, norm_heads_triton
from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl


@dataclass(frozen=True)
class Tile:
    """How the kernel is cut: queries of a program, keys that it takes at a time, warps, and how
    many loads are under way at once."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 3


TILE = Tile()
_SMALLEST = 16  # side of a product that Triton takes


def norm_attention(qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention over normed queries and keys: Float[N, S, 3 D] -> Float[N, S, D].

    qkv: its first third is the queries. key_bias: Float[N or 1, S], added to the logits of each
    key, or None.

        out = softmax(scale LN(q) LN(k)^T + key_bias) v      for each head

    LN, over a head's features, has no parameters. Moves 4 N S D e bytes: each tile of queries reads
    the head's keys and values again, from the cache. Computes 4 N S^2 D operations. In float32 it
    is PyTorch's, too: exact products of that size have not registers enough.
    """
    if not fused(qkv) or qkv.dtype == torch.float32:
        return norm_attention_reference(qkv, heads, key_bias, scale)
    return norm_attention_triton(qkv, heads, key_bias, scale)


def norm_attention_reference(
    qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float
) -> Tensor:
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, S, d] each
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k = (F.layer_norm(x.to(wide), x.shape[-1:], eps=LN_EPS).to(x.dtype) for x in (q, k))
    mask = None if key_bias is None else key_bias[:, None, None].to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return out.transpose(1, 2).flatten(2)


def norm_attention_triton(
    qkv: Tensor,
    heads: int,
    key_bias: Tensor | None,
    scale: float,
    tile: Tile = TILE,
    norm_before: bool = False,
) -> Tensor:
    """norm_before: norm queries and keys in a kernel before (`norm_heads`) and not in this one."""
    n, tokens, width = qkv.shape
    out = torch.empty(n, tokens, width // 3, dtype=qkv.dtype, device=qkv.device)
    if not out.numel():
        return out
    qkv, dim = qkv.contiguous(), width // 3 // heads
    queries = qkv
    if norm_before:
        q, _, _ = norm_heads_triton(qkv, heads, None, scale)
        queries = q  # where the keys follow each token's queries, as in qkv
    biased = key_bias is not None
    _norm_attention_kernel[(-(-tokens // tile.queries), n * heads)](
        queries,
        qkv,
        key_bias if biased else qkv,
        out,
        tokens,
        heads,
        dim,
        (2 if norm_before else 3) * width // 3,
        key_bias.stride(0) if biased and len(key_bias) > 1 else 0,
        key_bias.stride(1) if biased else 0,
        scale * math.log2(math.e),
        math.log2(math.e),
        LN_EPS,
        BIASED=biased,
        NORM=not norm_before,
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        QUERIES=tile.queries,
        KEYS=tile.keys,
        BLOCK=max(_SMALLEST, next_power_of_2(dim)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@jit
def _normed(x, dim, inside, eps):
    """Rows of x, Float[rows, BLOCK] of which `dim` features count, normed in float32."""
    value = x.to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, axis=1)[:, None] / dim, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / dim
    return (centred * tl.rsqrt(variance + eps)).to(x.dtype)


@jit
def _norm_attention_kernel(
    qk,
    qkv,
    bias,
    out,
    tokens,
    heads,
    dim,
    token_stride,
    bias_sample_stride,
    bias_token_stride,
    scale,
    bias_scale,
    eps,
    BIASED: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: one tile of the queries of one head. Logits are in units of ln 2.

    qk: a token's queries, then its keys, `token_stride` numbers from the next token's.
    """
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    width = heads * dim
    start = qk + sample * tokens * token_stride + head * dim
    values = qkv + sample * tokens * 3 * width + 2 * width + head * dim
    i = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, BLOCK)
    feature = (d < dim)[None, :]
    place = i[:, None] * token_stride + d[None, :]
    q = tl.load(start + place, mask=(i < tokens)[:, None] & feature, other=0.0)
    if NORM:
        q = _normed(q, dim, feature, eps)
    top = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, BLOCK], tl.float32)
    for first in range(0, tokens, KEYS):
        j = first + tl.arange(0, KEYS)
        there = j < tokens
        inside = there[:, None] & feature
        at = j[:, None] * token_stride + d[None, :]
        k = tl.load(start + width + at, mask=inside, other=0.0)
        if NORM:
            k = _normed(k, dim, feature, eps)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if BIASED:
            of_keys = bias + sample * bias_sample_stride + j * bias_token_stride
            logits += (tl.load(of_keys, mask=there, other=0.0).to(tl.float32) * bias_scale)[None, :]
        logits = tl.where(there[None, :], logits, -float("inf"))
        highest = tl.maximum(top, tl.max(logits, axis=1))  # finite: every tile has a key
        weights = tl.exp2(logits - highest[:, None])
        fade = tl.exp2(top - highest)
        v = tl.load(values + j[:, None] * 3 * width + d[None, :], mask=inside, other=0.0)
        part = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        result = result * fade[:, None] + part
        total = total * fade + tl.sum(weights, axis=1)
        top = highest
    place = (sample * tokens + i[:, None]) * width + head * dim + d[None, :]
    result = (result / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place, result, mask=(i < tokens)[:, None] & feature)
