"""The uniform prior: every code is as good as any other, so the verifier alone decides."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from tfgen.priors.base import Prior
from tfgen.tokenizers.base import Tokenizer


class UniformPrior(Prior):
    """p = 1 / vocab_size for every token, so that the prior strength makes no difference."""

    name = "uniform"

    def __init__(self, vocab_size: int, num_tokens: int) -> None:
        self.vocab_size = vocab_size
        self.num_tokens = num_tokens

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | None = None) -> UniformPrior:
        return cls(tokenizer.vocab_size, tokenizer.num_tokens)

    def log_probs(self, prefixes: Tensor) -> Tensor:
        return torch.full((1, 1), -math.log(self.vocab_size)).expand(len(prefixes), self.vocab_size)

    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        return torch.full(tokens.shape, -math.log(self.vocab_size))

    def expected_log_prob(self, length: int) -> float:
        return -math.log(self.vocab_size)

    def propose(
        self,
        prefixes: Tensor,
        count: int,
        strength: float,
        generator: torch.Generator,
        new_tokens: int = 1,
        branch: str = "all",
    ) -> Tensor:
        return super().propose(prefixes, count, 0.0, generator, new_tokens, branch)

    def complete(
        self, prefixes: Tensor, length: int, strength: float, generator: torch.Generator
    ) -> Tensor:
        return super().complete(prefixes, length, 0.0, generator)

    def propose_at(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        strength: float,
        generator: torch.Generator,
    ) -> Tensor:
        return super().propose_at(tokens, position, count, 0.0, generator)
