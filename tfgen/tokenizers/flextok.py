"""FlexTok: 256 x 256 photographs <-> up to 256 ordered tokens, decoded by a flow from noise.

A prefix conditions a transformer that turns noise into latents in some twenty steps; a VAE turns
latents into pictures. Source: "FlexTok: Resampling Images into 1D Token Sequences of Flexible
Length" (arXiv 2502.13967). Computes what its published code computes; `tests/vectors/flextok_tiny`
holds that code's results.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tfgen import hub
from tfgen.errors import InputError, TfgenError, whole_number
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.flextok_cost import evaluation_flops, vae_flops
from tfgen.tokenizers.flextok_fsq import FlexTokFSQ
from tfgen.tokenizers.flextok_loading import Networks, file_fingerprint, load_networks
from tfgen.tokenizers.flextok_model import Modulation
from tfgen.tokenizers.flextok_registers import Registers, null_registers, prefix_registers
from tfgen.tokenizers.flextok_sampler import Sampling, sample

Guidance = float | Callable[[float], float]
DRAFT = Sampling(steps=4, guidance=1.0)


class FlexTok(Tokenizer):
    """A FlexTok on one device.

    Noise: a decode starts from one latent noise, N(0, 1) of shape [1, C, H, W], the same for all
    prefixes. It is drawn in float32 by a torch.Generator on the CPU seeded with the seed of the
    search (`for_seed`; 0 before that), so that the CPU and CUDA start from the same numbers.

    Precision: the blocks of the decoder compute in `dtype` on a float32 residual stream; norms,
    embeddings, heads, the time, guidance and the steps are float32, and so are the encoder, whose
    output is rounded to tokens, and the VAE, unless the checkpoint's config says otherwise.

    Two shortcuts leave out work that is redundant, and change results by rounding only; both can
    be switched off. `collapse`: equal registers are computed once (`flextok_registers`).
    `share_first`: the first unconditional velocity, which depends on the noise alone, is computed
    once for all samples, and for the tokenizer's own noise once for all decodes.
    """

    name = "flextok"

    def __init__(self, networks: Networks, *, folder: Path | None = None) -> None:
        """folder: where the weights are from; `fingerprint` reads it."""
        config = networks.config
        self.config, self.networks, self.folder = config, networks, folder
        self.encoder, self.decoder, self.vae = networks.encoder, networks.decoder, networks.vae
        self.fsq = FlexTokFSQ(config.levels)
        self.vocab_size, self.num_tokens = self.fsq.vocab_size, config.num_tokens
        self.image_size = self.render_size = config.image_size
        self.sampling = Sampling()
        self.collapse = self.share_first = True
        self._modulations: dict[int, Modulation] = {}  # by number of steps
        self._start(0)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> FlexTok:
        """Load a checkpoint: a local folder, a name such as "flextok-d12-in1k", or a repository of
        the Hugging Face hub, "OWNER/NAME".

        dtype: of the decoder's blocks, torch.float32 or torch.bfloat16; None: bfloat16 on CUDA and
        float32 elsewhere. Raises InputError for files that are missing, damaged or not understood,
        TfgenError where they cannot be downloaded or diffusers is not installed.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        if dtype not in (torch.float32, torch.bfloat16):
            raise InputError(
                f"FlexTok computes in torch.float32 or torch.bfloat16, not in {dtype}: "
                "choose one of these."
            )
        folder = hub.locate(str(path_or_id))
        return cls(load_networks(folder, device, dtype), folder=folder)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> FlexTok:
        """`from_pretrained` with the default dtype."""
        return cls.from_pretrained(folder, device)

    @property
    def device(self) -> torch.device:
        return self.decoder.mask_token.device

    @property
    def decode_rows(self) -> int:
        """64 fill a GPU: 16,000 rows of the transformer in each pass."""
        return 8 if self.device.type == "cpu" else 64

    @property
    def draft_cost(self) -> float:
        """What a draft costs in decodes, by FLOPs: fewer evaluations of the decoder, and the VAE
        either way. Of 20 guided steps with a published decoder of 12, 18 or 28 blocks: 0.33, 0.19
        or 0.13 with `collapse`, 0.23, 0.15 or 0.12 without."""
        registers = 1 if self.collapse else self.num_tokens  # few more, of short prefixes
        evaluation, vae = evaluation_flops(self.config, registers), vae_flops(self.config)
        sampling = self.sampling
        evaluations = 2 * sampling.steps if sampling.guided else sampling.steps
        if sampling.guided and self.share_first:
            evaluations -= 1
        return (DRAFT.steps * evaluation + vae) / (evaluations * evaluation + vae)

    def fingerprint(self) -> str:
        """A short hex hash of the checkpoint and of how it is sampled, on any device."""
        if self.networks.fingerprint is None:  # reading 10 GB takes a while, but only once
            if self.folder is None:
                raise TfgenError("This FlexTok was not loaded, so no file has its fingerprint.")
            self.networks.fingerprint = file_fingerprint(self.folder, self.config)
        digest = hashlib.sha256(self.networks.fingerprint.encode())
        scales = [self.sampling.scale(t) for t in self.sampling.times()]
        digest.update(repr((scales, self.sampling.apg)).encode())
        return digest.hexdigest()[:16]

    def for_seed(self, seed: int) -> FlexTok:
        """The same tokenizer with the noise of this seed."""
        whole_number("seed", seed, 0, 2**63 - 1)
        tokenizer = copy.copy(self)
        tokenizer._start(seed)
        return tokenizer

    def _start(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (1, *self.config.latent_shape)
        self.noise = torch.randn(shape, generator=generator).to(self.device)
        self._first: Tensor | None = None  # the unconditional velocity at the noise

    def with_sampling(self, **settings: Any) -> FlexTok:
        """The same tokenizer with another default of steps, guidance or apg."""
        tokenizer = copy.copy(self)
        tokenizer.sampling = replace(self.sampling, **settings)
        return tokenizer

    # Decoding

    @torch.no_grad()
    def velocity(
        self,
        x: Tensor,
        t: float | Tensor,
        tokens: Tensor | None,
        lengths: Tensor | None = None,
        conditional: bool = True,
    ) -> Tensor:
        """The flow's velocity, noise minus data, at latents x Float[N, C, H, W] and time t in
        [0, 1], one for all or Float[N]. -> Float32[N, C, H, W].

        tokens Int64[N, K], of which row i's first lengths[i] count; lengths None: all K. Not
        conditional: the velocity of the null condition, which tokens do not matter to.
        """
        if conditional:
            tokens, lengths = self._prefixes(tokens, lengths)
            codes = self.fsq.to_codes(tokens)
            registers = prefix_registers(self.decoder, codes, lengths, self.collapse)
        else:
            registers = null_registers(self.decoder, self.collapse)
        times = torch.as_tensor(t, dtype=torch.float32, device=self.device).reshape(-1)
        return self._velocity(x.float(), registers, self.decoder.modulation(times))

    @torch.no_grad()
    def decode_latents(
        self,
        tokens: Tensor,
        noise: Tensor | None = None,
        steps: int = 20,
        guidance: Guidance = 7.5,
        apg: bool = True,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Prefixes, Int64[N, K] with lengths Int64[N] or all of length K -> latents
        Float32[N, C, H, W].

        noise: Float[N or 1, C, H, W]; None: the tokenizer's own. steps, guidance, apg: see
        `Sampling`.
        """
        tokens, lengths = self._prefixes(tokens, lengths)
        sampling = Sampling(steps, guidance, apg)
        return self._sample(self.fsq.to_codes(tokens), lengths, noise, sampling)

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """Prefixes, Int64[N, K] with lengths Int64[N] or all of length K -> pictures
        Float32[N, 3, image_size, image_size] in [0, 1].

        noise: as in `decode_latents`. settings: steps, guidance, apg, in place of the defaults.
        Raises InputError for tokens or lengths out of range.
        """
        tokens, lengths = self._prefixes(tokens, lengths)
        sampling = replace(self.sampling, **settings)
        return self.pictures(self._sample(self.fsq.to_codes(tokens), lengths, noise, sampling))

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Code vectors Float[N, k, d] -> pictures; differentiable, through all steps. Each
        evaluation of the decoder is computed again for the gradient, so that memory does not grow
        with the steps times the depth."""
        n, length, _ = embeddings.shape
        lengths = torch.full((n,), length, device=embeddings.device)
        return self.pictures(self._sample(embeddings, lengths, None, self.sampling))

    def draft(self, tokens: Tensor) -> Tensor:
        """`decode` at a tenth of the work: a few steps without guidance."""
        return self.decode(tokens, steps=DRAFT.steps, guidance=DRAFT.guidance)

    def pictures(self, latents: Tensor) -> Tensor:
        """Latents Float32[N, C, H, W] -> pictures Float32[N, 3, image_size, image_size]."""
        return ((self.vae.decode(latents) + 1) / 2).clamp(0, 1)

    def prepare(self, steps: int | None = None) -> None:
        """Compute what decodes from the tokenizer's own noise have in common; otherwise the first
        of them does."""
        self._modulation(replace(self.sampling, steps=steps or self.sampling.steps))
        if self.share_first:
            self._first_unconditional()

    def _sample(
        self, codes: Tensor, lengths: Tensor, noise: Tensor | None, sampling: Sampling
    ) -> Tensor:
        start = self._noise(noise, len(codes))  # [N or 1, C, H, W]
        given = prefix_registers(self.decoder, codes, lengths, self.collapse)
        null = null_registers(self.decoder, self.collapse)
        table = self._modulation(sampling)

        def conditional(x: Tensor, step: int) -> Tensor:
            return self._velocity(x, given, table[step : step + 1])

        def unconditional(x: Tensor, step: int) -> Tensor:
            if step == 0 and self.share_first and len(start) == 1:
                return self._first_unconditional() if noise is None else at_start()
            return self._velocity(x, null, table[step : step + 1])

        def at_start() -> Tensor:
            return self._velocity(start, null, table[:1])

        return sample(start.expand(len(codes), -1, -1, -1), conditional, unconditional, sampling)

    def _velocity(self, x: Tensor, registers: Registers, modulation: Modulation) -> Tensor:
        rows = registers.rows.expand(len(x), -1, -1)
        if torch.is_grad_enabled() and (x.requires_grad or rows.requires_grad):
            arguments = (x, rows, registers.key_bias, modulation)
            return checkpoint(self.decoder, *arguments, use_reentrant=False)
        return self.decoder(x, rows, registers.key_bias, modulation)

    def _first_unconditional(self) -> Tensor:
        if self._first is None:
            with torch.inference_mode(False), torch.no_grad():  # for gradients to pass by later
                null = null_registers(self.decoder, self.collapse)
                modulation = self.decoder.modulation(torch.ones(1, device=self.device))
                self._first = self._velocity(self.noise, null, modulation)
        return self._first

    def _modulation(self, sampling: Sampling) -> Modulation:
        """Of all steps; some 50 MB for the largest decoder and 20 steps."""
        if sampling.steps not in self._modulations:
            with torch.inference_mode(False), torch.no_grad():
                times = torch.tensor(sampling.times(), device=self.device)
                self._modulations[sampling.steps] = self.decoder.modulation(times)
        return self._modulations[sampling.steps]

    # Encoding

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Pictures Float[N, 3, H, W] in [0, 1] -> Int64[N, num_tokens].

        Pictures of another size are resized. sample_posterior: add the VAE's noise to its latents,
        as the published code does, drawn by a generator on the CPU (None: seed 0); otherwise
        tokens depend on the picture alone.
        """
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        eps = None
        if sample_posterior:
            generator = generator or torch.Generator().manual_seed(0)
            eps = torch.randn(len(images), *self.config.latent_shape, generator=generator)
        z = self.encoder(self.vae.encode(2 * images.float() - 1, eps))
        return self.fsq.to_tokens(self.fsq.quantise(z))

    def code_embeddings(self) -> Tensor:
        return self.fsq.to_codes(torch.arange(self.vocab_size, device=self.device))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.fsq.to_codes(tokens)

    # Checking

    def _prefixes(self, tokens: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens on the device and the length of each row; InputError where they are no prefixes.

        The range of tokens is checked although it makes the host wait for the device: a token
        outside would silently be another one, and one wait is nothing beside a decode.
        """
        tokens = tokens.to(self.device)
        if tokens.device.type != "meta":
            self.check(tokens)
        n, longest = tokens.shape
        if lengths is None:
            return tokens, torch.full((n,), longest, device=self.device)
        if lengths.shape != (n,) or lengths.is_floating_point():
            raise InputError(
                f"lengths must be whole numbers of shape [{n}], one a row of tokens, not "
                f"{lengths.dtype} of shape {list(lengths.shape)}."
            )
        outside = lengths[(lengths < 1) | (lengths > longest)]
        if len(outside):
            raise InputError(
                f"A prefix length is {int(outside[0])}: with {longest} tokens a row it must be "
                f"from 1 to {longest}."
            )
        return tokens, lengths.to(self.device)

    def _noise(self, noise: Tensor | None, n: int) -> Tensor:
        if noise is None:
            return self.noise
        if noise.shape not in ((1, *self.config.latent_shape), (n, *self.config.latent_shape)):
            shape = ", ".join(map(str, self.config.latent_shape))
            raise InputError(
                f"noise must be of shape [1, {shape}] or [{n}, {shape}], not {list(noise.shape)}."
            )
        return noise.to(self.device, torch.float32)
