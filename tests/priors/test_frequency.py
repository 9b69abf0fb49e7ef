import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.toys import ToyPrior, ToyTokenizer
from tfgen.errors import InputError
from tfgen.priors import FrequencyPrior

# 20 scenes; the last is held out, so 19 are counted: 0 -> 1 ten times, 0 -> 2 four, 3 -> 2 five.
SCENES = torch.tensor([[0, 1]] * 10 + [[0, 2]] * 4 + [[3, 2]] * 5 + [[0, 1]])


def fit(tokens=SCENES, vocab_size=4, **options):
    options = {"min_count": 1, "kappa": 2.0, "alpha": 0.5, **options}
    return FrequencyPrior.fit(tokens.split(7), vocab_size, tokens.shape[1], **options)


def markov_scenes(count=4000, vocab_size=12, num_tokens=5):
    start = torch.empty(count, 0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return ToyPrior(vocab_size, num_tokens).complete(start, num_tokens, 1.0, generator)


def test_the_first_token_is_a_smoothed_count():
    p = fit().log_probs(torch.empty(1, 0, dtype=torch.int64)).exp()
    expected = torch.tensor([[14.5, 0.5, 0.5, 5.5]]) / (19 + 0.5 * 4)
    torch.testing.assert_close(p, expected)


def test_the_next_token_is_a_bigram_backed_off_to_the_unigram():
    unigram = torch.tensor([0.5, 10.5, 9.5, 0.5]) / 21
    pairs = torch.tensor([[0.0, 10, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 5, 0]])
    seen = torch.tensor([[14.0], [0], [0], [5]])
    expected = (pairs + 2 * unigram) / (seen + 2)
    torch.testing.assert_close(fit().log_probs(torch.arange(4)[:, None]).exp(), expected)


def test_pairs_too_rare_to_store_give_their_mass_to_the_unigram():
    prior = fit(min_count=5)  # 0 -> 2, seen four times, goes
    assert prior.metadata["pairs"] == 2
    unigram = torch.tensor([0.5, 10.5, 9.5, 0.5]) / 21
    expected = (torch.tensor([0.0, 10, 0, 0]) + (2 + 4) * unigram) / (14 + 2)
    torch.testing.assert_close(prior.log_probs(torch.tensor([[0]])).exp()[0], expected)


@pytest.mark.parametrize("min_count", [1, 2, 10])
def test_every_distribution_is_normalised(min_count):
    prior = fit(markov_scenes(), 12, min_count=min_count)
    for length in range(5):
        prefixes = torch.arange(12)[:, None].expand(-1, length)
        torch.testing.assert_close(prior.log_probs(prefixes).exp().sum(dim=1), torch.ones(12))


def test_sequence_log_prob_agrees_with_log_probs():
    prior = fit(markov_scenes(), 12, min_count=3)
    tokens = torch.randint(12, (50, 5), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        prior.sequence_log_prob(tokens), prior._sequence_log_prob(tokens), rtol=1e-5, atol=1e-6
    )


def test_with_many_scenes_it_is_the_distribution_they_came_from():
    prior, truth = fit(markov_scenes(40_000), 12, kappa=None, min_count=1), ToyPrior(12, 5)
    previous = torch.arange(12)[:, None]
    for length in (1, 4):
        prefixes = previous.expand(-1, length)
        difference = prior.log_probs(prefixes).exp() - truth.log_probs(prefixes).exp()
        assert difference.abs().max() < 0.05


def test_kappa_is_chosen_to_make_held_out_scenes_likely():
    scenes = markov_scenes()
    chosen = fit(scenes, 12, kappa=None)
    others = [fit(scenes, 12, kappa=kappa) for kappa in (1.0, 16.0, 1024.0)]
    held_out = chosen.metadata["held_out_log_prob"]
    assert all(held_out >= other.metadata["held_out_log_prob"] for other in others)
    shuffled = scenes[:, [0]].repeat(1, 5)
    shuffled = torch.stack([col[torch.randperm(len(col))] for col in shuffled.T], dim=1)
    assert fit(shuffled, 12, kappa=None).kappa > chosen.kappa  # where bigrams say nothing


def test_expected_log_prob_is_measured_on_the_held_out_scenes():
    scenes = markov_scenes()
    prior = fit(scenes, 12)
    assert (prior.metadata["scenes"], prior.metadata["held_out"]) == (3800, 200)
    for length in (1, 3, 5):
        means = prior.sequence_log_prob(scenes[3800:, :length]).mean(dim=1)
        assert prior.expected_log_prob(length) == pytest.approx(float(means.mean()), abs=1e-5)
        assert prior.expected_std[length - 1] == pytest.approx(
            float(means.std(correction=0)), abs=1e-5
        )


def test_true_scenes_are_more_typical_than_random_and_than_the_most_probable():
    scenes = markov_scenes()
    prior = fit(scenes, 12)
    generator = torch.Generator().manual_seed(1)
    true = prior.typicality(scenes[3800:]).mean()
    random = prior.typicality(torch.randint(12, (200, 5), generator=generator)).mean()
    start = torch.empty(1, 0, dtype=torch.int64)
    blandest = prior.typicality(prior.complete(start, 5, 1e4, generator))
    assert true > random
    assert true > blandest.mean()


def test_its_options_tell_its_tables_from_others(tmp_path):
    prior = fit(kappa=2.0)
    prior.save(tmp_path / "prior.safetensors")
    assert FrequencyPrior.load(tmp_path / "prior.safetensors").options() == prior.options()
    swapped = SCENES.clone()
    swapped[[0, 15]] = torch.tensor([[0, 2], [3, 1]])  # the same unigram, other pairs
    others = [fit(kappa=4.0), fit(alpha=1.0), fit(min_count=5), fit(swapped)]
    assert (others[-1].unigram == prior.unigram).all()
    prints = [one.options()["fingerprint"] for one in (prior, *others)]
    assert len(set(prints)) == len(prints)


def test_saving_and_loading_changes_nothing(tmp_path):
    prior = fit(markov_scenes(), 12, kappa=None, min_count=2)
    path = tmp_path / "prior.safetensors"
    prior.save(path, {"tokenizer": "abc123"})
    loaded = FrequencyPrior.load(path)
    assert (loaded.vocab_size, loaded.num_tokens) == (12, 5)
    assert loaded.metadata == {**prior.metadata, "tokenizer": "abc123"}
    for length in range(5):
        prefixes = torch.arange(12)[:, None].expand(-1, length)
        assert torch.equal(loaded.log_probs(prefixes), prior.log_probs(prefixes))
        expected = prior.expected_log_prob(length + 1)
        assert loaded.expected_log_prob(length + 1) == pytest.approx(expected)
    assert [file.name for file in tmp_path.iterdir()] == ["prior.safetensors"]


def test_the_same_counts_make_the_same_file(tmp_path):
    for name in ("a", "b"):
        fit().save(tmp_path / name, {"one": 1, "two": 2, "three": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_takes_three_bytes_a_pair_and_two_tables(tmp_path):
    tokens = torch.randint(1000, (60_000, 4), generator=torch.Generator().manual_seed(0))
    prior = fit(tokens, 1000)
    prior.save(tmp_path / "prior.safetensors")
    size = (tmp_path / "prior.safetensors").stat().st_size
    assert prior.metadata["pairs"] > 150_000
    assert size < 3 * prior.metadata["pairs"] + 2 * 8 * 1000 + 2000


def test_one_token_is_enough(tmp_path):
    prior = fit(SCENES[:, :1])
    prior.save(tmp_path / "prior.safetensors")
    loaded = FrequencyPrior.load(tmp_path / "prior.safetensors")
    assert torch.equal(
        loaded.sequence_log_prob(SCENES[:, :1]), prior.sequence_log_prob(SCENES[:, :1])
    )


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.99])
def test_a_file_cut_short_is_refused_in_one_sentence(tmp_path, keep):
    path = tmp_path / "prior.safetensors"
    fit(markov_scenes(), 12).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match="is not a usable frequency prior") as error:
        FrequencyPrior.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["text", "safetensors", "folder", "missing"])
def test_a_foreign_file_is_refused(tmp_path, kind):
    path = tmp_path / "prior.safetensors"
    if kind == "text":
        path.write_text("a red fox in snow\n" * 10)
    elif kind == "safetensors":
        save_file({"unigram": np.zeros((2, 3))}, path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=str(path)):
        FrequencyPrior.load(path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("unigram", lambda a: a[:, :-1].copy()),
        ("unigram", lambda a: a.astype(np.float32)),
        ("unigram", lambda a: a // 2),
        ("row_lengths", lambda a: a[:-1].copy()),
        ("row_lengths", lambda a: a[:, ::-1].copy()),
        ("next", lambda a: a[:-1].copy()),
        ("next", lambda a: a + 200),
        ("next", lambda a: np.zeros_like(a)),
        ("count", lambda a: a + 100),
        ("expected_mean", lambda a: a * np.nan),
        ("expected_mean", lambda a: a[:-1].copy()),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(tmp_path, name, damage):
    path = tmp_path / "prior.safetensors"
    fit(markov_scenes(), 12).save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tables = load_file(path)
    tables[name] = damage(tables[name])
    save_file(tables, path, metadata=metadata)
    with pytest.raises(InputError, match="is not a usable frequency prior"):
        FrequencyPrior.load(path)


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (torch.empty(0, 2, dtype=torch.int64), "two or more scenes of 2 tokens"),
        (torch.zeros(1, 2, dtype=torch.int64), "two or more scenes of 2 tokens"),
        (torch.tensor([[0, 1], [4, 0]]), "tokens from 0 to 4, but the codebook goes from 0 to 3"),
        (torch.tensor([[0, 1], [-1, 0]]), "tokens from -1 to 1"),
    ],
)
def test_scenes_that_cannot_be_counted_are_refused(tokens, complaint):
    with pytest.raises(InputError, match=complaint):
        FrequencyPrior.fit([tokens], 4, 2)


def test_it_needs_a_folder_to_be_loaded_from(tmp_path):
    tokenizer = ToyTokenizer(4, 2)
    with pytest.raises(InputError, match="needs the model's folder"):
        FrequencyPrior.for_tokenizer(tokenizer)
    fit().save(tmp_path / "prior.safetensors")
    assert FrequencyPrior.for_tokenizer(tokenizer, tmp_path).vocab_size == 4


def test_unseen_sequences_are_possible():
    log_p = fit().sequence_log_prob(torch.tensor([[2, 0]]))
    assert log_p[0].tolist() == pytest.approx([math.log(0.5 / 21), math.log(0.5 / 21)])
