"""Re-encoding: the tokenizer encodes the best pictures; what comes of it may be the result."""

from __future__ import annotations

import pytest
import torch

from tests.toy_search import run
from tests.toys import EvenTokenizer, ToyTokenizer, ToyVerifier
from tfgen.decoding.engine import DecodeEngine
from tfgen.decoding.threads import ThreadedEngine
from tfgen.errors import InputError
from tfgen.search import SOTO, PlainEngine, SearchResult
from tfgen.search.settings import SearchSettings

LENGTH, VOCAB = 4, 20


def many(tokens: tuple[int, ...]) -> float:
    """The best is all 19; each step down costs 0.1. The verifier minds nothing else."""
    return sum(tokens) / 10


def read(**options: object) -> SearchResult:
    options = {"beam": 4, "candidates": 10, "seed": 1, "reencode": 3} | options
    tokenizer = options.pop("tokenizer", None) or EvenTokenizer(VOCAB, LENGTH)
    function = options.pop("function", many)
    plain = ToyTokenizer(VOCAB, LENGTH)  # the verifier sees all tokens
    return run(function, tokenizer=tokenizer, verifier=ToyVerifier(plain, function), **options)


def even(tokens: torch.Tensor) -> torch.Tensor:
    return tokens - tokens % 2


def test_the_result_is_what_the_best_pictures_are_encoded_as():
    result, plain = read(reencode_loss=1.0), read(reencode=0)
    step, before = result.steps[-1], result.steps[-2]
    assert step.phase == "reencode"
    beam = before.pool.tokens[before.pool.kept]
    assert torch.equal(before.best_tokens, plain.tokens)
    wanted = {tuple(row) for row in even(beam[:3]).tolist()}
    assert {tuple(row) for row in step.pool.tokens.tolist()} == wanted
    assert torch.equal(result.tokens, step.best_tokens)
    assert (result.tokens % 2 == 0).all() and (plain.tokens % 2 == 1).any()
    assert plain.score - 1 <= result.score < plain.score
    for tokens, parent in zip(step.pool.tokens, step.pool.parents.tolist(), strict=True):
        assert torch.equal(tokens, even(before.pool.tokens[parent]))


def test_a_loss_beyond_the_limit_keeps_what_was_found():
    plain = read(reencode=0)
    lost = plain.score - read(reencode_loss=9.0).score
    assert lost > 0
    for loss, kept in ((0.0, True), (lost - 0.01, True), (lost + 0.01, False)):
        result = read(reencode_loss=loss)
        assert result.steps[-1].phase == "reencode"
        assert torch.equal(result.tokens, plain.tokens) is kept
        assert (result.score == plain.score) is kept


def test_of_several_the_best_wins_though_the_best_picture_was_read_wrong():
    """An encoder that takes the best for something else altogether."""
    best = read(reencode=0).tokens

    class Misreading(EvenTokenizer):
        def encode(self, images):
            tokens = super().encode(images)
            wrong = (ToyTokenizer.encode(self, images) == best).all(dim=1)
            return torch.where(wrong[:, None], 0, tokens)

    one, several = (
        read(tokenizer=Misreading(VOCAB, LENGTH), reencode=count, reencode_loss=1.0)
        for count in (1, 4)
    )
    assert torch.equal(one.tokens, best)
    assert (several.tokens % 2 == 0).all() and several.tokens.sum() > 0


def test_pictures_that_the_encoder_writes_as_they_are_cost_no_second_decode():
    """All but the pictures that are encoded were scored before."""
    plain = read(tokenizer=ToyTokenizer(VOCAB, LENGTH), reencode=0)
    result = read(tokenizer=ToyTokenizer(VOCAB, LENGTH))
    assert torch.equal(result.tokens, plain.tokens) and result.score == plain.score
    assert result.decodes == plain.decodes
    assert result.accounts.encoded == 3
    assert result.accounts.cost == plain.accounts.cost + 3
    assert result.accounts.verifier_calls == plain.accounts.verifier_calls


def test_the_budget_holds_and_has_a_share_for_it():
    for budget in (30, 61, 100):
        result = read(budget=budget)
        assert result.accounts.cost <= budget
        assert result.steps[-1].phase == "reencode" and result.stopped == "done"
    assert read(budget=5).steps[-1].phase == "search"  # one decode a step is not enough for it


def test_it_comes_last_and_leaves_given_tokens_as_they_are():
    result = read(start=[7], tokens=3, crossover=1, refine=1, reencode_loss=9.0, complete="sample")
    phases = [step.phase for step in result.steps]
    assert phases == ["search"] * 2 + ["crossover", "complete"] + 3 * ["refine"] + ["reencode"]
    assert len(result.tokens) == LENGTH
    assert result.tokens[0] == 7 and (result.tokens[1:] % 2 == 0).all()


def test_the_last_step_that_is_kept_is_the_one_before_unless_it_may_lose_so_much():
    kept = read(keep="last")
    assert torch.equal(kept.tokens, kept.steps[-2].best_tokens)
    assert torch.equal(read(keep="last", reencode_loss=9.0).tokens % 2, torch.zeros(LENGTH))


def test_a_lookahead_is_encoded_again_too():
    result = read(search="lookahead", reencode_loss=9.0)
    assert result.steps[-1].phase == "reencode" and (result.tokens % 2 == 0).all()


def test_where_memory_is_short_fewer_are_encoded_at_a_time():
    result = read(tokenizer=EvenTokenizer(VOCAB, LENGTH, max_rows=2), reencode=4, reencode_loss=9.0)
    assert torch.equal(result.tokens, read(reencode=4, reencode_loss=9.0).tokens)


@pytest.mark.parametrize("engine", [PlainEngine, ThreadedEngine])
def test_every_engine_can(engine: type[DecodeEngine]):
    tokenizer = EvenTokenizer(VOCAB, LENGTH)
    made = engine(tokenizer, ToyVerifier(tokenizer, many))
    assert made.encode_again(torch.tensor([[3, 8], [19, 0]])).tolist() == [[2, 8], [18, 0]]


@pytest.mark.parametrize(
    "wrong", [{"reencode": -1}, {"reencode": 0.5}, {"reencode_loss": -1.0}, {"reencode_loss": "x"}]
)
def test_values_that_are_none_are_refused(wrong: dict[str, object]):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SearchSettings(**wrong)


def test_independent_draws_are_not_encoded_again_and_soto_never_does():
    with pytest.raises(InputError, match="reencode means nothing to the search 'best-of-n'"):
        SearchSettings(search="best-of-n", reencode=1)
    assert SOTO["reencode"] == 0
