"""FlexAR against the reference's own numbers, and what a mistake in it would do to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor

from tests.priors.flexar_vectors import PROMPTS, SETS, VECTORS, load, vectors
from tfgen import InputError
from tfgen.priors import flexar, flexar_model
from tfgen.priors.flexar import FlexAR
from tfgen.priors.flexar_model import FeedForward, FlexARNetwork, TextStates
from tfgen.priors.flexar_sampling import draw, filtered

CLOSE = {"atol": 3e-4, "rtol": 0.0}


def conforms(name: str) -> None:
    """All that the vectors tell. Raises AssertionError where the model computes something else."""
    model, v = load(name), vectors(name)
    without = (
        v[key].expand(2, *v[key].shape[1:]) for key in ("t5_hidden_uncond", "t5_mask_uncond")
    )
    c = model.logits(v["prefix"], v["t5_hidden_cond"], v["t5_mask_cond"])
    u = model.logits(v["prefix"], *without)
    torch.testing.assert_close(c, v["logits_cond"], **CLOSE)
    torch.testing.assert_close(u, v["logits_uncond"], **CLOSE)
    torch.testing.assert_close(flexar.guided(torch.stack([c, u]), 3.0), v["logits_cfg3"], **CLOSE)
    full = model.logits(v["prefix_full"], v["t5_hidden_cond"], v["t5_mask_cond"])
    torch.testing.assert_close(full, v["logits_cond_full"], **CLOSE)

    for case, new, samples, options in (
        ("greedy_cfg3", None, 1, {"guidance": 3.0}),
        ("greedy_nocfg", None, 1, {"guidance": 1.0}),
        ("greedy_prefix_cfg3", 3, 1, {"guidance": 3.0}),
        ("topk4_new1_cfg3", 1, 4, {"guidance": 3.0}),
        ("topk4_new3_cfg3", 3, 4, {"guidance": 3.0}),
        ("topk4_new3_temp05", 3, 4, {"guidance": 3.0, "temperature": 0.5}),
    ):
        found = model.generate(
            PROMPTS,
            prefix=None if new is None else v["prefix"],
            num_tokens=model.num_tokens if new is None else v["prefix"].shape[1] + new,
            samples=samples,
            sample=False,
            **options,
        )
        assert torch.equal(found.tokens, v[f"{case}_tokens"]), case
        torch.testing.assert_close(found.log_probs, v[f"{case}_logp"][:, 0], **CLOSE)

    for case, scale, temperature, top_k, top_p in (
        ("sample_new3_norepl", 3.0, 1.0, 0, 0.0),
        ("sample_filtered", 1.5, 2.5, 20, 0.9),
        ("sample_topk_only", 2.0, 1.3, 8, 0.0),
        ("sample_topp_only", 1.0, 1.0, 0, 0.5),
    ):
        tokens = v[f"{case}_tokens"]  # five of each prompt
        log_p = log_prob_of(model, v, tokens, scale, temperature, top_k, top_p)
        torch.testing.assert_close(log_p, v[f"{case}_logp"][:, 0], **CLOSE)


def log_prob_of(
    model: FlexAR,
    v: dict[str, Tensor],
    tokens: Tensor,
    scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Of the tokens after the vectors' prefix, as `generate` would have drawn them."""
    rows = len(tokens) // 2
    text = [v[f"t5_{part}_cond"].repeat_interleave(rows, 0) for part in ("hidden", "mask")]
    c = model.logits(tokens[:, :-1], *text)
    empty = [
        v[f"t5_{part}_uncond"].repeat(len(tokens), *[1] * n)
        for part, n in (("hidden", 2), ("mask", 1))
    ]
    logits = flexar.guided(torch.stack([c, model.logits(tokens[:, :-1], *empty)]), scale)
    new = range(v["prefix"].shape[1], tokens.shape[1])
    steps = [filtered(logits[:, i], temperature, top_k, top_p).log_softmax(1) for i in new]
    return torch.stack(
        [p.gather(1, tokens[:, i, None]) for p, i in zip(steps, new, strict=True)]
    ).sum((0, 2))


@pytest.mark.parametrize("name", SETS)
def test_flexar_matches_reference_vectors(name: str) -> None:
    conforms(name)


@pytest.mark.parametrize("name", SETS)
def test_the_text_projection_matches_reference_vectors(name: str) -> None:
    model, v = load(name), vectors(name)
    for kind in ("cond", "uncond"):
        projected = model.network.text_encoder["mlp"](v[f"t5_hidden_{kind}"])
        torch.testing.assert_close(projected, v[f"text_proj_{kind}"], **CLOSE)


# Mistakes that the vectors must find


def tanh_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FeedForward, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

    monkeypatch.setattr(FeedForward, "forward", forward)


def no_text_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlexARNetwork.read_text

    def read_text(self: FlexARNetwork, hidden: Tensor, mask: Tensor) -> TextStates:
        return right(self, hidden, torch.ones_like(mask))

    monkeypatch.setattr(FlexARNetwork, "read_text", read_text)


def guidance_on_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flexar.guided
    monkeypatch.setattr(flexar, "guided", lambda logits, s: right(logits.log_softmax(-1), s))


def guidance_from_the_conditional(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flexar.guided
    monkeypatch.setattr(flexar, "guided", lambda logits, scale: right(logits, 1 + scale))


def silu_for_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FeedForward, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)) * self.fc3(x))

    monkeypatch.setattr(FeedForward, "forward", forward)


def interleaved_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    def heads(self: flexar_model.CrossAttention, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.cfg.head_dim, -1)).permute(0, 3, 1, 2)

    monkeypatch.setattr(flexar_model.CrossAttention, "_heads", heads)


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("flexar_tiny", tanh_gelu),
        ("flexar_tiny_gated", silu_for_gelu),
        *[
            (name, mistake)
            for name in SETS
            for mistake in (
                no_text_mask,
                guidance_on_log_probs,
                guidance_from_the_conditional,
                interleaved_heads,
            )
        ],
    ],
)
def test_a_mistake_is_found(
    name: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        conforms(name)


# Generation


@pytest.mark.parametrize("name", SETS)
def test_a_short_text_may_be_padded_at_will(name: str) -> None:
    model, v = load(name), vectors(name)
    hidden, mask = v["t5_hidden_cond"][1:], v["t5_mask_cond"][1:]
    used = int(mask.sum())
    assert used < mask.shape[1]
    cut = model.logits(v["prefix"][1:], hidden[:, :used], mask[:, :used])
    torch.testing.assert_close(cut, v["logits_cond"][1:], **CLOSE)


def test_samples_of_a_prompt_differ_in_the_last_token_only() -> None:
    model = load("flexar_tiny")
    found = model.generate(PROMPTS, num_tokens=4, samples=6, seed=3)
    tokens = found.tokens.view(2, 6, 4)
    assert (tokens[:, :, :3] == tokens[:, :1, :3]).all()
    assert all(len(set(row)) == 6 for row in tokens[:, :, 3].tolist())
    assert found.log_probs.shape == (12,)


def test_the_same_seed_gives_the_same_samples_and_another_does_not() -> None:
    model = load("flexar_tiny")
    draws = [model.generate(PROMPTS, num_tokens=8, seed=seed).tokens for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_sampled_log_probs_are_of_the_filtered_distribution() -> None:
    model, v = load("flexar_tiny"), vectors("flexar_tiny")
    found = model.generate(
        PROMPTS,
        prefix=v["prefix"],
        num_tokens=9,
        samples=3,
        guidance=2.0,
        temperature=1.5,
        top_k=12,
        top_p=0.95,
    )
    log_p = log_prob_of(model, v, found.tokens, 2.0, 1.5, 12, 0.95)
    torch.testing.assert_close(found.log_probs, log_p, **CLOSE)


def test_guidance_of_one_and_zero_need_one_pass_each() -> None:
    model = load("flexar_tiny")
    assert [len(model.text_states(PROMPTS, scale).mask) for scale in (3.0, 1.0, 0.0)] == [4, 2, 2]
    without_text = model.generate(PROMPTS, sample=False, guidance=0.0).tokens
    assert torch.equal(without_text[0], without_text[1])


def test_the_checkpoints_own_guidance_is_the_default() -> None:
    model, v = load("flexar_tiny"), vectors("flexar_tiny")
    assert torch.equal(model.generate(PROMPTS, sample=False).tokens, v["greedy_cfg3_tokens"])


def test_nothing_to_add_gives_the_prefix_with_log_prob_zero() -> None:
    model, v = load("flexar_tiny"), vectors("flexar_tiny")
    found = model.generate(PROMPTS, prefix=v["prefix"], num_tokens=6, samples=2)
    assert torch.equal(found.tokens, v["prefix"].repeat_interleave(2, 0))
    assert torch.equal(found.log_probs, torch.zeros(4))


def test_half_precision_stays_near() -> None:
    model = FlexAR.from_pretrained(VECTORS / "flexar_tiny", dtype=torch.bfloat16)
    v = vectors("flexar_tiny")
    logits = model.logits(v["prefix"], v["t5_hidden_cond"], v["t5_mask_cond"])
    assert logits.dtype == torch.float32
    assert 1e-3 < (logits - v["logits_cond"]).abs().max() < 0.5


# Drawing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_follow_the_distribution(replacement: bool) -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    drawn = draw(p.log().expand(4000, -1), 1, replacement, generator())
    counts = drawn.flatten().bincount(minlength=5)
    assert counts[4] == 0
    assert chisquare(counts[:4].numpy(), 4000 * p[:4].numpy()).pvalue > 0.001


def test_draws_with_replacement_repeat_and_without_do_not() -> None:
    logits = torch.zeros(50, 4)
    assert all(len(set(row)) == 4 for row in draw(logits, 4, False, generator()).tolist())
    assert any(len(set(row)) < 4 for row in draw(logits, 4, True, generator()).tolist())


def test_more_draws_than_tokens_are_refused_without_replacement() -> None:
    logits = filtered(torch.randn(2, 10), 1.0, 3, 0.0)
    with pytest.raises(InputError, match="leave 3 tokens, of which 4 different"):
        draw(logits, 4, False, generator())
    assert draw(logits, 4, True, generator()).shape == (2, 4)


def test_top_k_keeps_ties_and_top_p_keeps_the_best() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, -1.0]])
    kept = filtered(logits, 1.0, 2, 0.0).isfinite()
    assert kept.tolist() == [[False, True, True, True, False]]
    assert filtered(logits, 1.0, 0, 1e-6).isfinite().tolist() == [[False, True] + 3 * [False]]
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    kept = filtered(p.log(), 1.0, 0, 0.65).isfinite()  # 0.1 + 0.2 are dropped: together 0.3 <= 0.35
    assert kept.tolist() == [[False, False, True, True]]


# What is refused


@pytest.fixture(scope="module")
def model() -> FlexAR:
    return load("flexar_tiny")


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(2, 16, dtype=torch.int64), "prefix of 16 tokens is too long.*at most 15"),
        (torch.tensor([[3, 240], [0, 1]]), "Token 240 is not in.*from 0 to 239"),
        (torch.tensor([[3, -1], [0, 1]]), "Token -1 is not in"),
        (torch.zeros(2, 3), r"whole numbers of shape \[B, P\], not torch.float32"),
        (torch.zeros(2, dtype=torch.int64), r"whole numbers of shape \[B, P\]"),
    ],
)
def test_tokens_that_it_cannot_take_are_refused(
    model: FlexAR, tokens: Tensor, sentence: str
) -> None:
    v = vectors("flexar_tiny")
    with pytest.raises(InputError, match=sentence):
        model.logits(tokens, v["t5_hidden_cond"], v["t5_mask_cond"])


@pytest.mark.parametrize(
    ("hidden", "mask", "sentence"),
    [
        ((2, 9, 31), (2, 9), "shape .B, S, 32.*google/flan-t5-xl"),
        ((2, 9, 32), (2, 8), "text mask"),
        ((2, 9, 32), None, "one token or more that is no padding"),
    ],
)
def test_text_that_it_cannot_read_is_refused(
    model: FlexAR, hidden: tuple[int, ...], mask: tuple[int, ...] | None, sentence: str
) -> None:
    text_mask = torch.zeros(2, 9) if mask is None else torch.ones(mask)
    with pytest.raises(InputError, match=sentence):
        model.logits(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(hidden), text_mask)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance": -1.0}, "guidance must be a finite number from 0"),
        ({"temperature": 0.0}, "above 0.*sample=False"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1"),
        ({"top_k": -1}, "top_k must be"),
        ({"samples": 0}, "samples must be"),
        ({"num_tokens": 17}, "num_tokens must be a whole number from 1 to 16"),
        ({"prefix": torch.zeros(3, 2, dtype=torch.int64)}, "2 prompts need as many prefixes"),
        ({"prefix": torch.zeros(2, 5, dtype=torch.int64), "num_tokens": 4}, "5 tokens is too long"),
    ],
)
def test_options_out_of_range_are_refused(model: FlexAR, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        model.generate(PROMPTS, **options)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        FlexAR.from_pretrained(tmp_path / "gone")
