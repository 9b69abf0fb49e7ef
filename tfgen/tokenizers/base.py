"""The tokenizer interface: ordered (coarse-to-fine) 1D tokens to pictures and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError


class Tokenizer(ABC):
    """Turns every prefix of an ordered token sequence into a whole picture.

    Pictures are Float[N, 3, H, W] in [0, 1], square; tokens are Int64[N, k] in [0, vocab_size) with
    1 <= k <= num_tokens. A picture must not depend on the other rows of its batch, up to rounding.
    """

    name: str
    vocab_size: int
    num_tokens: int
    image_size: int
    """Side of `decode`'s pictures, in pixels."""

    render_size: int
    """Side of `render`'s pictures, in pixels; at least `image_size`."""

    draft_cost: float | None = None
    """What a `draft` that the verifier looks at costs, as a share of a `decode` that it looks at:
    above 0, below 1. None: there are no drafts."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where `decode` computes; tokens are sent here and pictures come out here."""

    @property
    def decode_rows(self) -> int:
        """Rows of one decoding pass in a search; each has exactly this many (see `Evaluator`).

        A tokenizer overrides it with whatever is fastest for its network and fits its device.
        """
        return 16 if self.device.type == "cpu" else 128

    def for_seed(self, seed: int) -> Tokenizer:
        """The tokenizer for one search. A decoder that starts from noise draws it from this seed,
        on the CPU; the others are the same for every seed, and returned as they are."""
        return self

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float[N, 3, image_size, image_size], for every prefix length k."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Float[N, 3, H, W] in [0, 1] -> Int64[N, num_tokens]."""

    def encode_again(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Int64[N, k]: the first k tokens that `encode` gives of their pictures."""
        return self.encode(self.decode(tokens))[:, : tokens.shape[1]]

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hex hash of the weights of `encode` and `decode`: what tokens mean, on which
        every table of them depends."""

    def picture_fingerprint(self) -> str:
        """And of what `render` has besides: what final pictures depend on."""
        return self.fingerprint()

    def render(self, tokens: Tensor) -> Tensor:
        """The final picture, Float[N, 3, render_size, render_size]; by default `decode`'s."""
        return self.decode(tokens)

    def draft(self, tokens: Tensor) -> Tensor:
        """A cheaper picture that scores about as `decode`'s does: Int64[N, k] -> Float[N, 3, h, h]
        in [0, 1]. It may be smaller, and lack detail; the same of every row. Optional.

        For screening: a search looks at many drafts, and decodes the best of them.
        """
        raise TfgenError(f"The tokenizer {self.name} has no drafts.")

    def code_embeddings(self) -> Tensor:
        """Float[vocab_size, d]: the codebook. Optional."""
        raise TfgenError(f"The tokenizer {self.name} has no code embeddings.")

    def embed(self, tokens: Tensor) -> Tensor:
        """Int64[N, k] -> Float[N, k, d]; decode_embeddings(embed(t)) is decode(t). Optional."""
        return self.code_embeddings()[tokens]

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Float[N, k, d] -> Float[N, 3, image_size, image_size], differentiable. Optional."""
        raise TfgenError(f"The tokenizer {self.name} has no differentiable decoder.")

    def check(self, tokens: Tensor) -> Tensor:
        """`tokens` itself, or InputError where it is no batch of prefixes of this tokenizer.

        For tokens that come from outside (a recipe, a file); a search need not check its own.
        """
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError(
                f"Tokens must be whole numbers of shape [N, k], not "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}."
            )
        if not 1 <= tokens.shape[1] <= self.num_tokens:
            raise InputError(
                f"{self.name} decodes 1 to {self.num_tokens} tokens, not {tokens.shape[1]}."
            )
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if len(outside):
            raise InputError(
                f"Token {int(outside[0])} is not in the codebook of {self.name}: "
                f"it goes from 0 to {self.vocab_size - 1}."
            )
        return tokens
