"""The retrieval prior: a prompt's nearest pictures in a bank say which tokens come next.

Ours; training-free. The verifier's own text-image similarity finds the neighbours, as in retrieval
augmentation, and their token sequences are smoothed into a distribution, as by a kernel density
estimate over sequences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.priors.bank import FILE_NAME, Bank
from tfgen.priors.base import Prior
from tfgen.priors.frequency import FILE_NAME as FREQUENCY_FILE
from tfgen.priors.frequency import FrequencyPrior
from tfgen.priors.uniform import UniformPrior
from tfgen.tokenizers.base import Tokenizer

NEIGHBOURS = 256
SHARPNESS = 0.4
"""β: neighbour i weighs w_i ∝ exp(β x its similarity in logits)."""

WIDTH = 0.05
"""h: of the kernel, as a share of the mean squared distance between two codes."""

PARTS = 0.8
"""Of a prompt of several objects, the weight of the neighbours of each of them."""

FLOOR = 0.2
"""δ: what a neighbour keeps of its weight, at least, for each token in which it differs."""

BACKOFF = 0.005
"""κ: the weight of the prior behind, where all neighbours together weigh 1 at an empty prefix."""


class RetrievalPrior(Prior):
    """Of each prompt, the next tokens of the pictures that fit it best, given the prefix.

    Where the prompt names two objects, which may never have been seen together, PARTS of the weight
    goes to the pictures that fit one of them beside any other object, half for each; the rest, and
    otherwise all, to those that fit the prompt.

    With w_i the weight of neighbour i for the prompt (Σ w_i = 1) and b_i its tokens,

        r_i(prefix) = w_i Π_s K(prefix_s, b_is),   K(x, y) = δ + (1 - δ) exp(-|c_x - c_y|² / h)
        p(x | prefix) = (Σ_i r_i [b_it = x] + κ q(x | prefix)) / (Σ_i r_i + κ)

    so that neighbours whose own prefix is near, in code space, weigh more. Where none is, the prior
    behind, q, takes over: the model's frequency prior or, where it has none, the uniform one. No
    token has probability zero. δ, h, κ, β and the number of neighbours were chosen by the
    likelihood of held-out scenes of the sprite world given their captions.

    Before it is conditioned on a prompt it is q.
    """

    name = "retrieval"
    files = (FILE_NAME, FREQUENCY_FILE)

    def __init__(
        self,
        bank: Bank,
        behind: Prior,
        codes: Tensor | None = None,
        *,
        path: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """behind: q. codes: Float[vocab_size, d], the codebook; None: tokens are equal or not.
        path: where the bank is from, for messages and recipes. device: where `similarity` wants
        embeddings."""
        self.vocab_size, self.num_tokens = bank.vocab_size, bank.num_tokens
        self.bank, self.behind, self.path, self.device = bank, behind, path, device
        self.codes = None if codes is None else codes.float().cpu()
        if self.codes is not None:  # the mean of |x - y|² is twice the variance
            self._width = WIDTH * 2 * float(self.codes.var(dim=0, correction=0).sum())
        self.neighbours = torch.empty(0, self.num_tokens, dtype=torch.int64)  # b, [M, num_tokens]
        self.weights = torch.empty(0)  # w, Float32[M]
        self._expected = torch.empty(0)  # by prefix length - 1

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Tokenizer, folder: Path | None = None, bank: Path | None = None
    ) -> RetrievalPrior:
        """The prior of a model: `bank` is the bank's file, by default the one in the model's
        folder. Raises InputError where there is no usable one, or it is of another tokenizer."""
        if bank is None and folder is not None and (folder / FILE_NAME).is_file():
            bank = folder / FILE_NAME
        if bank is None:
            raise InputError(
                "The retrieval prior needs a bank of pictures, and the model has none: build one "
                "with tfgen bank build, and use it as --prior retrieval:FILE."
            )
        found = Bank.open(bank)
        found.check(bank, tokenizer=tokenizer.fingerprint())
        behind: Prior = UniformPrior.for_tokenizer(tokenizer)
        if folder is not None and (folder / FREQUENCY_FILE).is_file():
            behind = FrequencyPrior.for_tokenizer(tokenizer, folder)
        try:
            codes = tokenizer.code_embeddings()
        except TfgenError:
            codes = None
        return cls(found, behind, codes, path=bank, device=tokenizer.device)

    def for_verifier(self, fingerprint: Callable[[], str], wanted: bool = True) -> Prior:
        try:
            self.bank.check(self.path or Path(FILE_NAME), verifier=fingerprint())
        except InputError:
            if wanted:
                raise
            return self.behind
        return self

    def options(self) -> dict[str, Any]:
        behind = {"name": self.behind.name, **self.behind.options()}
        return {"bank": self.bank.header["source"], "behind": behind}

    def condition(self, prompt: str, similarities: Callable[[Tensor], Tensor]) -> RetrievalPrior:
        """The prior with the neighbours of this prompt."""
        best = self._best(NEIGHBOURS, similarities)
        weights = (SHARPNESS * best.values).softmax(dim=0)  # [M, 1 + P], of each column 1 in all
        rows, weights, parts = best.indices[:, 0], weights[:, 0], weights[:, 1:]
        if count := parts.shape[1]:
            each = torch.cat([(1 - PARTS) * weights[:, None], PARTS / count * parts], dim=1)
            rows, which = best.indices.flatten().unique(return_inverse=True)
            weights = torch.zeros(len(rows)).index_add(0, which, each.flatten())
        prior = copy.copy(self)
        prior.neighbours, prior.weights = self.bank.tokens(rows), weights
        prior._expected = prior._leave_one_out()
        return prior

    @property
    def held(self) -> int:
        return len(self.bank)

    def nearest(self, count: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        return self.bank.tokens(self._best(count, score).indices)

    def _best(self, count: int, score: Callable[[Tensor], Tensor]) -> torch.return_types.topk:
        """The `count` best of the bank, or all, by a score of their embeddings, or each of several,
        in the columns."""
        scores = self.bank.map_embeddings(lambda part: score(part.to(self.device)))
        return scores.float().topk(min(count, len(self.bank)), dim=0)

    def log_probs(self, prefixes: Tensor) -> Tensor:
        r = self.weights.expand(len(prefixes), -1)  # [B, M]
        for position, tokens in enumerate(prefixes.cpu().T):
            r = r * self._kernel(tokens, position)
        seen = self.neighbours[:, prefixes.shape[1]].expand(len(prefixes), -1)
        p = BACKOFF * self.behind.log_probs(prefixes).cpu().exp()  # [B, V]
        p = p.scatter_add(1, seen, r) / (r.sum(dim=1, keepdim=True) + BACKOFF)
        return p.log()

    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        r = self.weights.expand(len(tokens), -1)
        return self._sequence_log_prob_from(r, tokens.cpu())

    def _sequence_log_prob_from(self, r: Tensor, tokens: Tensor) -> Tensor:
        """Neighbours' weights at the empty prefix, Float32[N, M]; Int64[N, k] -> Float32[N, k]."""
        behind = self.behind.sequence_log_prob(tokens).cpu().exp()
        columns = []
        for position, column in enumerate(tokens.T):
            same = self.neighbours[:, position] == column[:, None]  # [N, M]
            p = (r * same).sum(dim=1) + BACKOFF * behind[:, position]
            columns.append(p / (r.sum(dim=1) + BACKOFF))
            r = r * self._kernel(column, position)
        return torch.stack(columns, dim=1).log()

    def expected_log_prob(self, length: int) -> float:
        """Of the prompt's neighbours themselves, each by the others: they are true pictures, and
        the nearest of them fit the prompt. Before there is a prompt, that of the prior behind."""
        if not len(self._expected):
            return self.behind.expected_log_prob(length)
        return float(self._expected[length - 1])

    def _leave_one_out(self) -> Tensor:
        """Float64[num_tokens]: the neighbours' mean log p per token, by length.

        They count by the square of their weights: the best stand for pictures that fit. (On
        held-out scenes and their captions, at 8 tokens, this is 0.4 bits above the truth; by the
        weights themselves it would be 1.1.)
        """
        others = self.weights.repeat(len(self.weights), 1).fill_diagonal_(0)  # [M, M]
        others = others / others.sum(dim=1, keepdim=True).clamp(min=1e-12)
        log_p = self._sequence_log_prob_from(others, self.neighbours).double()
        means = log_p.cumsum(dim=1) / torch.arange(1, self.num_tokens + 1)
        squares = self.weights.double().square()
        return squares @ means / squares.sum()

    def _kernel(self, tokens: Tensor, position: int) -> Tensor:
        """K of tokens Int64[N] and the neighbours' at this position: Float32[N, M]."""
        seen = self.neighbours[:, position]
        tokens, rows = tokens.unique(return_inverse=True)  # of many prefixes there are few
        if self.codes is None:
            near = (tokens[:, None] == seen).float()
        else:
            distance = torch.cdist(
                self.codes[tokens],
                self.codes[seen],
                compute_mode="donot_use_mm_for_euclid_dist",  # that would not be 0 between equals
            )
            near = (-(distance**2) / self._width).exp()
        return (FLOOR + (1 - FLOOR) * near)[rows]
