"""The verifier interface: how well does a picture fit a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tfgen.errors import TfgenError
from tfgen.verifiers.rewording import Reworded


@dataclass(frozen=True)
class Target:
    """What pictures are scored against: a prompt, prepared once. Subclasses add their features."""

    prompt: str

    @property
    def parts(self) -> int:
        """Of a prompt that names several objects, how many: see `Verifier.similarities`."""
        return 0


class Verifier(ABC):
    """Scores pictures, Float[N, 3, H, W] in [0, 1], against a `Target`.

    `score` is differentiable in the pictures where the network is: a search may want its gradient.
    """

    name: str
    looks: int = 1
    """How often the picture network runs for one picture, as accounts count it."""

    @abstractmethod
    def prepare(self, prompt: str, negatives: Sequence[str] = ()) -> Target:
        """Do the prompt's share of the work once. Raises InputError on a prompt it cannot take."""

    @abstractmethod
    def score(self, images: Tensor, target: Target) -> Tensor:
        """Float32[N], higher is better; no picture's score depends on the rest of the batch."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hex hash of the weights."""

    def embed(self, images: Tensor) -> Tensor:
        """Float32[N, d]: the pictures' features. Optional."""
        raise TfgenError(f"The verifier {self.name} has no picture embeddings.")

    def score_embeddings(self, embeddings: Tensor, target: Target) -> Tensor:
        """What `score` gives pictures with these embeddings: Float[N, d] -> Float32[N]."""
        raise TfgenError(f"The verifier {self.name} does not score picture embeddings.")

    def similarities(self, embeddings: Tensor, target: Target) -> Tensor:
        """Text-image similarity of pictures, Float[N, d] -> Float32[N, 1 + P]: to the prompt alone
        and, where it names several objects, to each of its P parts: that object, beside any other.

        In logits: a softmax over a column is the verifier's own distribution over pictures.
        """
        raise TfgenError(f"The verifier {self.name} has no text-image similarity.")

    def reword(self, prompt: str) -> Reworded:
        """The prompt in words that the verifier knows; itself where it reads whatever is said."""
        return Reworded(prompt, prompt)

    def warnings(self, prompt: str) -> list[str]:
        """Sentences about the prompt that the user should read, such as words it does not know."""
        return []
