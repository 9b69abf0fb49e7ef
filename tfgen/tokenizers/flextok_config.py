"""What a FlexTok checkpoint says of itself: its sizes and switches, read and checked.

Published sizes and the layout: FlexTok (arXiv 2502.13967) and its checkpoints. What may stand in a
config at all is in `flextok_options`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfgen.errors import InputError, unknown
from tfgen.tokenizers.flextok_options import (
    FLOAT32,
    MODULES,
    OPTIONAL,
    ORDERED,
    VAE_OPTIONS,
    check_options,
    refusal,
)

SECTIONS = {name.partition(".")[0] for name in MODULES}
IMAGE_SIZE = 256  # the published models'; a larger position table is cropped to it
VAE: dict[str, Any] = {  # of the published models, whose config does not tell it
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
VAE_SCALING = 0.18215  # diffusers' default, where neither config has a scaling factor
SIZES = {  # name: depths of encoder and decoder; a trunk is 64 x depth wide
    "d12-d12": (12, 12),
    "d18-d18": (18, 18),
    "d18-d28": (18, 28),
}
SEARCH_DEFAULTS: dict[str, Any] = {
    "prior": "uniform",
    "verifier": "ViT-H-14/laion2b_s32b_b79k",
    "beam": 16,
    "candidates": 32,
    "tokens": 8,
    "schedule": "one",
}
"""Of every FlexTok: at most 8 x 512 decodes. The verifier is the best open_clip model with which
the largest decoder stays below 16 GB of GPU memory (README, "Photographs, with FlexTok")."""


@dataclass(frozen=True)
class Trunk:
    """A stack of transformer blocks."""

    dim: int
    depth: int
    head_dim: int = 64

    @property
    def hidden(self) -> int:
        """Width of the gated MLP: two thirds of 4 x dim, rounded down (4778 for 1792)."""
        return 2 * (4 * self.dim) // 3


@dataclass(frozen=True)
class FlexTokConfig:
    """The numbers that a FlexTok is built from."""

    encoder: Trunk
    decoder: Trunk
    num_tokens: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    channels: int = 16
    """Of the VAE's latents."""

    patch: int = 2
    """Side of a patch, in latent pixels."""

    encoder_table: tuple[int, int] = (16, 16)
    """Height and width of the stored position table, in patches."""

    decoder_table: tuple[int, int] = (16, 16)
    max_timestep: float = 1000.0
    single_null_token: bool = False
    """The null condition is one register instead of num_tokens equal ones."""

    scaling_factor: float = 0.88
    vae_float32: bool = True
    """The VAE stays in float32 whatever the decoder computes in; so it does in the published code,
    even under autocast. False, where the config's dtype_override is null or bfloat16: it computes
    in the decoder's dtype, by default bfloat16 on CUDA, whatever the engine. With null the
    published code computes in float32, or in bfloat16 under autocast. In bfloat16 the pictures are
    0.8 to 0.9 of 255 levels, in the mean, from those of float32 (d12 and d18-d28, random weights;
    `vae_error_levels` in benchmarks/results/decoder_throughput-*.json)."""

    vae: Mapping[str, Any] = field(default_factory=lambda: dict(VAE))
    """The arguments of diffusers' AutoencoderKL that differ between models."""

    @property
    def vae_factor(self) -> int:
        """Side of a picture over the side of its latents."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def grid(self) -> int:
        """Side of the square of patches."""
        most = IMAGE_SIZE // (self.vae_factor * self.patch)
        return min(*self.encoder_table, *self.decoder_table, most)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.patch * self.grid
        return self.channels, side, side

    @property
    def image_size(self) -> int:
        return self.vae_factor * self.patch * self.grid


def published(size: str) -> FlexTokConfig:
    """The config of a published size: "d12-d12", "d18-d18" or "d18-d28"."""
    if size not in SIZES:
        raise unknown("published FlexTok size", size, SIZES)
    encoder, decoder = (Trunk(64 * depth, depth) for depth in SIZES[size])
    return FlexTokConfig(encoder, decoder)


def parse_header(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """The config in a safetensors header: each value is the Python repr of one section, or a text,
    such as the name of the library that wrote the file.

    Raises InputError where the value of a section is no Python literal.
    """
    config = {}
    for name, text in metadata.items():
        if name == "format":  # safetensors' own: for which framework the file is
            continue
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            if name in SECTIONS:
                raise InputError(
                    f"{source!r} has a header whose entry {name!r} is no Python literal: "
                    "get the file again."
                ) from None
            value = text
        # Whatever library writes numbers there, a section is a dictionary.
        config[name] = value if name in SECTIONS or isinstance(value, Mapping) else text
    return config


def is_flextok(config: Mapping[str, Any]) -> bool:
    """Whether this is the config of a FlexTok at all."""
    return {"vae", "encoder", "decoder", "regularizer"} <= set(config)


def read_config(
    config: Mapping[str, Any], source: str, vae: Mapping[str, Any] | None = None
) -> FlexTokConfig:
    """Check a checkpoint's config and read its numbers.

    source: the file it is from, for messages. vae: the contents of a vae_config.json beside it,
    where the VAE is not the published one. Raises InputError for a module or an option that is
    unknown, missing or set to what is not implemented, by name.
    """
    modules = _modules(config, source)
    for name, (kind, rules) in MODULES.items():
        if name in modules:
            check_options(modules[name], kind, rules, name, source)
    order = [name for name in config["decoder"]["module_dict"] if name in ORDERED]
    if order != list(ORDERED):
        raise InputError(
            f"The FlexTok config in {source!r} runs its decoder's modules in the order "
            f"{', '.join(order)}, but tfgen implements the order {', '.join(ORDERED)}."
        )
    vae = {key: value for key, value in (vae or {}).items() if not key.startswith("_")}
    check_options(vae, None, VAE_OPTIONS, "vae_config", source)
    return _Reader(modules, vae, source).read()


def _modules(config: Mapping[str, Any], source: str) -> dict[str, Mapping[str, Any]]:
    """The leaf modules of a config by dotted name, all of them known and none missing."""
    if not is_flextok(config):
        raise InputError(
            f"{source!r} describes no FlexTok: its config lacks some of the sections vae, encoder, "
            "decoder and regularizer: give the files of a FlexTok checkpoint."
        )
    modules: dict[str, Any] = {}
    for section, value in config.items():
        if section in ("encoder", "decoder"):
            inner = value.get("module_dict") if isinstance(value, Mapping) else None
            if not isinstance(inner, Mapping):
                raise refusal(source, section, value, "a dictionary with a module_dict")
            for option in set(value) - {"module_dict", "_target_"}:
                raise refusal(source, f"{section}.{option}", value[option])
            modules |= {f"{section}.{name}": module for name, module in inner.items()}
        elif section in SECTIONS or not isinstance(value, str):
            modules[section] = value
    for name, module in modules.items():
        if name not in MODULES or not isinstance(module, Mapping):
            raise refusal(source, name, module)
    missing = [name for name in MODULES if name not in modules and name not in OPTIONAL]
    if missing:
        raise InputError(
            f"The FlexTok config in {source!r} has no {', '.join(missing)}: get the file again."
        )
    return modules


class _Reader:
    """Reads numbers out of checked modules; what is no sensible number is refused by name."""

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, Any]],
        vae: Mapping[str, Any],
        source: str,
    ) -> None:
        self.modules, self.source = {**modules, "vae_config": vae}, source

    def read(self) -> FlexTokConfig:
        config = FlexTokConfig(
            encoder=self.trunk("encoder.enc_transformer"),
            decoder=self.trunk("decoder.dec_transformer"),
            num_tokens=self.number("encoder.enc_register_module", "n_max"),
            levels=self.numbers("regularizer", "levels", least=2),
            channels=self.number("encoder.enc_patch_emb", "channels_in"),
            patch=self.numbers("encoder.enc_patch_emb", "patch_sizes", 2)[0],
            encoder_table=self.numbers("encoder.enc_posemb_module", "max_sizes", 2),
            decoder_table=self.numbers("decoder.dec_patches_posemb_module", "max_sizes", 2),
            max_timestep=self.positive("decoder.dec_time_embedder", "max_timestep", 1000.0),
            single_null_token=self.modules["decoder.dec_latent_dropout"].get(
                "replace_with_single_token", False
            ),
            scaling_factor=self.scaling_factor(),
            vae_float32=self.modules["vae"].get("dtype_override", "fp32") in FLOAT32,
            vae=self.vae(),
        )
        self.agree(config)
        return config

    def agree(self, config: FlexTokConfig) -> None:
        """What is told more than once must be told alike."""
        patches = (config.patch, config.patch)
        told = [
            ("encoder.enc_register_module", "n_eval", config.num_tokens),
            ("decoder.dec_registers_posemb_module", "max_sizes", (config.num_tokens,)),
            ("decoder.dec_noise_patch_emb", "channels_in", config.channels),
            ("decoder.dec_to_patches", "channels_out", config.channels),
            ("vae", "latent_channels", config.channels),
            ("vae_config", "latent_channels", config.channels),
            ("pipeline", "out_channels", config.channels),
            ("encoder.enc_to_latents", "dim_out", len(config.levels)),
            ("decoder.dec_from_latents", "dim_in", len(config.levels)),
            ("encoder.enc_patch_emb", "patch_sizes", patches),
            ("decoder.dec_noise_patch_emb", "patch_sizes", patches),
            ("decoder.dec_to_patches", "patch_sizes", patches),
            *((name, "dim", config.encoder.dim) for name in MODULES if name.startswith("enc")),
            *((name, "dim", config.decoder.dim) for name in MODULES if name.startswith("dec")),
        ]
        for name, option, right in told:
            found = self.modules.get(name, {}).get(option)
            found = tuple(found) if isinstance(found, list) else found
            if found is not None and found != right:
                raise refusal(self.source, f"{name}.{option}", found, f"{right!r} here")

    def trunk(self, name: str) -> Trunk:
        dim, depth = self.number(name, "dim"), self.number(name, "depth")
        head_dim = self.number(name, "head_dim", 64)
        if dim % head_dim:
            raise refusal(self.source, f"{name}.head_dim", head_dim, f"divisors of {dim}")
        return Trunk(dim, depth, head_dim)

    def vae(self) -> dict[str, Any]:
        if not self.modules["vae_config"]:
            return dict(VAE)
        return {
            "block_out_channels": self.numbers("vae_config", "block_out_channels"),
            "layers_per_block": self.number("vae_config", "layers_per_block", 1),
            "norm_num_groups": self.number("vae_config", "norm_num_groups", 32),
        }

    def scaling_factor(self) -> float:
        """The config's; where that is null or 0, the VAE's own."""
        if self.modules["vae"].get("scaling_factor"):
            return self.positive("vae", "scaling_factor")
        hub_path = self.modules["vae"].get("hf_hub_path")
        if hub_path and "scaling_factor" not in self.modules["vae_config"]:
            raise InputError(
                f"The FlexTok config in {self.source!r} takes its scaling_factor from the VAE "
                f"{hub_path!r}: put that model's config.json beside it as vae_config.json."
            )
        return self.positive("vae_config", "scaling_factor", VAE_SCALING)

    def number(self, name: str, option: str, default: int | None = None) -> int:
        value = self.modules[name].get(option, default)
        if type(value) is not int or value < 1:
            raise refusal(self.source, f"{name}.{option}", value, "whole numbers from 1 up")
        return value

    def numbers(
        self, name: str, option: str, count: int | None = None, least: int = 1
    ) -> tuple[int, ...]:
        values = self.modules[name].get(option)
        if (
            not isinstance(values, (list, tuple))
            or not values
            or not all(type(value) is int and value >= least for value in values)
            or (count is not None and len(values) != count)
        ):
            known = f"{count or 'a list of'} whole numbers from {least} up"
            raise refusal(self.source, f"{name}.{option}", values, known)
        return tuple(values)

    def positive(self, name: str, option: str, default: float | None = None) -> float:
        value = self.modules[name].get(option, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise refusal(self.source, f"{name}.{option}", value, "positive numbers")
        return float(value)
