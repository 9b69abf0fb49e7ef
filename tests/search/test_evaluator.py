import pytest
import torch

from tests.toys import GridTokenizer, GridVerifier, ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import InputError, TfgenError
from tfgen.search.evaluator import BudgetExhausted, Evaluator, PlainEngine

SIXTY = ToyTokenizer(4, 3).all_prefixes(3)[:60]


def make(tokenizer=None, function=rugged, **options):
    tokenizer = tokenizer or ToyTokenizer(4, 3)
    verifier = ToyVerifier(tokenizer, function)
    return Evaluator(tokenizer, verifier, verifier.prepare("a toy"), **options)


def test_scores_are_the_verifiers_in_the_order_asked():
    tokens = torch.tensor([[3, 1], [0, 0], [2, 2]])
    expected = torch.tensor([rugged((3, 1)), rugged((0, 0)), rugged((2, 2))])
    assert torch.equal(make().score(tokens), expected)


def test_duplicates_and_prefixes_seen_before_cost_no_decodes():
    evaluator = make()
    evaluator.score(torch.tensor([[1, 2], [1, 2], [0, 1]]))
    assert evaluator.decodes == 2
    scores = evaluator.score(torch.tensor([[0, 1], [1, 2], [3, 3], [3, 3]]))
    assert evaluator.decodes == 3
    assert scores.tolist() == pytest.approx([rugged(t) for t in [(0, 1), (1, 2), (3, 3), (3, 3)]])


def test_prefixes_of_different_lengths_are_not_confused():
    evaluator = make()
    evaluator.score(torch.tensor([[0]]))
    evaluator.score(torch.tensor([[0, 0]]))
    assert evaluator.decodes == 2


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_scores_do_not_depend_on_the_batch_size(batch_size):
    expected = make(ToyTokenizer(4, 3, rounds_by_rows=True)).score(SIXTY)
    tokenizer = ToyTokenizer(4, 3, rounds_by_rows=True)
    assert torch.equal(make(tokenizer, batch_size=batch_size).score(SIXTY), expected)


def test_every_forward_pass_has_the_same_number_of_rows():
    tokenizer = ToyTokenizer(4, 3)
    evaluator = make(tokenizer, batch_size=40)
    evaluator.score(SIXTY)
    evaluator.score(torch.tensor([[1]]))
    assert {len(batch) for batch in tokenizer.batches} == {tokenizer.decode_rows}
    assert evaluator.decodes == 61  # rows that only fill up a pass are not counted


def test_a_score_does_not_depend_on_the_company_it_was_decoded_in():
    tokenizer = ToyTokenizer(4, 3, rounds_by_rows=True)
    together = make(tokenizer).score(SIXTY)
    alone = torch.cat([make(tokenizer).score(row[None]) for row in SIXTY])
    assert torch.equal(together, alone)


def test_out_of_memory_halves_the_rows_of_a_pass_and_changes_no_score():
    tokenizer = ToyTokenizer(4, 3, max_rows=5)
    evaluator = make(tokenizer)
    assert torch.equal(evaluator.score(SIXTY), make().score(SIXTY))
    assert {len(batch) for batch in tokenizer.batches} == {4}  # 16, 8 and then 4 fits
    assert evaluator.decodes == 60


def test_what_ran_out_of_memory_does_not_do_so_in_the_next_search():
    tokenizer = ToyTokenizer(4, 3, max_rows=5)
    engine = PlainEngine(tokenizer, ToyVerifier(tokenizer, rugged))
    make(tokenizer, engine=engine).score(SIXTY[:1])
    assert engine.rows == 4
    assert make(tokenizer, engine=engine).rows == 4


def test_parts_are_as_small_as_memory_asks_and_none_is_made_twice():
    evaluator, parts = make(), []

    def work(part):
        if len(part) > (16 if len(parts) < 2 else 5):  # less is free later
            raise torch.OutOfMemoryError
        parts.append(part)
        return len(part)

    assert evaluator.in_parts(SIXTY, work) == [16, 16] + [4] * 7
    assert torch.equal(torch.cat(parts), SIXTY)


def test_a_device_without_room_for_one_picture_is_a_clear_failure():
    with pytest.raises(TfgenError, match="too little free memory for one picture of toy"):
        make(ToyTokenizer(4, 3, max_rows=0)).score(SIXTY)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("budget", [1, 16, 37])
def test_the_budget_is_spent_exactly_and_on_the_first_candidates(budget, batch_size):
    evaluator = make(budget=budget, batch_size=batch_size)
    with pytest.raises(BudgetExhausted):
        evaluator.score(SIXTY)
    assert evaluator.decodes == budget
    known = evaluator.known(SIXTY)
    assert not known[:budget].isnan().any()
    assert known[budget:].isnan().all()


def test_a_budget_that_is_just_enough_is_no_reason_to_stop():
    evaluator = make(budget=60)
    evaluator.score(SIXTY)
    assert evaluator.score(SIXTY).shape == (60,)  # all remembered


@pytest.mark.parametrize("option", ["budget", "batch_size"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "many"])
def test_a_budget_or_batch_size_below_one_is_refused(option, value):
    with pytest.raises(
        InputError, match=f"{option} must be a whole number from 1 up, not {value!r}"
    ):
        make(**{option: value})


def test_progress_is_reported_after_each_batch():
    seen = []
    evaluator = make(batch_size=16, progress=seen.append)
    scores = evaluator.score(SIXTY)
    assert [p.decodes for p in seen] == [16, 32, 48, 60]
    assert seen[0].best_score == float(scores[:16].max())
    assert seen[-1].best_score == float(scores.max())


def test_a_score_that_is_not_a_number_ranks_last():
    evaluator = make(function=lambda tokens: float("nan") if tokens == (1,) else 0.5)
    assert evaluator.score(torch.tensor([[0], [1]])).tolist() == [0.5, -torch.inf]


def test_embeddings_are_remembered_where_they_are_wanted():
    tokenizer, verifier = GridTokenizer(2, 3), GridVerifier(lambda points: points.sum(dim=(1, 2)))
    evaluator = Evaluator(tokenizer, verifier, verifier.prepare("a toy"))
    evaluator.score(SIXTY[:5])
    assert not evaluator.embeddings(SIXTY[:5])[0].any()
    evaluator.keep_embeddings()
    evaluator.score(SIXTY[:40])
    known, embeddings = evaluator.embeddings(SIXTY)
    assert known.tolist() == 5 * [False] + 35 * [True] + 20 * [False]  # five were scored before
    torch.testing.assert_close(embeddings, verifier.embed(tokenizer.decode(SIXTY[5:40])))


def test_a_verifier_without_embeddings_has_none_to_remember():
    evaluator = make()
    evaluator.keep_embeddings()
    evaluator.score(SIXTY)
    known, embeddings = evaluator.embeddings(SIXTY)
    assert not known.any() and len(embeddings) == 0
