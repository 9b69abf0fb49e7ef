"""The hot loop on a GPU: tokens to embeddings through the kernels, without leaving the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.picture_kernels import InputPlan, verifier_input
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.flextok import FlexTok
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.clip import ClipVerifier


class KernelEngine:
    """An `Engine` of a search (see `Evaluator`) that decodes a FlexTok through `FusedFlexTok`, and
    hands pictures to a CLIP through `verifier_input`. Whatever is neither goes its usual way.

    No pass waits for the host: a search's next passes are queued while the device computes. At the
    sizes of a search, 64 rows and more, launching kernels takes a few per cent of the time that the
    device needs for them, so there are no CUDA graphs here.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        verifier: Verifier,
        residual: torch.dtype = torch.float32,
    ) -> None:
        """residual: see `FusedDecoder`."""
        if isinstance(tokenizer, FlexTok) and not isinstance(tokenizer, FusedFlexTok):
            tokenizer = FusedFlexTok.of(tokenizer, residual)
        self.tokenizer, self.verifier = tokenizer, verifier
        self.rows = tokenizer.decode_rows
        self.passes = 1 if tokenizer.device.type == "cpu" else 8
        self.plan: InputPlan | None = None
        if isinstance(verifier, ClipVerifier):
            side = tokenizer.image_size
            self.plan = InputPlan.for_clip(verifier.preprocess, side, tokenizer.device)

    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        """Each Int64[rows, k] -> of each, Float32[rows, d]."""
        return [self._pass(tokens) for tokens in passes]

    @torch.inference_mode()
    def _pass(self, tokens: Tensor) -> Tensor:
        if self.plan is None:
            return self.verifier.embed(self.tokenizer.decode(tokens))
        if isinstance(self.tokenizer, FusedFlexTok):
            settings = self.tokenizer.sampling
            latents = self.tokenizer.decode_latents(
                tokens, None, settings.steps, settings.guidance, settings.apg
            )
            images, value_range = self.tokenizer.vae.decode(latents), (-1.0, 1.0)
        else:
            images, value_range = self.tokenizer.decode(tokens), (0.0, 1.0)
        return self.verifier.embed_input(verifier_input(images, self.plan, value_range=value_range))
