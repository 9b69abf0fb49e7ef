"""The autoregressive prior, with a small random network: what holds whatever it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

import tfgen
from tests.toy_models import TOKENS, VOCAB
from tests.toys import ToyTokenizer
from tfgen import hub
from tfgen.errors import InputError, TfgenError
from tfgen.priors import autoregressive
from tfgen.priors.autoregressive import FILE_NAME, AutoregressivePrior
from tfgen.priors.autoregressive_model import AutoregressiveConfig, AutoregressiveModel, inputs
from tfgen.priors.uniform import UniformPrior
from tfgen.verifiers.words import WordTokenizer

WORDS = WordTokenizer(["a", "cat", "dog", "red", "two"], 8, {"kitten": "cat"})
V, T = 12, 5
PROMPT = "a red cat"


def make(
    guidance: float = 1.0, levels=(4, 3), num_tokens=T, width=16, heads=2, **options
) -> AutoregressivePrior:
    """A network whose predictions depend strongly on the text and on every token before."""
    torch.manual_seed(0)
    cfg = AutoregressiveConfig(levels, num_tokens, WORDS.vocab_size, 8, width, heads, depth=2)
    model = AutoregressiveModel(cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return AutoregressivePrior(model, WORDS, guidance=guidance, **options)


def draw(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (n, length), generator=torch.Generator().manual_seed(seed))


def logits(prior: AutoregressivePrior, text: str, tokens: Tensor) -> Tensor:
    """Of one pass over whole sequences, with the text padded to its full length: [N, T, V]."""
    text_states = prior.model.read(WORDS(text).expand(len(tokens), -1))
    return prior.model(inputs(tokens), *text_states)[0]


# ---- what is remembered


def test_remembered_prefixes_are_what_one_whole_pass_says() -> None:
    prior, tokens = make().condition(PROMPT), draw(6, T)
    whole = logits(prior, PROMPT, tokens).log_softmax(dim=2)
    for length in range(T):  # as a search asks: each time one token more
        torch.testing.assert_close(prior.log_probs(tokens[:, :length]), whole[:, length])
    fresh = make().condition(PROMPT)
    torch.testing.assert_close(fresh.log_probs(tokens[:, :4]), whole[:, 4])  # all at once
    torch.testing.assert_close(fresh.log_probs(tokens[:, :2]), whole[:, 2])


def test_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = draw(40, T)
    expected = make(2.0).condition(PROMPT).sequence_log_prob(tokens)
    monkeypatch.setattr(autoregressive, "_MAX_PREFIXES", 10)
    monkeypatch.setattr(autoregressive, "_SCORED_ROWS", 7)
    prior = make(2.0).condition(PROMPT)
    torch.testing.assert_close(prior.sequence_log_prob(tokens), expected)
    assert sum(len(level.rows) for level in prior._levels) < 40


def test_a_prefix_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make(2.0).condition(PROMPT)
    read: list[tuple[int, ...]] = []
    forward = prior.model.forward

    def counted(tokens, *args, **kwargs):
        read.append(tuple(tokens.shape))
        return forward(tokens, *args, **kwargs)

    monkeypatch.setattr(prior.model, "forward", counted)
    parents = draw(3, 2)
    prior.log_probs(parents)
    read.clear()
    children = torch.cat([parents.repeat_interleave(4, 0), draw(12, 1)], dim=1)
    distinct = len(children.unique(dim=0))
    prior.log_probs(children)
    assert read == [(32, 1)] * 2  # one pass, the last tokens only, with the text and without
    assert len(prior._levels[3].rows) == distinct
    read.clear()
    prior.sequence_log_prob(children)
    prior.log_probs(children.flip(0))
    assert read == []


def test_the_last_bit_does_not_depend_on_the_batch_nor_on_the_threads() -> None:
    def fresh() -> AutoregressivePrior:
        return make(2.0, (8, 8, 8), width=160, heads=5).condition(PROMPT)

    tokens, threads = draw(100, 4), torch.get_num_threads()
    whole, prior = fresh().log_probs(tokens), fresh()
    threes = [prior.log_probs(part) for part in tokens.flip(0).split(3)]
    assert torch.equal(torch.cat(threes).flip(0), whole)
    torch.set_num_threads(threads + 1)
    try:
        assert torch.equal(fresh().log_probs(tokens), whole)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_sequence_log_prob_agrees_with_log_probs() -> None:
    prior, tokens = make(1.7).condition(PROMPT), draw(5, T)
    columns = [prior.log_probs(tokens[:, :i]).gather(1, tokens[:, i : i + 1]) for i in range(T)]
    torch.testing.assert_close(prior.sequence_log_prob(tokens), torch.cat(columns, dim=1))


# ---- text and guidance


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_on_logits(scale: float) -> None:
    prior, tokens = make(scale).condition(PROMPT), draw(4, T)
    with_text, without = logits(prior, PROMPT, tokens), logits(prior, "", tokens)
    expected = (without + scale * (with_text - without)).log_softmax(dim=2)
    torch.testing.assert_close(prior.log_probs(tokens[:, :3]), expected[:, 3])
    torch.testing.assert_close(
        prior.sequence_log_prob(tokens), expected.gather(2, tokens[:, :, None])[:, :, 0]
    )


def test_without_a_prompt_it_is_the_prior_of_the_empty_text() -> None:
    tokens = draw(4, 2)
    free = make(3.0).log_probs(tokens)
    torch.testing.assert_close(free, make(0.0).condition(PROMPT).log_probs(tokens))
    assert (free - make(1.0).condition(PROMPT).log_probs(tokens)).abs().max() > 0.1


def test_conditioning_leaves_the_prior_as_it_was() -> None:
    prior, tokens = make(2.0), draw(4, 2)
    before = prior.log_probs(tokens)
    cat, dog = prior.condition("a cat"), prior.condition("a dog")
    assert (cat.log_probs(tokens) - dog.log_probs(tokens)).abs().max() > 0.1
    assert torch.equal(prior.log_probs(tokens), before)
    stronger = cat.with_guidance(5.0)
    assert (stronger.log_probs(tokens) - cat.log_probs(tokens)).abs().max() > 0.1
    assert (stronger.options()["guidance"], cat.options()["guidance"]) == (5.0, 2.0)


def test_its_options_tell_its_weights_from_others() -> None:
    prior, other = make(2.0), make(2.0)
    assert prior.options() == other.condition("a cat").options()
    with torch.no_grad():
        other.model.bias += 0.5
    assert prior.options() != other.options()


def test_words_are_read_as_the_verifier_reads_them() -> None:
    tokens = draw(4, 2)

    def said(prompt: str) -> Tensor:
        return make().condition(prompt).log_probs(tokens)

    assert torch.equal(said("A red kitten!"), said("a red cat"))
    assert torch.equal(said("a red wombat"), said("a red quokka"))
    assert not torch.equal(said("a red wombat"), said("a red cat"))


def test_a_prompt_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="has 7 words; the autoregressive prior reads at most 6"):
        make().condition("a cat a cat a cat a")


@pytest.mark.parametrize("scale", [-1, float("nan"), "much"])
def test_guidance_out_of_range_is_refused(scale) -> None:
    with pytest.raises(InputError, match="guidance must be a finite number from 0 up"):
        make().with_guidance(scale)


def test_a_prior_that_knows_no_text_takes_no_guidance() -> None:
    with pytest.raises(InputError, match="uniform takes no guidance"):
        UniformPrior(V, T).with_guidance(2.0)


# ---- draws


def test_samples_follow_the_distribution() -> None:
    prior = make(1.5)
    tokens = prior.sample(PROMPT, 4000, seed=1)
    assert tokens.shape == (4000, T)
    start = torch.empty(1, 0, dtype=torch.int64)
    p = prior.condition(PROMPT).log_probs(start).exp()[0]
    seen = torch.bincount(tokens[:, 0], minlength=V) / 4000
    assert (seen - p).abs().max() < 0.03
    assert torch.equal(tokens, prior.sample(PROMPT, 4000, seed=1))
    assert not torch.equal(tokens, prior.sample(PROMPT, 4000, seed=2))


def test_the_likeliest_token_is_left_by_every_filter_at_its_limit() -> None:
    prior = make().condition(PROMPT)
    best = prior.sequence_log_prob(greedy := make().sample(PROMPT, 1, 0, top_k=1))
    for filters in ({"top_p": 1e-9}, {"temperature": 1e-4}):
        assert torch.equal(make().sample(PROMPT, 3, 5, **filters), greedy.expand(3, -1))
    first = prior.log_probs(greedy[:, :0])
    assert best[0, 0] == first.max()


def test_filters_shape_proposals_and_not_what_ranks() -> None:
    prior, prefixes = make().condition(PROMPT), draw(3, 2)
    filtered = prior.with_filters(top_k=3)
    assert torch.equal(filtered.log_probs(prefixes), prior.log_probs(prefixes))
    generator = torch.Generator().manual_seed(0)
    proposals = filtered.propose(prefixes, 3, 0.5, generator)[:, :, 0]
    best = prior.log_probs(prefixes).topk(3, dim=1).indices
    assert torch.equal(proposals.sort(dim=1).values, best.sort(dim=1).values)


@pytest.mark.parametrize("filters", [{"temperature": 0}, {"top_k": -1}, {"top_p": 1.5}])
def test_filters_out_of_range_are_refused(filters) -> None:
    with pytest.raises(InputError, match=next(iter(filters))):
        make().sample(PROMPT, 1, 0, **filters)


def test_no_prompt_samples_from_the_empty_text() -> None:
    prior = make(3.0).condition("a dog")
    expected = make(0.0).sample(PROMPT, 5, 4)
    assert torch.equal(prior.sample(None, 5, 4), expected)


# ---- typicality


def test_what_true_scenes_have_is_interpolated_between_guidance_scales() -> None:
    table = torch.tensor([[-3.0] * T, [-1.0] * T, [-2.0] * T])
    prior = make(expected=([0.0, 1.0, 3.0], table))
    assert prior.expected_log_prob(2) == -3.0  # without a prompt
    prompted = prior.condition(PROMPT)
    assert prompted.expected_log_prob(2) == -1.0
    assert prompted.with_guidance(2.0).expected_log_prob(2) == pytest.approx(-1.5)
    tokens = draw(3, 2)
    mean = prompted.sequence_log_prob(tokens).mean(dim=1)
    torch.testing.assert_close(prompted.typicality(tokens), -(mean + 1).abs())


def test_without_true_scenes_there_is_no_typicality() -> None:
    with pytest.raises(TfgenError, match="does not know how likely true pictures are"):
        make().typicality(draw(2, 2))


# ---- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = torch.linspace(-3, -2, 2 * T).view(2, T)
    make(2.0, expected=([0.0, 2.0], table)).save(tmp_path / FILE_NAME, scenes=7)
    return tmp_path


def test_what_is_saved_is_loaded(folder: Path) -> None:
    loaded = AutoregressivePrior.for_tokenizer(ToyTokenizer(V, T), folder)
    assert loaded.guidance == 2.0 and loaded.metadata["scenes"] == 7
    assert loaded.condition(PROMPT).expected_log_prob(T) == -2.0
    tokens = draw(3, 2)
    expected = make(2.0).condition(PROMPT).log_probs(tokens)
    found = loaded.condition("A red kitten").log_probs(tokens)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.01)  # float16 in the file


def test_the_same_prior_is_the_same_file(folder: Path) -> None:
    written = (folder / FILE_NAME).read_bytes()
    AutoregressivePrior.load(folder / FILE_NAME).save(folder / FILE_NAME)
    assert (folder / FILE_NAME).read_bytes() == written


def test_a_model_without_one_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="toy has no autoregressive prior .*tfgen.training"):
        AutoregressivePrior.for_tokenizer(ToyTokenizer(V, T), tmp_path)


def test_the_prior_of_another_codebook_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="predicts 5 tokens of a codebook of 12, but toy has 3"):
        AutoregressivePrior.for_tokenizer(ToyTokenizer(V, 3), folder)


def test_damaged_and_foreign_files_are_refused(folder: Path) -> None:
    path = folder / FILE_NAME
    whole, tensors = path.read_bytes(), load(path.read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        AutoregressivePrior.load(path)
    save_file(tensors, path)
    with pytest.raises(InputError, match="written by another program"):
        AutoregressivePrior.load(path)
    path.write_bytes(whole.replace(b'\\"width\\": 16', b'\\"width\\": 17'))
    with pytest.raises(InputError, match="not a usable autoregressive prior"):
        AutoregressivePrior.load(path)


def test_the_hub_loads_it_by_name(
    folder: Path, toy_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "locate", lambda name, role="tokenizer": folder)
    prior = hub.load_prior("autoregressive", "toy", ToyTokenizer(V, T))
    assert isinstance(prior, AutoregressivePrior)


# ---- in a pipeline


def test_guidance_reaches_the_search_and_the_recipe(toy_weights: Path) -> None:
    make(2.0, (VOCAB,), TOKENS).save(toy_weights / "sprites" / FILE_NAME)
    options = {"prior": "autoregressive", "prior_strength": 1.0, "beam": 1, "candidates": 1}
    pictures = [tfgen.generate(PROMPT, guidance=s, **options) for s in (None, 0.0, 9.0)]
    told = [picture.recipe["prior"] for picture in pictures]
    assert [(prior["name"], prior["guidance"]) for prior in told] == [
        ("autoregressive", scale) for scale in (2.0, 0.0, 9.0)
    ]
    assert len({prior["fingerprint"] for prior in told}) == 1
    assert pictures[1].tokens != pictures[2].tokens


def test_guidance_needs_a_prior_of_the_text(toy_weights: Path) -> None:
    with pytest.raises(InputError, match="uniform takes no guidance"):
        tfgen.generate(PROMPT, guidance=2.0)
