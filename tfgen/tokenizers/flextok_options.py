"""What may stand in a FlexTok checkpoint's config: the allow-list of its modules and options.

The config names a class (`_target_`) and options for each module of the reference implementation.
Nothing is instantiated from it: classes are compared with those implemented here, and what could
change a picture and is not known is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfgen.errors import InputError

# What an option may be: a tuple of values, a test of the value, or ANY: a number that
# `flextok_config` reads, or what cannot change a picture (training, wiring, compiling).
ANY: tuple = ()
FLOAT32 = ("fp32", "float32")
Rule = Sequence[Any] | Callable[[Any], bool]


def _target(value: Any, name: str) -> bool:
    """Whether an object of the config is one of class (or function) `name`."""
    target = value.get("_target_") if isinstance(value, Mapping) else value
    return isinstance(target, str) and target.rpartition(".")[2] == name


def _plain_norm(value: Any) -> bool:
    """A layer norm in float32 without weight and bias, eps 1e-5."""
    return (
        isinstance(value, Mapping)
        and _target(value, "Fp32LayerNorm")
        and value.get("elementwise_affine") is False
        and value.get("eps", 1e-5) == 1e-5
    )


_POSITIONS: dict[str, Rule] = {"dim": ANY, "max_sizes": ANY, "posemb_scaling": ("absolute",)}
_PATCHES: dict[str, Rule] = {
    "channels_in": ANY,
    "dim": ANY,
    "patch_sizes": ANY,
    "flatten_patches": ANY,
}
_PACKER: dict[str, Rule] = {
    "max_seq_len": ANY,
    "pad_to_multiple": ANY,
    "compile_block_mask": ANY,
    "return_materialized_mask": ANY,
}
_HEAD: dict[str, Rule] = {
    "dim": ANY,
    "use_mup_readout": (False,),
    "norm_layer": _plain_norm,
    "dtype_override": ANY,  # heads are float32 here
    "adaLN_bias": (True,),
    "proj_bias": (True,),
}
_TRUNK: dict[str, Rule] = {
    "dim": ANY,
    "depth": ANY,
    "head_dim": ANY,
    "mlp_ratio": (4,),
    "qkv_bias": (False,),
    "proj_bias": (False,),
    "mlp_bias": (False,),
    "drop": ANY,
    "drop_path_rate": ANY,
    "act_layer": lambda value: _target(value, "SiLU"),
    "norm_layer": _plain_norm,
    "gated_mlp": (True,),
    "qk_norm": (True,),
    "use_act_checkpoint": ANY,
    "zero_init_query_proj": ANY,
    "score_mod_read_key": (None,),
    "rope_forward_read_key": (None,),
    "intermediate_layers": ANY,
}


def _per_sample(function: str) -> dict[str, Rule]:
    return {"per_sample_op": lambda value: _target(value, function)}


MODULES: dict[str, tuple[str, dict[str, Rule]]] = {
    "encoder.enc_channels_to_last": ("PerSampleOp", _per_sample("channels_first_to_last")),
    "encoder.enc_patch_emb": ("PatchEmbedder", _PATCHES),
    "encoder.enc_posemb_module": (
        "PositionalEmbeddingAdder",
        _POSITIONS | {"posemb_type": ("sincos",)},
    ),
    "encoder.enc_register_module": (
        "Registers1D",
        {
            "dim": ANY,
            "n_min": ANY,
            "n_max": ANY,
            "n_eval": ANY,
            "size_sampling_mode": ANY,
            "ordering_mode": ("nested",),
            "extra_registers_write_key": (None,),
            "extra_registers_dim": ANY,
        },
    ),
    "encoder.enc_seq_packer": (
        "BlockWiseSequencePacker",
        _PACKER | {"mask_mode": ("causal_last",), "per_subseq_embs": ANY},
    ),
    "encoder.enc_transformer": (
        "FlexTransformer",
        _TRUNK | {"adaLN_emb_read_key": (None,), "adaLN_expansion": ANY},
    ),
    "encoder.enc_unpacker": ("SequenceUnpacker", {}),
    "encoder.enc_to_latents": (
        "LinearHead",
        _HEAD | {"dim_out": ANY, "adaLN_emb_read_key": (None,)},
    ),
    "decoder.dec_from_latents": (
        "LinearLayer",
        {"dim_in": ANY, "dim": ANY, "proj_bias": (True,), "dtype_override": ANY},
    ),
    "decoder.dec_registers_posemb_module": (
        "PositionalEmbeddingAdder",
        _POSITIONS | {"posemb_type": ("learnable_sum",)},
    ),
    "decoder.dec_nested_dropout": (
        "MaskedNestedDropout",
        {"dim": ANY, "size_sampling_mode": ANY},
    ),
    "decoder.dec_latent_dropout": (
        "LearnedNullCond",
        {"dim": ANY, "dropout_prob": ANY, "replace_with_single_token": (True, False)},
    ),
    "decoder.dec_noise_channels_to_last": ("PerSampleOp", _per_sample("channels_first_to_last")),
    "decoder.dec_noise_patch_emb": ("PatchEmbedder", _PATCHES),
    "decoder.dec_patches_posemb_module": (
        "PositionalEmbeddingAdder",
        _POSITIONS | {"posemb_type": ("sincos",)},
    ),
    "decoder.dec_seq_packer": (
        "BlockWiseSequencePacker",
        _PACKER | {"mask_mode": ("full",), "per_subseq_embs": (True,)},
    ),
    "decoder.dec_time_embedder": (
        "TimestepEmbedder",
        {
            "dim": ANY,
            "frequency_embedding_size": (256,),
            "max_timestep": ANY,
            "temb_as_tokens": (False,),
        },
    ),
    "decoder.dec_transformer": ("FlexTransformer", _TRUNK | {"adaLN_expansion": (2,)}),
    "decoder.dec_unpacker": ("SequenceUnpacker", {}),
    "decoder.dec_repa_unpacker": ("SequenceUnpacker", {}),
    "decoder.dec_to_patches": (
        "ToPatchesLinearHead",
        _HEAD | {"channels_out": ANY, "patch_sizes": ANY},
    ),
    "decoder.dec_channels_to_first": ("PerSampleOp", _per_sample("channels_last_to_first")),
    "vae": (
        "StableDiffusionVAE",
        {
            "latent_channels": ANY,
            "scaling_factor": ANY,
            "dtype_override": (*FLOAT32, "bf16", "bfloat16", None),
            "hf_hub_path": ANY,  # its weights are in this file
            "sample_posterior": ANY,  # `encode` has an argument for it
            "learnable_logvar": (False,),
            "logvar_init": ANY,
            "compile_encode_fn": ANY,
            "compile_decode_fn": ANY,
            "force_vae_encode": ANY,
            "frozen": ANY,
        },
    ),
    "regularizer": (
        "FSQ",
        {
            "levels": ANY,
            "drop_quant_p": ANY,
            "corrupt_tokens_p": ANY,
            "min_corrupt_tokens_p": ANY,
            "apply_corrupt_tokens_p": ANY,
            "packed_call": ANY,
        },
    ),
    "flow_matching_noise_module": (
        "MinRFNoiseModule",
        {"ln": ANY, "stratisfied": ANY, "mode_scale": ANY},
    ),
    "pipeline": ("MinRFPipeline", {"out_channels": ANY}),
}
"""Module: the reference's class, and what its options may be. Besides these, EVERYWHERE is
understood in all of them, and names of dictionary entries (`..._key`, `..._keys`)."""

EVERYWHERE = {"_target_", "_partial_", "weight_init_style"}

OPTIONAL = {"decoder.dec_repa_unpacker", "flow_matching_noise_module"}
REQUIRED = {  # options whose default in the reference is not what is implemented here
    "encoder.enc_seq_packer": ("mask_mode",),
    "decoder.dec_transformer": ("adaLN_expansion",),
}
ORDERED = (  # how these are nested decides which registers carry a position
    "dec_from_latents",
    "dec_registers_posemb_module",
    "dec_nested_dropout",
    "dec_latent_dropout",
)


def _all_of(kind: str) -> Rule:
    return lambda values: isinstance(values, (list, tuple)) and set(values) == {kind}


VAE_OPTIONS: dict[str, Rule] = {
    **dict.fromkeys(
        ("block_out_channels", "layers_per_block", "norm_num_groups", "latent_channels"), ANY
    ),
    "in_channels": (3,),
    "out_channels": (3,),
    "down_block_types": _all_of("DownEncoderBlock2D"),
    "up_block_types": _all_of("UpDecoderBlock2D"),
    "act_fn": ("silu",),
    "sample_size": ANY,
    "scaling_factor": ANY,
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
    "force_upcast": ANY,
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
"""The same for vae_config.json: arguments of diffusers' AutoencoderKL."""


def check_options(
    options: Mapping[str, Any], kind: str | None, rules: Mapping[str, Rule], name: str, source: str
) -> None:
    """Check one module's options against its rules. kind: the class that it must be of.

    name: of the module; source: the file it is from, both for messages. Raises InputError.
    """
    if kind and "_target_" in options and not _target(options, kind):
        raise refusal(source, f"{name}._target_", options["_target_"], f"only {kind}")
    for option, value in options.items():
        rule = rules.get(option)
        if rule is None:
            if option not in EVERYWHERE and not option.endswith(("_key", "_keys")):
                raise refusal(source, f"{name}.{option}", value)
        elif callable(rule):
            if not rule(value):
                raise refusal(source, f"{name}.{option}", value)
        elif rule and value not in rule:
            known = " or ".join(map(repr, rule))
            raise refusal(source, f"{name}.{option}", value, f"only {known}")
    for option in REQUIRED.get(name, ()):
        if option not in options:
            raise refusal(source, f"{name} without {option}")


_NOTHING = object()


def refusal(source: str, name: str, value: Any = _NOTHING, known: str | None = None) -> InputError:
    """The error for what is in a config and cannot be honoured. known: what could be."""
    text = "" if value is _NOTHING else repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    setting = f"{name} = {text}" if text else name
    implemented = f" (it knows {known})" if known else ""
    return InputError(
        f"The FlexTok config in {source!r} has {setting}, which this version of tfgen does not "
        f"know{implemented}: use another checkpoint."
    )
