"""What the config.yaml of a FlexAR checkpoint says of its network.

The architecture of a FlexAR model is this file: which attention, feed-forward network and norms it
has, and their options. Whatever is not known here is refused, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfgen.errors import InputError
from tfgen.priors.hydra import Node

_HEADS = 8  # of an attention that does not say how many


@dataclass(frozen=True)
class NormConfig:
    """A layer norm, or a root-mean-square norm, with its ε."""

    kind: Literal["layer", "rms"]
    eps: float


@dataclass(frozen=True)
class AttentionConfig:
    """Heads of one attention; `fused` says that q, k and v come from one matrix."""

    heads: int
    key_heads: int
    head_dim: int
    scale: float
    qk_norm: NormConfig | None = None
    rope_theta: float | None = None
    fused: bool = True


@dataclass(frozen=True)
class FlexARConfig:
    """A FlexAR network: text by cross-attention, image tokens by causal self-attention."""

    vocab_size: int
    num_tokens: int
    width: int
    blocks: int
    positions: bool
    """A table of positions is added to the tokens; without one, only rotary ones may tell order."""

    norm: NormConfig
    ffn: Literal["mlp", "swiglu", "geglu"]
    ffn_width: int
    self_attention: AttentionConfig
    cross_attention: AttentionConfig
    post_norm: bool
    head_norm: bool
    text_dim: int
    """Width of the T5 hidden states that the text enters as."""

    text_gelu: Literal["none", "tanh"]
    text_encoder: str
    """The T5 encoder on the Hugging Face hub."""

    text_length: int | None
    """Prompts are cut after this many T5 tokens; None: after as many as its tokenizer allows."""

    tokenizer: str | None
    """The FlexTok model whose tokens these are, on the Hugging Face hub."""

    guidance: float = 3.0
    """The guidance scale that the file recommends (cfg_factor; 3 is the published code's own); 1,
    which is none, where it says null or 0."""

    @classmethod
    def load(cls, path: str | Path) -> FlexARConfig:
        """Read a config.yaml. Raises InputError where it is missing, damaged, or says something
        that this implementation does not know."""
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"{str(path.parent)!r} holds no FlexAR model, as it has no {path.name}: give a "
                "folder with config.yaml and model.safetensors, or a name such as flexar-113m."
            )
        return _read(Node.load(path))


def _read(root: Node) -> FlexARConfig:
    meta = root.child("model").child("meta_model")
    meta.target("l3m.InSeriesMetaModels")
    models = meta.child("models")
    if models.get("text_encoder") is None:
        raise InputError(
            f"{root.source!r} describes a model without text, such as a class-to-image FlexAR: "
            "use a text-to-image one (FlexAR-...-T2I)."
        )
    text, image = models.child("text_encoder"), models.child("ar_image_model")
    text.target("flextok_ar.T5EmbedderWithMLP")
    image.target("l3m.MetaModel")
    trunk, head = image.child("trunk"), image.child("head")
    trunk.target("l3m.TransformerDecoder")
    head.target("l3m.LinearClassifier")
    width = trunk.integer("embed_dim")
    embed = image.child("preprocessor")
    embed.target("flextok_ar.ARImageEmbedPreprocessor")
    embed.equal("embed_dim", width)
    head.equal("in_features", width)
    vocab_size = embed.integer("codebook_size")
    head.equal("out_features", vocab_size)
    positions = embed.get("pos_embed_type")
    if positions not in ("absolute", "sincos1d", "sincos2d", None):
        raise embed.refusal("pos_embed_type", "absolute, sincos1d, sincos2d or null")
    norm = _norm(trunk, "norm_layer") or NormConfig("layer", 1e-6)
    trunk.get("act_layer")  # the reference takes it and does not use it: its GELU is exact
    for options in (trunk, head):
        options.get("use_bias")  # a bias is there where the weights have one
    ffn, ffn_width = _ffn(trunk, width)
    t5, mlp = text.child("t5_embedder"), text.child("mlp")
    t5.target("flextok_ar.T5Embedder")
    t5.get("decoder_seqlen")
    mlp.target("flextok_ar.TextToEmbedMLP")
    mlp.equal("embed_dim", width)
    mlp.get("use_bias")
    _check_text_keys(t5, trunk)
    config = FlexARConfig(
        vocab_size=vocab_size,
        num_tokens=_tokens(embed),
        width=width,
        blocks=trunk.integer("num_blocks"),
        positions=positions is not None,
        norm=norm,
        ffn=ffn,
        ffn_width=ffn_width,
        self_attention=_self_attention(trunk.child("self_attn_target"), width),
        cross_attention=_cross_attention(trunk.child("cross_attn_target"), width),
        post_norm=trunk.flag("post_trunk_norm", False),
        head_norm=head.flag("use_layernorm", False),
        text_dim=mlp.integer("text_dim"),
        text_gelu=_text_gelu(mlp),
        text_encoder=t5.text("hf_hub_path"),
        text_length=t5.integer("encoder_seqlen_max", None),
        tokenizer=_tokenizer(models),
        guidance=_guidance(root),
    )
    for node in (text, image, trunk, head, embed, t5, mlp):
        node.finish()
    return config


def _tokenizer(models: Node) -> str | None:
    if not isinstance(models.get("image_tokenizer"), dict):
        return None
    told = models.child("image_tokenizer").get("model_id")
    return told if isinstance(told, str) else None


def _guidance(root: Node) -> float:
    if root.get("generation") is None:
        return FlexARConfig.guidance
    generation = root.child("generation")
    if "cfg_factor" in generation.tree and generation.get("cfg_factor") in (None, 0):
        return 1.0
    return generation.number("cfg_factor", FlexARConfig.guidance)


def _tokens(embed: Node) -> int:
    grid = embed.get("token_grid_size")
    sizes = grid if isinstance(grid, list) else [grid]
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise embed.refusal("token_grid_size", "a list of whole numbers")
    total = 1
    for size in sizes:
        total *= size
    return total


def _norm(node: Node, key: str) -> NormConfig | None:
    if node.get(key) is None:
        return None
    norm = node.child(key)
    target = norm.target("torch.LayerNorm", "l3m.LayerNormFP32", "l3m.RMSNorm")
    eps = norm.number("eps", 1e-6 if target == "l3m.RMSNorm" else 1e-5)
    if not norm.flag("elementwise_affine", True):
        raise norm.refusal("elementwise_affine", "true")
    norm.get("bias")
    norm.finish()
    return NormConfig("rms" if target == "l3m.RMSNorm" else "layer", eps)


def _ffn(trunk: Node, width: int) -> tuple[Literal["mlp", "swiglu", "geglu"], int]:
    ratio = trunk.number("mlp_ratio", 4.0)
    hidden = trunk.integer("mlp_hidden_dim", None) or int(width * ratio)
    if trunk.get("ffn_target") is None:
        return "mlp", hidden
    node = trunk.child("ffn_target")
    target = node.target("l3m.MLP", "l3m.SwiGLUFFN", "l3m.GeGELU")
    multiple = node.integer("multiple_of", 256)
    for key in ("use_bias", "act_layer"):
        node.get(key)
    node.finish()
    if target == "l3m.MLP":
        return "mlp", hidden
    gated = int(2 * hidden / 3)
    gated = (gated + multiple - 1) // multiple * multiple
    return ("swiglu" if target == "l3m.SwiGLUFFN" else "geglu"), gated


def _self_attention(node: Node, width: int) -> AttentionConfig:
    target = node.target("l3m.EfficientAttention", "l3m.HFAttention")
    fused = target == "l3m.EfficientAttention"
    if not node.flag("is_causal", False):
        raise node.refusal("is_causal", "true, as tokens are predicted from those before them")
    # The reference's fused attention has a default too, but cannot be built with it.
    heads, head_dim = _heads(node, width, None if fused else _HEADS)
    key_heads = heads
    scale = head_dim**-0.5
    if fused and node.get("qk_scale") != 0:  # which stands for the usual one
        scale = node.number("qk_scale", scale)
    elif not fused:  # its scaled_dot_product_attention keeps its own scale, whatever qk_scale says
        key_heads = node.integer("num_key_value_heads", None) or heads
        head_dim = node.integer("head_dim", None) or head_dim
        scale = head_dim**-0.5
        if not node.flag("sdpa", True):
            raise node.refusal("sdpa", "true")
        for key in ("num_patches", "qk_scale"):
            node.get(key)
    theta = None
    if node.get("rope_pos_embed") is not None:
        rope = node.child("rope_pos_embed")
        rope.target("l3m.RoPE")
        theta = rope.number("theta", 1e4)
        for key in ("context_length", "embed_dim", "num_heads", "head_dim"):
            rope.get(key)
        rope.finish()
    norm = _norm(node, "qk_norm")
    _ignore_biases_and_finish(node)
    return AttentionConfig(heads, key_heads, head_dim, scale, norm, theta, fused)


def _cross_attention(node: Node, width: int) -> AttentionConfig:
    node.target("flextok_ar.GeneralizedAttentionWithMask")
    heads, head_dim = _heads(node, width, _HEADS)
    node.equal("encoder_dim", width)  # the text is projected to it
    node.get("qk_scale")  # the reference's cross-attention does not use it
    if node.flag("is_causal", False):
        raise node.refusal("is_causal", "false")
    norm = _norm(node, "qk_norm")
    _ignore_biases_and_finish(node)
    return AttentionConfig(heads, heads, head_dim, head_dim**-0.5, norm, fused=False)


def _heads(node: Node, width: int, default: int | None) -> tuple[int, int]:
    node.equal("dim", width)
    heads = node.integer("num_heads") if default is None else node.integer("num_heads", default)
    if width % heads:
        raise node.refusal("num_heads", f"a divisor of the width {width}")
    return heads, width // heads


def _ignore_biases_and_finish(node: Node) -> None:
    for key in ("qkv_bias", "use_bias"):
        node.get(key)  # a bias is there where the weights have one
    node.finish()


def _text_gelu(mlp: Node) -> Literal["none", "tanh"]:
    act = mlp.child("act_layer")
    act.target("torch.GELU")
    approximate = act.get("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise act.refusal("approximate", "none or tanh")
    act.finish()
    return approximate


def _check_text_keys(t5: Node, trunk: Node) -> None:
    """The decoder must read what the text encoder writes: without its mask, padding would count."""
    for written, read in (
        ("text_embeddings_write_key", "encoder_output_key"),
        ("text_embeddings_mask_write_key", "self_attn_mask_read_key"),
    ):
        key = t5.get(written)
        if trunk.get(read) is None or (key is not None and trunk.get(read) != key):
            raise trunk.refusal(read, f"{key!r}, which the text encoder writes")
