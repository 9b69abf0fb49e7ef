"""What a draft costs is what torch counts on the meta device, where nothing is computed."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flextok_flops
from tests.tokenizers.flextok_checks import model
from tfgen.tokenizers.flextok import DRAFT, FlexTok
from tfgen.tokenizers.flextok_cost import vae_flops

skeleton = cache(flextok_flops.skeleton)


def counted(tokenizer: FlexTok, tokens: int) -> float:
    """FLOPs of a draft in those of a decode, where what all candidates share is there already."""
    drafting = tokenizer.for_seed(0)
    drafting.prepare(DRAFT.steps)
    with FlopCounterMode(display=False) as counter:
        drafting.draft(torch.zeros(1, tokens, dtype=torch.int64, device="meta"))
    steps = tokenizer.sampling.steps
    return counter.get_total_flops() / flextok_flops.decode_flops(tokenizer, tokens, steps)


@pytest.mark.parametrize("collapse", [True, False])
def test_a_draft_costs_what_its_flops_are(collapse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = skeleton("d12-d12")
    monkeypatch.setattr(tokenizer, "collapse", collapse)
    assert tokenizer.draft_cost == pytest.approx(counted(tokenizer, 4), rel=0.01)
    assert tokenizer.draft_cost == pytest.approx(0.33 if collapse else 0.23, abs=0.005)
    few = tokenizer.with_sampling(steps=8)
    assert few.draft_cost == pytest.approx(counted(few, 4), rel=0.01)


def test_the_vae_has_the_flops_that_torch_counts() -> None:
    for tokenizer in (skeleton("d12-d12"), model()):
        latents = torch.zeros(1, *tokenizer.config.latent_shape, device=tokenizer.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tokenizer.vae.decode(latents)
        assert vae_flops(tokenizer.config) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("size", "cost"), [("d18-d18", 0.19), ("d18-d28", 0.13)])
def test_the_larger_the_decoder_the_cheaper_its_drafts(size: str, cost: float) -> None:
    assert skeleton(size).draft_cost == pytest.approx(cost, abs=0.005)


def test_without_guidance_a_draft_saves_less() -> None:
    guided = model().with_sampling(steps=10)
    plain = guided.with_sampling(guidance=1.0)
    assert guided.draft_cost < plain.draft_cost < 1
    assert plain.with_sampling(steps=DRAFT.steps).draft_cost == 1
