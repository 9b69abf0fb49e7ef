"""From a FlexTok checkpoint to its networks.

A checkpoint is a folder with `model.safetensors`, which holds encoder, decoder and VAE, and the
config either in its header (Python literals) or in `config.json`. A `vae_config.json` beside it
describes a VAE that is not the published one. Tensors are read one by one and go straight to their
device and dtype, so that a large checkpoint needs no second copy in memory.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tfgen.errors import InputError
from tfgen.hub import read_json, reading_safetensors, safetensors_metadata
from tfgen.tokenizers.flextok_config import FlexTokConfig, is_flextok, parse_header, read_config
from tfgen.tokenizers.flextok_model import Decoder, Encoder
from tfgen.tokenizers.flextok_vae import VAE

WEIGHTS_FILE, CONFIG_FILE, VAE_FILE = "model.safetensors", "config.json", "vae_config.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LISTED = 20  # tensors named in one error

_NAMES = (  # a tensor's name here, and in the file; the first match counts
    ("encoder.patch_proj.", "encoder.module_dict.enc_patch_emb.patch_proj."),
    ("encoder.positions", "encoder.module_dict.enc_posemb_module.posembs"),
    ("encoder.registers", "encoder.module_dict.enc_register_module.registers"),
    ("encoder.blocks.", "encoder.module_dict.enc_transformer.blocks."),
    ("encoder.to_codes.", "encoder.module_dict.enc_to_latents.proj."),
    ("decoder.from_codes.", "decoder.module_dict.dec_from_latents.proj."),
    ("decoder.register_positions", "decoder.module_dict.dec_registers_posemb_module.posembs"),
    ("decoder.mask_token", "decoder.module_dict.dec_nested_dropout.dropout_mask_token"),
    ("decoder.null_token", "decoder.module_dict.dec_latent_dropout.nullcond"),
    ("decoder.patch_proj.", "decoder.module_dict.dec_noise_patch_emb.patch_proj."),
    ("decoder.positions", "decoder.module_dict.dec_patches_posemb_module.posembs"),
    ("decoder.time_mlp.", "decoder.module_dict.dec_time_embedder.mlp."),
    ("decoder.blocks.", "decoder.module_dict.dec_transformer.blocks."),
    ("decoder.head_modulation.", "decoder.module_dict.dec_to_patches.adaLN_modulation.1."),
    ("decoder.head.", "decoder.module_dict.dec_to_patches.proj."),
    ("vae.vae.", "vae.vae."),
)
_IN_BLOCKS = (
    (r"\.(wq|wk|wv|proj)\.", r".attn.\1."),
    (r"\.(fc1|fc2|fc3)\.", r".mlp.\1."),
    (r"\.modulation\.", ".adaLN_modulation.1."),
)


class Networks(nn.Module):
    """The three networks of a FlexTok, without weights until `load_networks` fills them."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder, self.vae = Encoder(config), Decoder(config), VAE(config)
        self.fingerprint: str | None = None  # of the file they are from, once it was asked for


def load_config(folder: Path) -> FlexTokConfig:
    """The config of a checkpoint folder. Raises InputError where there is none to be understood."""
    weights, source = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    vae = read_json(folder / VAE_FILE) if (folder / VAE_FILE).is_file() else None
    config: dict[str, Any] = parse_header(safetensors_metadata(weights), str(weights))
    if is_flextok(config) or not source.is_file():
        source = weights
    else:
        config = read_json(source)
    return read_config(config, str(source), vae)


def load_networks(folder: Path, device: torch.device, dtype: torch.dtype) -> Networks:
    """The networks of a checkpoint folder, ready to use.

    dtype: of the decoder's blocks, which are nearly all of its work; the encoder, whose output is
    rounded to codes, and everything small stay in float32, and so does the VAE where the config
    says so. Raises InputError for a file that is missing, truncated, pickled, foreign or of
    another model; missing and unexpected tensors are listed.
    """
    config, path = load_config(folder), folder / WEIGHTS_FILE
    with torch.device("meta"):
        networks = Networks(config)
    wanted = {name: _file_name(name) for name in networks.state_dict()}
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        _check_tensors(file, networks, wanted, path)
        tensors = {
            name: _as_stored(name, file.get_tensor(key), config).to(
                device, _dtype(name, config, dtype), copy=True
            )
            for name, key in wanted.items()
        }
    networks.load_state_dict(tensors, assign=True)
    return networks.eval().requires_grad_(False)


def file_fingerprint(folder: Path, config: FlexTokConfig) -> str:
    """A short hex hash of the weights file and what its config means; whatever device or dtype the
    networks are on."""
    digest = hashlib.sha256(repr(config).encode())
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()[:16]


def _file_name(name: str) -> str:
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if ours.endswith("blocks."):
                for pattern, replacement in _IN_BLOCKS:
                    rest = re.sub(pattern, replacement, rest)
            return theirs + rest
    raise KeyError(name)


def _file_shape(name: str, shape: torch.Size, config: FlexTokConfig) -> tuple[int, ...]:
    """Position tables lie in the file channels first, and whole."""
    if name == "decoder.register_positions":
        return (1, 1, shape[1], shape[0])
    if name == "encoder.positions":
        return (1, shape[1], *config.encoder_table)
    if name == "decoder.positions":
        return (1, shape[1], *config.decoder_table)
    return tuple(shape)


def _as_stored(name: str, tensor: Tensor, config: FlexTokConfig) -> Tensor:
    """Position tables as rows [positions, D], cropped to the grid."""
    if name == "decoder.register_positions":
        return tensor[0, 0].T.contiguous()
    if name.endswith(".positions"):
        return tensor[0, :, : config.grid, : config.grid].flatten(1).T.contiguous()
    return tensor


def _dtype(name: str, config: FlexTokConfig, dtype: torch.dtype) -> torch.dtype:
    if name.startswith("decoder.blocks.") or (name.startswith("vae.") and not config.vae_float32):
        return dtype
    return torch.float32


def _check_tensors(file: Any, networks: Networks, wanted: dict[str, str], path: Path) -> None:
    found = set(file.keys())
    faults = [f"{key} is missing" for key in wanted.values() if key not in found]
    faults += [f"{key} is unexpected" for key in sorted(found - set(wanted.values()))]
    for name, tensor in networks.state_dict().items():
        if wanted[name] not in found:
            continue
        entry = file.get_slice(wanted[name])
        shape, right = tuple(entry.get_shape()), _file_shape(name, tensor.shape, networks.config)
        if shape != right:
            faults.append(f"{wanted[name]} is {list(shape)} instead of {list(right)}")
        elif entry.get_dtype() not in DTYPES:
            known = ", ".join(DTYPES)
            faults.append(f"{wanted[name]} is of type {entry.get_dtype()} instead of {known}")
    if faults:
        more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise InputError(
            f"{str(path)!r} does not hold the weights that its config describes: "
            f"{'; '.join(faults[:LISTED])}{more}: use the files that belong together."
        )
