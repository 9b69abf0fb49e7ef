"""The T5 encoder that FlexAR reads prompts with, through transformers (extra `flexar`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tfgen.errors import TfgenError


class T5TextEncoder:
    """Prompts -> the last hidden states of a frozen T5 encoder, in float32.

    source: a folder, or an id on the Hugging Face hub, such as google/flan-t5-xl. max_length: of a
    prompt, in T5 tokens; what is longer is cut, as in FlexAR's training; None leaves it to the
    tokenizer. T5 is loaded when the first prompt comes.
    """

    def __init__(
        self, source: str | Path, max_length: int | None, device: torch.device | str = "cpu"
    ) -> None:
        self.source, self.max_length, self.device = str(source), max_length, device
        self._loaded = None

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states Float32[B, S, text_dim], and Int64[B, S], which is 0 at padding.

        S is the length of the longest prompt. How much padding there is makes no difference to
        FlexAR. Raises TfgenError where transformers or the weights are not to be had.
        """
        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, model = self._loaded
        inputs = tokenizer(
            list(prompts),
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.device)
        hidden = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        return hidden.last_hidden_state.float(), inputs.attention_mask

    def _load(self):
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise TfgenError(
                "FlexAR reads prompts with T5, for which transformers is missing: "
                "run pip install 'tfgen[flexar]'."
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source)
            model = T5EncoderModel.from_pretrained(self.source, use_safetensors=True)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
            raise TfgenError(
                f"The T5 encoder {self.source!r} cannot be had ({reason}): run again with a "
                "network, or put it into the folder text_encoder beside FlexAR's weights."
            ) from error
        return tokenizer, model.to(self.device, torch.float32).eval().requires_grad_(False)
