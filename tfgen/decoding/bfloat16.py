"""The hot loop on a CPU that computes with bfloat16: AVX512-BF16 or AMX.

Such a processor multiplies bfloat16 two to four times faster than float32. Sums stay in float32, so
a score is off by what the operands are rounded by. That changes which of two near-equals a search
keeps; it must be asked for, and the score of the picture that a search finds is computed again in
float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tfgen.decoding.sprites_bfloat16 import Bfloat16Sprites
from tfgen.decoding.threads import ThreadedEngine
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.clip import ClipVerifier
from tfgen.verifiers.views import Views


def why_no_bfloat16(device: torch.device) -> str | None:
    """Why products in bfloat16 are of no use on a device, as a clause without a full stop; None:
    they are. A processor without them computes them, too, but slower than float32."""
    if device.type != "cpu":
        return f"it is for a CPU, and this device is {device.type}"
    if not torch.backends.mkldnn.is_available():
        return f"it needs oneDNN, which this torch ({torch.__version__}) does not have"
    if not _computes_bfloat16():
        return "it needs a processor with AVX512-BF16 or AMX, and this one has neither"
    return None


def _computes_bfloat16() -> bool:
    """Whether the processor has instructions for it, as torch tells (older ones may not)."""
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in questions)


class Bfloat16Engine(ThreadedEngine):
    """`ThreadedEngine` with products in bfloat16: those of the painters of a sprites model, and
    those of a CLIP's image tower. Any other model computes as it does elsewhere, and so do drafts.
    The models that it is given stay as they are."""

    name = "bf16"
    coarse = True

    def __init__(
        self, tokenizer: Tokenizer, verifier: Verifier, threads: int | None = None
    ) -> None:
        super().__init__(tokenizer, verifier, threads)
        self.decoder, self.scorer = tokenizer, in_bfloat16(verifier)
        if isinstance(tokenizer, SpritesTokenizer):
            self.decoder = Bfloat16Sprites.of(tokenizer)

    @torch.inference_mode()
    def _pass(self, tokens: Tensor) -> Tensor:
        return self.scorer.embed(self.decoder.decode(tokens))


def in_bfloat16(verifier: Verifier) -> Verifier:
    """A verifier that embeds pictures with products in bfloat16; itself, if it is no CLIP."""
    if isinstance(verifier, Views):
        return Views(in_bfloat16(verifier.verifier), verifier.count)
    if not isinstance(verifier, ClipVerifier):
        return verifier
    found = copy.copy(verifier)
    found.model = copy.copy(verifier.model)
    found.model._modules = dict(verifier.model._modules)
    found.model.visual = narrowed(verifier.model.visual)
    return found


class NarrowLinear(nn.Linear):
    """A linear layer with operands in bfloat16, float32 outside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16()).float()


class NarrowConv2d(nn.Conv2d):
    """A convolution with operands in bfloat16, float32 outside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16()).float()


def narrowed(network: nn.Module) -> nn.Module:
    """A copy of a network whose convolutions and linear layers have operands in bfloat16. What is
    between them stays in float32: norms of bfloat16 are slow, and activations no faster. (torch's
    autocast takes three times as long as float32 for a ViT-B/32: it casts all weights each time.)
    """
    found = copy.deepcopy(network)
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: NarrowLinear,
        nn.Conv2d: NarrowConv2d,
    }
    for layer in found.modules():
        if type(layer) in kinds:
            layer.__class__ = kinds[type(layer)]
            layer.bfloat16()
        elif isinstance(layer, nn.SiLU):
            layer.inplace = True
    return found
