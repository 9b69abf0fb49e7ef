"""A surrogate: what pictures not decoded yet probably look like to the verifier.

Gaussian-process regression of picture embeddings on the code vectors of tokens (Rasmussen and
Williams, "Gaussian Processes for Machine Learning", 2006, section 2.2; in geostatistics: kriging).
It is fitted anew in each step of a search to the few candidates decoded so far, and needs neither
training nor gradients. Embeddings are predicted, not scores: they vary smoothly with the codes,
while a score, a sum of log-softmaxes, has cliffs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.tokenizers.base import Tokenizer

OLD_SHARE = 0.3
"""How much of what pictures have in common is due to the tokens that the candidates' parents gave
them; the rest is due to those together with the new tokens. Chosen, with the two below, among
values from 0.1 to 0.9 by the ranks predicted for sprites, for one prompt."""
LENGTH_SCALE = 1.0
"""Of the kernel, in root mean square distances between two codes of the codebook."""
NOISE = 0.02
"""Variance that no kernel explains, as a share of the kernel's."""
ROWS = 2048
"""Rows predicted at one time."""


class Surrogate:
    """Predicts a value of sequences, all of one length, that differ in the positions `new`.

    Covariance of the values of two sequences with code vectors e, e':

        exp(-|e_old - e'_old|^2 / 2 l^2) * (a + (1 - a) * exp(-|e_new - e'_new|^2 / 2 l^2))

    with a = OLD_SHARE, so that candidates of one parent inform each other most, and those of
    similar parents too; about the mean of the values fitted. On the CPU, in float64 where it
    matters, so that all devices agree.
    """

    def __init__(self, tokenizer: Tokenizer, new: slice) -> None:
        """new: the positions of the tokens that are being chosen; needs a tokenizer with
        `code_embeddings`."""
        self.tokenizer, self.new = tokenizer, new
        codes = tokenizer.code_embeddings().float().cpu()  # [V, d]
        # The mean squared distance of two codes drawn at random is twice the total variance.
        spread = 2 * codes.var(dim=0, correction=0).sum()
        self._codes = codes / (LENGTH_SCALE * spread.clamp(min=1e-12).sqrt())

    def fit(self, tokens: Tensor, values: Tensor) -> None:
        """Learn from sequences Int64[n, k], all distinct, and their values Float[n, d]."""
        self._old, self._new = self._features(tokens)
        self._mean = values.double().mean(dim=0)
        noise = NOISE * torch.eye(len(tokens), dtype=torch.float64)
        kernel = self._kernel(self._old, self._new).double() + noise
        factor = torch.linalg.cholesky(kernel)
        weights = torch.cholesky_solve(values.double() - self._mean, factor)
        self._weights = weights.float()  # [n, d]

    def predict(self, tokens: Tensor) -> Tensor:
        """The expected values of Int64[m, k], Float32[m, d]."""
        parts = []
        for part in tokens.split(ROWS):
            kernel = self._kernel(*self._features(part))  # [m, n]
            parts.append(kernel @ self._weights + self._mean.float())
        return torch.cat(parts)

    def _features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors of the old tokens, Float32[m, a], and of the new ones, Float32[m, b]."""
        tokens = tokens.cpu()
        fresh = torch.zeros(tokens.shape[1], dtype=torch.bool)
        fresh[self.new] = True
        return tuple(self._codes[tokens[:, part]].flatten(1) for part in (~fresh, fresh))

    def _kernel(self, old: Tensor, new: Tensor) -> Tensor:
        """Float32[m, n]: covariances with the sequences fitted."""
        alike = [
            torch.cdist(mine, theirs).square_().mul_(-0.5).exp_()
            for mine, theirs in ((old, self._old), (new, self._new))
        ]
        return alike[0] * (OLD_SHARE + (1 - OLD_SHARE) * alike[1])
