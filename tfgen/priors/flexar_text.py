"""The T5 encoder that FlexAR reads prompts with, through transformers (extra `flexar`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfgen.errors import InputError, TfgenError

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
"""One of these is in T5's folder; without them transformers would make up an empty vocabulary."""

_MADE_OF = (".json", ".model", ".safetensors")
_PLACES, _BYTES = 256, 4096  # in a large file, and what is read at each for the fingerprint


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
        FlexAR. Raises TfgenError where transformers or the weights are not to be had, InputError
        where files are missing, damaged or of another model.
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

    def fingerprint(self) -> str:
        """Tells it from other encoders: by its id on the hub, or by what a folder's files hold."""
        folder = Path(self.source).expanduser()
        if not folder.is_dir():
            return f"{self.source} {self.max_length}"
        digest = hashlib.sha256(repr(self.max_length).encode())
        for path in sorted(folder.iterdir()):
            if path.suffix in _MADE_OF:
                digest.update(path.name.encode() + _sample(path))
        return digest.hexdigest()[:16]

    def _load(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise TfgenError(
                "FlexAR reads prompts with T5, for which transformers is missing: "
                "run pip install 'tfgen[flexar]'."
            ) from error
        folder = Path(self.source).expanduser()
        if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise self._unusable(f"it has no {' or '.join(TOKENIZER_FILES)}")
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.source)
                model, report = T5EncoderModel.from_pretrained(
                    self.source,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are in the report
                    output_loading_info=True,
                )
        except MemoryError:
            raise
        except Exception as error:  # damaged files raise whatever some library happens to raise
            text = str(error).strip()
            reason = text.splitlines()[0].rstrip(".") if text else type(error).__name__
            if isinstance(error, KeyError):  # which says the key alone
                reason = f"there is no {reason} in them"
            absent = isinstance(error, (OSError, ValueError)) and not folder.is_dir()
            if not absent and not isinstance(error, ImportError):
                raise self._unusable(reason) from error
            raise TfgenError(
                f"The T5 encoder {self.source!r} cannot be had ({reason}): run again with a "
                "network, or put it into the folder text_encoder beside FlexAR's weights."
            ) from error
        if faults := _faults(model, report):  # such weights would be random ones
            more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise self._unusable(f"{', '.join(faults[:3])}{more}")
        return tokenizer, model.to(self.device, torch.float32).eval().requires_grad_(False)

    def _unusable(self, reason: str) -> InputError:
        return InputError(
            f"The T5 encoder {self.source!r} cannot be used ({reason}): get its files again."
        )


def _faults(model: nn.Module, report: dict[str, Any]) -> list[str]:
    """What transformers made up since the files lack it, or have it in another size."""
    missing, weights = set(report["missing_keys"]), model.state_dict(keep_vars=True)
    loaded = {id(weight) for name, weight in weights.items() if name not in missing}
    # Of weights that are tied, one name is enough.
    missing = [key for key in sorted(missing) if id(weights.get(key)) not in loaded]
    other = sorted(key[0] for key in report["mismatched_keys"])
    return [f"{key} is missing" for key in missing] + [f"{key} is of another size" for key in other]


def _sample(path: Path) -> bytes:
    """The size of a file and what it holds, all of it or, of a large one, enough to tell weights
    apart."""
    size = path.stat().st_size
    parts = [repr(size).encode()]
    with path.open("rb") as file:
        for start in range(0, size, max(size // _PLACES, _BYTES)):
            file.seek(start)
            parts.append(file.read(_BYTES))
    return b"".join(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and its table of what is missing; downloads keep their bar."""
    from huggingface_hub import utils as hub
    from transformers import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    off = hub.are_progress_bars_disabled()
    restore = hub.disable_progress_bars if off else hub.enable_progress_bars
    logging.disable_progress_bar()  # and with it the one of downloads
    logging.set_verbosity_error()
    restore()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
        restore()
