"""From FlexAR's logits to tokens: guidance, the filters of sampling, and draws on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.errors import InputError, finite_number, whole_number


def guided(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, u + scale (c - u), of Float[2, ...]: first c, with the text, then
    u, without. Where one of them is enough, Float[1, ...], it is that one."""
    if len(logits) == 1:
        return logits[0]
    with_text, without = logits
    return without + scale * (with_text - without)


def check_filters(temperature: float, top_k: int, top_p: float) -> None:
    """Raises InputError on a value outside its range."""
    if finite_number("temperature", temperature, 0) == 0:
        raise InputError("temperature must be above 0: for the likeliest tokens use sample=False.")
    whole_number("top_k", top_k, 0)
    if finite_number("top_p", top_p, 0) > 1:
        raise InputError(f"top_p must be from 0 to 1, where 0 is off, not {top_p!r}.")


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Float[N, V] -> the same, tempered, and -inf where a token is not to be drawn.

    First top_k keeps the k best (and what equals the k-th); then top_p drops the least likely
    tokens as long as those dropped have at most 1 - top_p together; the best always stays. 0
    switches a filter off.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        worst = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, -torch.inf)
    if 0 < top_p < 1:
        ascending, order = logits.sort(dim=1)
        dropped = ascending.softmax(dim=1).cumsum(dim=1) <= 1 - top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return logits


def draw(logits: Tensor, count: int, replacement: bool, generator: torch.Generator) -> Tensor:
    """Int64[N, count] tokens of each row of Float[N, V], from softmax(logits), both on the CPU.

    Without replacement the tokens of a row differ, in the order drawn. Raises InputError where
    fewer than `count` tokens are left to draw.
    """
    logits = logits.double()
    if replacement:
        cumulative = logits.softmax(dim=1).cumsum(dim=1)
        noise = torch.rand(len(logits), count, dtype=torch.float64, generator=generator)
        tokens = torch.searchsorted(cumulative, noise * cumulative[:, -1:], right=True)
        return tokens.clamp(max=logits.shape[1] - 1)
    left = int(logits.isfinite().sum(dim=1).min())
    if left < count:
        raise InputError(
            f"The filters leave {left} tokens, of which {count} different ones cannot be drawn: "
            "use fewer samples, a larger top_k or top_p, or replacement."
        )
    noise = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
    return (logits - noise.log_().neg_().log_()).topk(count, dim=1).indices  # Gumbel top-k
