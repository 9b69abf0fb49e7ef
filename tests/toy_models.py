"""The toys as models that lie in a folder, for the pipeline, the hub and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.toys import ToyTokenizer, ToyVerifier, rugged
from tfgen import hub
from tfgen.errors import InputError
from tfgen.verifiers.base import Target

VOCAB, TOKENS, RENDER_SIZE = 7, 4, 32
WORDS_AT_MOST = 8


class Brightness(nn.Module):
    """The network: one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = nn.Parameter(torch.ones(1))


class SavedTokenizer(ToyTokenizer):
    """Pictures of a toy tokenizer, times a brightness that is read from tokenizer.safetensors."""

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> SavedTokenizer:
        tokenizer = cls(VOCAB, TOKENS)
        network = Brightness()
        path = folder / "tokenizer.safetensors"
        hub.load_weights(network, hub.read_safetensors(path), path)
        tokenizer.brightness = network.brightness.item()
        tokenizer.render_size = RENDER_SIZE
        return tokenizer

    def render(self, tokens: Tensor) -> Tensor:
        scale = RENDER_SIZE // self.image_size
        images = self.decode(tokens) * self.brightness
        return images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)

    def fingerprint(self) -> str:
        return f"toy{self.brightness:g}"


class SavedVerifier(ToyVerifier):
    """Stands in for ClipVerifier. `calls` counts; at call `interrupt_at` comes a Ctrl-C."""

    name = "toy-clip"
    calls = 0
    interrupt_at: int | None = None
    negatives: Sequence[str] = ()

    @classmethod
    def load(cls, source: str, device: torch.device, score: str) -> SavedVerifier:
        verifier = cls(ToyTokenizer(VOCAB, TOKENS), rugged)
        verifier.source, verifier.scoring = source, score
        return verifier

    def prepare(self, prompt: str, negatives: Sequence[str] = ()) -> Target:
        if len(prompt.split()) > WORDS_AT_MOST:
            raise InputError(f"The prompt is too long: use at most {WORDS_AT_MOST} words.")
        self.negatives = negatives
        return Target(prompt)

    def score(self, images: Tensor, target: Target) -> Tensor:
        type(self).calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return super().score(images, target)

    def warnings(self, prompt: str) -> list[str]:
        return [f"It does not know the word {word!r}." for word in prompt.split() if "zz" in word]
