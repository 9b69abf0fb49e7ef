"""The packaged bank belongs to the packaged models, and is what it says."""

from __future__ import annotations

from functools import partial

import pytest

from tfgen import hub
from tfgen.pipeline import Pipeline, render
from tfgen.priors.bank import FILE_NAME, Bank
from tfgen.training.objects import PACKAGED_TIER

PROMPTS = ["a red fox in snow", "two cats on grass", "a rocket in space"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(device="cpu", prior="retrieval")


def test_the_bank_is_small_and_of_training_scenes(pipeline: Pipeline) -> None:
    path = hub.WEIGHTS / "sprites" / FILE_NAME
    bank = Bank.open(path)
    bank.check(path, **pipeline.fingerprints)
    assert path.stat().st_size <= 4_000_000
    source = {"world": PACKAGED_TIER, "seed": 8, "scenes": len(bank), "pairs": 0.5}
    assert bank.header["source"] == source


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_nearest_picture_in_the_bank_fits_the_prompt(pipeline: Pipeline, prompt: str) -> None:
    target = pipeline.verifier.prepare(prompt)
    similarities = partial(pipeline.verifier.similarities, target=target)
    prior = pipeline.prior.condition(prompt, similarities)
    pictures = pipeline.tokenizer.decode(prior.neighbours[:16])
    assert pipeline.verifier.score(pictures, target).max() > 1
    assert render(pipeline.tokenizer, prior.neighbours[0]).size == (256, 256)
