"""FlexAR: the published autoregressive models over FlexTok tokens, trained on text and pictures.

tfgen searches without such a model; it is here as a prior, and as the baseline to compare with.
`FlexAR` is the model (logits, direct sampling), `FlexARPrior` proposes its tokens to a search.
Source: EPFL-VILAB/FlexAR-...-T2I on the Hugging Face hub, and SoTo's `flextok_ar` for what they
compute. Where we differ: keys and values are remembered, the unconditional text is encoded once, a
guidance scale of 1 costs no unconditional pass, and random numbers come from the CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.errors import InputError, finite_number, whole_number
from tfgen.hub import download, in_cache, load_weights, looks_like_a_path, read_safetensors
from tfgen.priors.base import Prior
from tfgen.priors.flexar_config import FlexARConfig
from tfgen.priors.flexar_model import FlexARNetwork, Past, TextStates
from tfgen.priors.flexar_sampling import check_filters, draw, filtered, guided
from tfgen.priors.flexar_text import T5TextEncoder
from tfgen.tokenizers.base import Tokenizer

CONFIG_FILE, WEIGHTS_FILE, TEXT_ENCODER_FOLDER = (
    "config.yaml",
    "model.safetensors",
    "text_encoder",
)
OF_OTHER_MODELS = ("image_tokenizer", "t5_embedder")
"""Tensors of these may lie in a checkpoint; FlexTok and T5 come from their own."""

_SAMPLED = 4096  # weights of each tensor that its fingerprint is made from
_MAX_LOGITS = 2**26  # of a [rows, positions, vocab_size] table held at one time

TextEncoder = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Prompts -> hidden states Float[B, S, text_dim], and Int or Bool[B, S], which is 0 at padding."""


@dataclass(frozen=True)
class Sampled:
    """Sequences drawn from FlexAR; those of one prompt follow each other."""

    tokens: Tensor  # Int64[B * samples, num_tokens], with the prefix
    log_probs: Tensor  # Float32[B * samples], of the new tokens, in nats, as they were drawn


class FlexAR:
    """p(token | tokens before it, text): a causal transformer with cross-attention to T5's text.

    Tokens are Int64 in [0, vocab_size), up to `num_tokens` in a row; log-probabilities are natural.
    """

    def __init__(
        self, config: FlexARConfig, network: FlexARNetwork, text_encoder: TextEncoder
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.text_encoder = text_encoder
        self.vocab_size, self.num_tokens = config.vocab_size, config.num_tokens
        self.guidance = config.guidance

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: TextEncoder | None = None,
    ) -> FlexAR:
        """Load a folder with config.yaml and model.safetensors, or a repository of the hub.

        dtype: of the weights; the published models compute in float32. text_encoder: what encodes
        prompts; by default T5 from the folder text_encoder beside the weights, if there is one, or
        else the one on the hub that config.yaml names. Raises InputError for files that are
        damaged, foreign or not understood, TfgenError where they cannot be downloaded.
        """
        folder, name = Path(path_or_id).expanduser(), str(path_or_id)
        asks_the_hub = False
        if not folder.is_dir():
            if looks_like_a_path(name) or "/" not in name:
                raise InputError(f"There is no folder {name!r} to load FlexAR from.")
            files = in_cache(name, CONFIG_FILE, WEIGHTS_FILE) or [None]
            asks_the_hub = None in files
            config_file = download(name, CONFIG_FILE) if asks_the_hub else files[0]
            folder = config_file.parent
        config = FlexARConfig.load(folder / CONFIG_FILE)
        weights = download(name, WEIGHTS_FILE) if asks_the_hub else folder / WEIGHTS_FILE
        tensors = {
            name.removeprefix("models."): tensor
            for name, tensor in read_safetensors(weights).items()
            if not any(other in name for other in OF_OTHER_MODELS)
        }
        network = _uninitialised(config, tensors, device, dtype)
        load_weights(network, tensors, weights)
        if text_encoder is None:
            own = folder / TEXT_ENCODER_FOLDER
            source = own if own.is_dir() else config.text_encoder
            text_encoder = T5TextEncoder(source, config.text_length, device)
        return cls(config, network, text_encoder)

    @property
    def device(self) -> torch.device:
        return self.network.ar_image_model["preprocessor"].sos_token_embed.device

    @cached_property
    def fingerprint(self) -> str:
        """A short hex hash that tells it from other models: of the config, of what encodes text,
        and of some thousand weights of each tensor, since hashing billions would take a while."""
        encoder = getattr(self.text_encoder, "fingerprint", None)
        told = type(self.text_encoder).__name__ if encoder is None else encoder()
        weights = self.network.state_dict()
        digest = hashlib.sha256(repr((self.config, told, list(weights))).encode())
        # An odd step does not stay within a column, as most widths are even.
        parts = [w.flatten()[:: (w.numel() // _SAMPLED) | 1].float() for w in weights.values()]
        digest.update(torch.cat(parts).cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode_text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states Float[B, S, text_dim], and Int64[B, S], which is 0 at padding."""
        hidden, mask = self.text_encoder(list(prompts))
        return hidden.to(self.device), mask.to(self.device, torch.int64)

    @torch.inference_mode()
    def logits(self, tokens: Tensor, text_hidden: Tensor, text_mask: Tensor) -> Tensor:
        """Float32[B, P + 1, vocab_size], of which row j predicts token j, each row by its own text.

        tokens: Int64[B, P], P from 0 to num_tokens - 1. text_hidden: Float[B, S, text_dim];
        text_mask: [B, S], 0 at padding. Raises InputError for tokens that it cannot take.
        """
        tokens = self.check(tokens, self.num_tokens - 1)
        text = self._read_text(text_hidden, text_mask)
        return self.network(tokens[:, None], text)[0][:, 0]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        prefix: Tensor | None = None,
        num_tokens: int | None = None,
        samples: int = 1,
        guidance: float | None = None,
        sample: bool = True,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        replacement: bool = False,
        seed: int = 0,
    ) -> Sampled:
        """Continue each prompt's prefix to `num_tokens` tokens: the baseline, without any search.

        prefix: Int64[B, P], by default empty. samples: sequences a prompt, which differ in the last
        token only, since SoTo branches there; for independent ones repeat the prompt. guidance: the
        scale s of u + s (c - u), where c and u are the logits with the prompt and with the empty
        text; None is the checkpoint's own. sample=False takes the likeliest tokens, whatever
        temperature, top_k and top_p (see `filtered`). replacement: whether the same last token may
        be drawn again for a prompt.

        Log-probabilities are of what was drawn from: guided and, if sampled, tempered and filtered.
        """
        check_filters(temperature, top_k, top_p)
        scale = self.guidance if guidance is None else finite_number("guidance", guidance, 0)
        total = num_tokens or self.num_tokens
        total = whole_number("num_tokens", total, 1, self.num_tokens)
        samples = whole_number("samples", samples, 1, self.vocab_size)
        empty = torch.empty(len(prompts), 0, dtype=torch.int64)
        tokens = self.check(empty if prefix is None else prefix, total)
        if len(tokens) != len(prompts):
            raise InputError(f"{len(prompts)} prompts need as many prefixes, not {len(tokens)}.")
        log_probs = torch.zeros(len(prompts), 1)
        if tokens.shape[1] == total:
            return Sampled(
                tokens.repeat_interleave(samples, 0), log_probs.repeat(1, samples).flatten()
            )
        text = self.text_states(prompts, scale)
        passes = len(text.mask) // len(prompts)  # conditional, unconditional, or both
        generator = torch.Generator().manual_seed(seed)
        past, unread = None, tokens
        while tokens.shape[1] < total:
            logits, past = self.network(unread.repeat(passes, 1)[:, None], text, past, last=True)
            logits = guided(logits.view(passes, len(prompts), -1), scale).cpu()  # [B, V]
            count = samples if tokens.shape[1] == total - 1 else 1
            if sample:
                logits = filtered(logits, temperature, top_k, top_p)
                drawn = draw(logits, count, replacement, generator)
            else:
                drawn = logits.topk(count, dim=1).indices
            log_probs = log_probs + logits.log_softmax(dim=1).gather(1, drawn)  # [B, count]
            unread = drawn.to(self.device).reshape(-1, 1)
            tokens = torch.cat([tokens.repeat_interleave(count, 0), unread], dim=1)
        return Sampled(tokens, log_probs.flatten())

    def text_states(self, prompts: Sequence[str], scale: float) -> TextStates:
        """What the network reads of the prompts, and then of as many empty texts, for guidance.

        At scale 1 only the prompts are needed, at 0 only the empty texts.
        """
        texts = []
        if scale != 0:
            texts.append(self.encode_text(prompts))
        if scale != 1:
            hidden, mask = self._no_text
            texts.append((hidden.expand(len(prompts), -1, -1), mask.expand(len(prompts), -1)))
        longest = max(mask.shape[1] for _, mask in texts)
        padding = [longest - mask.shape[1] for _, mask in texts]
        return self._read_text(
            torch.cat([F.pad(x, (0, 0, 0, n)) for (x, _), n in zip(texts, padding, strict=True)]),
            torch.cat([F.pad(m, (0, n)) for (_, m), n in zip(texts, padding, strict=True)]),
        )

    @cached_property
    def _no_text(self) -> tuple[Tensor, Tensor]:
        return self.encode_text([""])

    @torch.inference_mode()
    def _read_text(self, hidden: Tensor, mask: Tensor) -> TextStates:
        if hidden.ndim != 3 or hidden.shape[2] != self.config.text_dim:
            raise InputError(
                f"This FlexAR reads text of shape [B, S, {self.config.text_dim}], not "
                f"{list(hidden.shape)}: use the hidden states of {self.config.text_encoder}."
            )
        if mask.shape != hidden.shape[:2] or not bool(mask.bool().any(dim=1).all()):
            raise InputError(
                f"The text mask {list(mask.shape)} must have the shape {list(hidden.shape[:2])}, "
                "and one token or more that is no padding in each row."
            )
        weight = self.network.text_encoder["mlp"].fc1.weight
        return self.network.read_text(hidden.to(weight), mask.to(weight.device))

    def check(self, tokens: Tensor, longest: int) -> Tensor:
        """`tokens` on the model's device, or InputError where it cannot take them."""
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError(
                f"Tokens must be whole numbers of shape [B, P], not {tokens.dtype} of shape "
                f"{list(tokens.shape)}."
            )
        if tokens.shape[1] > longest:
            raise InputError(
                f"A prefix of {tokens.shape[1]} tokens is too long: here this FlexAR, which knows "
                f"{self.num_tokens} tokens, takes at most {longest}."
            )
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if len(outside):
            raise InputError(
                f"Token {int(outside[0])} is not in FlexAR's codebook: it goes from 0 to "
                f"{self.vocab_size - 1}."
            )
        return tokens.to(self.device, torch.int64)


def _uninitialised(
    config: FlexARConfig, tensors: Container[str], device: torch.device | str, dtype: torch.dtype
) -> FlexARNetwork:
    """A network on the device whose billions of weights were not made up to be replaced."""
    with torch.device("meta"):
        network = FlexARNetwork(config, tensors)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            real = torch.empty(weight.shape, dtype=dtype, device=device)
            setattr(module, name, torch.nn.Parameter(real, requires_grad=False))
    return network


class FlexARPrior(Prior):
    """FlexAR as a prior: p(next token | prefix, prompt), guided.

    Before `condition` it is the prior of the empty prompt. Keys and values of the prefixes that
    were last asked for are kept, so that a search's next step reads one token more of each beam
    and not all of them; the text's are shared by all beams.
    """

    name = "flexar"

    def __init__(
        self,
        flexar: FlexAR,
        guidance: float | None = None,
        prompt: str = "",
        max_past_bytes: int = 4 * 2**30,
    ) -> None:
        """guidance: the scale s of u + s (c - u), from 0; None is the checkpoint's own.
        max_past_bytes: what is kept of prefixes; more of them are read from the start again."""
        self.flexar, self.prompt, self.max_past_bytes = flexar, prompt, max_past_bytes
        self.guidance = flexar.guidance
        if guidance is not None:
            self.guidance = finite_number("guidance", guidance, 0)
        self.vocab_size, self.num_tokens = flexar.vocab_size, flexar.num_tokens
        self._past: Past | None = None
        self._read: Tensor = torch.empty(0, 0, dtype=torch.int64)  # whose past it is, on the CPU

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, folder: Path | str | None = None) -> FlexARPrior:
        """folder: of FlexAR's own files, or its repository on the hub."""
        if folder is None:
            raise InputError("The flexar prior needs a model: write flexar:FOLDER or flexar-113m.")
        return cls(FlexAR.from_pretrained(folder, tokenizer.device))

    def condition(self, prompt: str, similarity: Callable[[Tensor], Tensor]) -> FlexARPrior:
        return FlexARPrior(self.flexar, self.guidance, prompt, self.max_past_bytes)

    def with_guidance(self, scale: float) -> FlexARPrior:
        return FlexARPrior(self.flexar, scale, self.prompt, self.max_past_bytes)

    def options(self) -> dict[str, Any]:
        return {"guidance": self.guidance, "fingerprint": self.flexar.fingerprint}

    @cached_property
    def _text(self) -> TextStates:
        return self.flexar.text_states([self.prompt], self.guidance)

    @torch.inference_mode()
    def log_probs(self, prefixes: Tensor) -> Tensor:
        tokens = self.flexar.check(prefixes, self.num_tokens - 1)
        attention = self.flexar.config.self_attention
        numbers = 2 * self.flexar.config.blocks * attention.key_heads * attention.head_dim
        size = self._text.pairs[0][0].element_size() * len(self._text.mask) * numbers
        rows = max(1, self.max_past_bytes // (size * (tokens.shape[1] + 1)))
        if rows < len(tokens):
            parts = [self._logits(part, last=True)[0] for part in tokens.split(rows)]
            return torch.cat(parts)[:, 0].log_softmax(dim=1)
        read = tokens.cpu()
        past = self._recall(read)
        unread = tokens if past is None else tokens[:, past.length - 1 :]
        logits, self._past = self._logits(unread, past, last=True)
        self._read = read
        return logits[:, 0].log_softmax(dim=1)

    @torch.inference_mode()
    def sequence_log_prob(self, tokens: Tensor) -> Tensor:
        tokens = self.flexar.check(tokens, self.num_tokens)
        rows = max(1, _MAX_LOGITS // (self.vocab_size * max(1, tokens.shape[1])))
        return torch.cat([self._sequence_log_prob(part) for part in tokens.split(rows)])

    def _sequence_log_prob(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] == 0:
            return torch.zeros(tokens.shape, device=tokens.device)
        log_p = self._logits(tokens[:, :-1])[0].log_softmax(dim=2)  # [N, k, V]
        return log_p.gather(2, tokens[:, :, None])[:, :, 0]

    def _logits(
        self, unread: Tensor, past: Past | None = None, last: bool = False
    ) -> tuple[Tensor, Past]:
        """Guided logits Float32[B, T, V] after Int64[B, P], of one pass over all that is new."""
        passes = len(self._text.mask)
        logits, past = self.flexar.network(unread.expand(passes, -1, -1), self._text, past, last)
        return guided(logits, self.guidance), past

    def _recall(self, tokens: Tensor) -> Past | None:
        """What is remembered of these prefixes, but for the last token of each at least.

        Tries the longest beginning that all of them share with rows read before; in a search these
        are their parents.
        """
        if self._past is None:
            return None
        asked, read = tokens.numpy(), self._read.numpy()
        for length in range(min(tokens.shape[1] - 1, read.shape[1]), -1, -1):
            places = {row.tobytes(): i for i, row in enumerate(read[:, :length])}
            index = [places.get(row.tobytes()) for row in asked[:, :length]]
            if None not in index:
                rows = torch.tensor(index, device=self.flexar.device)
                return self._past.rows(rows, length + 1)
        return None
