"""FlexTok computes what its published code computes, in all its paths; and the checks that say so
notice the mistakes that are easily made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tokenizers.flextok_checks import (
    CHECKS,
    VECTORS,
    VELOCITY,
    check_codes,
    check_guidance,
    check_latents,
    check_single_null_token,
    check_time,
    check_trunk,
    check_velocities,
    close,
    model,
    prefixes,
    write_checkpoint,
)
from tfgen.tokenizers import flextok_guidance, flextok_model, flextok_registers, flextok_sampler
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_fsq import FlexTokFSQ

RAN: set[str] = set()  # checks that passed
paths = pytest.mark.parametrize("collapse", [False, True], ids=["plain", "collapsed"])


@paths
@pytest.mark.parametrize("name", CHECKS)
def test_every_array_is_what_the_reference_computed(name: str, collapse: bool) -> None:
    CHECKS[name](model(collapse))
    RAN.add(name)


@paths
def test_a_null_condition_of_one_token_is_honoured(tmp_path: Path, collapse: bool) -> None:
    def edit(config: dict) -> None:
        dropout = config["decoder"]["module_dict"]["dec_latent_dropout"]
        dropout["replace_with_single_token"] = True

    tokenizer = FlexTok.from_pretrained(write_checkpoint(tmp_path / "single", config=edit))
    tokenizer.collapse = collapse
    check_single_null_token(tokenizer)
    tokens, lengths = prefixes([0, 1])  # what is conditional stays as it is
    found = tokenizer.velocity(VECTORS["vel_x"][:2], 0.7, tokens, lengths)
    close(found, "vel_cond", VELOCITY, (1, [0, 1]))


def test_no_array_is_left_out(tmp_path: Path) -> None:
    """By the checks that ran before; those that did not, run now."""
    for name in CHECKS:
        if name not in RAN:
            test_every_array_is_what_the_reference_computed(name, True)
    if "vel_uncond_single_token" not in VECTORS.used:
        test_a_null_condition_of_one_token_is_honoured(tmp_path, True)
    assert VECTORS.used == set(VECTORS.arrays)


# bfloat16


@paths
def test_bfloat16_is_off_by_some_tenths_of_a_percent(
    collapse: bool, record_property: Callable[[str, object], None]
) -> None:
    """Relative error (norm of the difference) of the decoder's blocks in bfloat16."""
    tokenizer = model(collapse, torch.bfloat16)
    errors = {}
    for sample in range(5):
        tokens, lengths = prefixes([sample])
        found = [
            tokenizer.velocity(VECTORS["vel_x"][[sample]], t, tokens) for t in VECTORS["vel_t"]
        ]
        right = VECTORS["vel_cond"][:, sample]
        errors[f"velocity, {len(tokens[0])} tokens"] = relative(torch.cat(found), right)
    tokens, lengths = prefixes([0, 1, 2, 3])
    latents = tokenizer.decode_latents(tokens, VECTORS["noise"][:1], 4, lengths=lengths)
    errors["latents, 4 guided steps"] = relative(latents, VECTORS["lat_apg_4"][:4])
    for name, error in errors.items():
        record_property(name, error)
        print(f"bfloat16, {'collapsed' if collapse else 'plain'}: {name}: {error:.2%}")
        assert 1e-4 < error < 6e-3, name


def relative(found: Tensor, right: Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


# Mistakes


def swap_sine_and_cosine(t: Tensor, max_timestep: float) -> Tensor:
    return ORIGINAL_FEATURES(t, max_timestep).roll(flextok_model.TIME_FEATURES // 2, 1)


def most_significant_first(fsq: FlexTokFSQ, device: torch.device) -> Tensor:
    strides = [1]
    for levels in fsq.levels[:0:-1]:
        strides.insert(0, strides[0] * levels)
    return torch.tensor(strides, device=device)


def clip_fed_back(c: Tensor, u: Tensor, scale: float, average: Tensor | float) -> tuple:
    guided, average = ORIGINAL_GUIDANCE(c, u, scale, average)
    return guided, flextok_guidance.limit_norm(average)


def gates_as_in_dit(modulation: Tensor) -> tuple[Tensor, ...]:
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.unbind(-2)
    return gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp


def mask_before_position(rows: Tensor, positions: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    return torch.where(kept[..., None], rows, mask) + positions


ORIGINAL_FEATURES = flextok_model.time_features
ORIGINAL_GUIDANCE = flextok_guidance.adaptive_projected
MISTAKES = {
    "epsilon 1e-6": (flextok_model, "LN_EPS", 1e-6, check_velocities),
    "sine before cosine": (flextok_model, "time_features", swap_sine_and_cosine, check_time),
    "sine before cosine, in the velocity": (
        flextok_model,
        "time_features",
        swap_sine_and_cosine,
        check_velocities,
    ),
    "digit order": (FlexTokFSQ, "_strides", most_significant_first, check_codes),
    "digit order, in the velocity": (
        FlexTokFSQ,
        "_strides",
        most_significant_first,
        check_velocities,
    ),
    "clip fed back into the momentum": (
        flextok_guidance,
        "adaptive_projected",
        clip_fed_back,
        lambda _: check_guidance(),
    ),
    "clip fed back, in the latents": (
        flextok_sampler,
        "adaptive_projected",
        clip_fed_back,
        check_latents,
    ),
    "gates as in DiT": (flextok_model, "gates_and_shifts", gates_as_in_dit, check_velocities),
    "mask before position": (flextok_registers, "dress", mask_before_position, check_velocities),
    "mask before position, entering": (
        flextok_registers,
        "dress",
        mask_before_position,
        check_trunk,
    ),
    "logits over the root of 32": (flextok_model, "MUP", 32**0.5, check_velocities),
    "momentum of the other sign": (
        flextok_guidance,
        "MOMENTUM",
        0.5,
        lambda _: check_guidance(),
    ),
}


@paths
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(
    mistake: str, collapse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name, wrong, check = MISTAKES[mistake]
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError):
        check(model(collapse))


def test_copies_without_the_logarithm_of_their_number_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flextok_registers, "_over_all_keys", lambda decoder, bias: None)
    with pytest.raises(AssertionError, match="vel_"):
        check_velocities(model(collapse=True))
