"""Drafts of the sprites tokenizer, which a search screens candidates by."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.toy_world import tokenizer_model
from tests.toys import ToyTokenizer
from tfgen import hub
from tfgen.errors import TfgenError
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_draft import averaged


@pytest.fixture(scope="module")
def tokenizer() -> SpritesTokenizer:
    return SpritesTokenizer(tokenizer_model())


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(12, (40, 4), generator=torch.Generator().manual_seed(0))


def test_an_averaged_convolution_gives_the_mean_of_what_each_pixel_turns_into() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(5, 7, 3, padding=1), torch.randn(2, 5, 6, 9)
    full = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(averaged(conv)(x), F.avg_pool2d(full, 2))


def test_a_draft_of_the_embedded_model_is_its_picture_at_half_the_size() -> None:
    tokenizer = hub.load_tokenizer("sprites", torch.device("cpu"))
    tokens = torch.randint(1000, (16, 8), generator=torch.Generator().manual_seed(0))
    drafts, pictures = tokenizer.draft(tokens), F.avg_pool2d(tokenizer.decode(tokens), 2)
    assert drafts.shape == pictures.shape == (16, 3, 32, 32)
    assert 0 <= drafts.min() and drafts.max() <= 1
    distances = torch.cdist(drafts.flatten(1), pictures.flatten(1))
    assert distances.diagonal().max() < 0.5 * distances[~torch.eye(16, dtype=torch.bool)].min()


def test_a_draft_depends_neither_on_its_batch_nor_on_tokens_to_come(
    tokenizer: SpritesTokenizer, tokens: torch.Tensor
) -> None:
    together = tokenizer.draft(tokens[:, :2])
    torch.testing.assert_close(together[7:8], tokenizer.draft(tokens[7:8, :2]), atol=1e-5, rtol=0)
    assert (together - tokenizer.draft(tokens)).abs().max() > 1e-3


def test_drafts_leave_the_model_as_it_was(tokens: torch.Tensor) -> None:
    tokenizer = SpritesTokenizer(tokenizer_model())
    before, fingerprint = tokenizer.decode(tokens), tokenizer.fingerprint()
    tokenizer.draft(tokens)
    assert torch.equal(tokenizer.decode(tokens), before)
    assert tokenizer.fingerprint() == fingerprint


def test_a_tokenizer_has_no_drafts_unless_it_says_so() -> None:
    assert ToyTokenizer().draft_cost is None
    with pytest.raises(TfgenError, match="The tokenizer toy has no drafts"):
        ToyTokenizer().draft(torch.zeros(1, 1, dtype=torch.int64))
