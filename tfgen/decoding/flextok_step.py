"""FlexTok's decoder through the kernels: the same pictures, up to rounding, in less time.

What is done differently from `FlexTok`:
  - between the matrix products of a block one kernel each, on a modulation that is never expanded
    to tokens (`kernels`);
  - queries, keys and values of a block are one product, and so are the two halves of its gated MLP,
    whose hidden width is padded to a multiple of 64;
  - the bias of collapsed registers is inside the keys (`norm_heads`), so attention needs no mask;
  - a step's conditional and unconditional evaluations are one batch: the null condition has as many
    rows as the prefixes have, each standing for its share of the null registers;
  - guidance and the Euler update are one kernel, on latents that stay in the order of patches;
  - the VAE's norms, activations, biases and sums copy nothing (`group_norm`, `vae_step`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding.float8 import Float8Weight, float8_linear
from tfgen.decoding.kernels import (
    attention,
    gate_residual_norm,
    norm_modulate,
    pad_hidden,
    swiglu,
)
from tfgen.decoding.sampling_kernels import assemble_registers, guided_step
from tfgen.decoding.vae_step import FusedVAEDecoder
from tfgen.tokenizers.flextok import FlexTok, Guidance
from tfgen.tokenizers.flextok_loading import Networks
from tfgen.tokenizers.flextok_model import (
    MUP,
    Decoder,
    ModulatedBlock,
    Modulation,
    from_patches,
    gates_and_shifts,
    to_patches,
)
from tfgen.tokenizers.flextok_sampler import Sampling
from tfgen.tokenizers.flextok_vae import VAE


@dataclass(frozen=True)
class PackedBlock:
    """The weights of one block, as few matrices as it has products."""

    qkv: Tensor | Float8Weight  # [3 D, D]
    proj: Tensor | Float8Weight  # [D, D]
    up: Tensor | Float8Weight  # [2 h', D]
    down: Tensor | Float8Weight  # [D, h']

    @classmethod
    def of(cls, block: ModulatedBlock, float8: bool = False) -> PackedBlock:
        up, down = pad_hidden(block.fc1.weight, block.fc3.weight, block.fc2.weight)
        qkv = torch.cat([layer.weight for layer in (block.wq, block.wk, block.wv)])
        weights = (qkv, block.proj.weight, up, down)
        return cls(*map(Float8Weight.of, weights)) if float8 else cls(*weights)


class FusedDecoder:
    """A FlexTok decoder's velocity, on latents in the order of patches.

    Computes in the dtype of the blocks' weights. residual: the dtype of the stream between blocks;
    float32 is what `Decoder` has, bfloat16 moves half the bytes. float8: products are in FP8, with
    what that costs in precision (`float8`). attend: what computes attention, `kernels.attention` or
    `attention.norm_attention`.
    """

    attend: Callable[[Tensor, int, Tensor | None, float], Tensor]

    def __init__(
        self, decoder: Decoder, residual: torch.dtype = torch.float32, float8: bool = False
    ) -> None:
        self.decoder, self.residual = decoder, residual
        self.dtype = decoder.blocks[0].proj.weight.dtype
        trunk = decoder.config.decoder
        self.heads, self.scale = trunk.dim // trunk.head_dim, MUP / trunk.head_dim
        self.patches = decoder.config.grid**2
        self.blocks = [PackedBlock.of(block, float8) for block in decoder.blocks]
        self.product = float8_linear if float8 else F.linear
        self.attend = attention

    def __call__(
        self, x: Tensor, registers: Tensor, key_bias: Tensor | None, modulation: Modulation
    ) -> Tensor:
        """Latents Float32[N, P, features] and registers Float32[N, R, D] -> velocity, as the
        latents, at the one time of the modulation. key_bias: Float32[N, P + R] or None, added to
        the logits of each key."""
        decoder, p = self.decoder, self.patches
        embedded = decoder.patch_proj(x) + decoder.positions
        x = torch.cat([embedded, registers], dim=1).to(self.residual)  # [N, P + R, D]
        tables = [gates_and_shifts(block) for block in modulation.blocks[:, 0]]  # of [2, D] each
        head_shift, head_scale = modulation.head[0, :, None].expand(-1, 2, -1)
        norms = [(shift, scale) for _, _, shift, scale, _, _ in tables]
        norms.append((head_shift, head_scale))  # what the last block's result is normed for
        h = norm_modulate(x, *norms[0], p, self.dtype)
        for block, table, after in zip(self.blocks, tables, norms[1:], strict=True):
            gate_attn, gate_mlp, _, _, shift_mlp, scale_mlp = table
            out = self.attend(self.product(h, block.qkv), self.heads, key_bias, self.scale)
            out = self.product(out, block.proj)
            x, h = gate_residual_norm(x, out, gate_attn, shift_mlp, scale_mlp, p, self.dtype)
            out = self.product(swiglu(self.product(h, block.up)), block.down)
            x, h = gate_residual_norm(x, out, gate_mlp, *after, p, self.dtype)
        return decoder.head(h[:, :p].float())


def _fused_once(decoder: Decoder, residual: torch.dtype, float8: bool = False) -> FusedDecoder:
    """The fused form of a decoder, whose weights are packed once and not for each search. It is
    kept with the decoder, and goes with it."""
    known: dict[tuple[torch.dtype, bool], FusedDecoder] = vars(decoder).setdefault("_fused", {})
    found = known.get((residual, float8))
    if found is None or found.decoder is not decoder:  # but of one that this is a copy of
        found = known[residual, float8] = FusedDecoder(decoder, residual, float8)
    return found


def _with_fused_decoder(vae: VAE) -> VAE:
    """The same VAE, which shares all weights, with its decoder through the kernels."""
    found = copy.copy(vae)
    autoencoder = copy.copy(vae.vae)
    autoencoder._modules = autoencoder._modules | {"decoder": FusedVAEDecoder(vae.vae.decoder)}
    found._modules = found._modules | {"vae": autoencoder}
    return found


class FusedFlexTok(FlexTok):
    """A FlexTok that decodes through the kernels; all else, and what it takes and gives, is the
    same. On a device without them it takes their references."""

    def __init__(
        self,
        networks: Networks,
        *,
        folder: Path | None = None,
        residual: torch.dtype = torch.float32,
    ) -> None:
        """residual: see `FusedDecoder`."""
        super().__init__(networks, folder=folder)
        self.float8_drafts = False
        self.fused = _fused_once(self.decoder, residual)
        self.vae = _with_fused_decoder(self.vae)

    @classmethod
    def of(cls, tokenizer: FlexTok, residual: torch.dtype = torch.float32) -> FusedFlexTok:
        """The same tokenizer, with the same weights, noise and sampling."""
        fused = cls(tokenizer.networks, folder=tokenizer.folder, residual=residual)
        fused.noise, fused.sampling = tokenizer.noise, tokenizer.sampling
        fused.collapse, fused.share_first = tokenizer.collapse, tokenizer.share_first
        return fused

    @torch.no_grad()
    def decode_latents(
        self,
        tokens: Tensor,
        noise: Tensor | None = None,
        steps: int = 20,
        guidance: Guidance = 7.5,
        apg: bool = True,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        tokens, lengths = self._prefixes(tokens, lengths)
        return self._sample_tokens(tokens, lengths, noise, Sampling(steps, guidance, apg))

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        tokens, lengths = self._prefixes(tokens, lengths)
        sampling = replace(self.sampling, **settings)
        return self.pictures(self._sample_tokens(tokens, lengths, noise, sampling))

    def draft(self, tokens: Tensor) -> Tensor:
        """As `FlexTok.draft`; in FP8 with `float8_drafts`."""
        return FlexTok.draft(self.in_float8() if self.float8_drafts else self, tokens)

    def in_float8(self) -> FusedFlexTok:
        """The same tokenizer with all products of the decoder's blocks in FP8."""
        tokenizer = copy.copy(self)
        tokenizer.fused = _fused_once(self.decoder, self.fused.residual, float8=True)
        return tokenizer

    @torch.no_grad()
    def latents(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`decode_latents` from the tokenizer's own noise and sampling, of prefixes on the device
        that need no check, which would wait for it: Int64[N, K], Int64[N] -> [N, C, H, W]."""
        return self._sample_tokens(tokens, lengths, None, self.sampling)

    def _sample_tokens(
        self, tokens: Tensor, lengths: Tensor, noise: Tensor | None, sampling: Sampling
    ) -> Tensor:
        """As `FlexTok._sample`: Int64[N, K] -> latents Float32[N, C, H, W]."""
        n, side = len(tokens), self.config.patch
        start = to_patches(self._noise(noise, n), side)  # [N or 1, P, features]
        table = self._modulation(sampling)
        rows, bias = self._registers(tokens, lengths)
        x, average = start.expand(n, -1, -1).contiguous(), None
        for step, t in enumerate(sampling.times()):
            modulation = table[step : step + 1]
            if not sampling.guided:
                own = None if bias is None else bias[:n]
                v, u = self.fused(x, rows[:n], own, modulation), None
            else:
                v, u = self._both(x, start, noise is None, rows, bias, modulation, step)
                u = u.flatten(1)
            flat, average = guided_step(
                x.flatten(1),
                v.flatten(1),
                u,
                average,
                sampling.scale(t),
                1 / sampling.steps,
                sampling.apg,
            )
            x = flat.view_as(x)
        return from_patches(x, self.config.latent_shape, side)

    def _both(
        self,
        x: Tensor,
        start: Tensor,
        own_noise: bool,
        rows: Tensor,
        bias: Tensor | None,
        modulation: Modulation,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """The conditional velocity of N samples and their unconditional one, or the one for all
        of them, [1, P, features]."""
        n = len(x)
        if step == 0 and self.share_first and len(start) == 1:
            if own_noise:
                own = None if bias is None else bias[:n]
                first = to_patches(self._first_unconditional(), self.config.patch)
                return self.fused(x, rows[:n], own, modulation), first
            one = None if bias is None else bias[: n + 1]
            both = self.fused(torch.cat([x, start]), rows[: n + 1], one, modulation)
            return both[:n], both[n:]
        both = self.fused(torch.cat([x, x]), rows, bias, modulation)
        return both[:n], both[n:]

    def _registers(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of N prefixes and then of N null conditions: rows Float32[2 N, R, D], and the bias of
        their keys, Float32[2 N, P + R], or None where there is none."""
        decoder, total, (n, longest) = self.decoder, self.num_tokens, tokens.shape
        size = min(longest + 1, total) if self.collapse else total
        rows, bias = assemble_registers(
            tokens,
            lengths,
            decoder.from_codes.weight,
            decoder.from_codes.bias,
            decoder.register_positions,
            decoder.mask_token,
            self.config.levels,
            total,
            size,
        )
        rows = torch.cat([rows, decoder.null_token.expand(n, size, -1)])
        nulls = 1 if self.config.single_null_token else total
        if size == total == nulls:
            return rows, None
        bias = torch.cat([bias, torch.full_like(bias, math.log(nulls / size))])
        return rows, F.pad(bias, (self.fused.patches, 0))
