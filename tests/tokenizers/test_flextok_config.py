"""What a FlexTok checkpoint's config decides, what it may say besides, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tokenizers.flextok_checks import (
    FOLDER,
    model,
    module,
    stored_header,
    write_checkpoint,
)
from tfgen.errors import InputError
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_config import (
    SIZES,
    VAE,
    FlexTokConfig,
    parse_header,
    published,
    read_config,
)
from tfgen.tokenizers.flextok_loading import load_config
from tfgen.tokenizers.flextok_options import MODULES

CONFIG = json.loads((FOLDER / "config.json").read_text())


def config_of(
    edit: Callable[[dict], object] = lambda config: None, vae: Any = None
) -> FlexTokConfig:
    """The tiny config, edited, as it is read."""
    config = json.loads(json.dumps(CONFIG))
    edit(config)
    return read_config(config, "here", vae)


# What the config decides


def test_sizes_are_read() -> None:
    config = config_of()
    assert (config.decoder.dim, config.decoder.depth, config.decoder.head_dim) == (64, 2, 32)
    assert config.decoder.hidden == 170
    assert config.levels == (8, 8, 8, 5, 5, 5)
    assert (config.num_tokens, config.latent_shape) == (16, (16, 8, 8))
    assert config.image_size == 64


def test_what_a_config_may_leave_out_has_the_published_default() -> None:
    def leave_out(config: dict) -> None:
        del module(config, "decoder.dec_time_embedder")["max_timestep"]
        for part in ("encoder.enc_transformer", "decoder.dec_transformer"):
            del module(config, part)["head_dim"]
        del config["vae"]["scaling_factor"]

    config = config_of(leave_out, {"block_out_channels": [8, 16, 16, 16], "scaling_factor": 0.5})
    assert config.max_timestep == 1000
    assert config.single_null_token is False
    assert (config.encoder.head_dim, config.decoder.head_dim) == (64, 64)
    assert config.scaling_factor == 0.5  # the VAE's own
    assert config.vae_float32


@pytest.mark.parametrize("factor", [None, 0])
def test_a_scaling_factor_of_nothing_is_the_vaes_own(factor: object) -> None:
    def edit(config: dict) -> None:
        config["vae"]["scaling_factor"] = factor

    assert config_of(edit).scaling_factor == 0.18215
    assert config_of(edit, {"block_out_channels": [8], "scaling_factor": 0.3}).scaling_factor == 0.3


def test_a_vae_from_the_hub_must_tell_its_scaling_factor() -> None:
    with pytest.raises(InputError, match="stabilityai/sdxl-vae.*vae_config.json"):
        config_of(
            lambda c: c["vae"].update(scaling_factor=None, hf_hub_path="stabilityai/sdxl-vae")
        )


def test_the_published_vae_is_assumed_where_none_is_described() -> None:
    assert config_of().vae == VAE
    assert published("d12-d12").vae == VAE
    tiny = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    assert config_of(vae=tiny).vae == tiny | {"block_out_channels": (8, 16)}
    assert config_of(vae=tiny).image_size == 16


def test_max_timestep_is_honoured(tmp_path: Path) -> None:
    def edit(config: dict) -> None:
        module(config, "decoder.dec_time_embedder")["max_timestep"] = 1.0

    tokenizer = FlexTok.from_pretrained(write_checkpoint(tmp_path / "one", config=edit))
    t = torch.tensor([0.4])
    found, expected = tokenizer.decoder.embed_time(t / 1000), model().decoder.embed_time(t)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(tokenizer.decoder.embed_time(t), expected, atol=1e-2)


def test_a_larger_position_table_is_cropped_to_the_published_picture() -> None:
    def edit(config: dict) -> None:
        module(config, "encoder.enc_posemb_module")["max_sizes"] = [32, 32]
        module(config, "decoder.dec_patches_posemb_module")["max_sizes"] = [24, 40]

    config = config_of(edit)
    assert (config.grid, config.image_size) == (16, 256)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_numbers_of_parameters(size: str) -> None:
    """Encoder, decoder, VAE and total in millions: shared/specs/flextok_spec.md, section 1."""
    from tfgen.tokenizers.flextok_loading import Networks

    expected = {
        "d12-d12": (85.4, 172.4, 83.8, 341.7),
        "d18-d18": (287.3, 578.6, 83.8, 949.7),
        "d18-d28": (287.3, 2169.7, 83.8, 2540.9),
    }
    with torch.device("meta"):
        networks = Networks(published(size))
    parts = (networks.encoder, networks.decoder, networks.vae, networks)
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in parts]
    assert counts == pytest.approx(expected[size], abs=0.25)


# Options that cannot change a picture


HARMLESS = [
    ("decoder.dec_latent_dropout", "dropout_prob", 0.5),
    ("decoder.dec_nested_dropout", "size_sampling_mode", "pow2"),
    ("decoder.dec_transformer", "drop_path_rate", 0.1),
    ("decoder.dec_transformer", "intermediate_layers", [1, 7]),
    ("decoder.dec_transformer", "intermediate_layer_write_key", None),
    ("decoder.dec_transformer", "use_act_checkpoint", False),
    ("decoder.dec_transformer", "gated_mlp", True),
    ("decoder.dec_seq_packer", "compile_block_mask", True),
    ("decoder.dec_time_embedder", "weight_init_style", "xavier"),
    ("encoder.enc_patch_emb", "weight_init_style", "xavier"),
    ("encoder.enc_register_module", "n_min", 1),
    ("vae", "sample_posterior", False),
    ("vae", "frozen", False),
    ("regularizer", "drop_quant_p", 0.1),
    ("regularizer", "min_corrupt_tokens_p", None),
    ("decoder.dec_from_latents", "proj_bias", True),
    ("vae", "dtype_override", "float32"),
    ("flow_matching_noise_module", "ln", True),
    ("pipeline", "noise_read_key", "noise"),
]


@pytest.mark.parametrize(("name", "option", "value"), HARMLESS)
def test_training_and_wiring_may_be_anything(name: str, option: str, value: object) -> None:
    def edit(config: dict) -> None:
        module(config, name)[option] = value

    assert config_of(edit) == config_of()


def test_what_only_training_needs_may_be_missing() -> None:
    def edit(config: dict) -> None:
        del config["flow_matching_noise_module"]
        del config["decoder"]["module_dict"]["dec_repa_unpacker"]

    assert config_of(edit) == config_of()


# Options that could


UNKNOWN = [
    ("decoder.dec_transformer", "rope_forward_read_key", "rope"),
    ("decoder.dec_transformer", "score_mod_read_key", "alibi"),
    ("decoder.dec_transformer", "adaLN_expansion", 3),
    ("decoder.dec_transformer", "qk_norm", False),
    ("decoder.dec_transformer", "mlp_ratio", 3.0),
    ("decoder.dec_transformer", "window", 8),
    ("decoder.dec_transformer", "dim", 0),
    ("decoder.dec_transformer", "dim", "64"),
    ("decoder.dec_transformer", "head_dim", 48),
    ("decoder.dec_transformer", "norm_layer", {"_target_": "torch.nn.RMSNorm"}),
    ("decoder.dec_patches_posemb_module", "posemb_scaling", "interpolate"),
    ("decoder.dec_patches_posemb_module", "posemb_type", "learnable_sum"),
    ("decoder.dec_patches_posemb_module", "max_sizes", [4]),
    ("decoder.dec_registers_posemb_module", "max_sizes", [32]),
    ("decoder.dec_noise_patch_emb", "patch_sizes", [4, 4]),
    ("decoder.dec_time_embedder", "max_timestep", 0),
    ("decoder.dec_time_embedder", "frequency_embedding_size", 512),
    ("decoder.dec_time_embedder", "temb_as_tokens", True),
    ("decoder.dec_nested_dropout", "_target_", "flextok.AttentionMaskedNestedDropout"),
    ("decoder.dec_seq_packer", "mask_mode", "causal"),
    ("decoder.dec_to_patches", "use_mup_readout", True),
    ("encoder.enc_register_module", "ordering_mode", "avg_pool"),
    ("encoder.enc_register_module", "n_eval", 8),
    ("encoder.enc_transformer", "adaLN_emb_read_key", "dec_temb"),
    ("regularizer", "levels", [8, 8, 8, 5, 5]),
    ("regularizer", "levels", []),
    ("decoder.dec_from_latents", "proj_bias", False),
    ("vae", "dtype_override", "int8"),
    ("vae", "latent_channels", 4),
    ("vae", "shift_factor", 0.1),
    ("vae", "_target_", "os.system"),
    ("pipeline", "_target_", "flextok.AnotherPipeline"),
]


@pytest.mark.parametrize(("name", "option", "value"), UNKNOWN)
def test_what_could_change_a_picture_is_refused_by_name(
    name: str, option: str, value: object
) -> None:
    def edit(config: dict) -> None:
        module(config, name)[option] = value

    refused = "dim_out" if option == "levels" and value else option  # told twice, and differently
    with pytest.raises(InputError, match=f"'here' has [a-zA-Z_.]+{refused} = ") as caught:
        config_of(edit)
    assert "does not know" in str(caught.value)


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 1], [8, 8, 8, 5, 5, 0], [1] * 6])
def test_a_level_that_tells_nothing_apart_is_refused(levels: list[int]) -> None:
    with pytest.raises(
        InputError, match="regularizer.levels = .*a list of whole numbers from 2 up"
    ):
        config_of(lambda config: config["regularizer"].update(levels=levels))


def test_a_module_more_or_less_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="has decoder.dec_extra = "):
        config_of(lambda c: c["decoder"]["module_dict"].update(dec_extra={}))
    with pytest.raises(InputError, match="has discriminator = "):
        config_of(lambda c: c.update(discriminator={}))
    with pytest.raises(InputError, match="has no decoder.dec_time_embedder"):
        config_of(lambda c: c["decoder"]["module_dict"].pop("dec_time_embedder"))
    with pytest.raises(InputError, match="enc_seq_packer without mask_mode"):
        config_of(lambda c: module(c, "encoder.enc_seq_packer").pop("mask_mode"))


def test_the_order_of_the_registers_modules_matters() -> None:
    def edit(config: dict) -> None:
        modules = config["decoder"]["module_dict"]
        first = {"dec_from_latents": modules["dec_from_latents"]}
        first["dec_nested_dropout"] = modules["dec_nested_dropout"]
        config["decoder"]["module_dict"] = first | modules

    with pytest.raises(InputError, match="in the order dec_from_latents, dec_nested_dropout"):
        config_of(edit)


def test_an_option_of_the_vae_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="vae_config.shift_factor = 0.1"):
        config_of(vae={"block_out_channels": [8], "shift_factor": 0.1})


def test_every_module_of_the_tiny_config_is_in_the_table() -> None:
    names = {name for name in CONFIG if name not in ("_target_", "encoder", "decoder")}
    for section in ("encoder", "decoder"):
        names |= {f"{section}.{name}" for name in CONFIG[section]["module_dict"]}
    assert names == set(MODULES)


def test_a_target_is_never_called(tmp_path: Path) -> None:
    def edit(config: dict) -> None:
        config["vae"] = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}

    with pytest.raises(InputError, match="vae._target_ = 'os.mkdir'"):
        FlexTok.from_pretrained(write_checkpoint(tmp_path / "evil", config=edit))
    assert not (tmp_path / "made").exists()


def test_a_header_is_no_place_for_code(tmp_path: Path) -> None:
    header = stored_header() | {"vae": "__import__('os').mkdir('made')"}
    with pytest.raises(InputError, match="entry 'vae' is no Python literal"):
        parse_header(header, "here")


@pytest.mark.parametrize(
    "note",
    [
        {"format": "pt", "library": "huggingface-hub"},
        {"note": "trained on DFN, two words", "total_size": "123"},
    ],
)
def test_what_else_a_header_tells_is_passed_over(tmp_path: Path, note: dict[str, str]) -> None:
    kept = {name: text for name, text in note.items() if name != "format"}
    assert parse_header(note, "here") == kept
    assert read_config(parse_header(stored_header() | note, "here"), "here") == config_of()
    for layout in ("header", "json"):
        path = write_checkpoint(tmp_path / layout, layout=layout) / "model.safetensors"
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        save_file(load_file(path), path, header | note)
        assert load_config(path.parent) == load_config(FOLDER)


def test_a_module_in_a_header_that_is_not_known_is_refused() -> None:
    header = stored_header() | {"discriminator": "{'_target_': 'flextok.Discriminator'}"}
    with pytest.raises(InputError, match="has discriminator = "):
        read_config(parse_header(header, "here"), "here")
