"""A verifier that looks at each picture several times, a little changed.

A search finds what its verifier mistakes for the prompt. Such a mistake often hangs on a few
pixels, so a picture that only scores in one place and at one brightness is suspect.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.errors import whole_number
from tfgen.verifiers.base import Target, Verifier
from tfgen.verifiers.rewording import Reworded

VIEWS = (  # right, down in fractions of the side; brightness. Not mirrored: prompts say "left of".
    (0.0, 0.0, 1.0),
    (1 / 32, 1 / 32, 1.1),
    (-1 / 32, -1 / 32, 0.9),
    (1 / 32, -1 / 32, 0.9),
    (-1 / 32, 1 / 32, 1.1),
)


class Views(Verifier):
    """`verifier`, of the mean embedding of a picture's first `count` VIEWS.

    As a cosine with the mean of embeddings is the mean of their cosines, a CLIP's similarities are
    those of the views, averaged. Of a verifier without embeddings the scores are averaged.
    """

    def __init__(self, verifier: Verifier, count: int) -> None:
        """count: from 1, which is the picture as it is, to len(VIEWS)."""
        self.verifier, self.count = verifier, whole_number("views", count, 1, len(VIEWS))
        self.name, self.looks = verifier.name, self.count * verifier.looks

    def prepare(self, prompt: str, negatives: Sequence[str] = ()) -> Target:
        return self.verifier.prepare(prompt, negatives)

    def embed(self, images: Tensor) -> Tensor:
        return torch.stack([self.verifier.embed(seen) for seen in self._views(images)]).mean(dim=0)

    def score(self, images: Tensor, target: Target) -> Tensor:
        if type(self.verifier).embed is not Verifier.embed:
            return self.score_embeddings(self.embed(images), target)
        scores = [self.verifier.score(seen, target) for seen in self._views(images)]
        return torch.stack(scores).mean(dim=0)

    def _views(self, images: Tensor) -> list[Tensor]:
        return [view(images, *how) for how in VIEWS[: self.count]]

    def score_embeddings(self, embeddings: Tensor, target: Target) -> Tensor:
        return self.verifier.score_embeddings(embeddings, target)

    def similarities(self, embeddings: Tensor, target: Target) -> Tensor:
        return self.verifier.similarities(embeddings, target)

    def reword(self, prompt: str) -> Reworded:
        return self.verifier.reword(prompt)

    def warnings(self, prompt: str) -> list[str]:
        return self.verifier.warnings(prompt)

    def fingerprint(self) -> str:
        return f"{self.verifier.fingerprint()}-{self.count}-views"


def view(images: Tensor, right: float, down: float, brightness: float) -> Tensor:
    """Pictures Float[N, 3, H, W] moved by whole pixels, their edges repeated, and lightened."""
    if right == down == 0 and brightness == 1:
        return images
    height, width = images.shape[-2:]
    x, y = round(abs(right) * width), round(abs(down) * height)
    padded = F.pad(images, (x, x, y, y), mode="replicate")
    left, top = (0 if right > 0 else 2 * x), (0 if down > 0 else 2 * y)
    return (padded[..., top : top + height, left : left + width] * brightness).clamp(max=1)
