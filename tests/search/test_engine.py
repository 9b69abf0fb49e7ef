"""What decodes for an evaluator, and what it counts."""

import pytest
import torch

from tests.toys import GridTokenizer, GridVerifier, ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import TfgenError
from tfgen.search.evaluator import BudgetExhausted, Evaluator

SIXTY = ToyTokenizer(4, 3).all_prefixes(3)[:60]


def make(**options):
    tokenizer = ToyTokenizer(4, 3)
    verifier = ToyVerifier(tokenizer, rugged)
    return Evaluator(tokenizer, verifier, verifier.prepare("a toy"), **options)


class OtherEngine:
    """Another way from tokens to embeddings: eight rows a pass, and three passes at a time."""

    rows, passes = 8, 3

    def __init__(self, tokenizer, verifier):
        self.tokenizer, self.verifier, self.calls = tokenizer, verifier, []

    def embed(self, passes):
        self.calls.append([tuple(tokens.shape) for tokens in passes])
        return [self.verifier.embed(self.tokenizer.decode(tokens)) for tokens in passes]


def with_embeddings(engine=None, **options):
    tokenizer, verifier = GridTokenizer(2, 3), GridVerifier(lambda points: points.sum(dim=(1, 2)))
    engine = engine(tokenizer, verifier) if engine else None
    return Evaluator(tokenizer, verifier, verifier.prepare("a toy"), engine=engine, **options)


def test_another_engine_may_decode_in_its_own_passes_several_at_a_time():
    evaluator = with_embeddings(OtherEngine)
    scores = evaluator.score(SIXTY)
    assert evaluator.engine.calls == [[(8, 3)] * 3, [(8, 3)] * 3, [(8, 3)] * 2]
    torch.testing.assert_close(scores, with_embeddings().score(SIXTY))


@pytest.mark.parametrize("batch_size", [1, 8, 20, 1000])
def test_an_engine_changes_no_score_with_the_batch_size(batch_size):
    evaluator = with_embeddings(OtherEngine, batch_size=batch_size)
    assert torch.equal(evaluator.score(SIXTY), with_embeddings(OtherEngine).score(SIXTY))
    assert {shape for call in evaluator.engine.calls for shape in call} == {(8, 3)}


def test_a_picture_is_embedded_once_and_scored_by_its_embedding(monkeypatch):
    evaluator = with_embeddings()

    def score(images, target):
        raise AssertionError("the embedding is there already")

    monkeypatch.setattr(evaluator.verifier, "score", score)
    assert len(evaluator.score(SIXTY)) == 60
    assert sum(map(len, evaluator.tokenizer.batches)) == 64  # four passes of 16


def test_nothing_is_kept_for_gradients(monkeypatch):
    evaluator = with_embeddings()
    seen, embed = [], evaluator.verifier.embed

    def watch(images):
        seen.append(torch.is_grad_enabled() or images.requires_grad)
        return embed(images)

    monkeypatch.setattr(evaluator.verifier, "embed", watch)
    evaluator.score(SIXTY)
    assert seen == [False] * 4


def test_a_verifier_that_turns_out_to_have_no_embeddings_is_asked_for_scores():
    class Wrapped(ToyVerifier):
        def embed(self, images):
            return super().embed(images)  # which raises

    tokenizer = ToyTokenizer(4, 3)
    verifier = Wrapped(tokenizer, rugged)
    evaluator = Evaluator(tokenizer, verifier, verifier.prepare("a toy"))
    assert torch.equal(evaluator.score(SIXTY), make().score(SIXTY))


def test_a_failure_of_the_verifier_is_not_swallowed():
    class Failing(ToyVerifier):
        def score(self, images, target):
            raise TfgenError("The verifier is out of order.")

    tokenizer = ToyTokenizer(4, 3)
    verifier = Failing(tokenizer, rugged)
    with pytest.raises(TfgenError, match="out of order"):
        Evaluator(tokenizer, verifier, verifier.prepare("a toy")).score(SIXTY)


def test_the_accounts_tell_decodes_calls_and_seconds():
    evaluator = make()
    evaluator.score(SIXTY)
    evaluator.score(SIXTY[:7])
    accounts = evaluator.accounts
    assert accounts.decodes == accounts.verifier_calls == accounts.cost == 60
    assert accounts.screened == accounts.cached == accounts.gradients == 0
    assert accounts.decode_seconds > 0 and accounts.score_seconds > 0


def test_what_others_decode_is_charged_to_the_budget():
    evaluator = make(budget=10)
    evaluator.account("screened", 16, 0.25)
    evaluator.account("gradients", 1, 2.5)
    accounts = evaluator.accounts
    assert (accounts.screened, accounts.gradients, accounts.decodes) == (16, 1, 0)
    assert (accounts.cost, accounts.verifier_calls, evaluator.left) == (6.5, 17, 3.5)
    with pytest.raises(BudgetExhausted):
        evaluator.score(SIXTY)
    assert evaluator.decodes == 3
