"""Checks of a FlexTok against what the reference implementation computed; each raises
AssertionError. Arrays and tolerances: tests/vectors/flextok_tiny/README.md."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tfgen.tokenizers import flextok_guidance, flextok_model
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_registers import null_registers, prefix_registers

FOLDER = Path(__file__).parents[1] / "vectors" / "flextok_tiny"
DEBUG, VELOCITY, LATENT, PICTURE = 5e-6, 1e-5, 3e-5, 3e-5  # largest absolute differences
ENCODER = 1e-5
T = 0.7  # of the arrays for one time, which is vel_t[1]
GROUPS = (  # samples decoded together: all; those with a prefix of at most 8 of 16; one by one
    [0, 1, 2, 3, 4],
    [0, 1, 2, 3],
    *([sample] for sample in range(5)),
)


class Vectors:
    """The arrays; remembers which were asked for."""

    def __init__(self) -> None:
        with np.load(FOLDER / "vectors.npz") as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file}
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return self.arrays[name]


VECTORS = Vectors()


@cache
def _loaded(dtype: torch.dtype) -> FlexTok:
    return FlexTok.from_pretrained(FOLDER, dtype=dtype)


def model(collapse: bool = True, dtype: torch.dtype = torch.float32) -> FlexTok:
    """The tiny checkpoint, loaded once."""
    tokenizer = copy.copy(_loaded(dtype))
    tokenizer.collapse = collapse
    tokenizer._modulations = {}
    tokenizer._first = None
    return tokenizer


def close(found: Tensor, name: str, tolerance: float, rows: Any = slice(None)) -> None:
    expected = VECTORS[name][rows]
    assert found.shape == expected.shape, f"{name}: {found.shape} instead of {expected.shape}"
    difference = (found.double() - expected.double()).abs().max().item()
    assert difference <= tolerance, f"{name} differs by {difference:.2e}"


def prefixes(group: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens, cut to the longest prefix of these samples, and their lengths."""
    lengths = VECTORS["prefix_lens"][group]
    return VECTORS["token_ids"][group, : lengths.max()], lengths


def check_codes(tokenizer: FlexTok) -> None:
    close(tokenizer.embed(VECTORS["fsq_indices"]), "fsq_embeddings", 0)
    quantised = tokenizer.fsq.quantise(VECTORS["fsq_pre_z"])
    close(quantised, "fsq_pre_quant", 0)
    close(tokenizer.fsq.to_tokens(quantised), "fsq_pre_tokens", 0)


@torch.no_grad()
def check_time(tokenizer: FlexTok) -> None:
    t = VECTORS["vel_t"]
    close(flextok_model.time_features(t, 1000.0), "timefeat_max1000", DEBUG)
    close(flextok_model.time_features(t, 1.0), "timefeat_max1", DEBUG)
    close(tokenizer.decoder.embed_time(t), "dbg_time_embedding", DEBUG)


@torch.no_grad()
def check_trunk(tokenizer: FlexTok) -> None:
    """What enters and leaves the decoder's blocks, row by row."""
    decoder, collapse = tokenizer.decoder, tokenizer.collapse
    null = null_registers(decoder, collapse).rows
    close(null.expand(1, tokenizer.num_tokens, -1), "dbg_registers_in_uncond", DEBUG)
    patches = decoder.embed_patches(VECTORS["vel_x"][:2])
    close(patches, "dbg_patches_in", DEBUG)
    blocks = decoder.modulation(torch.tensor([T])).blocks
    for sample in range(5):
        tokens, lengths = prefixes([sample])
        registers = prefix_registers(decoder, tokenizer.embed(tokens), lengths, collapse)
        whole = _spread(registers.rows, tokenizer.num_tokens)
        close(whole, "dbg_registers_in_cond", DEBUG, [sample])
        if sample < 2:
            rows = slice(sample, sample + 1)
            out = decoder.trunk(patches[rows], registers.rows, registers.key_bias, blocks)
            whole = _spread(out, patches.shape[1] + tokenizer.num_tokens)
            close(whole, "dbg_trunk_out", DEBUG, [sample])


def _spread(rows: Tensor, size: int) -> Tensor:
    """The last row stands for all that are left out."""
    return torch.cat([rows, rows[:, -1:].expand(-1, size - rows.shape[1], -1)], dim=1)


def check_velocities(tokenizer: FlexTok, groups: tuple[list[int], ...] = GROUPS) -> None:
    for group in groups:
        x, (tokens, lengths) = VECTORS["vel_x"][group], prefixes(group)
        for i, t in enumerate(VECTORS["vel_t"]):
            close(tokenizer.velocity(x, t, tokens, lengths), "vel_cond", VELOCITY, (i, group))
            null = tokenizer.velocity(x, float(t), None, conditional=False)
            close(null, "vel_uncond", VELOCITY, (i, group))
        mixed = tokenizer.velocity(x, VECTORS["vel_mixed_t"][group], tokens, lengths)
        close(mixed, "vel_cond_mixed", VELOCITY, group)


def check_single_null_token(tokenizer: FlexTok) -> None:
    """Of a model whose config sets replace_with_single_token."""
    assert tokenizer.config.single_null_token
    found = tokenizer.velocity(VECTORS["vel_x"], T, None, conditional=False)
    close(found, "vel_uncond_single_token", VELOCITY)


def check_guidance() -> None:
    average: Tensor | float = 0.0
    for step in range(3):
        c, u = VECTORS["guid_cond"][step], VECTORS["guid_uncond"][step]
        close(flextok_guidance.classifier_free(c, u, 7.5), "guid_cfg", DEBUG, step)
        guided, average = flextok_guidance.adaptive_projected(c, u, 7.5, average)
        close(guided, "guid_apg", DEBUG, step)


def check_latents(tokenizer: FlexTok, groups: tuple[list[int], ...] = GROUPS[:2]) -> None:
    for group in groups:
        tokens, lengths = prefixes(group)
        one, each = VECTORS["noise"][:1], VECTORS["noise"][group]
        for name, noise, settings in (
            ("lat_apg_4", one, (4, 7.5, True)),
            ("lat_apg_4", one.expand_as(each), (4, 7.5, True)),  # not known to be one noise
            ("lat_cfg_4", one, (4, 7.5, False)),
            ("lat_none_4", one, (4, 1.0, True)),
            ("lat_apg_4_pernoise", each, (4, 7.5, True)),
            ("lat_apg_7_g3", one, (7, 3.0, True)),
            ("lat_cfg_4_schedule", one, (4, lambda t: 1 + 6.5 * t, False)),
        ):
            found = tokenizer.decode_latents(tokens, noise, *settings, lengths=lengths)
            close(found, name, LATENT, group)


@torch.no_grad()
def check_pictures(tokenizer: FlexTok) -> None:
    close(tokenizer.vae.decode(VECTORS["vae_dec_in"]), "vae_dec_out", PICTURE)
    noise = VECTORS["noise"][:1]
    for name, group, apg in (("img_apg_4", [0, 2, 4], True), ("img_cfg_4", [0, 4], False)):
        tokens, lengths = prefixes(group)
        latents = tokenizer.decode_latents(tokens, noise, 4, 7.5, apg, lengths=lengths)
        close(tokenizer.vae.decode(latents), name, PICTURE)
    tokens, lengths = prefixes([0, 2])
    pictures = tokenizer.decode(tokens, lengths, noise=noise, steps=4)
    shown = ((VECTORS["img_apg_4"][:2] + 1) / 2).clamp(0, 1)
    assert (pictures - shown).abs().max() <= PICTURE
    bytes_ = (pictures * 255).byte().permute(0, 2, 3, 1)  # truncated, as the reference does
    close(bytes_, "img_apg_4_u8", 1)


@torch.no_grad()
def check_encoder(tokenizer: FlexTok) -> None:
    images = VECTORS["enc_images"]
    for kind, eps in (("mean", None), ("sampled", VECTORS["enc_posterior_eps"])):
        latents = tokenizer.vae.encode(images, eps)
        close(latents, f"enc_latents_{kind}", ENCODER)
        z = tokenizer.encoder(latents)
        close(z, f"enc_z_{kind}", ENCODER)
        quantised = tokenizer.fsq.quantise(z)
        close(quantised, f"enc_quant_{kind}", 0)
        close(tokenizer.fsq.to_tokens(quantised), f"enc_token_ids_{kind}", 0)
    close(tokenizer.encode((images + 1) / 2), "enc_token_ids_mean", 0)


CHECKS: dict[str, Callable[[FlexTok], None]] = {
    "codes": check_codes,
    "time": check_time,
    "trunk": check_trunk,
    "velocities": check_velocities,
    "guidance": lambda _: check_guidance(),
    "latents": check_latents,
    "pictures": check_pictures,
    "encoder": check_encoder,
}


Config = dict[str, Any]


def write_checkpoint(
    folder: Path,
    *,
    config: Callable[[Config], None] = lambda config: None,
    tensors: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    layout: str = "header",
) -> Path:
    """The tiny checkpoint with its config or tensors edited in place. layout: where the config
    goes, "header" (Python literals), "json" (config.json), or "none"."""
    folder.mkdir()
    state = load_file(FOLDER / "model.safetensors")
    told = json.loads((FOLDER / "config.json").read_text())
    tensors(state)
    config(told)
    header = {name: str(value) for name, value in told.items()} if layout == "header" else None
    save_file(state, folder / "model.safetensors", header)
    if layout == "json":
        (folder / "config.json").write_text(json.dumps(told))
    (folder / "vae_config.json").write_bytes((FOLDER / "vae_config.json").read_bytes())
    return folder


def module(config: dict, name: str) -> dict:
    """A module of a config by its dotted name."""
    section, _, inner = name.partition(".")
    return config[section]["module_dict"][inner] if inner else config[section]


def stored_header() -> dict[str, str]:
    """The strings in the header of the tiny checkpoint, as the reference wrote them."""
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as file:
        return file.metadata()
