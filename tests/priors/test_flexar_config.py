"""What a FlexAR checkpoint may say of itself, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.priors.flexar_vectors import SETS, VECTORS, load, models, trunk, variant, vectors
from tfgen import InputError
from tfgen.priors.flexar import FlexAR, FlexARPrior
from tfgen.priors.flexar_config import FlexARConfig, NormConfig
from tfgen.priors.flexar_model import rotate
from tfgen.priors.hydra import Node

Tensors = dict[str, Tensor]
BLOCKS = "models.ar_image_model.trunk.blocks."


def logits(folder: Path, name: str = "flexar_tiny") -> Tensor:
    v = vectors(name)
    return load(name, folder).logits(v["prefix"], v["t5_hidden_cond"], v["t5_mask_cond"])


# What is understood


@pytest.mark.parametrize("name", SETS)
def test_the_config_gives_the_network(name: str) -> None:
    cfg = FlexARConfig.load(VECTORS / name / "config.yaml")
    gated = name.endswith("gated")
    assert (cfg.vocab_size, cfg.num_tokens, cfg.width) == (
        (125, 12, 40) if gated else (240, 16, 48)
    )
    assert (cfg.ffn, cfg.ffn_width) == (("swiglu", 112) if gated else ("mlp", 192))
    assert cfg.norm == (NormConfig("rms", 1e-6) if gated else NormConfig("layer", 1e-5))
    assert cfg.self_attention.heads == (5 if gated else 3)
    assert (cfg.self_attention.qk_norm is None) != gated
    assert (cfg.text_encoder, cfg.text_length) == ("google/flan-t5-xl", 9)
    assert cfg.tokenizer == "EPFL-VILAB/flextok_d18_d28_dfn"


def test_references_within_the_file_and_floats_without_a_point_are_read(tmp_path: Path) -> None:
    def config(tree: dict) -> None:
        tree["constants"] = {"width": 48, "d": "${constants.width}"}
        trunk(tree)["embed_dim"] = "${constants.d}"
        trunk(tree)["norm_layer"]["eps"] = "1e-5"

    found = logits(variant("flexar_tiny", tmp_path, config))
    torch.testing.assert_close(found, logits(VECTORS / "flexar_tiny"), atol=0, rtol=0)


def test_tensors_of_the_image_tokenizer_and_of_t5_are_passed_over(tmp_path: Path) -> None:
    def tensors(weights: Tensors) -> None:
        weights["models.image_tokenizer.decoder.weight"] = torch.zeros(2)
        weights["models.text_encoder.t5_embedder.shared.weight"] = torch.zeros(2)

    found = logits(variant("flexar_tiny", tmp_path, tensors=tensors))
    torch.testing.assert_close(found, logits(VECTORS / "flexar_tiny"), atol=0, rtol=0)


def test_weights_in_half_precision_are_computed_with_in_float32(tmp_path: Path) -> None:
    def tensors(weights: Tensors) -> None:
        weights.update({name: tensor.half() for name, tensor in weights.items()})

    folder = variant("flexar_tiny", tmp_path, tensors=tensors)
    assert {p.dtype for p in load("flexar_tiny", folder).network.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(folder), logits(VECTORS / "flexar_tiny"), atol=0.05, rtol=0)


def test_a_bias_is_added_where_there_is_one(tmp_path: Path) -> None:
    bias = torch.linspace(-1, 1, 240)

    def tensors(weights: Tensors) -> None:
        weights["models.ar_image_model.head.linear.bias"] = bias

    found = logits(variant("flexar_tiny", tmp_path, tensors=tensors))
    torch.testing.assert_close(found, logits(VECTORS / "flexar_tiny") + bias)


def test_separate_projections_equal_the_fused_one(tmp_path: Path) -> None:
    # HFAttention has the same matrices under other names.
    found = logits(variant("flexar_tiny", tmp_path, separate(key_heads=3), split_qkv(3)))
    torch.testing.assert_close(found, logits(VECTORS / "flexar_tiny"), atol=1e-5, rtol=0)


def test_shared_key_heads_equal_repeated_ones(tmp_path: Path) -> None:
    def repeat(weights: Tensors) -> None:  # one key head for three query heads, written out
        for name, weight in list(weights.items()):
            if name.endswith("self_attn.qkv.weight"):
                q, k, v = weight.chunk(3)
                weights[name] = torch.cat([q, k[:16].repeat(3, 1), v[:16].repeat(3, 1)])

    one = variant("flexar_tiny", tmp_path / "one", separate(key_heads=1), split_qkv(1))
    three = variant("flexar_tiny", tmp_path / "three", tensors=repeat)
    torch.testing.assert_close(logits(one), logits(three), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(one), logits(VECTORS / "flexar_tiny"), atol=0.1)


def separate(key_heads: int) -> Callable[[dict], None]:
    def config(tree: dict) -> None:
        options = trunk(tree)["self_attn_target"]
        options["_target_"] = "l3m.model.layers.attention.HFAttention"
        options["num_key_value_heads"] = key_heads

    return config


def split_qkv(key_heads: int) -> Callable[[Tensors], None]:
    def tensors(weights: Tensors) -> None:
        for name in list(weights):
            if name.endswith("self_attn.qkv.weight"):
                stem, parts = name.removesuffix("qkv.weight"), weights.pop(name).chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    rows = 48 if letter == "q" else 16 * key_heads
                    weights[f"{stem}{letter}_proj.weight"] = part[:rows]
                weights[f"{stem}o_proj.weight"] = weights.pop(f"{stem}proj.weight")

    return tensors


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ar_image_model.preprocessor.num_classes", None),
        ("ar_image_model.postprocessor", None),
        ("ar_image_model.head.use_batchnorm", False),
        ("ar_image_model.trunk.gpt_proj_rescale", False),
        ("ar_image_model.trunk.cross_attn_target.relative_pos_embed", None),
        ("ar_image_model.trunk.ffn_target.norm_layer", None),
        ("ar_image_model.trunk.self_attn_target.qk_scale", 0),
    ],
)
def test_what_is_not_there_may_be_said(tmp_path: Path, path: str, value: object) -> None:
    found = logits(variant("flexar_tiny", tmp_path, set_in(path, value)))
    torch.testing.assert_close(found, logits(VECTORS / "flexar_tiny"), atol=0, rtol=0)


def test_what_is_left_out_is_what_the_published_code_makes_of_it(tmp_path: Path) -> None:
    def config(tree: dict) -> None:
        image = models(tree)["ar_image_model"]
        del image["preprocessor"]["pos_embed_type"], image["trunk"]["post_trunk_norm"]
        del image["trunk"]["cross_attn_target"]["num_heads"]

    def tensors(weights: Tensors) -> None:
        for name in list(weights):
            if "positional_embedding" in name or "post_trunk_norm" in name:
                del weights[name]

    cfg = load("flexar_tiny", variant("flexar_tiny", tmp_path, config, tensors)).config
    assert not cfg.positions and not cfg.post_norm
    assert (cfg.cross_attention.heads, cfg.cross_attention.head_dim) == (8, 6)


@pytest.mark.parametrize(
    ("told", "guidance"),
    [({"cfg_factor": 1.5}, 1.5), ({"cfg_factor": None}, 1.0), ({"top_k": 0}, 3.0), (None, 3.0)],
)
def test_the_guidance_is_the_files_or_that_of_the_published_code(
    tmp_path: Path, told: object, guidance: float
) -> None:
    folder = variant("flexar_tiny", tmp_path, lambda tree: tree.update(generation=told))
    assert FlexAR.from_pretrained(folder).guidance == guidance


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ([1, 2], "generation"),
        ("abc", "generation"),
        ({"cfg_factor": "abc"}, "generation.cfg_factor"),
        ({"cfg_factor": [3.0]}, "generation.cfg_factor"),
        ({"cfg_factor": -2}, "generation.cfg_factor"),
        ({"cfg_factor": float("nan")}, "generation.cfg_factor"),
    ],
)
def test_a_guidance_that_is_none_is_refused(tmp_path: Path, told: object, place: str) -> None:
    folder = variant("flexar_tiny", tmp_path, lambda tree: tree.update(generation=told))
    with pytest.raises(InputError, match=f"for {place}, where tfgen needs"):
        FlexAR.from_pretrained(folder)


def test_rotary_positions_are_remembered_with_the_keys(tmp_path: Path) -> None:
    def config(tree: dict) -> None:
        trunk(tree)["self_attn_target"]["rope_pos_embed"] = {
            "_target_": "l3m.model.preprocessors.pos_embed.rope.RoPE",
            "context_length": 16,
            "head_dim": 16,
        }

    model = load("flexar_tiny", variant("flexar_tiny", tmp_path, config))
    prior = FlexARPrior(model).condition("first", lambda embeddings: embeddings[:, 0])
    tokens = vectors("flexar_tiny")["greedy_cfg3_tokens"][:1]
    cached = [prior.log_probs(tokens[:, :i]).gather(1, tokens[:, i : i + 1]) for i in range(16)]
    whole = prior.sequence_log_prob(tokens)
    torch.testing.assert_close(torch.cat(cached, 1), whole, atol=3e-4, rtol=0)
    plain = FlexARPrior(load("flexar_tiny")).condition("first", lambda embeddings: embeddings[:, 0])
    assert not torch.allclose(whole, plain.sequence_log_prob(tokens), atol=0.01)


def test_rotary_positions_are_rotations_whose_scores_tell_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(q, 0, 1e4), q)
    turned = rotate(q, 5, 100.0)[0, 0, 0]
    for i in range(4):  # i and i + 4 are a complex number, turned by 5 * 100 ** (-i / 4)
        z = torch.complex(q[..., i], q[..., i + 4]).squeeze()
        expected = z * torch.polar(torch.ones(()), torch.tensor(5 * 100 ** (-i / 4)))
        torch.testing.assert_close(torch.complex(turned[i], turned[i + 4]), expected)
    scores = [(rotate(q, 3 + n, 1e4) * rotate(k, n, 1e4)).sum() for n in (0, 7)]
    torch.testing.assert_close(*scores)


def test_a_head_norm_a_missing_position_table_and_a_missing_last_norm(tmp_path: Path) -> None:
    def config(tree: dict) -> None:
        image = models(tree)["ar_image_model"]
        image["preprocessor"]["pos_embed_type"] = None
        image["trunk"]["post_trunk_norm"] = False
        image["head"]["use_layernorm"] = True

    def tensors(weights: Tensors) -> None:
        del weights["models.ar_image_model.preprocessor.positional_embedding"]
        for part in ("weight", "bias"):  # the last norm, but of the head: ε is 1e-5 in both
            weights[f"models.ar_image_model.head.norm.{part}"] = weights.pop(
                f"models.ar_image_model.trunk.post_trunk_norm.{part}"
            )

    def only_no_positions(weights: Tensors) -> None:
        weights["models.ar_image_model.preprocessor.positional_embedding"].zero_()

    found = logits(variant("flexar_tiny", tmp_path / "a", config, tensors))
    expected = logits(variant("flexar_tiny", tmp_path / "b", tensors=only_no_positions))
    torch.testing.assert_close(found, expected)


# What is refused


def set_in(path: str, value: object) -> Callable[[dict], None]:
    """Set an option below the models, by its path."""

    def config(tree: dict) -> None:
        node = models(tree)
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value

    return config


IMAGE, TEXT = "ar_image_model", "text_encoder"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (f"{IMAGE}.trunk._target_", "l3m.model.trunks.Mamba", "class 'l3m.model.trunks.Mamba'"),
        (f"{IMAGE}.trunk.norm_layer._target_", "torch.nn.RMSNorm", "'torch.nn.RMSNorm'.*it knows"),
        (f"{IMAGE}.trunk.ffn_target._target_", "l3m.layers.moe.MoE", "l3m.MLP, l3m.SwiGLUFFN"),
        (f"{IMAGE}.trunk.self_attn_target._target_", "l3m.GenericAttention", "EfficientAttention"),
        (f"{IMAGE}.trunk.self_attn_target.is_causal", False, "is_causal, where tfgen needs true"),
        (f"{IMAGE}.trunk.self_attn_target.num_heads", 5, "a divisor of the width 48"),
        (f"{IMAGE}.trunk.self_attn_target.window", 8, "self_attn_target.window to 8, an option"),
        (f"{IMAGE}.trunk.cross_attn_target.encoder_dim", 64, "encoder_dim, where tfgen needs 48"),
        (f"{IMAGE}.trunk.self_attn_mask_read_key", None, "'text_embeddings_mask', which the text"),
        (f"{IMAGE}.trunk.num_blocks", "three", "num_blocks, where tfgen needs a whole number"),
        (f"{IMAGE}.trunk.embed_dim", "${constants.width}", "cannot resolve: write the value"),
        (f"{IMAGE}.trunk.embed_dim", "${mul_int:3,16}", "cannot resolve: write the value"),
        (f"{IMAGE}.trunk.norm_layer.eps", "small", "eps, where tfgen needs a number"),
        (f"{IMAGE}.trunk.mlp_ratio", -4, "mlp_ratio, where tfgen needs a number above 0"),
        (f"{IMAGE}.trunk.mlp_ratio", float("nan"), "mlp_ratio, where tfgen needs a number"),
        (f"{IMAGE}.head.use_batchnorm", True, "use_batchnorm to True, an option"),
        (f"{IMAGE}.preprocessor.pos_embed_type", "fourier", "absolute, sincos1d, sincos2d or null"),
        (f"{IMAGE}.preprocessor.token_grid_size", None, "token_grid_size, where tfgen needs"),
        (f"{IMAGE}.head.out_features", 100, "out_features, where tfgen needs 240"),
        (f"{IMAGE}.head", None, "head, where tfgen needs a node"),
        (f"{TEXT}.mlp.act_layer._target_", "torch.nn.SiLU", "'torch.nn.SiLU'.*torch.GELU"),
        (
            f"{TEXT}.mlp.act_layer.approximate",
            "fast",
            "approximate, where tfgen needs none or tanh",
        ),
        (f"{TEXT}.t5_embedder.hf_hub_path", 3, "hf_hub_path, where tfgen needs a text"),
        (TEXT, None, "without text, such as a class-to-image FlexAR"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, path: str, value: object, sentence: str
) -> None:
    folder = variant("flexar_tiny", tmp_path, set_in(path, value))
    with pytest.raises(InputError, match=sentence) as caught:
        FlexAR.from_pretrained(folder)
    assert "config.yaml" in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        (f"{IMAGE}.trunk.embed_dim", "a whole number"),
        (f"{IMAGE}.trunk.num_blocks", "a whole number"),
        (f"{IMAGE}.trunk.self_attn_target.num_heads", "a whole number"),
        (f"{IMAGE}.preprocessor.codebook_size", "a whole number"),
        (f"{TEXT}.mlp.text_dim", "a whole number"),
        (f"{TEXT}.t5_embedder.hf_hub_path", "a text"),
    ],
)
def test_what_is_required_and_not_there_is_refused_by_name(
    tmp_path: Path, path: str, needed: str
) -> None:
    def config(tree: dict) -> None:
        node = models(tree)
        *parents, last = path.split(".")
        for parent in parents:
            node = node[parent]
        del node[last]

    folder = variant("flexar_tiny", tmp_path, config)
    with pytest.raises(InputError, match=f"has no [a-z_.]*{path}, where tfgen needs {needed}"):
        FlexAR.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["{", "- a\n- b", "\x00", "[" * 400, "!!python/object/apply:os.getcwd []"]
)
def test_a_config_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="no YAML that can be read|no mapping of options"):
        FlexAR.from_pretrained(tmp_path)


def test_a_reference_to_itself_is_refused() -> None:
    tree = {"a": "${b}", "b": "${a}"}
    with pytest.raises(InputError, match="cannot resolve"):
        Node(tree, tree, "", "config.yaml").get("a")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda w: w.pop(f"{BLOCKS}1.mlp.fc2.weight"), "blocks.1.mlp.fc2.weight is missing"),
        (lambda w: w.update({f"{BLOCKS}0.extra": torch.zeros(1)}), "blocks.0.extra is unknown"),
        (
            lambda w: w.update({f"{BLOCKS}0.mlp.fc3.weight": torch.zeros(192, 48)}),
            "blocks.0.mlp.fc3.weight is unknown",
        ),
        (
            lambda w: w.update({f"{BLOCKS}2.norm_1.weight": torch.zeros(47)}),
            r"blocks.2.norm_1.weight is \[47\] instead of \[48\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(
    tmp_path: Path, change: Callable[[Tensors], object], fault: str
) -> None:
    folder = variant("flexar_tiny", tmp_path, tensors=change)
    with pytest.raises(InputError, match=f"weights of another model.*{fault}"):
        FlexAR.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda data: data[: len(data) // 2], "truncated, damaged"),
        (lambda data: b"<!DOCTYPE html>", "no safetensors file"),
        (lambda data: pickle.dumps({"models": [1.0]}), "pickled checkpoint"),
    ],
)
def test_a_damaged_foreign_or_pickled_checkpoint_is_refused(
    tmp_path: Path, content: Callable[[bytes], bytes], sentence: str
) -> None:
    weights = variant("flexar_tiny", tmp_path) / "model.safetensors"
    weights.write_bytes(content(weights.read_bytes()))
    with pytest.raises(InputError, match=sentence):
        FlexAR.from_pretrained(tmp_path)


def test_the_sprites_model_is_no_flexar_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="holds no FlexAR model, as it has no config.yaml"):
        FlexAR.from_pretrained(tmp_path)
