"""The VAE of a FlexTok: diffusers' AutoencoderKL, pictures to latents and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tfgen.errors import TfgenError
from tfgen.tokenizers.flextok_config import FlexTokConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

ROWS = 8  # pictures at a time: at 256 x 256 one needs some 250 MB of activations


class VAE(nn.Module):
    """Pictures Float[N, 3, H, W] in [-1, 1] <-> latents Float[N, C, H / 8, W / 8].

    Latents are scaled to unit variance by the config's scaling factor. Computes in its weights'
    dtype and answers in float32.
    """

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.scaling_factor = config.scaling_factor
        self.vae = _autoencoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.quant_conv.weight.dtype

    def decode(self, latents: Tensor) -> Tensor:
        """-> pictures, nominally in [-1, 1], not clamped."""
        z = (latents / self.scaling_factor).to(self.dtype)
        return torch.cat([self.vae.decode(part).sample for part in z.split(ROWS)]).float()

    def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """-> latents: the posterior's mean, plus eps times its standard deviation where eps (of the
        latents' shape) is given."""
        latents = []
        for start in range(0, len(images), ROWS):
            rows = slice(start, start + ROWS)
            posterior = self.vae.encode(images[rows].to(self.dtype)).latent_dist
            z = posterior.mean.float()
            if eps is not None:
                z = z + posterior.std.float() * eps[rows].to(z)
            latents.append(self.scaling_factor * z)
        return torch.cat(latents)


def _autoencoder(config: FlexTokConfig) -> AutoencoderKL:
    """With random weights."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise TfgenError(
            f"FlexTok needs the package diffusers for its VAE ({error}): "
            'pip install "tfgen[flextok]".'
        ) from error
    blocks = len(config.vae["block_out_channels"])
    return AutoencoderKL(
        **config.vae,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=config.channels,
        sample_size=config.image_size,
    )
