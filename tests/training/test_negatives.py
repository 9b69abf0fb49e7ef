"""Pictures that fit no caption: random, spoilt and mixed tokens, found ones, odd ones out."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.toy_world import make_world, tokenizer_model
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training import clip, clip_model
from tfgen.training.captions import Captioner, fits
from tfgen.training.negatives import (
    ALIKE,
    Negatives,
    chimeras,
    embed,
    mistaken_chimeras,
    odd_ones_out,
    search_failures,
)
from tfgen.training.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(64)


def test_negatives_are_decoded_prefixes_of_all_three_sorts() -> None:
    negatives = Negatives(SpritesTokenizer(tokenizer_model(64)), pool=3)
    true = torch.zeros(4, 8, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    assert negatives.draw(9, true, generator).shape == (6, 3, 64, 64)  # nothing was found yet
    negatives.add([torch.tensor([i, i, i]) for i in range(5)])
    assert len(negatives.pool) == 3
    again = Negatives(negatives.tokenizer, pool=3)
    again.restore(negatives.state())
    assert [t.tolist() for t in again.pool] == [t.tolist() for t in negatives.pool]
    images = negatives.draw(9, true, generator)
    assert images.shape == (9, 3, 64, 64)
    found = negatives.tokenizer.decode(torch.tensor([[i, i, i] for i in (2, 3, 4)]))
    assert all(any(torch.allclose(i, f, atol=1e-5) for f in found) for i in images[6:])


@pytest.mark.parametrize("mixed", [False, True])
def test_spoilt_tokens_are_resampled_and_half_of_them_mixed_where_asked(mixed: bool) -> None:
    negatives = Negatives(SpritesTokenizer(tokenizer_model(64)), mixed=mixed)
    decoded: list[Tensor] = []
    negatives.tokenizer.decode_lengths = lambda full, lengths: decoded.append(full) or full
    true = torch.tensor([[11] * 8, [0] * 8])  # chimeras have no other token than these
    negatives.draw(90, true, torch.Generator().manual_seed(0))
    spoilt = decoded[0][30:60]
    pure = ((spoilt == 0) | (spoilt == 11)).all(1)
    assert pure[15:].all() == mixed and not pure[:15].all()


def test_a_chimera_has_some_tokens_of_other_scenes_in_their_places() -> None:
    hosts = torch.zeros(50, 8, dtype=torch.long)
    others = torch.arange(8) + 10 * torch.arange(1, 6)[:, None]
    mixed = chimeras(hosts, others, torch.Generator().manual_seed(0))
    taken = mixed > 0
    assert set(taken.sum(1).tolist()) == {1, 2, 3}
    assert not taken[:, :2].any() and taken[:, 2:].any(0).all()
    assert torch.equal(mixed[taken] % 10, torch.arange(8).expand(50, 8)[taken])
    assert not hosts.any()


def test_the_chimeras_kept_are_those_that_the_model_mistakes_for_the_caption() -> None:
    decoder, model = SpritesTokenizer(tokenizer_model(64)), clip_model.create(12, 32)
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(12, (6, 8), generator=generator)
    text = torch.nn.functional.normalize(torch.randn(256, generator=generator), dim=0)

    def mistaken(keep: int) -> list[Tensor]:
        made = torch.Generator().manual_seed(1)
        return mistaken_chimeras(model, decoder, text, true[0], true, made, keep, tries=20)

    host = decoder.decode(true[:1])
    every = mistaken(20)
    off = (decoder.decode(torch.stack(every)) - host).square().flatten(1).mean(1)
    assert 0 < len(every) <= 20 and (off >= ALIKE).all()
    fit = [float(embed(model, decoder.decode(t[None]))[0] @ text) for t in every]
    assert fit == sorted(fit, reverse=True)
    assert [t.tolist() for t in mistaken(2)] == [t.tolist() for t in every[:2]]
    # Chimeras of a scene with itself are that scene, and no mistake.
    alone = mistaken_chimeras(model, decoder, text, true[0], true[:1], generator, 2)
    assert alone == []


def test_an_odd_one_out_is_of_another_kind_and_fits_no_caption(world: World) -> None:
    scenes = odd_ones_out(world, 60, torch.Generator().manual_seed(0))
    assert set(scenes.counts.tolist()) == {3, 4}
    for objects in scenes.objects.tolist():
        kinds = [kind for kind in objects if kind >= 0]
        assert sorted(map(kinds.count, set(kinds))) == [1, len(kinds) - 1]
    captioner = Captioner(world.specs)
    plain = world.sample(300, torch.Generator().manual_seed(1))
    _, mentions = captioner.write(plain, random.Random(0))
    assert not fits(mentions, scenes).any()


def test_failures_are_found_by_a_search_for_the_caption(world: World) -> None:
    torch.manual_seed(0)
    trainer = clip.ClipTrainer(20, 32, world.num_objects, 0.0).eval()
    decoder = SpritesTokenizer(tokenizer_model(64))
    text = torch.nn.functional.normalize(torch.randn(256), dim=0)
    found = search_failures(
        trainer.model,
        decoder,
        text,
        torch.Generator().manual_seed(0),
        beam=3,
        candidates=4,
        length=3,
    )
    assert [len(tokens) for tokens in found] == [3, 3]
    drawn = torch.randint(12, (30, 3), generator=torch.Generator().manual_seed(1))
    fit = [embed(trainer.model, decoder.decode(t)) @ text for t in (torch.stack(found), drawn)]
    assert fit[0].max() > fit[1].mean()
