"""The packaged weights are the ones the package was tested with, and give what they gave then."""

import json

import pytest
import torch

from tests.pin_weights import PINNED, hashes, outputs


@pytest.fixture(scope="module")
def pinned():
    return json.loads(PINNED.read_text())


@pytest.fixture(scope="module")
def now():
    return outputs()


def test_the_packaged_files_are_the_pinned_ones(pinned):
    assert hashes() == pinned["hashes"]


@pytest.mark.parametrize("what", ["decoded", "rendered", "grid_decoded"])
def test_fixed_tokens_give_the_pinned_pictures(pinned, now, what):
    difference = torch.tensor(now[what]) - torch.tensor(pinned[what])
    assert difference.abs().max() < 2 / 255


def test_the_verifier_gives_the_pinned_scores(pinned, now):
    assert torch.allclose(
        torch.tensor(now["scores"]), torch.tensor(pinned["scores"]), atol=0.02, rtol=0.002
    )


def test_the_trained_prior_gives_the_pinned_log_probs(pinned, now):
    found, expected = torch.tensor(now["log_probs"]), torch.tensor(pinned["log_probs"])
    assert torch.allclose(found, expected, atol=0.02, rtol=0.002)


@pytest.mark.parametrize("what", ["encoded", "grid_encoded"])
def test_pictures_encode_to_the_pinned_tokens(pinned, now, what):
    # rounding may flip a code that lies on the edge of its bin, on another processor
    same = torch.tensor(now[what]) == torch.tensor(pinned[what])
    assert same.float().mean() > 0.9
