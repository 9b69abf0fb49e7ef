"""A verifier that looks at a picture several times, a little changed."""

import pytest
import torch

from tests.toys import GridVerifier, ToyTokenizer, ToyVerifier
from tfgen.errors import InputError
from tfgen.search import Evaluator
from tfgen.verifiers.base import Target, Verifier
from tfgen.verifiers.views import VIEWS, Views, view

TARGET = Target("a toy")


class Flat(Verifier):
    """Embeds a picture as its pixels; likes what is bright in the middle."""

    name = "flat"

    def prepare(self, prompt, negatives=()):
        return Target(prompt)

    def embed(self, images):
        return images.flatten(1)

    def score(self, images, target):
        return self.score_embeddings(self.embed(images), target)

    def score_embeddings(self, embeddings, target):
        return embeddings.unflatten(1, (3, 64, 64))[:, 0, 32, 32]

    def fingerprint(self):
        return "flat"


def picture(*bright):
    image = torch.zeros(1, 3, 64, 64)
    for y, x in bright:
        image[:, :, y, x] = 0.5
    return image


def test_a_view_is_moved_and_lightened():
    seen = view(picture((10, 20)), 1 / 32, -1 / 16, 1.2)
    assert seen.nonzero()[:, 2:].unique(dim=0).tolist() == [[10 - 4, 20 + 2]]
    assert seen.max() == pytest.approx(0.6)
    assert view(torch.full((1, 3, 8, 8), 0.95), 0, 0, 1.1).max() == 1.0


def test_the_edges_of_a_picture_that_is_moved_are_repeated():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = view(image, 1 / 32, 0.0, 1.0)
    assert torch.equal(seen[..., 2:], image[..., :-2])
    assert torch.equal(seen[..., :2], image[..., :1].expand(-1, -1, -1, 2))


def test_the_first_view_is_the_picture_itself():
    image = picture((32, 32))
    assert torch.equal(Views(Flat(), 1).embed(image), Flat().embed(image))


def test_what_scores_in_one_place_only_is_found_out():
    spot, patch = picture((32, 32)), picture(*((y, x) for y in range(64) for x in range(64)))
    assert Flat().score(spot, TARGET) == Flat().score(patch, TARGET)
    views = Views(Flat(), len(VIEWS))
    assert views.score(spot, TARGET) == pytest.approx(0.5 / len(VIEWS))
    assert views.score(patch, TARGET) == pytest.approx(0.5)


def test_scores_are_those_of_the_embeddings():
    views, images = Views(Flat(), 3), torch.rand(4, 3, 64, 64)
    expected = views.score_embeddings(views.embed(images), TARGET)
    assert torch.equal(views.score(images, TARGET), expected)


def test_of_a_verifier_without_embeddings_scores_are_averaged():
    class Pictures(Flat):
        embed = Verifier.embed

        def score(self, images, target):
            return images[:, 0, 32, 32]

    views = Views(Pictures(), len(VIEWS))
    assert views.score(picture((32, 32)), TARGET) == pytest.approx(0.5 / len(VIEWS))
    tokenizer = ToyTokenizer(4, 3)
    views = Views(ToyVerifier(tokenizer, lambda tokens: float(sum(tokens))), 1)
    scores = Evaluator(tokenizer, views, TARGET).score(torch.tensor([[1, 2], [3, 3]]))
    assert scores.tolist() == [3.0, 6.0]


def test_its_fingerprint_is_another_so_that_no_cache_mixes_them_up():
    prints = {Views(Flat(), count).fingerprint() for count in (2, 3)} | {Flat().fingerprint()}
    assert len(prints) == 3


def test_everything_else_is_the_verifiers_own():
    views = Views(GridVerifier(lambda points: points.sum(dim=(1, 2))), 2)
    assert views.prepare("two dogs").prompt == "two dogs"
    assert views.warnings("two dogs") == []
    assert views.name == "grid"


@pytest.mark.parametrize("count", [0, len(VIEWS) + 1])
def test_there_are_only_so_many_views(count):
    with pytest.raises(InputError, match="views must be a whole number from 1 to 5"):
        Views(Flat(), count)


@pytest.mark.parametrize("count", [1, 3])
def test_the_accounts_count_every_look(count: int):
    tokenizer = ToyTokenizer(5, 3)
    verifier = Views(ToyVerifier(tokenizer, sum), count)
    evaluator = Evaluator(tokenizer, verifier, TARGET)
    evaluator.score(torch.arange(5)[:, None])
    evaluator.account("screened", 2, 0.5)
    assert evaluator.accounts.decodes == 5
    assert evaluator.accounts.verifier_calls == 7 * count
