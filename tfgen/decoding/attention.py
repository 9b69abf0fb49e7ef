"""Attention of one kernel: norms of queries and keys, bias of the keys, softmax and values.

`kernels.attention` norms in one pass and leaves the rest to PyTorch, whose kernels cut sequences
into tiles of 128; a FlexTok's has some 260 tokens, so that more than half of what those multiply is
padding. Here one program takes a head of a sample: its keys and values are read and normed once and
stay in shared memory, and as all keys are at hand, no tile has to be reconciled with the next. A
kernel in the usual way, which read the keys tile by tile, took 1.08 to 2.2 times as long as
PyTorch's on an H200 (benchmarks/results/attention_throughput-d18-d28.md). Whether this one is
faster tells `tfgen bench attention_throughput`; nobody has asked it on a GPU yet, and until then
PyTorch's is what decodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding.kernels import LN_EPS, QUERY_SHIFT, attention
from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl


@dataclass(frozen=True)
class Tile:
    """How the kernel is cut: queries that a program takes at a time, its warps, and how many loads
    of queries are under way at once."""

    queries: int = 64
    warps: int = 4
    stages: int = 2


TILE = Tile()
_SMALLEST = 16  # side of a product that Triton takes
_MOST_KEYS = 320  # with their logits in the registers of a program
_MOST_FEATURES = 64


def norm_attention(
    qkv: Tensor, heads: int, key_bias: Tensor | None, scale: float, tile: Tile = TILE
) -> Tensor:
    """Softmax attention over normed queries and keys: Float[N, S, 3 D] -> Float[N, S, D].

    qkv: its first third is the queries. key_bias: Float[N or 1, S], added to the logits of each
    key, or None; finite, at most 16, and at least -16 for some key of each sample: the sum of their
    exponentials must be a number, and not 0.

        out = softmax(scale LN(q) LN(k)^T + key_bias) v      for each head

    LN, over a head's features, has no parameters. Moves 4 N S D e bytes. Computes 4 N S^2 D
    operations. What does not fit one program (more keys or features, or float32, whose exact
    products have not registers enough) is PyTorch's.
    """
    tokens, dim = qkv.shape[1], qkv.shape[2] // 3 // heads
    whole, rest = _blocks(tokens)
    fits = _SMALLEST <= whole and whole + rest <= _MOST_KEYS and dim <= _MOST_FEATURES
    if not fused(qkv) or qkv.dtype == torch.float32 or not fits:
        return attention(qkv, heads, key_bias, scale)
    return norm_attention_triton(qkv, heads, key_bias, scale, tile)


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
) -> Tensor:
    """Of 16 tokens or more."""
    n, tokens, width = qkv.shape
    out = torch.empty(n, tokens, width // 3, dtype=qkv.dtype, device=qkv.device)
    if not out.numel():
        return out
    dim = width // 3 // heads
    whole, rest = _blocks(tokens)
    block = max(_SMALLEST, next_power_of_2(dim))
    biased = key_bias is not None
    _norm_attention_kernel[(n * heads,)](
        qkv.contiguous(),
        key_bias if biased else qkv,
        out,
        tokens,
        heads,
        dim,
        key_bias.stride(0) if biased and len(key_bias) > 1 else 0,
        key_bias.stride(1) if biased else 0,
        scale * math.log2(math.e),
        QUERY_SHIFT if biased else 0.0,
        1 / (scale * QUERY_SHIFT * dim),
        LN_EPS,
        BIASED=biased,
        # Normed queries and keys have logits of at most scale d, 8 in a FlexTok, whose exponential
        # float16 alone cannot hold next to those of the smallest.
        SUBTRACT=qkv.dtype == torch.float16 or scale * dim > 64,
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        QUERIES=min(tile.queries, whole),
        WHOLE=whole,
        REST=rest,
        BLOCK=block,
        FULL=dim == block,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def _blocks(tokens: int) -> tuple[int, int]:
    """Two powers of two that hold all keys: the largest without a gap, and one for what is left, or
    0. So 261 keys take 256 and 16, not 512."""
    whole = next_power_of_2(tokens + 1) // 2
    return whole, max(_SMALLEST, next_power_of_2(tokens - whole)) if tokens > whole else 0


@jit
def _normed(x, inside, share, eps, FULL: tl.constexpr):
    """Rows of x, Float[rows, BLOCK], less their means, and one by their deviations, in float32.

    share: one by the number of features that count; FULL: all of them do.
    """
    value = x.to(tl.float32)
    centred = value - (tl.sum(value, axis=1) * share)[:, None]
    if not FULL:
        centred = tl.where(inside, centred, 0.0)
    return centred, tl.rsqrt(tl.sum(centred * centred, axis=1) * share + eps)[:, None]


@jit
def _biased_keys(
    place, bias, there, inside, share, key_factor, eps, BIASED: tl.constexpr, FULL: tl.constexpr
):
    """Keys at `place`, normed, with the bias at `bias` in them: Float[keys, BLOCK]."""
    read = tl.load(place, mask=there & inside, other=0.0)
    k, by = _normed(read, inside, share, eps, FULL)
    k *= by
    if BIASED:
        k += tl.load(bias, mask=there, other=0.0).to(tl.float32) * key_factor
        if not FULL:
            k = tl.where(inside, k, 0.0)
    return k.to(read.dtype)


@jit
def _norm_attention_kernel(
    qkv,
    bias,
    out,
    tokens,
    heads,
    dim,
    bias_sample_stride,
    bias_token_stride,
    scale,
    query_shift,
    key_factor,
    eps,
    BIASED: tl.constexpr,
    SUBTRACT: tl.constexpr,
    PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    WHOLE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    """One program: one head of one sample. As `norm_heads` has it, biases are in the keys, and the
    scale is in the queries, so that a logit, in units of ln 2, is what the product gives.

    Instructions, not bytes, are what it spends its time on: hence nothing is masked where all
    features count (FULL), and no vector is divided.
    """
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    stride = 3 * heads * dim
    queries = qkv + sample * tokens * stride + head * dim
    keys, values = queries + heads * dim, queries + 2 * heads * dim
    bias += sample * bias_sample_stride
    d = tl.arange(0, BLOCK)[None, :]
    features = FULL | (d < dim)  # a mask that is none where all of them count
    share = 1.0 / dim
    j = tl.arange(0, WHOLE)[:, None]
    at = j * stride + d
    bias_at = bias + j * bias_token_stride
    k = _biased_keys(keys + at, bias_at, j < WHOLE, features, share, key_factor, eps, BIASED, FULL)
    v = tl.load(values + at, mask=features, other=0.0)
    if REST > 0:
        j = WHOLE + tl.arange(0, REST)[:, None]
        at = j * stride + d
        bias_at = bias + j * bias_token_stride
        k_rest = _biased_keys(
            keys + at, bias_at, j < tokens, features, share, key_factor, eps, BIASED, FULL
        )
        v_rest = tl.load(values + at, mask=(j < tokens) & features, other=0.0)
        beyond = tl.where(WHOLE + tl.arange(0, REST) < tokens, 0.0, -float("inf"))[None, :]
    for first in range(0, tokens, QUERIES):
        i = first + tl.arange(0, QUERIES)[:, None]
        inside = (i < tokens) & features
        read = tl.load(queries + i * stride + d, mask=inside, other=0.0)
        q, by = _normed(read, features, share, eps, FULL)
        q = (q * (by * scale) + query_shift * scale).to(read.dtype)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if REST > 0:
            more = tl.dot(q, tl.trans(k_rest), input_precision=PRECISION)
            more += beyond
        if SUBTRACT:
            highest = tl.max(logits, axis=1)
            if REST > 0:
                highest = tl.maximum(highest, tl.max(more, axis=1))
                more -= highest[:, None]
            logits -= highest[:, None]
        weights = tl.exp2(logits)
        total = tl.sum(weights, axis=1)
        result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        if REST > 0:
            weights_rest = tl.exp2(more)
            total += tl.sum(weights_rest, axis=1)
            result = tl.dot(weights_rest.to(v.dtype), v_rest, result, input_precision=PRECISION)
        result = (result * (1.0 / total)[:, None]).to(out.dtype.element_ty)
        tl.store(out + (sample * tokens + i) * (heads * dim) + head * dim + d, result, mask=inside)
