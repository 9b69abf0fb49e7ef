"""FlexTok's transformers: the encoder, and the decoder, which is a velocity field.

Both see a sequence of patch tokens followed by register tokens. Nothing in the attention depends on
where a row stands, so equal rows stay equal; `flextok_registers` makes use of it.
Source: FlexTok (arXiv 2502.13967), section 3; the checkpoints' layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.flextok_config import FlexTokConfig, Trunk

LN_EPS = 1e-5
TIME_FEATURES = 256  # the number of them, and the base of their periods
MUP = 8  # muP attention: logits are q.k * MUP / head_dim, which is 1 / sqrt(head_dim) at 64 only


def layer_norm(x: Tensor) -> Tensor:
    """Over the last axis, without weight or bias. torch computes it in float32 for every dtype."""
    return F.layer_norm(x, x.shape[-1:], eps=LN_EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, layer_norm(x), 1 + scale)


def to_patches(x: Tensor, side: int) -> Tensor:
    """Latents [N, C, H, W] -> patches [N, P, side * side * C], row by row; features are ordered
    (row, column, channel), the channel fastest."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // side, side, w // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, side * side * c)


def from_patches(x: Tensor, shape: tuple[int, int, int], side: int) -> Tensor:
    """The inverse: [N, P, side * side * C] -> [N, C, H, W], with shape (C, H, W)."""
    c, h, w = shape
    x = x.view(-1, h // side, w // side, side, side, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, c, h, w)


def time_features(t: Tensor, max_timestep: float) -> Tensor:
    """Float32[B] in [0, 1] -> Float32[B, 256]: cosines first."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    frequencies = 1000 / max_timestep * torch.exp(-math.log(TIME_FEATURES) * exponents)
    angles = t[:, None] * frequencies  # up to 1000 radians: the order of the products matters
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Block(nn.Module):
    """A pre-norm transformer block: self-attention with normed queries and keys, and a gated MLP.

    No bias anywhere. Computes in its weights' dtype; the residual stream x keeps its own.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        dim, hidden = trunk.dim, trunk.hidden
        self.head_dim = trunk.head_dim
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.fc1, self.fc3 = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def attend(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """h [B, S, D]; mask: added to the logits (or Bool, True: seen), broadcast to [B, heads, S,
        S]."""
        h = h.to(self.wq.weight.dtype)
        q, k, v = (w(h).unflatten(2, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q, k, v = (x.transpose(1, 2) for x in (layer_norm(q), layer_norm(k), v))  # [B, heads, S, d]
        scale = MUP / self.head_dim
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return self.proj(out.transpose(1, 2).flatten(2))

    def mlp(self, h: Tensor) -> Tensor:
        h = h.to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(h)) * self.fc3(h))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attend(layer_norm(x), mask)
        return x + self.mlp(layer_norm(x))


def gates_and_shifts(modulation: Tensor) -> tuple[Tensor, ...]:
    """[..., 6, D] -> gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp, each
    [..., D]. Gates first, unlike DiT."""
    return modulation.unbind(-2)


class ModulatedBlock(Block):
    """A block whose norms are shifted and scaled, and whose branches are gated, by the time; patch
    tokens by one half of the modulation, registers by the other."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__(trunk)
        self.modulation = nn.Linear(trunk.dim, 2 * 6 * trunk.dim)

    def forward(self, x: Tensor, mask: Tensor | None, modulation: Tensor) -> Tensor:
        """x [B, S, D]; modulation [B or 1, S, 6, D]."""
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = gates_and_shifts(
            modulation
        )
        x = torch.addcmul(x, gate_attn, self.attend(modulate(x, shift_attn, scale_attn), mask))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))


@dataclass(frozen=True)
class Modulation:
    """All that the decoder takes from the time; float32. Row i is of time i."""

    blocks: Tensor  # [depth, T, 2, 6, D]: patches, registers
    head: Tensor  # [T, 2, D]: shift, scale

    def __getitem__(self, rows: slice) -> Modulation:
        return Modulation(self.blocks[:, rows], self.head[rows])


class Decoder(nn.Module):
    """The velocity of noisy latents, given registers: v(x_t, t, registers)."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.decoder.dim, config.patch
        features = patch * patch * config.channels
        self.from_codes = nn.Linear(len(config.levels), dim)
        self.register_positions = nn.Parameter(torch.zeros(config.num_tokens, dim))
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.null_token = nn.Parameter(torch.zeros(dim))
        self.patch_proj = nn.Linear(features, dim)
        self.positions = nn.Parameter(torch.zeros(config.grid**2, dim))
        self.time_mlp = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(
            ModulatedBlock(config.decoder) for _ in range(config.decoder.depth)
        )
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, features)

    def embed_time(self, t: Tensor) -> Tensor:
        """Float32[T] -> Float32[T, D]."""
        return self.time_mlp(time_features(t, self.config.max_timestep))

    def modulation(self, t: Tensor) -> Modulation:
        """Float32[T] in [0, 1] -> what the decoder needs of these times. Depends on nothing else,
        so a sampler computes it once for all its steps and all its samples."""
        u = F.silu(self.embed_time(t))
        blocks = [
            block.modulation(u.to(block.modulation.weight.dtype)).float() for block in self.blocks
        ]
        dim = self.config.decoder.dim
        head = self.head_modulation(u).unflatten(1, (2, dim))
        return Modulation(torch.stack(blocks).unflatten(2, (2, 6, dim)), head)

    def embed_patches(self, x: Tensor) -> Tensor:
        """Latents [N, C, H, W] -> [N, P, D]."""
        return self.patch_proj(to_patches(x, self.config.patch)) + self.positions

    def trunk(
        self, patches: Tensor, registers: Tensor, key_bias: Tensor | None, blocks: Tensor
    ) -> Tensor:
        """[N, P, D] and [N, R, D] -> [N, P + R, D]. key_bias: Float[N or 1, P + R], added to the
        logits of each key; blocks: of one `Modulation`, for one time or N."""
        x = torch.cat([patches, registers], dim=1)
        group = (torch.arange(x.shape[1], device=x.device) >= patches.shape[1]).long()
        mask = None
        if key_bias is not None:  # [N, 1, 1, S], for all heads and queries
            mask = key_bias[:, None, None].to(self.blocks[0].wq.weight.dtype)
        for block, modulation in zip(self.blocks, blocks, strict=True):
            x = block(x, mask, modulation[:, group])
        return x

    def forward(
        self, x: Tensor, registers: Tensor, key_bias: Tensor | None, modulation: Modulation
    ) -> Tensor:
        """Latents Float32[N, C, H, W] -> velocity Float32[N, C, H, W] at the modulation's times
        (one for all, or N)."""
        tokens = self.trunk(self.embed_patches(x), registers, key_bias, modulation.blocks)
        shift, scale = modulation.head[:, :, None].unbind(1)  # [T, 1, D] each
        y = self.head(modulate(tokens[:, : self.config.grid**2], shift, scale))
        return from_patches(y, self.config.latent_shape, self.config.patch)


class Encoder(nn.Module):
    """Latents to the numbers that FSQ rounds to codes."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.encoder.dim, config.patch
        self.patch_proj = nn.Linear(patch * patch * config.channels, dim)
        self.positions = nn.Parameter(torch.zeros(config.grid**2, dim))
        self.registers = nn.Parameter(torch.zeros(config.num_tokens, dim))
        self.blocks = nn.ModuleList(Block(config.encoder) for _ in range(config.encoder.depth))
        self.to_codes = nn.Linear(dim, len(config.levels))

    def mask(self, device: torch.device) -> Tensor:
        """Bool[S, S], True where a row sees a column: all see the patches, and a register also
        the registers up to itself."""
        patches, registers = self.config.grid**2, self.config.num_tokens
        size = patches + registers
        seen = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        seen[:, :patches] = True
        return seen

    def forward(self, latents: Tensor) -> Tensor:
        """Latents Float32[N, C, H, W] -> Float32[N, num_tokens, d], not quantised yet."""
        patches = self.patch_proj(to_patches(latents, self.config.patch)) + self.positions
        x = torch.cat([patches, self.registers.expand(len(latents), -1, -1)], dim=1)
        mask = self.mask(latents.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.to_codes(layer_norm(x[:, patches.shape[1] :]))
