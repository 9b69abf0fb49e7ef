"""Priors joined by +."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.toys import ToyPrior, ToyTokenizer
from tfgen.errors import InputError
from tfgen.priors import CombinedPrior, Prior, UniformPrior

A, B = ToyPrior(7, 4, seed=1), ToyPrior(7, 4, seed=2)
PREFIXES = torch.tensor([[0, 3], [6, 5], [2, 2]])


class Listening(ToyPrior):
    """Remembers what it was told."""

    def condition(self, prompt: str, similarity: object) -> Prior:
        other = Listening(self.vocab_size, self.num_tokens)
        other.heard = (prompt, similarity)
        return other

    def with_guidance(self, scale: float) -> Prior:
        other = Listening(self.vocab_size, self.num_tokens)
        other.scale = scale
        return other

    def options(self) -> dict[str, object]:
        return {"ears": 2}


def test_it_is_the_normalised_geometric_mean() -> None:
    p = CombinedPrior([A, B]).log_probs(PREFIXES).exp()
    expected = (A.log_probs(PREFIXES).exp() * B.log_probs(PREFIXES).exp()).sqrt()
    torch.testing.assert_close(p, expected / expected.sum(dim=1, keepdim=True))
    torch.testing.assert_close(p.sum(dim=1), torch.ones(3))


def test_twice_the_same_is_the_same() -> None:
    torch.testing.assert_close(CombinedPrior([A, A]).log_probs(PREFIXES), A.log_probs(PREFIXES))


def test_typicality_is_the_mean_of_the_parts() -> None:
    expected = (A.typicality(PREFIXES) + B.typicality(PREFIXES)) / 2
    torch.testing.assert_close(CombinedPrior([A, B]).typicality(PREFIXES), expected)


def test_proposals_obey_the_prior_strength() -> None:
    prior, empty = CombinedPrior([A, B]), torch.empty(1, 0, dtype=torch.int64)
    draw = partial(prior.propose, empty.expand(20_000, -1), 1)
    for strength in (0.0, 1.0, 3.0):
        drawn = draw(strength, torch.Generator().manual_seed(0))[:, 0, 0]
        share = drawn.bincount(minlength=7) / 20_000
        expected = (strength * prior.log_probs(empty)[0]).softmax(dim=0)
        torch.testing.assert_close(share, expected, atol=0.02, rtol=0)


def test_a_prompt_and_the_guidance_reach_the_parts() -> None:
    def similarity(embeddings: Tensor) -> Tensor:
        return embeddings[:, 0]

    prior = CombinedPrior([UniformPrior(7, 4), Listening(7, 4)])
    told = prior.condition("a fox", similarity)
    assert told.parts[1].heard == ("a fox", similarity)
    assert prior.with_guidance(2.0).parts[1].scale == 2.0
    assert told.name == "uniform+toy"
    assert told.options() == {"parts": [{"name": "uniform"}, {"name": "toy", "ears": 2}]}


def test_two_parts_of_one_name_are_both_told_of() -> None:
    class Held(ToyPrior):
        def options(self) -> dict[str, object]:
            return {"fingerprint": id(self)}

    first, second = Held(7, 4), Held(7, 4)
    assert CombinedPrior([first, second]).options()["parts"] == [
        {"name": "toy", "fingerprint": id(first)},
        {"name": "toy", "fingerprint": id(second)},
    ]


def test_guidance_that_no_part_takes_is_refused() -> None:
    with pytest.raises(InputError, match="takes no guidance"):
        CombinedPrior([UniformPrior(7, 4), UniformPrior(7, 4)]).with_guidance(2.0)


def test_a_part_made_with_another_verifier_is_refused() -> None:
    class Bound(ToyPrior):
        def for_verifier(self, fingerprint, wanted=True):
            if wanted:
                raise InputError(f"not {fingerprint()}")
            return B

    prior = CombinedPrior([A, Bound(7, 4)])
    with pytest.raises(InputError, match="not abc"):
        prior.for_verifier(lambda: "abc")
    assert prior.for_verifier(lambda: "abc", wanted=False).parts == [A, B]


def test_parts_of_other_codebooks_do_not_combine() -> None:
    with pytest.raises(InputError, match="codebooks of 7 and 8"):
        CombinedPrior([A, UniformPrior(8, 4)])


def test_it_is_as_long_as_its_shortest_part() -> None:
    assert CombinedPrior([A, UniformPrior(7, 3)]).num_tokens == 3


def test_it_has_no_model_of_its_own() -> None:
    with pytest.raises(InputError, match="frequency\\+retrieval"):
        CombinedPrior.for_tokenizer(ToyTokenizer(7, 4))
