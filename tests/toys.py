"""A tokenizer, a verifier and a prior so small that the right answer of every search is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.errors import InputError
from tfgen.priors.base import Prior
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier


class ToyTokenizer(Tokenizer):
    """Pixel i of a picture's first row is token i; where the prefix is over, pixels are black.

    `max_rows`: a larger batch runs out of memory. `rounds_by_rows`: pictures differ in the last
    bits with the number of rows decoded together, as those of real networks do.
    """

    name = "toy"
    decode_rows = 16

    def __init__(
        self,
        vocab_size: int = 5,
        num_tokens: int = 3,
        *,
        max_rows: int = 10**9,
        rounds_by_rows: bool = False,
    ) -> None:
        self.vocab_size, self.num_tokens = vocab_size, num_tokens
        self.image_size = self.render_size = num_tokens
        self.max_rows, self.rounds_by_rows = max_rows, rounds_by_rows
        self.batches: list[Tensor] = []  # what `decode` was given

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def decode(self, tokens: Tensor) -> Tensor:
        if len(tokens) > self.max_rows:
            raise torch.OutOfMemoryError(f"{len(tokens)} rows are too many")
        self.batches.append(tokens)
        images = torch.zeros(len(tokens), 3, self.image_size, self.image_size)
        images[:, :, 0, : tokens.shape[1]] = ((tokens + 1) / (self.vocab_size + 1))[:, None]
        return images + 1e-6 * len(tokens) if self.rounds_by_rows else images

    def encode(self, images: Tensor) -> Tensor:
        return (images[:, 0, 0] * (self.vocab_size + 1)).round().long() - 1

    def fingerprint(self) -> str:
        return f"{self.vocab_size:x}{self.num_tokens:x}"

    def all_prefixes(self, length: int) -> Tensor:
        """Int64[vocab_size ** length, length], in lexicographic order."""
        return torch.tensor(list(product(range(self.vocab_size), repeat=length)))


class EvenTokenizer(ToyTokenizer):
    """Its world has pictures of even tokens only: the encoder has never written others."""

    def encode(self, images: Tensor) -> Tensor:
        tokens = super().encode(images)
        return torch.where(tokens > 0, tokens - tokens % 2, tokens)


class GridTokenizer(ToyTokenizer):
    """Codes are the points of a square grid of `side` x `side` in [-1, 1]^2, token x + side * y;
    pixel i of the first row has the two coordinates of token i as red and green. Differentiable.
    """

    def __init__(self, side: int = 10, num_tokens: int = 3) -> None:
        super().__init__(side * side, num_tokens)
        self.side = side

    def code_embeddings(self) -> Tensor:
        axis = torch.linspace(-1, 1, self.side)
        return torch.stack([axis.repeat(self.side), axis.repeat_interleave(self.side)], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        self.batches.append(tokens)
        return self.decode_embeddings(self.embed(tokens))

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        row = (embeddings.mT + 2) / 4  # [N, 2, k], away from black, which is the end
        return F.pad(
            row[:, :, None], (0, self.num_tokens - row.shape[2], 0, self.num_tokens - 1, 0, 1)
        )


class GridVerifier(Verifier):
    """Embeds a picture of `GridTokenizer` as the coordinates of its tokens, [N, num_tokens * 2]
    (zeros where the prefix is over); scores them with `function([N, num_tokens, 2]) -> [N]`."""

    name = "grid"

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def prepare(self, prompt: str, negatives: Sequence[str] = ()) -> Target:
        return Target(prompt)

    def embed(self, images: Tensor) -> Tensor:
        row = images[:, :2, 0]  # [N, 2, num_tokens]
        return ((row * 4 - 2) * (row > 0)).mT.flatten(1)

    def score(self, images: Tensor, target: Target) -> Tensor:
        return self.score_embeddings(self.embed(images), target)

    def score_embeddings(self, embeddings: Tensor, target: Target) -> Tensor:
        return self.function(embeddings.unflatten(1, (-1, 2)))

    def fingerprint(self) -> str:
        return "0"


class ToyVerifier(Verifier):
    """Reads the tokens back from the picture and scores them with `function(tokens)`."""

    name = "toy"

    def __init__(self, tokenizer: ToyTokenizer, function: Callable[[tuple[int, ...]], float]):
        self.tokenizer, self.function = tokenizer, function

    def prepare(self, prompt: str, negatives: Sequence[str] = ()) -> Target:
        if not prompt.strip():
            raise InputError("The prompt is empty.")
        return Target(prompt)

    def score(self, images: Tensor, target: Target) -> Tensor:
        rows = self.tokenizer.encode(images).tolist()
        scores = [self.function(tuple(token for token in row if token >= 0)) for row in rows]
        return torch.tensor(scores) + images[:, 0, -1, -1]  # the last bits, where there are some

    def fingerprint(self) -> str:
        return "0"


class ToyPrior(Prior):
    """A first-order Markov chain: log p depends on the previous token only."""

    name = "toy"

    def __init__(self, vocab_size: int = 5, num_tokens: int = 3, seed: int = 0) -> None:
        self.vocab_size, self.num_tokens = vocab_size, num_tokens
        generator = torch.Generator().manual_seed(seed)
        logits = 1.5 * torch.randn(vocab_size + 1, vocab_size, generator=generator)
        self.table = logits.log_softmax(dim=1)  # the last row: of the first token

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | None = None) -> ToyPrior:
        return cls(tokenizer.vocab_size, tokenizer.num_tokens)

    def log_probs(self, prefixes: Tensor) -> Tensor:
        if prefixes.shape[1] == 0:
            return self.table[-1].expand(len(prefixes), -1)
        return self.table[prefixes[:, -1]]

    def expected_log_prob(self, length: int) -> float:
        return -1.0


class HoldingPrior(ToyPrior):
    """It holds pictures: Int64[N, num_tokens], the nearest first."""

    def __init__(self, pictures: Tensor, vocab_size: int) -> None:
        super().__init__(vocab_size, pictures.shape[1])
        self.pictures = pictures

    @property
    def held(self) -> int:
        return len(self.pictures)

    def nearest(self, count: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        return self.pictures[:count]


def rugged(tokens: tuple[int, ...]) -> float:
    """A score with no pattern that a greedy search could follow, different for every prefix."""
    value = 1
    for token in tokens:
        value = (value * 48271 + 11 * token + 7) % 2147483647
    return value % 10007 / 10007
