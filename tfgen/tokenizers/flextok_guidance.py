"""Guidance: one velocity out of a conditional and an unconditional one.

Sources: classifier-free guidance (arXiv 2207.12598); adaptive projected guidance, "Eliminating
Oversaturation and Artifacts of High Guidance Scales in Diffusion Models" (arXiv 2410.02416),
algorithm 1, whose momentum and norm limit are those of FlexTok's inference code.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM = -0.5
NORM_LIMIT = 2.5  # of the update of one sample, whatever its number of elements
PARALLEL = 0.0  # how much of the update along the conditional velocity is kept


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Float[N, C, H, W] each."""
    return unconditional + scale * (conditional - unconditional)


def adaptive_projected(
    conditional: Tensor, unconditional: Tensor, scale: float, average: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Velocities Float[N, C, H, W] -> the guided velocity, and the running average for the next
    step, both Float[N, C, H, W]. average: that of the step before, 0 at the first."""
    average = conditional - unconditional + MOMENTUM * average
    update = limit_norm(average)  # the average itself goes on unlimited
    parallel = project(update, conditional)
    update = update - parallel + PARALLEL * parallel
    return conditional + (scale - 1) * update, average


def limit_norm(x: Tensor) -> Tensor:
    """Each sample scaled down to a norm of NORM_LIMIT, where it is above."""
    norms = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return x * (NORM_LIMIT / norms.clamp(min=NORM_LIMIT))


def project(x: Tensor, onto: Tensor) -> Tensor:
    """The component of each sample along `onto`; in float64, as a small difference is what
    remains."""
    dims = (1, 2, 3)
    direction = torch.nn.functional.normalize(onto.double().flatten(1), dim=1).view(onto.shape)
    return ((x.double() * direction).sum(dims, keepdim=True) * direction).to(x.dtype)
