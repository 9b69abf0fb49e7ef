"""The unigram prior: how often true pictures use each token at each position, whatever precedes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tfgen.priors.frequency import FrequencyPrior


class UnigramPrior(FrequencyPrior):
    """What the frequency prior backs off to, alone: the counts of the same file without the pairs.

    Beside the frequency prior it shows what knowing the previous token is worth.
    """

    name = "unigram"

    def log_probs(self, prefixes: Tensor) -> Tensor:
        log_p = torch.from_numpy(np.log(self._backoff[prefixes.shape[1]])).float()
        return log_p.expand(len(prefixes), -1)

    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        positions = np.arange(tokens.shape[1])
        return torch.from_numpy(np.log(self._backoff[positions, tokens.cpu().numpy()])).float()

    def expected_log_prob(self, length: int) -> float:
        """Over the counted scenes, each left out of the counts that it is measured by: a unigram
        needs no scenes that were held out."""
        counts = self.unigram[:length]
        scenes = counts.sum(axis=1, keepdims=True)
        others = np.maximum(counts - 1, 0) + self.alpha  # where none was counted, its weight is 0
        log_p = np.log(others / (scenes - 1 + self.alpha * self.vocab_size))
        return float((counts * log_p).sum() / counts.sum())
