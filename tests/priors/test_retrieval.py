"""The retrieval prior on a bank of five sequences, where its formula can be worked out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys import GridTokenizer, ToyPrior, ToyTokenizer
from tfgen.errors import InputError
from tfgen.priors import CombinedPrior, RetrievalPrior
from tfgen.priors import retrieval as module
from tfgen.priors.bank import FILE_NAME, Bank
from tfgen.priors.frequency import FILE_NAME as FREQUENCY_FILE
from tfgen.priors.frequency import FrequencyPrior
from tfgen.tables import save_table

VOCAB, TOKENS = 9, 4
SEQUENCES = torch.tensor([[0, 1, 2, 3], [0, 1, 5, 5], [0, 4, 4, 4], [8, 1, 2, 7], [8, 8, 8, 8]])
LOGITS = torch.tensor([9.0, 7.0, 8.0, 6.0, 1.0])  # of the five pictures, for the prompt
CODES = GridTokenizer(3).code_embeddings()  # 3 x 3 in [-1, 1]^2 ...
CODES[7] = CODES[8] + torch.tensor([-0.2, 0.0])  # ... but 7 is close to 8
EMPTY = torch.empty(1, 0, dtype=torch.int64)


def make_bank(models: dict[str, str] | None = None) -> Bank:
    """Picture i's embedding is the i-th unit vector, exactly."""
    tensors = {
        "tokens": SEQUENCES.short(),
        "components": torch.eye(5, dtype=torch.int8),
        "basis": torch.eye(5),
        "mean": torch.zeros(5),
    }
    header = {"kind": "bank", "models": models or {}, "vocab_size": VOCAB, "source": {}}
    return Bank(tensors, header)


def similarity(embeddings: Tensor) -> Tensor:
    return embeddings @ LOGITS


def similarities(embeddings: Tensor) -> Tensor:
    """To a prompt without parts."""
    return similarity(embeddings)[:, None]


def behind() -> ToyPrior:
    return ToyPrior(VOCAB, TOKENS)


def make(codes: Tensor | None = CODES) -> RetrievalPrior:
    return RetrievalPrior(make_bank(), behind(), codes)


def conditioned(codes: Tensor | None = CODES) -> RetrievalPrior:
    return make(codes).condition("a prompt", similarities)


def kernel(x: int, y: int, codes: Tensor | None) -> float:
    if codes is None:
        near = float(x == y)
    else:
        spread = 2 * float(codes.var(dim=0, correction=0).sum())
        squared = float((codes[x] - codes[y]).square().sum())
        near = math.exp(-squared / (module.WIDTH * spread))
    return module.FLOOR + (1 - module.FLOOR) * near


def formula(prefix: list[int], codes: Tensor | None) -> Tensor:
    """p(x | prefix), as the docstring has it, in plain Python."""
    weights = (module.SHARPNESS * LOGITS).softmax(dim=0).tolist()
    r = [
        weight * math.prod(kernel(x, y, codes) for x, y in zip(prefix, row, strict=False))
        for weight, row in zip(weights, SEQUENCES.tolist(), strict=True)
    ]
    q = behind().log_probs(torch.tensor([prefix], dtype=torch.int64))[0].exp()
    p = module.BACKOFF * q
    for weight, row in zip(r, SEQUENCES.tolist(), strict=True):
        p[row[len(prefix)]] += weight
    return p / (sum(r) + module.BACKOFF)


@pytest.mark.parametrize("codes", [CODES, None], ids=["near codes count", "equal codes count"])
@pytest.mark.parametrize("prefix", [[], [0], [7, 1], [3, 3, 3]], ids=str)
def test_it_is_the_formula(prefix: list[int], codes: Tensor | None) -> None:
    p = conditioned(codes).log_probs(torch.tensor([prefix], dtype=torch.int64))[0].exp()
    torch.testing.assert_close(p, formula(prefix, codes))


def test_before_there_is_a_prompt_it_is_the_prior_behind() -> None:
    prefixes = torch.tensor([[0, 1], [7, 3]])
    torch.testing.assert_close(make().log_probs(prefixes), behind().log_probs(prefixes))
    torch.testing.assert_close(
        make().sequence_log_prob(SEQUENCES), behind().sequence_log_prob(SEQUENCES)
    )
    assert make().expected_log_prob(2) == behind().expected_log_prob(2)


def test_every_distribution_is_normalised_and_leaves_no_token_out() -> None:
    prior = conditioned()
    for length in range(TOKENS):
        p = prior.log_probs(torch.arange(VOCAB)[:, None].expand(-1, length)).exp()
        torch.testing.assert_close(p.sum(dim=1), torch.ones(len(p)))
        assert p.min() > 0


def test_the_best_pictures_tokens_are_the_most_probable() -> None:
    assert conditioned().log_probs(EMPTY).argmax() == 0
    other = make().condition(
        "another prompt", lambda embeddings: embeddings @ LOGITS.flip(0)[:, None]
    )
    assert other.log_probs(EMPTY).argmax() == 8


def test_a_neighbour_whose_prefix_agrees_weighs_more() -> None:
    after_0, after_8 = conditioned().log_probs(torch.tensor([[0], [8]])).exp()
    assert after_8[8] > 3 * after_0[8] and after_0[4] > after_8[4]


def test_a_near_code_agrees_more_than_a_far_one() -> None:
    beside, across = conditioned().log_probs(torch.tensor([[7], [2]])).exp()
    assert beside[8] > 2 * across[8]


def test_far_from_all_neighbours_the_prior_behind_takes_over() -> None:
    prior, q = conditioned(), behind()
    distances = []
    for length in range(1, TOKENS):
        prefix = torch.full((1, length), 6)  # no sequence has a 6
        distances.append(float((prior.log_probs(prefix) - q.log_probs(prefix)).exp().max()))
    assert distances == sorted(distances, reverse=True)


def test_sequence_log_prob_agrees_with_log_probs() -> None:
    prior = conditioned()
    tokens = torch.randint(VOCAB, (50, TOKENS), generator=torch.Generator().manual_seed(0))
    expected = [
        prior.log_probs(tokens[:, :i]).gather(1, tokens[:, i : i + 1]) for i in range(TOKENS)
    ]
    torch.testing.assert_close(prior.sequence_log_prob(tokens), torch.cat(expected, dim=1))


def test_what_is_expected_is_the_neighbours_own_likelihood_without_themselves() -> None:
    weights = (module.SHARPNESS * LOGITS).softmax(dim=0)
    squares = weights.square() / weights.square().sum()
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        tensors = {
            "tokens": SEQUENCES[others].short(),
            "components": torch.eye(5, dtype=torch.int8)[others],
            "basis": torch.eye(5),
            "mean": torch.zeros(5),
        }
        rest = RetrievalPrior(Bank(tensors, make_bank().header), behind(), CODES)
        log_p = rest.condition("a prompt", similarities).sequence_log_prob(SEQUENCES[i : i + 1])
        total += float(squares[i] * log_p[0, :3].mean())
    assert conditioned().expected_log_prob(3) == pytest.approx(total, rel=1e-5)


def test_proposals_obey_the_prior_strength() -> None:
    prior = conditioned()
    for strength in (0.0, 1.0, 2.0):
        generator = torch.Generator().manual_seed(0)
        drawn = prior.propose(EMPTY.expand(20_000, -1), 1, strength, generator)[:, 0, 0]
        share = drawn.bincount(minlength=VOCAB) / 20_000
        expected = (strength * prior.log_probs(EMPTY)[0]).softmax(dim=0)
        torch.testing.assert_close(share, expected, atol=0.02, rtol=0)


def test_only_the_nearest_neighbours_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEIGHBOURS", 2)
    prior = conditioned()
    assert sorted(prior.neighbours.tolist()) == sorted(SEQUENCES[[0, 2]].tolist())


def test_conditioning_leaves_the_prior_of_other_prompts_alone() -> None:
    prior = make()
    first = prior.condition("a prompt", similarities)
    before = first.log_probs(EMPTY)
    prior.condition("another", lambda embeddings: -similarities(embeddings))
    assert torch.equal(first.log_probs(EMPTY), before)
    assert len(prior.neighbours) == 0


# from files


def write_bank(path: Path, tokenizer: ToyTokenizer) -> None:
    bank = make_bank({"tokenizer": tokenizer.fingerprint(), "verifier": "v"})
    tensors = {"tokens": bank._tokens, "components": bank._components, "basis": bank._basis}
    save_table(path, {**tensors, "mean": bank._mean}, bank.header)


def test_a_models_own_bank_is_used_with_its_frequency_prior_behind(tmp_path: Path) -> None:
    tokenizer = ToyTokenizer(VOCAB, TOKENS)
    write_bank(tmp_path / FILE_NAME, tokenizer)
    assert RetrievalPrior.for_tokenizer(tokenizer, tmp_path).behind.name == "uniform"
    FrequencyPrior.fit([SEQUENCES], VOCAB, TOKENS).save(tmp_path / FREQUENCY_FILE)
    prior = RetrievalPrior.for_tokenizer(tokenizer, tmp_path)
    assert prior.behind.name == "frequency"
    assert prior.codes is None  # this tokenizer has no code embeddings
    behind = {"name": "frequency", **prior.behind.options()}
    assert prior.options() == {"bank": {}, "behind": behind} and behind["fingerprint"]


def test_a_bank_may_lie_anywhere(tmp_path: Path) -> None:
    tokenizer = ToyTokenizer(VOCAB, TOKENS)
    write_bank(tmp_path / "mine.safetensors", tokenizer)
    (tmp_path / "model").mkdir()
    prior = RetrievalPrior.for_tokenizer(
        tokenizer, tmp_path / "model", tmp_path / "mine.safetensors"
    )
    assert len(prior.bank) == 5


def test_without_a_bank_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tfgen bank build"):
        RetrievalPrior.for_tokenizer(ToyTokenizer(VOCAB, TOKENS), tmp_path)


def test_a_bank_of_another_tokenizer_or_verifier_is_refused(tmp_path: Path) -> None:
    tokenizer = ToyTokenizer(VOCAB, TOKENS)
    write_bank(tmp_path / FILE_NAME, tokenizer)
    with pytest.raises(InputError, match="is stale: it was made with the tokenizer"):
        RetrievalPrior.for_tokenizer(ToyTokenizer(VOCAB, TOKENS + 1), tmp_path)
    prior = RetrievalPrior.for_tokenizer(tokenizer, tmp_path)
    assert prior.for_verifier(lambda: "v") is prior
    with pytest.raises(InputError, match="is stale: it was made with the verifier"):
        prior.for_verifier(lambda: "w")
    assert prior.for_verifier(lambda: "w", wanted=False) is prior.behind


def test_nearest_are_the_pictures_of_the_bank_that_score_best() -> None:
    assert make().held == 5
    assert make().nearest(2, similarity).tolist() == SEQUENCES[[0, 2]].tolist()
    assert len(make().nearest(9, similarity)) == 5
    assert behind().held == 0 and behind().nearest(2, similarity).shape == (0, TOKENS)


def test_a_combined_prior_has_the_nearest_of_its_parts() -> None:
    both = CombinedPrior([behind(), make()])
    assert both.held == 5
    assert both.nearest(2, similarity).tolist() == SEQUENCES[[0, 2]].tolist()


def test_of_a_prompt_of_two_objects_most_neighbours_fit_one_of_them(monkeypatch) -> None:
    monkeypatch.setattr(module, "NEIGHBOURS", 2)
    columns = torch.stack([LOGITS, LOGITS.flip(0), torch.tensor([0.0, 0.0, 0.0, 9.0, 8.0])], 1)
    prior = make().condition("two objects", lambda embeddings: embeddings @ columns)
    assert prior.neighbours.tolist() == SEQUENCES[[0, 2, 3, 4]].tolist()  # each of them once
    expected = torch.zeros(5)
    for column, share in zip(columns.T, (0.2, 0.4, 0.4), strict=True):
        best = column.topk(2)
        expected[best.indices] += share * (module.SHARPNESS * best.values).softmax(0)
    assert torch.allclose(prior.weights, expected[[0, 2, 3, 4]])
    assert float(prior.weights.sum()) == pytest.approx(1)
