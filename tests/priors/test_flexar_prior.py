"""FlexAR as a prior: guided probabilities, one pass over what is new, text encoded once."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from tests.priors.flexar_vectors import SETS, VECTORS, GivenText, load, variant, vectors
from tests.toys import ToyTokenizer
from tfgen import InputError, TfgenError, hub
from tfgen.pipeline import PromptWarning
from tfgen.priors import flexar as module
from tfgen.priors.flexar import FlexAR, FlexARPrior
from tfgen.priors.flexar_model import CrossAttention, FlexARNetwork
from tfgen.priors.flexar_text import T5TextEncoder


def prior(name: str = "flexar_tiny", prompt: str = "first", **options) -> FlexARPrior:
    return FlexARPrior(load(name), **options).condition(prompt, lambda embeddings: embeddings[:, 0])


def random_tokens(rows: int, length: int, vocab_size: int, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=noise)


@pytest.mark.parametrize("name", SETS)
def test_log_probs_are_those_of_the_guided_reference_logits(name: str) -> None:
    v = vectors(name)
    expected = v["logits_cfg3"].log_softmax(dim=2)
    for row, prompt in enumerate(("first", "second")):
        conditioned = prior(name, prompt)
        for length in range(7):
            found = conditioned.log_probs(v["prefix"][row : row + 1, :length])
            torch.testing.assert_close(found[0], expected[row, length], atol=3e-4, rtol=0)


@pytest.mark.parametrize("name", SETS)
def test_a_sequences_log_prob_is_that_of_its_tokens_one_by_one(name: str) -> None:
    conditioned = prior(name)
    tokens = random_tokens(5, conditioned.num_tokens, conditioned.vocab_size)
    one_by_one = torch.cat(
        [
            conditioned.log_probs(tokens[:, :i]).gather(1, tokens[:, i : i + 1])
            for i in range(tokens.shape[1])
        ],
        dim=1,
    )
    found = conditioned.sequence_log_prob(tokens)
    torch.testing.assert_close(found, one_by_one, atol=3e-4, rtol=0)
    assert conditioned.sequence_log_prob(tokens[:, :0]).shape == (5, 0)


def test_without_a_prompt_it_is_the_model_of_the_empty_text() -> None:
    v = vectors("flexar_tiny")
    found = FlexARPrior(load("flexar_tiny")).log_probs(v["prefix"])
    expected = v["logits_uncond"][:, -1].log_softmax(dim=1)
    torch.testing.assert_close(found, expected, atol=3e-4, rtol=0)


def test_guidance_sharpens_towards_the_prompt() -> None:
    tokens = vectors("flexar_tiny")["greedy_cfg3_tokens"][:1]
    guided = [prior().with_guidance(scale) for scale in (0.0, 1.0, 3.0)]
    means = [conditioned.sequence_log_prob(tokens).mean() for conditioned in guided]
    assert means[0] < means[1] < means[2]
    assert guided[0].options()["guidance"] == 0.0
    with pytest.raises(InputError, match="guidance must be a finite number from 0"):
        prior().with_guidance(-1.0)


@pytest.mark.parametrize("max_past_bytes", [2**30, 1])
@pytest.mark.parametrize("name", SETS)
def test_what_is_remembered_changes_nothing(name: str, max_past_bytes: int) -> None:
    # As a search asks: the empty prefix, then beams, their children, rollouts, and beams again.
    general = FlexARPrior(load(name), max_past_bytes=max_past_bytes)
    searching = general.condition("first", lambda embeddings: embeddings[:, 0])
    a = random_tokens(6, 8, searching.vocab_size)
    asked = [a[:1, :0], a[:, :1], a[[2, 2, 0, 5], :3], a[:, :8], a[[3, 1], :4], a[[1, 3], :4]]
    asked += [random_tokens(4, 5, searching.vocab_size, seed=1), a[:, :6]]
    for prefixes in asked:
        fresh = general.condition("first", lambda embeddings: embeddings[:, 0])
        torch.testing.assert_close(
            searching.log_probs(prefixes), fresh.log_probs(prefixes), atol=1e-4, rtol=0
        )


def test_a_search_reads_one_new_token_of_each_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    read = positions_read(monkeypatch)
    searching = prior()
    tokens = random_tokens(8, 6, searching.vocab_size)
    parents = torch.tensor([7, 7, 0, 3])
    for length in range(6):
        rows = tokens if length < 3 else tokens[parents]
        searching.log_probs(rows[:, :length])
    assert read == [1] * 6


def test_rows_that_do_not_fit_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    read = positions_read(monkeypatch)
    searching = prior(max_past_bytes=1)
    searching.log_probs(random_tokens(3, 4, searching.vocab_size))
    assert read == [5, 5, 5]


def positions_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of positions of each forward pass."""
    read: list[int] = []
    forward = FlexARNetwork.forward

    def spy(self, tokens, text, past=None, last=False):
        read.append(tokens.shape[2] + (past is None))
        return forward(self, tokens, text, past, last)

    monkeypatch.setattr(FlexARNetwork, "forward", spy)
    return read


def test_text_is_encoded_once_a_prompt_and_the_empty_text_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = []
    right = CrossAttention.text
    monkeypatch.setattr(
        CrossAttention, "text", lambda self, text: keys.append(len(text)) or right(self, text)
    )
    model = load("flexar_tiny")
    for prompt in ("first", "second"):
        conditioned = FlexARPrior(model).condition(prompt, lambda embeddings: embeddings[:, 0])
        for length in range(5):
            conditioned.log_probs(random_tokens(4, length, model.vocab_size))
        conditioned.sequence_log_prob(random_tokens(4, 5, model.vocab_size))
    assert model.text_encoder.calls == [["first"], [""], ["second"]]
    assert keys == [2] * (2 * model.config.blocks)  # with and without the text, whatever the rows


def test_a_prompt_prior_leaves_the_one_it_comes_from_alone() -> None:
    general = FlexARPrior(load("flexar_tiny"))
    before = general.log_probs(torch.zeros(1, 2, dtype=torch.int64))
    conditioned = general.condition("first", lambda embeddings: embeddings[:, 0])
    assert not torch.allclose(conditioned.log_probs(torch.zeros(1, 2, dtype=torch.int64)), before)
    torch.testing.assert_close(general.log_probs(torch.zeros(1, 2, dtype=torch.int64)), before)


def test_a_sharp_rollout_is_the_greedy_sequence_of_the_reference() -> None:
    noise = torch.Generator().manual_seed(0)
    found = prior().complete(random_tokens(1, 0, 240), 16, 1e6, noise)
    assert torch.equal(found, vectors("flexar_tiny")["greedy_cfg3_tokens"][:1])


def test_proposals_are_its_likeliest_tokens_when_sharp_and_distinct_always() -> None:
    v, conditioned = vectors("flexar_tiny"), prior()
    noise = torch.Generator().manual_seed(0)
    sharp = conditioned.propose(v["prefix"][:1], 4, 1e6, noise)
    assert torch.equal(sharp[0, :, 0], v["topk4_new1_cfg3_tokens"][:4, -1])
    drawn = conditioned.propose(v["prefix"][:1], 50, 1.0, noise, new_tokens=2)
    assert len(set(map(tuple, drawn[0].tolist()))) == 50


def test_it_says_that_it_does_not_know_how_likely_true_pictures_are() -> None:
    with pytest.raises(TfgenError, match="prior_weight=0 or typicality=False"):
        prior().typicality(random_tokens(1, 2, 240))


def test_a_full_sequence_has_no_next_token() -> None:
    with pytest.raises(InputError, match="16 tokens is too long.*at most 15"):
        prior().log_probs(random_tokens(1, 16, 240))


def test_its_options_tell_the_model_and_the_t5_from_others(tmp_path: Path) -> None:
    def head(weights: dict[str, Tensor]) -> None:
        weights["models.ar_image_model.head.linear.weight"] *= 2

    t5 = tmp_path / "t5"
    t5.mkdir()
    (t5 / "model.safetensors").write_bytes(bytes(100_000))

    def told(folder: Path, source: str | Path = "google/t5") -> str:
        model = FlexAR.from_pretrained(folder, text_encoder=T5TextEncoder(source, 9))
        return FlexARPrior(model).condition("a fox", len).options()["fingerprint"]

    one, other = VECTORS / "flexar_tiny", variant("flexar_tiny", tmp_path / "b", tensors=head)
    copy = variant("flexar_tiny", tmp_path / "a")
    assert told(one) == told(copy)
    found = [told(one), told(other), told(one, "google/t5-2"), told(one, t5)]
    (t5 / "model.safetensors").write_bytes(bytes(99_999) + b"1")
    found.append(told(one, t5))
    assert len(set(found)) == 5


# By name


def test_it_loads_from_a_folder_by_name() -> None:
    name = f"flexar:{VECTORS / 'flexar_tiny'}"
    loaded = hub.load_prior(name, "flextok-d18-d28-dfn", ToyTokenizer(240, 16))
    assert isinstance(loaded, FlexARPrior)
    assert (loaded.vocab_size, loaded.num_tokens, loaded.guidance) == (240, 16, 3.0)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("flexar-113m", "EPFL-VILAB/FlexAR-113M-T2I"),
        ("flexar-382m", "EPFL-VILAB/FlexAR-382M-T2I"),
        ("flexar-1b", "EPFL-VILAB/FlexAR-1B-T2I"),
        ("flexar-3b", "EPFL-VILAB/FlexAR-3B-T2I"),
        ("flexar:someone/else", "someone/else"),
    ],
)
def test_published_models_load_from_the_hub_by_name(
    name: str, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, file: str) -> Path:
        asked.append((repository, file))
        return VECTORS / "flexar_tiny" / file

    monkeypatch.setattr(module, "download", download)
    loaded = hub.load_prior(name, "flextok-d18-d28-dfn", ToyTokenizer(240, 16))
    assert loaded.vocab_size == 240
    assert asked == [(repository, "config.yaml"), (repository, "model.safetensors")]


def test_a_model_in_the_hubs_cache_is_loaded_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "download", None)  # calling it would fail
    repository = tmp_path / "models--someone--flexar"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(VECTORS / "flexar_tiny")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert FlexAR.from_pretrained("someone/flexar").vocab_size == 240


@pytest.mark.parametrize(
    "model", ["flextok-d12-in1k", "EPFL-VILAB/flextok_d12_d12_in1k", "sprites"]
)
def test_a_tokenizer_that_it_was_not_trained_on_is_a_warning(model: str) -> None:
    name = f"flexar:{VECTORS / 'flexar_tiny'}"
    with pytest.warns(
        PromptWarning, match=f"mean something else to {model}: .*flextok-d18-d28-dfn"
    ):
        hub.load_prior(name, model, ToyTokenizer(240, 16))


@pytest.mark.parametrize(
    "model", ["flextok-d18-d28-dfn", "EPFL-VILAB/flextok_d18_d28_dfn", "./my-flextok"]
)
def test_its_own_tokenizer_and_one_in_a_folder_are_no_warning(model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub.load_prior(f"flexar:{VECTORS / 'flexar_tiny'}", model, ToyTokenizer(240, 16))


def test_a_model_that_is_not_there_and_cannot_be_downloaded_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TfgenError, match="config.yaml of EPFL-VILAB/FlexAR-1B-T2I is not on"):
        FlexAR.from_pretrained("EPFL-VILAB/FlexAR-1B-T2I")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("flexar-2b", "did you mean 'flexar-3b'|did you mean 'flexar-1b'"),
        ("uniform:folder", "no prior 'uniform:folder'"),
        ("flexar", "holds no FlexAR model.*flexar-113m"),
        ("flexar:./gone", "no folder 'gone'"),
    ],
)
def test_a_name_that_is_no_prior_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        hub.load_prior(name, "sprites", ToyTokenizer(240, 16))


def test_published_models_are_listed_as_priors() -> None:
    rows = {row["name"]: row for row in hub.list_models()}
    assert rows["flexar-3b"]["role"] == "prior"
    assert rows["flexar-3b"]["hub_id"] == "EPFL-VILAB/FlexAR-3B-T2I"


# T5


class Encoding(dict):
    """As transformers' BatchEncoding: attributes, and `to`."""

    __getattr__ = dict.__getitem__

    def to(self, device) -> Encoding:
        return self


def fake_transformers(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Stands in for transformers: one token a letter; the hidden state is the letter's code."""
    calls: list[tuple] = []

    def tokenise(texts, padding, truncation, max_length, return_tensors) -> Encoding:
        calls.append(("tokenise", padding, truncation, max_length, return_tensors))
        codes = [[ord(letter) for letter in text][: max_length - 1] + [1] for text in texts]
        longest = max(map(len, codes))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in codes])
        return Encoding(input_ids=ids, attention_mask=(ids > 0).long())

    class Encoder(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            hidden = (input_ids * attention_mask)[:, :, None].expand(-1, -1, 32)
            return SimpleNamespace(last_hidden_state=hidden.half())

        report = {"missing_keys": [], "mismatched_keys": []}

        @classmethod
        def from_pretrained(cls, source, use_safetensors, **reported):
            calls.append(("load", source, use_safetensors))
            assert reported == {"ignore_mismatched_sizes": True, "output_loading_info": True}
            while_loading.append(bars["on"])
            return cls(), cls.report

    bars, while_loading = {"on": True}, []
    fake = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(from_pretrained=lambda source: tokenise),
        T5EncoderModel=Encoder,
        bars=bars,
        while_loading=while_loading,
        logging=SimpleNamespace(
            is_progress_bar_enabled=lambda: bars["on"],
            disable_progress_bar=lambda: bars.update(on=False),
            enable_progress_bar=lambda: bars.update(on=True),
            get_verbosity=lambda: 30,
            set_verbosity=lambda level: bars.update(level=level),
            set_verbosity_error=lambda: bars.update(level=40),
        ),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return calls


def test_prompts_are_encoded_by_the_t5_that_the_config_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = fake_transformers(monkeypatch)
    model = FlexAR.from_pretrained(VECTORS / "flexar_tiny")
    assert calls == []  # not before the first prompt
    hidden, mask = model.encode_text(["fox", "", "a prompt that is too long"])
    assert calls == [
        ("load", "google/flan-t5-xl", True),
        ("tokenise", "longest", True, 9, "pt"),
    ]
    assert (hidden.shape, hidden.dtype) == ((3, 9, 32), torch.float32)
    assert mask.sum(dim=1).tolist() == [4, 1, 9]
    assert hidden[0, :4, 0].tolist() == [*map(ord, "fox"), 1]
    model.encode_text(["fox"])
    assert len(calls) == 3  # loaded once


def test_a_t5_beside_the_weights_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_transformers(monkeypatch)
    for file in ("config.yaml", "model.safetensors"):
        (tmp_path / file).symlink_to(VECTORS / "flexar_tiny" / file)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "spiece.model").touch()
    FlexAR.from_pretrained(tmp_path).encode_text(["fox"])
    assert calls[0] == ("load", str(tmp_path / "text_encoder"), True)


def test_without_transformers_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    conditioned = FlexARPrior(FlexAR.from_pretrained(VECTORS / "flexar_tiny")).condition("fox", len)
    with pytest.raises(TfgenError, match=r"pip install 'tfgen\[flexar\]'"):
        conditioned.log_probs(torch.empty(1, 0, dtype=torch.int64))


def test_a_t5_that_cannot_be_had_is_a_failure_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_transformers(monkeypatch)

    def fail(source):
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(sys.modules["transformers"].AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(TfgenError, match="T5 encoder 'google/t5' cannot be had .no network.: run"):
        T5TextEncoder("google/t5", 9)(["fox"])


def test_weights_that_the_files_lack_are_refused_not_made_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_transformers(monkeypatch)
    encoder = sys.modules["transformers"].T5EncoderModel
    for report, reason in (
        ({"missing_keys": {"wo.weight"}, "mismatched_keys": []}, "wo.weight is missing"),
        (
            {"missing_keys": [], "mismatched_keys": {("wo.weight", (5,), (32,))}},
            "wo.weight is of another size",
        ),
    ):
        monkeypatch.setattr(encoder, "report", report)
        with pytest.raises(InputError, match=f"'google/t5' cannot be used .{reason}.: get its"):
            T5TextEncoder("google/t5", 9)(["fox"])


def test_a_tied_weight_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_transformers(monkeypatch)
    encoder = sys.modules["transformers"].T5EncoderModel

    class Tied(encoder):
        def __init__(self) -> None:
            super().__init__()
            self.shared = torch.nn.Embedding(3, 2)
            self.embed_tokens = self.shared

    report = {"missing_keys": ["embed_tokens.weight"], "mismatched_keys": []}
    monkeypatch.setattr(encoder, "report", report)
    monkeypatch.setattr(sys.modules["transformers"], "T5EncoderModel", Tied)
    assert T5TextEncoder("google/t5", 9)(["fox"])[0].shape == (1, 4, 32)


def test_a_folder_without_a_tokenizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_transformers(monkeypatch)
    with pytest.raises(InputError, match="no tokenizer.json or spiece.model.: get its files again"):
        T5TextEncoder(tmp_path, 9)(["fox"])
    assert calls == []


@pytest.mark.parametrize(
    "error",
    [SafetensorError("header"), RuntimeError("size"), KeyError("added_tokens"), OSError("x")],
)
def test_a_folder_with_damaged_files_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_transformers(monkeypatch)

    def fail(source):
        raise error

    (tmp_path / "tokenizer.json").touch()
    monkeypatch.setattr(sys.modules["transformers"].AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(InputError, match=f"T5 encoder {str(tmp_path)!r} cannot be used") as caught:
        T5TextEncoder(tmp_path, 9)(["fox"])
    assert "\n" not in str(caught.value)


def test_loading_it_shows_no_bar_and_leaves_that_setting_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_transformers(monkeypatch)
    T5TextEncoder("google/t5", 9)(["fox"])
    fake = sys.modules["transformers"]
    assert fake.while_loading == [False]
    assert fake.bars == {"on": True, "level": 30}


def test_given_text_is_what_the_vectors_say() -> None:
    hidden, _ = GivenText("flexar_tiny")(["", "second"])
    v = vectors("flexar_tiny")
    assert torch.equal(hidden, torch.stack([v["t5_hidden_uncond"][0], v["t5_hidden_cond"][1]]))
