"""The network of FlexAR: image tokens by causal self-attention, text by cross-attention.

Modules are named as the tensors of the published checkpoints are. All shapes have two batch axes:
G groups, each with one text, times R rows that share it (the beams of a prompt). So the keys and
values of a text are computed once, and a group's rows attend to them as one long query. Guidance is
two groups with the same rows, one of which reads the empty text.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.priors.flexar_config import AttentionConfig, FlexARConfig, NormConfig

Pair = tuple[Tensor, Tensor]
"""Keys and values, Float[batch, heads, length, head_dim] each."""


class TextStates(NamedTuple):
    """What the blocks read of G texts: keys and values of each block, and which are no padding."""

    pairs: list[Pair]  # per block, Float[G, heads, S, head_dim]
    mask: Tensor  # Bool[G, 1, 1, S]


class Past(NamedTuple):
    """What the blocks remember of the tokens read so far."""

    pairs: list[Pair]  # per block, Float[G * R, key_heads, length, head_dim]
    groups: int

    @property
    def length(self) -> int:
        """Positions, of which the first is that of the start token."""
        return self.pairs[0][0].shape[2]

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for pair in self.pairs for x in pair)

    def rows(self, index: Tensor, length: int) -> Past:
        """The rows Int64[R'] of every group, cut to `length` positions."""

        def take(x: Tensor) -> Tensor:
            return x.unflatten(0, (self.groups, -1))[:, index, :, :length].flatten(0, 1)

        return Past([(take(k), take(v)) for k, v in self.pairs], self.groups)


class LayerNorm(nn.Module):
    """Layer norm with affine parameters, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), bias, self.eps).to(x)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε), computed in float32, then scaled."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return y.to(x) * self.weight


def make_norm(cfg: NormConfig | None, width: int) -> nn.Module:
    if cfg is None:
        return nn.Identity()
    return (RMSNorm if cfg.kind == "rms" else LayerNorm)(width, cfg.eps)


class SelfAttention(nn.Module):
    """Causal, over the tokens of each row; the keys and values of earlier calls may be given."""

    def __init__(self, width: int, cfg: AttentionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        inner, key_inner = cfg.heads * cfg.head_dim, cfg.key_heads * cfg.head_dim
        if cfg.fused:
            self.qkv = nn.Linear(width, 3 * inner)
            self.proj = nn.Linear(inner, width)
        else:
            self.q_proj = nn.Linear(width, inner)
            self.k_proj, self.v_proj = nn.Linear(width, key_inner), nn.Linear(width, key_inner)
            self.o_proj = nn.Linear(inner, width)
        self.q_norm = make_norm(cfg.qk_norm, cfg.head_dim)
        self.k_norm = make_norm(cfg.qk_norm, cfg.head_dim)

    def forward(self, x: Tensor, past: Pair | None) -> tuple[Tensor, Pair]:
        """Float[G, R, T, width] -> the same, and the keys and values of all positions so far."""
        rows = x.flatten(0, 1)  # [G * R, T, width]
        if self.cfg.fused:
            parts = self.qkv(rows).chunk(3, dim=-1)
        else:
            parts = self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)
        q, k, v = (y.unflatten(-1, (-1, self.cfg.head_dim)).transpose(1, 2) for y in parts)
        q, k = self.q_norm(q), self.k_norm(k)  # [G * R, heads, T, head_dim]
        start = 0 if past is None else past[0].shape[2]
        if self.cfg.rope_theta is not None:
            q, k = (rotate(y, start, self.cfg.rope_theta) for y in (q, k))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        length, mask = q.shape[2], None
        if past is not None and length > 1:  # is_causal would align the first query with the start
            mask = torch.ones(length, start + length, dtype=torch.bool, device=x.device).tril(start)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=past is None,
            scale=self.cfg.scale,
            enable_gqa=self.cfg.key_heads != self.cfg.heads,
        )
        project = self.proj if self.cfg.fused else self.o_proj
        return project(y.transpose(1, 2).flatten(2)).view_as(x), (k, v)


class CrossAttention(nn.Module):
    """From all tokens of a group's rows to the group's text."""

    def __init__(self, width: int, cfg: AttentionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.Wq, self.Wk, self.Wv, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm = make_norm(cfg.qk_norm, cfg.head_dim)
        self.k_norm = make_norm(cfg.qk_norm, cfg.head_dim)

    def text(self, text: Tensor) -> Pair:
        """Projected text Float[G, S, width] -> its keys and values."""
        k, v = (self._heads(y) for y in (self.Wk(text), self.Wv(text)))
        return self.k_norm(k), v

    def forward(self, x: Tensor, text: Pair, mask: Tensor) -> Tensor:
        """Float[G, R, T, width] -> the same."""
        q = self.q_norm(self._heads(self.Wq(x.flatten(1, 2))))  # [G, heads, R * T, head_dim]
        y = F.scaled_dot_product_attention(q, *text, attn_mask=mask, scale=self.cfg.scale)
        return self.proj(y.transpose(1, 2).flatten(2)).view_as(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.cfg.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """fc2(gelu(fc1 x)), with the exact GELU; or gated, fc2(act(fc1 x) * fc3 x)."""

    def __init__(self, width: int, hidden: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        if kind != "mlp":
            self.fc3 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.fc1(x)) if self.kind == "swiglu" else F.gelu(self.fc1(x))
        return self.fc2(y if self.kind == "mlp" else y * self.fc3(x))


class Block(nn.Module):
    def __init__(self, cfg: FlexARConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3 = (make_norm(cfg.norm, cfg.width) for _ in range(3))
        self.self_attn = SelfAttention(cfg.width, cfg.self_attention)
        self.cross_attn = CrossAttention(cfg.width, cfg.cross_attention)
        self.mlp = FeedForward(cfg.width, cfg.ffn_width, cfg.ffn)

    def forward(
        self, x: Tensor, text: Pair, mask: Tensor, past: Pair | None
    ) -> tuple[Tensor, Pair]:
        y, pair = self.self_attn(self.norm_1(x), past)
        x = x + y
        x = x + self.cross_attn(self.norm_2(x), text, mask)
        return x + self.mlp(self.norm_3(x)), pair


class TextMLP(nn.Module):
    """T5 hidden states -> the width of the decoder."""

    def __init__(self, cfg: FlexARConfig) -> None:
        super().__init__()
        self.gelu = cfg.text_gelu
        self.fc1 = nn.Linear(cfg.text_dim, cfg.text_dim)
        self.fc2 = nn.Linear(cfg.text_dim, cfg.width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden), approximate=self.gelu))


class Embedding(nn.Module):
    """Start token and tokens, each plus its position."""

    def __init__(self, cfg: FlexARConfig) -> None:
        super().__init__()
        # not nn.Embedding(...), whose random numbers cost a second's import on the meta device
        self.embedding = nn.Embedding.from_pretrained(torch.empty(cfg.vocab_size, cfg.width))
        self.sos_token_embed = nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.positional_embedding = None
        if cfg.positions:
            self.positional_embedding = nn.Parameter(torch.zeros(cfg.num_tokens, cfg.width))

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        """Int64[G, R, P] -> Float[G, R, T, width]; at start 0 the start token comes before them."""
        x = self.embedding(tokens)
        if start == 0:
            x = torch.cat([self.sos_token_embed.expand(*x.shape[:2], 1, -1), x], dim=2)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[start : start + x.shape[2]]
        return x


class FlexARNetwork(nn.Module):
    """Tokens and text -> logits of the next tokens.

    tensors: the names of the weights it will be filled with, which say where there are biases.
    """

    def __init__(self, cfg: FlexARConfig, tensors: Container[str]) -> None:
        super().__init__()
        head = nn.ModuleDict({"linear": nn.Linear(cfg.width, cfg.vocab_size)})
        if cfg.head_norm:
            head["norm"] = LayerNorm(cfg.width, 1e-5)
        trunk = nn.ModuleDict({"blocks": nn.ModuleList(Block(cfg) for _ in range(cfg.blocks))})
        if cfg.post_norm:
            trunk["post_trunk_norm"] = make_norm(cfg.norm, cfg.width)
        self.text_encoder = nn.ModuleDict({"mlp": TextMLP(cfg)})
        self.ar_image_model = nn.ModuleDict(
            {"preprocessor": Embedding(cfg), "trunk": trunk, "head": head}
        )
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, LayerNorm)) and f"{name}.bias" not in tensors:
                module.bias = None

    def read_text(self, hidden: Tensor, mask: Tensor) -> TextStates:
        """T5 hidden states Float[G, S, text_dim] and which are no padding, Int or Bool[G, S]."""
        text = self.text_encoder["mlp"](hidden)
        pairs = [block.cross_attn.text(text) for block in self._blocks()]
        return TextStates(pairs, mask.bool()[:, None, None])

    def forward(
        self, tokens: Tensor, text: TextStates, past: Past | None = None, last: bool = False
    ) -> tuple[Tensor, Past]:
        """Logits of the token after each that is read, Float32[G, R, T, vocab_size].

        tokens: Int64[G, R, P], which follow those that `past` remembers; without a past the start
        token is read before them, and T is P + 1. last: only the logits of the last, T is 1.
        """
        start = 0 if past is None else past.length
        x = self.ar_image_model["preprocessor"](tokens, start)
        pairs = []
        for i, block in enumerate(self._blocks()):
            before = None if past is None else past.pairs[i]
            x, pair = block(x, text.pairs[i], text.mask, before)
            pairs.append(pair)
        if last:
            x = x[:, :, -1:]
        trunk, head = self.ar_image_model["trunk"], self.ar_image_model["head"]
        if "post_trunk_norm" in trunk:
            x = trunk["post_trunk_norm"](x)
        if "norm" in head:
            x = head["norm"](x)
        return head["linear"](x).float(), Past(pairs, len(tokens))

    def _blocks(self) -> nn.ModuleList:
        return self.ar_image_model["trunk"]["blocks"]


def rotate(x: Tensor, start: int, theta: float) -> Tensor:
    """Rotary positions from `start` on: Float[batch, heads, T, d]; i and i + d/2 are one plane."""
    half = x.shape[-1] // 2
    places = torch.arange(half, dtype=torch.float32, device=x.device)
    frequencies = theta ** (-places / half)
    positions = torch.arange(start, start + x.shape[2], dtype=torch.float32, device=x.device)
    angles = positions[:, None] * frequencies  # [T, d / 2]
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
