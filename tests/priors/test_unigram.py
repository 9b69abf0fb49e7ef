"""The unigram prior: the frequency prior's counts, whatever the previous token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys import ToyPrior
from tfgen.priors import FrequencyPrior, UnigramPrior

NONE = torch.empty(1, 0, dtype=torch.int64)
# 20 scenes; the last is held out, so 19 are counted: 0 -> 1 ten times, 0 -> 2 four, 3 -> 2 five.
SCENES = torch.tensor([[0, 1]] * 10 + [[0, 2]] * 4 + [[3, 2]] * 5 + [[0, 1]])


def fit(scenes: torch.Tensor = SCENES, vocab_size: int = 4) -> UnigramPrior:
    return UnigramPrior.fit([scenes], vocab_size, scenes.shape[1], min_count=1, kappa=2.0)


def test_every_token_is_a_smoothed_count_at_its_position() -> None:
    prior = fit()
    first = torch.tensor([[14.5, 0.5, 0.5, 5.5]]) / (19 + 0.5 * 4)
    second = torch.tensor([[0.5, 10.5, 9.5, 0.5]]) / (19 + 0.5 * 4)
    torch.testing.assert_close(prior.log_probs(NONE).exp(), first)
    for previous in range(4):  # which says nothing
        torch.testing.assert_close(prior.log_probs(torch.tensor([[previous]])).exp(), second)


def test_sequences_are_the_sum_of_their_tokens() -> None:
    prior = fit()
    tokens = torch.tensor([[0, 1], [3, 0], [1, 2]])
    expected = torch.stack(
        [prior.log_probs(NONE)[0, tokens[:, 0]], prior.log_probs(tokens[:, :1])[0, tokens[:, 1]]], 1
    )
    torch.testing.assert_close(prior.sequence_log_prob(tokens), expected)


def test_true_scenes_are_as_likely_as_it_expects() -> None:
    start = torch.empty(16_000, 0, dtype=torch.int64)
    scenes = ToyPrior(40, 5).complete(start, 5, 1.0, torch.Generator().manual_seed(0))
    few = scenes.split(400)  # so few that being among the counted makes a scene likelier
    priors = [fit(part, 40) for part in few]
    for length in (1, 3, 5):
        seen = [
            prior.sequence_log_prob(part[:380, :length])
            for prior, part in zip(priors, few, strict=True)
        ]
        unseen = [prior.sequence_log_prob(scenes[:, :length]).mean() for prior in priors]
        expected = sum(prior.expected_log_prob(length) for prior in priors) / len(priors)
        assert float(torch.cat(seen).mean()) - expected > 0.05
        assert expected == pytest.approx(float(sum(unseen)) / len(priors), abs=0.01)


def test_it_is_read_from_the_frequency_priors_file(tmp_path: Path) -> None:
    FrequencyPrior.fit([SCENES], 4, 2, min_count=1, kappa=2.0).save(tmp_path / "prior.safetensors")
    prior = UnigramPrior.for_tokenizer(None, tmp_path)  # type: ignore[arg-type]
    assert isinstance(prior, UnigramPrior) and prior.name == "unigram"
    assert torch.equal(prior.sequence_log_prob(SCENES), fit().sequence_log_prob(SCENES))
