"""Finite scalar quantisation: a codebook that is a grid, nothing to learn, nothing to collapse.

Each of d components is squashed to (-1, 1) and rounded to one of L_i evenly spaced levels; a code's
index is its digits in mixed radix. Source: "Finite Scalar Quantization" (arXiv 2309.15505), 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class FSQ:
    """The codebook of all combinations of `levels`: vocab_size = product of levels.

    Code vectors lie in [-1, 1]^d. Digit 0 (the first level) varies fastest in the index.
    """

    def __init__(self, levels: Sequence[int]):
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ needs at least one level count, each >= 2; got {list(levels)}")
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.vocab_size = math.prod(levels)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, device=like.device, dtype=torch.float32)

    def quantise(self, z: Tensor) -> Tensor:
        """Float[..., d] unbounded -> code vectors in [-1, 1]; gradients pass straight through.

        tanh(z) is cut into L equal bins, so that every level is reachable and the levels' centres
        are symmetric about zero for odd and even L alike.
        """
        top = self._levels(z) - 1
        bounded = torch.tanh(z.float())
        digit = ((bounded + 1) / 2 * (top + 1)).floor().clamp(min=0).minimum(top)
        code = digit / top * 2 - 1
        return bounded + (code - bounded).detach()

    def to_tokens(self, codes: Tensor) -> Tensor:
        """Code vectors Float[..., d] on the grid -> indices Int64[...]."""
        top = self._levels(codes) - 1
        digits = ((codes.float() + 1) / 2 * top).round().long()
        return (digits * self._strides(codes.device)).sum(-1)

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Indices Int64[...] in [0, vocab_size) -> code vectors Float32[..., d]."""
        levels = torch.tensor(self.levels, device=tokens.device)
        digits = tokens[..., None] // self._strides(tokens.device) % levels
        return digits / (levels - 1) * 2 - 1

    def _strides(self, device: torch.device) -> Tensor:
        strides = [math.prod(self.levels[:i]) for i in range(self.dim)]
        return torch.tensor(strides, device=device)
