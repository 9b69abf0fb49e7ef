"""The prior interface: what to try next; and, once for all priors, how to draw from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.tokenizers.base import Tokenizer

BRANCHES = ("all", "last")
WEIGHED = 8
_MAX_ELEMENTS = 2**24  # of a [rows, vocab_size] table of log-probabilities held at one time


class Prior(ABC):
    """A distribution over token sequences, p(next token | prefix), and a search's draws from it.

    Draws are made from p^λ, renormalised at each token: prior strength λ = 0 is exactly uniform
    (the prior is not even asked), 1 is the prior, above 1 is sharper. All random numbers come from
    a torch.Generator on the CPU, and keys are compared there in float64, so that devices agree.
    """

    name: str
    vocab_size: int
    num_tokens: int
    files: tuple[str, ...] = ()
    """What of a model's folder it is made of, by file name."""

    @classmethod
    @abstractmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | None = None) -> Prior:
        """The prior of a model: `folder` is where the model's files are."""

    def condition(self, prompt: str, similarities: Callable[[Tensor], Tensor]) -> Prior:
        """The prior for one prompt. Most know nothing of prompts, and are returned as they are.

        similarities: picture embeddings of the verifier, Float[M, d] -> Float32[M, 1 + P], how well
        each picture fits the prompt, and each of its parts; see `Verifier.similarities`.
        """
        return self

    def for_verifier(self, fingerprint: Callable[[], str], wanted: bool = True) -> Prior:
        """The prior beside the verifier of this fingerprint; most know of no verifier, and are
        returned as they are. One that was made with another raises InputError or, where it is not
        `wanted` by name, gives the prior that it falls back on."""
        return self

    def with_guidance(self, scale: float) -> Prior:
        """The prior with this guidance scale, for those that know the text. Raises InputError."""
        raise InputError(
            f"The prior {self.name} takes no guidance: use one that was trained on text, such as "
            "autoregressive."
        )

    def options(self) -> dict[str, Any]:
        """What beside its name tells this prior from others of its kind, for the recipe."""
        return {}

    @property
    def held(self) -> int:
        """How many whole pictures it holds, as `nearest` gives them; most hold none."""
        return 0

    def nearest(self, count: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Int64[n, num_tokens]: of the pictures that it holds, the `count` that score best, or all.

        score: picture embeddings of the verifier, Float[M, d] -> Float32[M].
        """
        return torch.empty(0, self.num_tokens, dtype=torch.int64)

    @abstractmethod
    def log_probs(self, prefixes: Tensor) -> Tensor:
        """Int64[B, k] -> Float32[B, vocab_size], normalised log p of the next token; k may be 0.

        Prefixes may come from any device; the answer is on the prior's own.
        """

    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float32[N, k], log p of each token given those before it."""
        rows = max(1, _MAX_ELEMENTS // self.vocab_size)
        return torch.cat([self._sequence_log_prob(part) for part in tokens.split(rows)])

    def _sequence_log_prob(self, tokens: Tensor) -> Tensor:
        columns = [
            self.log_probs(tokens[:, :i]).cpu().gather(1, tokens[:, i : i + 1].cpu())
            for i in range(tokens.shape[1])
        ]
        return torch.cat(columns, dim=1)

    def expected_log_prob(self, length: int) -> float:
        """The mean log p per token that prefixes of this length of true pictures have, in nats."""
        raise TfgenError(
            f"The prior {self.name} does not know how likely true pictures are: "
            "use prior_weight=0 or typicality=False."
        )

    def typicality(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float32[N]: minus the distance of the mean log p from true pictures'.

        0 is best. Unlike the mean log p itself it does not reward the most probable sequences,
        which are blander than any true picture.
        """
        mean = self.sequence_log_prob(tokens).mean(dim=1)
        return -(mean - self.expected_log_prob(tokens.shape[1])).abs()

    def propose(
        self,
        prefixes: Tensor,
        count: int,
        strength: float,
        generator: torch.Generator,
        new_tokens: int = 1,
        branch: str = "all",
    ) -> Tensor:
        """Draw `count` distinct continuations of each prefix, without replacement, from p^λ.

        prefixes: Int64[B, k], k may be 0. Returns Int64[B, C, new_tokens] on the prefixes' device,
        in the order drawn, where C is `count` or, if fewer exist, all continuations there are.

        With new_tokens > 1, `branch` says where a prefix's continuations differ: "all" draws whole
        continuations (as SoTo's uniform prior, but never the same twice); "last" draws all new
        tokens but the last once per prefix, and the continuations differ in the last (as SoTo's
        FlexAR).

        Tokens of probability zero are drawn only after all others.
        """
        if branch == "last" and new_tokens > 1:
            length = prefixes.shape[1] + new_tokens - 1
            longer = self.complete(prefixes, length, strength, generator)
            last = self.propose(longer, count, strength, generator)  # [B, C, 1]
            shared = longer[:, None, prefixes.shape[1] :].expand(-1, last.shape[1], -1)
            return torch.cat([shared, last], dim=2)
        if new_tokens == 1:
            keys = self._keys(prefixes, strength, generator)
            drawn = keys.topk(min(count, self.vocab_size), dim=1).indices[:, :, None]
        elif strength == 0:
            parts = [self._distinct(count, new_tokens, generator) for _ in prefixes]
            drawn = torch.stack(parts)
        else:
            parts = [
                self._stochastic_beam(prefix, count, strength, generator, new_tokens)
                for prefix in prefixes[:, None]
            ]
            drawn = torch.stack(parts)
        return drawn.to(prefixes.device)

    def complete(
        self, prefixes: Tensor, length: int, strength: float, generator: torch.Generator
    ) -> Tensor:
        """Int64[B, k] -> Int64[B, length]: one continuation of each prefix, drawn from p^λ."""
        tokens = prefixes
        while tokens.shape[1] < length:
            drawn = self._keys(tokens, strength, generator).argmax(dim=1, keepdim=True)
            tokens = torch.cat([tokens, drawn.to(tokens.device)], dim=1)
        return tokens

    def propose_at(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        strength: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw `count` other tokens for one position of each sequence, given all its other tokens.

        tokens: Int64[B, k]. Returns Int64[B, C, k], the sequences with C distinct others there, in
        the order drawn; C is `count` or, if fewer exist, all others there are.

        Without replacement, from p^λ of the whole sequence as a function of that token, which is
        p(token | those before)^λ p(those after | it)^λ up to a factor. Of a large codebook only the
        WEIGHED * count tokens that lead by the first factor are weighed by the second.
        """
        count = min(count, self.vocab_size - 1)
        keys = self._keys(tokens[:, :position], strength, generator)  # [B, V]
        keys = keys.scatter(1, tokens[:, position : position + 1].to(keys.device), -torch.inf)
        leading = keys.topk(min(WEIGHED * count, self.vocab_size - 1), dim=1)
        drawn = tokens[:, None].repeat(1, leading.indices.shape[1], 1)  # [B, M, k]
        drawn[:, :, position] = leading.indices.to(drawn.device)
        keys = leading.values
        if strength > 0 and position + 1 < tokens.shape[1]:
            log_p = self.sequence_log_prob(drawn.flatten(0, 1))[:, position + 1 :]
            keys = keys + strength * log_p.to("cpu", torch.float64).sum(dim=1).view(keys.shape)
        best = keys.topk(count, dim=1).indices[:, :, None].expand(-1, -1, tokens.shape[1])
        return drawn.gather(1, best.to(drawn.device))

    def _keys(self, prefixes: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Float64[B, V], whose n largest in a row are n draws without replacement from p^λ.

        The Gumbel top-k trick: log p plus Gumbel noise -log(-log u). At λ = 0 the noise alone
        orders the tokens, and as it rises with u, so does u.
        """
        noise = torch.rand(len(prefixes), self.vocab_size, dtype=torch.float64, generator=generator)
        if strength == 0:
            return noise
        return strength * self._log_probs64(prefixes) - noise.log_().neg_().log_()

    def _log_probs64(self, prefixes: Tensor) -> Tensor:
        return self.log_probs(prefixes).to("cpu", torch.float64)

    def _distinct(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Int64[C, length]: distinct sequences, uniform over all vocab_size ** length of them."""
        total = self.vocab_size**length
        if total <= 4 * count or total <= 2**12:
            index = torch.rand(total, dtype=torch.float64, generator=generator)
            index = index.topk(min(count, total)).indices
            digits = [index // self.vocab_size**i % self.vocab_size for i in range(length)]
            return torch.stack(digits[::-1], dim=1)
        found: dict[tuple[int, ...], None] = {}
        while len(found) < count:  # at least 3/4 of all sequences are still new, so this ends soon
            rows = torch.randint(self.vocab_size, (count, length), generator=generator)
            found.update(dict.fromkeys(map(tuple, rows.tolist())))
        return torch.tensor(list(found)[:count])

    def _stochastic_beam(
        self, prefix: Tensor, count: int, strength: float, generator: torch.Generator, length: int
    ) -> Tensor:
        """Int64[C, length]: continuations of one prefix [1, k], drawn without replacement from p^λ.

        Stochastic beam search (Kool, van Hoof, Welling 2019, arXiv 1903.06059, algorithm 1): Gumbel
        top-k over whole sequences, top-down, where the children's keys are conditioned on their
        maximum being the parent's key. Exact, with `count` prefixes in hand at each token.
        """
        paths = torch.empty(1, 0, dtype=torch.int64)
        log_p = torch.zeros(1, 1, dtype=torch.float64)
        keys = torch.zeros(1, 1, dtype=torch.float64)
        for _ in range(length):
            past = torch.cat([prefix.expand(len(paths), -1), paths.to(prefix.device)], dim=1)
            children = log_p + (strength * self._log_probs64(past)).log_softmax(dim=1)  # [C, V]
            noise = torch.rand(children.shape, dtype=torch.float64, generator=generator)
            free = children - noise.log_().neg_().log_()
            # conditioning keeps the order of siblings, so only these can be among the best
            free, tokens = free.topk(min(count, self.vocab_size), dim=1)
            gap = keys - free + torch.log1p(-torch.exp(free - free[:, :1]))
            child_keys = keys - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
            child_keys = child_keys.nan_to_num(nan=-torch.inf)  # below an impossible parent
            best = child_keys.flatten().topk(min(count, child_keys.numel()))
            parent, token = best.indices // tokens.shape[1], tokens.flatten()[best.indices]
            paths = torch.cat([paths[parent], token[:, None]], dim=1)
            log_p, keys = children[parent, token][:, None], best.values[:, None]
        return paths
