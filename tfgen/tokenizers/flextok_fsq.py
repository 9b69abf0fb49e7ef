"""FlexTok's finite scalar quantisation; its grid is not that of `FSQ`, its digits are.

With l levels a component takes the values (digit - l // 2) / (l // 2): -1, -0.75, ..., 0.75 for
8 levels (1 is never reached), and -1, -0.5, 0, 0.5, 1 for 5. Source: FlexTok (arXiv 2502.13967).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.tokenizers.fsq import FSQ

STRETCH = 1.001  # the outermost levels are reached a little before tanh saturates


class FlexTokFSQ(FSQ):
    """The codebook of a FlexTok: `FSQ` with a value of exactly 0 in every component."""

    def quantise(self, z: Tensor) -> Tensor:
        """Float[..., d] unbounded -> code vectors on the grid; gradients pass straight through.

        Always in float32: a 16-bit z would cross rounding boundaries.
        """
        levels = self._levels(z)
        reach = (levels - 1) * STRETCH / 2
        offset = (levels % 2 == 0) * 0.5
        bounded = torch.tanh(z.float() + torch.atanh(offset / reach)) * reach - offset
        rounded = bounded.round()  # half to even
        return (bounded + (rounded - bounded).detach()) / self._half(z.device)

    def to_tokens(self, codes: Tensor) -> Tensor:
        """Code vectors Float[..., d] on the grid -> indices Int64[...]."""
        half = self._half(codes.device)
        digits = (codes.float() * half).round().long() + half
        return (digits * self._strides(codes.device)).sum(-1)

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Indices Int64[...] in [0, vocab_size) -> code vectors Float32[..., d]."""
        levels = torch.tensor(self.levels, device=tokens.device)
        half = self._half(tokens.device)
        digits = tokens[..., None] // self._strides(tokens.device) % levels
        return (digits - half) / half

    def _half(self, device: torch.device) -> Tensor:
        return torch.tensor([count // 2 for count in self.levels], device=device)
