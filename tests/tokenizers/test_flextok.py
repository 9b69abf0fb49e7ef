"""FlexTok as a tokenizer: prefixes, noise, guidance, the shortcuts, gradients. What it computes is
checked against the reference in test_flextok_vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.tokenizers.flextok_checks import VECTORS, model, prefixes
from tfgen.errors import InputError
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_config import SIZES, FlexTokConfig, Trunk, published
from tfgen.tokenizers.flextok_loading import Networks

TOKENS = torch.tensor([[11, 63_999, 0], [40_000, 5, 123]])


@pytest.fixture
def flextok() -> FlexTok:
    return model().with_sampling(steps=3)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(samples, registers) of each evaluation of the decoder."""
    seen: list[tuple[int, int]] = []
    decoder = model().decoder
    original = decoder.forward

    def forward(x: Tensor, registers: Tensor, *rest: object) -> Tensor:
        seen.append((len(x), registers.shape[1]))
        return original(x, registers, *rest)

    monkeypatch.setattr(decoder, "forward", forward)
    yield seen


def differ(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# Pictures


def test_every_prefix_is_a_whole_picture(flextok: FlexTok) -> None:
    for length in (1, 2, 3):
        pictures = flextok.decode(TOKENS[:, :length])
        assert pictures.shape == (2, 3, flextok.image_size, flextok.image_size)
        assert pictures.dtype == torch.float32
        assert pictures.min() >= 0 and pictures.max() <= 1
        assert pictures.std() > 0.01


def test_prefixes_of_mixed_lengths_decode_as_each_does_alone(flextok: FlexTok) -> None:
    tokens, lengths = prefixes([0, 1, 2, 3, 4])
    together = flextok.decode(tokens, lengths)
    for sample, length in enumerate(lengths.tolist()):
        alone = flextok.decode(tokens[[sample], :length])
        assert differ(together[[sample]], alone) < 1e-5


def test_tokens_past_the_length_do_not_matter(flextok: FlexTok) -> None:
    lengths = torch.tensor([1, 2])
    other = TOKENS.clone()
    other[0, 1:] = 7
    other[1, 2] = 9
    assert torch.equal(flextok.decode(TOKENS, lengths), flextok.decode(other, lengths))


def test_a_picture_does_not_depend_on_the_rest_of_its_batch(flextok: FlexTok) -> None:
    assert differ(flextok.decode(TOKENS)[[1]], flextok.decode(TOKENS[1:])) < 1e-5


def test_tokens_come_back_as_code_vectors(flextok: FlexTok) -> None:
    table = flextok.code_embeddings()
    assert table.shape == (64_000, 6)
    assert torch.equal(table[TOKENS], flextok.embed(TOKENS))
    assert torch.equal(flextok.fsq.to_tokens(table), torch.arange(64_000))


# Noise


def test_the_seed_is_the_noise_and_the_noise_is_drawn_on_the_cpu(flextok: FlexTok) -> None:
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(flextok.for_seed(5).noise, noise)
    assert torch.equal(flextok.for_seed(5).decode(TOKENS), flextok.for_seed(5).decode(TOKENS))
    assert differ(flextok.for_seed(5).decode(TOKENS), flextok.decode(TOKENS, noise=noise)) < 1e-5
    assert differ(flextok.for_seed(5).decode(TOKENS), flextok.for_seed(6).decode(TOKENS)) > 0.01


def test_a_tokenizer_for_a_seed_leaves_the_first_one_alone(flextok: FlexTok) -> None:
    before = flextok.decode(TOKENS)
    flextok.for_seed(5).decode(TOKENS)
    assert torch.equal(flextok.decode(TOKENS), before)
    assert flextok.for_seed(5) is not flextok


def test_samples_may_have_noises_of_their_own(flextok: FlexTok) -> None:
    noise = torch.cat([flextok.for_seed(seed).noise for seed in (3, 4)])
    pictures = flextok.decode(TOKENS, noise=noise)
    for row, seed in enumerate((3, 4)):
        assert differ(pictures[row], flextok.for_seed(seed).decode(TOKENS)[row]) < 1e-5


# Guidance


def test_a_scale_of_one_needs_no_unconditional_evaluations(
    flextok: FlexTok, evaluations: list
) -> None:
    flextok.decode(TOKENS, guidance=1.0)
    assert evaluations == [(2, 4)] * 3
    evaluations.clear()
    flextok.decode(TOKENS, guidance=lambda t: 1.0)  # a function may give anything at another t
    assert len(evaluations) == 6


def test_a_scale_of_one_is_no_guidance_in_whatever_way_it_is_said(flextok: FlexTok) -> None:
    plain = flextok.decode(TOKENS, guidance=1.0)
    assert differ(flextok.decode(TOKENS, guidance=lambda t: 1.0), plain) < 1e-5
    assert differ(flextok.decode(TOKENS, guidance=lambda t: 1.0, apg=False), plain) < 1e-5
    assert differ(flextok.decode(TOKENS), plain) > 0.01


def test_a_guidance_function_is_asked_at_the_times_of_the_steps(flextok: FlexTok) -> None:
    asked: list[float] = []
    flextok.decode(TOKENS, steps=4, guidance=lambda t: asked.append(t) or 2.0)
    assert asked == [1.0, 0.75, 0.5, 0.25]


def test_a_draft_is_a_few_steps_without_guidance(flextok: FlexTok, evaluations: list) -> None:
    draft = flextok.draft(TOKENS)
    assert 0 < len(evaluations) < 10 and set(evaluations) == {(2, 4)}
    assert differ(draft, flextok.decode(TOKENS, steps=len(evaluations), guidance=1.0)) == 0


# Shortcuts


def test_collapsed_prefixes_have_one_register_more_than_tokens(
    flextok: FlexTok, evaluations: list
) -> None:
    flextok.collapse = True
    flextok.velocity(flextok.noise, 1.0, TOKENS[:1])
    flextok.velocity(flextok.noise, 1.0, TOKENS[:1], conditional=False)
    flextok.collapse = False
    flextok.velocity(flextok.noise, 1.0, TOKENS[:1])
    flextok.velocity(flextok.noise, 1.0, TOKENS[:1], conditional=False)
    assert evaluations == [(1, 4), (1, 1), (1, 16), (1, 16)]


def test_shortcuts_change_pictures_by_rounding_only(flextok: FlexTok) -> None:
    tokens, lengths = prefixes([0, 1, 2, 3])
    pictures = []
    for flextok.collapse in (False, True):
        for flextok.share_first in (False, True):
            pictures.append(flextok.decode(tokens, lengths))
    for other in pictures[1:]:
        assert 0 <= differ(other, pictures[0]) < 1e-5
    assert any(differ(other, pictures[0]) > 0 for other in pictures[1:])  # they are other paths


@pytest.mark.parametrize("tokens", [1, 200])
def test_255_registers_collapse_as_well_as_15(tokens: int) -> None:
    """A random decoder with the published number of registers."""
    torch.manual_seed(0)
    config = FlexTokConfig(Trunk(64, 1), Trunk(64, 2), vae=model().config.vae)
    networks = Networks(config).eval().requires_grad_(False)
    for parameter in networks.decoder.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    flextok = FlexTok(networks)
    prefix = torch.randint(64_000, (2, tokens), generator=torch.Generator().manual_seed(1))
    x = flextok.noise.expand(2, -1, -1, -1)
    for conditional in (True, False):
        found = []
        for flextok.collapse in (False, True):
            found.append(flextok.velocity(x, 0.7, prefix, conditional=conditional))
        assert differ(*found) < 1e-5 * found[0].abs().max()
        assert found[0].std() > 0.1


def test_the_first_unconditional_velocity_of_a_seed_is_computed_once_for_all_decodes(
    flextok: FlexTok, evaluations: list
) -> None:
    search = flextok.for_seed(1)
    search.decode(TOKENS)
    first = list(evaluations)
    search.decode(TOKENS)
    assert sorted(first) == [(1, 1)] + [(2, 1)] * 2 + [(2, 4)] * 3
    assert sorted(evaluations[len(first) :]) == [(2, 1)] * 2 + [(2, 4)] * 3
    evaluations.clear()
    flextok.for_seed(2).decode(TOKENS)
    assert (1, 1) in evaluations  # another noise, another velocity


def test_a_noise_that_is_given_shares_it_among_the_samples_of_the_call(
    flextok: FlexTok, evaluations: list
) -> None:
    flextok.decode(TOKENS, noise=VECTORS["noise"][:1])
    assert evaluations.count((1, 1)) == 1
    evaluations.clear()
    flextok.decode(TOKENS, noise=VECTORS["noise"][:2])
    assert evaluations.count((1, 1)) == 0 and evaluations.count((2, 1)) == 3


def test_the_time_is_embedded_once_for_all_steps_samples_and_decodes(
    flextok: FlexTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    original = flextok.decoder.embed_time
    monkeypatch.setattr(
        flextok.decoder, "embed_time", lambda t: seen.append(t.tolist()) or original(t)
    )
    flextok = flextok.for_seed(8).with_sampling(steps=4)
    for _ in range(2):
        flextok.decode(TOKENS)
    assert sorted(seen) == [[1.0], [1.0, 0.75, 0.5, 0.25]]  # that of the shared velocity, and all


# Gradients


def test_the_decoder_is_differentiable_in_the_code_vectors(flextok: FlexTok) -> None:
    codes = flextok.embed(TOKENS).requires_grad_()
    pictures = flextok.decode_embeddings(codes)
    assert differ(pictures, flextok.decode(TOKENS)) < 1e-6
    weights = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((pictures * weights).sum(), codes)

    def value(step: float) -> float:
        moved = flextok.decode_embeddings(codes.detach() + step * gradient / gradient.norm())
        return (moved.double() * weights).sum().item()

    slope = (value(1e-2) - value(-1e-2)) / 2e-2
    assert slope == pytest.approx(gradient.norm().item(), rel=0.02)


def test_gradients_pass_after_a_search_has_filled_what_is_kept(flextok: FlexTok) -> None:
    with torch.inference_mode():
        flextok.decode(TOKENS)
    codes = flextok.embed(TOKENS).requires_grad_()
    flextok.decode_embeddings(codes).sum().backward()
    assert codes.grad.isfinite().all() and codes.grad.abs().max() > 0


# Encoding


def test_an_encoding_decodes_and_depends_on_the_picture(flextok: FlexTok) -> None:
    images = (VECTORS["enc_images"] + 1) / 2
    tokens = flextok.encode(images)
    assert tokens.shape == (2, flextok.num_tokens)
    assert torch.equal(flextok.check(tokens), tokens)
    assert (tokens[0] != tokens[1]).any()


def test_a_sampled_posterior_follows_the_generator(flextok: FlexTok) -> None:
    images = (VECTORS["enc_images"] + 1) / 2

    def encode(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return flextok.encode(images, sample_posterior=True, generator=generator)

    assert torch.equal(encode(0), encode(0))
    assert torch.equal(encode(0), flextok.encode(images, sample_posterior=True))
    assert (encode(0) != encode(1)).any()
    assert (encode(0) != flextok.encode(images)).any()


def test_pictures_of_another_size_are_resized(flextok: FlexTok) -> None:
    image = torch.rand(1, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    small, large = image.expand(1, 3, 40, 40), image.expand(1, 3, 64, 64)
    assert torch.equal(flextok.encode(small), flextok.encode(large))


# What is refused

BAD = {
    "a token above the codebook": (lambda f: f.decode(TOKENS + 1), "Token 64000 is not in"),
    "a token below it": (lambda f: f.decode(TOKENS - 1), "Token -1 is not in the codebook"),
    "too many tokens": (
        lambda f: f.decode(torch.zeros(1, 17, dtype=torch.int64)),
        "flextok decodes 1 to 16 tokens, not 17",
    ),
    "no token": (lambda f: f.decode(TOKENS[:, :0]), "decodes 1 to 16 tokens, not 0"),
    "tokens that are no numbers of codes": (lambda f: f.decode(TOKENS / 2), "whole numbers"),
    "a length above the tokens": (
        lambda f: f.decode(TOKENS, torch.tensor([1, 4])),
        "A prefix length is 4: with 3 tokens a row it must be from 1 to 3",
    ),
    "a length of zero": (lambda f: f.decode(TOKENS, torch.tensor([0, 1])), "prefix length is 0"),
    "too few lengths": (lambda f: f.decode(TOKENS, torch.tensor([1])), r"of shape \[2\]"),
    "noise of another shape": (
        lambda f: f.decode(TOKENS, noise=torch.zeros(1, 16, 4, 4)),
        r"noise must be of shape \[1, 16, 8, 8\] or \[2, 16, 8, 8\], not \[1, 16, 4, 4\]",
    ),
    "no steps": (lambda f: f.decode(TOKENS, steps=0), "steps must be a whole number from 1 up"),
    "guidance that is no number": (
        lambda f: f.decode(TOKENS, guidance=float("nan")),
        "guidance must be a finite number",
    ),
    "a negative seed": (lambda f: f.for_seed(-1), "seed must be a whole number from 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence(flextok: FlexTok, what: str) -> None:
    call, message = BAD[what]
    with pytest.raises(InputError, match=message) as caught:
        call(flextok)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_published_prefix_is_at_most_256_tokens() -> None:
    assert {published(size).num_tokens for size in SIZES} == {256}
    flextok = model()
    flextok.num_tokens = 256
    with pytest.raises(InputError, match="flextok decodes 1 to 256 tokens, not 257"):
        flextok.decode(torch.zeros(1, 257, dtype=torch.int64))


def test_other_sampling_is_another_fingerprint(flextok: FlexTok) -> None:
    """What was computed with other steps (a cache, an atlas) is not taken for this one's."""
    same = {
        flextok.fingerprint(),
        flextok.for_seed(9).fingerprint(),
        model().with_sampling(steps=3).fingerprint(),
    }
    assert len(same) == 1
    variants: list[Callable[[], FlexTok]] = [
        lambda: flextok.with_sampling(steps=4),
        lambda: flextok.with_sampling(guidance=3.0),
        lambda: flextok.with_sampling(apg=False),
    ]
    assert len({variant().fingerprint() for variant in variants} | same) == 4
