"""The sampler: from noise at t = 1 to latents at t = 0 along the velocity, in equal Euler steps.

Source: rectified flow (arXiv 2209.03003); x_t = t * noise + (1 - t) * data, so v = noise - data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tfgen.errors import InputError, whole_number
from tfgen.tokenizers.flextok_guidance import adaptive_projected, classifier_free

Velocity = Callable[[Tensor, int], Tensor]
"""(latents Float32[N, C, H, W], step from 0) -> velocity of the same shape (or of one sample for
all)."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. Raises InputError on a value outside its range."""

    steps: int = 20
    """Euler steps, each with one conditional and, with guidance, one unconditional evaluation."""

    guidance: float | Callable[[float], float] = 7.5
    """The guidance scale, or a function of t in (0, 1]. Exactly 1.0 needs no unconditional
    evaluations."""

    apg: bool = True
    """Adaptive projected guidance; False: plain classifier-free guidance."""

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 1)
        if not callable(self.guidance):
            self.scale(1.0)

    @property
    def guided(self) -> bool:
        return callable(self.guidance) or self.guidance != 1.0

    def scale(self, t: float) -> float:
        value = self.guidance(t) if callable(self.guidance) else self.guidance
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(
                f"guidance must be a finite number, or a function of t that gives one, "
                f"not {value!r}."
            )
        return float(value)

    def times(self) -> list[float]:
        """Where the velocity is evaluated: 1, ..., 1 / steps."""
        return [i / self.steps for i in range(self.steps, 0, -1)]


def sample(
    noise: Tensor, conditional: Velocity, unconditional: Velocity, sampling: Sampling
) -> Tensor:
    """Noise Float32[N, C, H, W] -> latents Float32[N, C, H, W]."""
    x, average = noise, 0.0
    for step, t in enumerate(sampling.times()):
        v = conditional(x, step)
        if sampling.guided:
            u, scale = unconditional(x, step), sampling.scale(t)
            if sampling.apg:
                v, average = adaptive_projected(v, u, scale, average)
            else:
                v = classifier_free(v, u, scale)
        x = x - v / sampling.steps
    return x
