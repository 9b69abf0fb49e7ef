"""Several priors as one: what all of them find probable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen.errors import InputError
from tfgen.priors.base import Prior
from tfgen.tokenizers.base import Tokenizer


class CombinedPrior(Prior):
    """The normalised geometric mean of its parts: log p = mean of log p_i - log Z(prefix).

    A logarithmic opinion pool (Genest and Zidek 1986). Unlike a product it does not count twice
    what two parts both know; unlike a mixture it does not propose what only one of them would.
    Typicality is the mean of the parts', each measured by its own true pictures.
    """

    def __init__(self, parts: Sequence[Prior]) -> None:
        """Raises InputError where the parts are not of one codebook."""
        self.parts = list(parts)
        self.name = "+".join(part.name for part in self.parts)
        self.vocab_size = self.parts[0].vocab_size
        self.num_tokens = min(part.num_tokens for part in self.parts)
        for part in self.parts:
            if part.vocab_size != self.vocab_size:
                raise InputError(
                    f"The priors {self.parts[0].name} and {part.name} are for codebooks of "
                    f"{self.vocab_size} and {part.vocab_size}: combine priors of one tokenizer."
                )

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | None = None) -> CombinedPrior:
        raise InputError(
            "A combined prior is made of its parts: name them, as in frequency+retrieval."
        )

    def condition(self, prompt: str, similarities: Callable[[Tensor], Tensor]) -> CombinedPrior:
        return self._with([part.condition(prompt, similarities) for part in self.parts])

    def with_guidance(self, scale: float) -> CombinedPrior:
        """Goes to the parts that take it. Raises InputError where none does."""
        parts, refusals = [], []
        for part in self.parts:
            try:
                parts.append(part.with_guidance(scale))
            except InputError as refusal:
                parts.append(part)
                refusals.append(refusal)
        if len(refusals) == len(parts):
            raise refusals[0]
        return self._with(parts)

    def for_verifier(self, fingerprint: Callable[[], str], wanted: bool = True) -> CombinedPrior:
        return self._with([part.for_verifier(fingerprint, wanted) for part in self.parts])

    def options(self) -> dict[str, Any]:
        """Of all parts in their order: two of one name, such as two banks, are told apart."""
        return {"parts": [{"name": part.name, **part.options()} for part in self.parts]}

    @property
    def held(self) -> int:
        return sum(part.held for part in self.parts)

    def nearest(self, count: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the parts' nearest, those of the first part first: scores of two banks are of two
        roundings."""
        found = [part.nearest(count, score)[:, : self.num_tokens] for part in self.parts]
        return torch.cat(found)[:count]

    def log_probs(self, prefixes: Tensor) -> Tensor:
        logs = [part.log_probs(prefixes).cpu() for part in self.parts]
        return torch.stack(logs).mean(dim=0).log_softmax(dim=1)

    def typicality(self, tokens: Tensor) -> Tensor:
        return torch.stack([part.typicality(tokens).cpu() for part in self.parts]).mean(dim=0)

    def _with(self, parts: Sequence[Prior]) -> CombinedPrior:
        return CombinedPrior(parts)
