"""What the decoder's registers hold for a prefix, and fewer of them to the same effect.

The registers of a prefix of k tokens are k embedded codes and num_tokens - k copies of the mask
token; the null condition is num_tokens copies of the null token. Neither copy carries a position,
no attention depends on where a row stands, and all registers share one modulation. So copies stay
equal in every block, and n of them may stand for c: as keys, each with ln(c / n) added to its
logit, they have the same share of every softmax. Exact up to rounding; with n = 1 a short prefix
needs about half the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tfgen.tokenizers.flextok_model import Decoder


@dataclass(frozen=True)
class Registers:
    """Registers for N samples, or one row for all."""

    rows: Tensor  # Float32[N, R, D]
    key_bias: Tensor | None
    """Float32[N, P + R] for the keys of patches and registers; None: zero everywhere."""


def dress(rows: Tensor, positions: Tensor, kept: Tensor, mask_token: Tensor) -> Tensor:
    """Add positions to the rows that are kept; the mask token in place of the others has none.

    rows [N, R, D], positions [R, D], kept Bool[N, R], mask_token [D].
    """
    return torch.where(kept[..., None], rows + positions, mask_token)


def prefix_registers(decoder: Decoder, codes: Tensor, lengths: Tensor, collapse: bool) -> Registers:
    """Registers of prefixes: codes Float32[N, K, d], of which row i's first lengths[i] count.

    collapse: K + 1 rows, of which those past a prefix stand for all its masked registers.
    """
    total, (n, longest, _) = decoder.config.num_tokens, codes.shape
    size = min(longest + 1, total) if collapse else total
    kept = torch.arange(size, device=codes.device) < lengths[:, None]  # [N, R]
    rows = decoder.from_codes(codes)
    rows = torch.cat([rows, rows.new_zeros(n, size - longest, rows.shape[2])], dim=1)
    rows = dress(rows, decoder.register_positions[:size], kept, decoder.mask_token)
    if size == total:
        return Registers(rows, None)
    share = ((total - lengths) / (size - lengths)).log()  # [N]; size > every length here
    bias = torch.where(kept, 0.0, share[:, None])
    return Registers(rows, _over_all_keys(decoder, bias))


def null_registers(decoder: Decoder, collapse: bool) -> Registers:
    """Registers of the null condition, [1, R, D]: the same whatever the prefix was."""
    single = decoder.config.single_null_token
    total = decoder.config.num_tokens
    rows = decoder.null_token.expand(1, 1 if single or collapse else total, -1)
    if single or not collapse:
        return Registers(rows, None)
    bias = torch.full((1, 1), float(total), device=rows.device).log()
    return Registers(rows, _over_all_keys(decoder, bias))


def _over_all_keys(decoder: Decoder, bias: Tensor) -> Tensor:
    return torch.nn.functional.pad(bias, (decoder.config.grid**2, 0))
