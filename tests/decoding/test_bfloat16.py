"""Products in bfloat16 on a CPU: how near their results are, and where they are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.toys import ToyTokenizer
from tfgen.decoding import bfloat16
from tfgen.decoding.bfloat16 import (
    Bfloat16Engine,
    in_bfloat16,
    narrowed,
    why_no_bfloat16,
)
from tfgen.decoding.engine import engine_maker
from tfgen.decoding.sprites_bfloat16 import paint_narrow
from tfgen.decoding.threads import ThreadedEngine
from tfgen.errors import InputError
from tfgen.hub import WEIGHTS
from tfgen.pipeline import Pipeline
from tfgen.search import Evaluator, PlainEngine
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_model import paint
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.clip import ClipVerifier
from tfgen.verifiers.views import Views

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Models = tuple[SpritesTokenizer, ClipVerifier]


@pytest.fixture(scope="module")
def models() -> Models:
    return SpritesTokenizer.load(WEIGHTS / "sprites"), ClipVerifier.load(WEIGHTS / "sprites-clip")


def prefixes(count: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, (count, length), generator=generator)


# Where


def test_it_runs_only_if_asked_for_and_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bfloat16, "_computes_bfloat16", lambda: True)
    assert engine_maker("bf16", CPU) is Bfloat16Engine
    assert engine_maker("auto", CPU) is ThreadedEngine
    assert why_no_bfloat16(CUDA) == "it is for a CPU, and this device is cuda"
    monkeypatch.setattr(bfloat16, "_computes_bfloat16", lambda: False)
    sentence = "^The engine bf16 cannot run: it needs a processor with AVX512-BF16 or AMX.* Use --"
    with pytest.raises(InputError, match=sentence):
        engine_maker("bf16", CPU)


def test_a_torch_that_does_not_tell_counts_as_no(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not bfloat16._computes_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert bfloat16._computes_bfloat16()


# How near


@pytest.mark.parametrize("length", [1, 6, 16])
def test_pictures_and_embeddings_are_near_those_of_float32(models: Models, length: int) -> None:
    tokenizer, verifier = models
    tokens = prefixes(40, length)
    engine = Bfloat16Engine(tokenizer, verifier, 1)
    with torch.inference_mode():
        pictures, exact = engine.decoder.decode(tokens), tokenizer.decode(tokens)
    assert pictures.dtype == torch.float32 and pictures.shape == exact.shape
    assert 0 < (pictures - exact).abs().mean() < 2e-3
    assert (pictures - exact).abs().max() < 0.06
    error = engine.embed([tokens])[0] - PlainEngine(*models).embed([tokens])[0]
    assert 0 < error.abs().max() < 5e-3


@pytest.mark.parametrize("present", [[], [2], [0, 3]])
def test_only_the_objects_that_are_there_are_painted(models: Models, present: list[int]) -> None:
    tokenizer, verifier = models
    codes = tokenizer.code_embeddings()[prefixes(3, 16)]
    layered, _ = tokenizer.model.layers(codes, torch.ones(3, 16, dtype=torch.bool))
    there = torch.full((3, 4), -1.0)
    there[1, present] = 1.0
    layered = layered._replace(present=there)
    exact = paint(tokenizer.model, layered)
    narrow = Bfloat16Engine(tokenizer, verifier, 1).decoder.model
    found = paint_narrow(narrow, layered._replace(background=layered.background.clone()))
    assert torch.equal(found[[0, 2]], exact[[0, 2]])
    assert torch.equal(found[1], exact[1]) == (not present)
    assert (found - exact).abs().max() < 0.06


def test_a_step_of_32_candidates_keeps_two_cores_at_work(models: Models) -> None:
    engine = Bfloat16Engine(*models, 2)
    assert engine.rows == models[0].decode_rows == 16


def test_the_models_given_stay_as_they_are(models: Models) -> None:
    tokenizer, verifier = models
    tokens = prefixes(4, 6)
    before = PlainEngine(*models).embed([tokens])[0], tokenizer.draft(tokens)
    engine = Bfloat16Engine(tokenizer, verifier, 1)
    engine.embed([tokens])
    assert torch.equal(PlainEngine(*models).embed([tokens])[0], before[0])
    assert torch.equal(engine.draft(tokens), before[1])  # drafts are those of float32
    assert verifier.model.logit_scale.dtype == torch.float32


def test_a_score_depends_neither_on_the_batch_nor_on_its_neighbours(models: Models) -> None:
    tokenizer, verifier = models
    target, tokens = verifier.prepare("a red fox in snow"), prefixes(100, 4)

    def scores(chosen: Tensor, threads: int, batch: int | None) -> Tensor:
        engine = Bfloat16Engine(tokenizer, verifier, threads)
        evaluator = Evaluator(tokenizer, verifier, target, engine=engine, batch_size=batch)
        return evaluator.score(chosen)

    whole = scores(tokens, 2, None)
    assert torch.equal(scores(tokens, 1, 1), whole)
    assert torch.equal(scores(tokens[:7], 1, None), whole[:7])
    assert torch.equal(scores(tokens[99:], 1, None), whole[99:])


def test_views_and_other_verifiers(models: Models) -> None:
    tokenizer, verifier = models
    tokens = prefixes(2, 6)
    pictures = tokenizer.decode(tokens)
    views = in_bfloat16(Views(verifier, 2))
    assert isinstance(views, Views)
    with torch.inference_mode():
        error = views.embed(pictures) - Views(verifier, 2).embed(pictures)
    assert 0 < error.abs().max() < 5e-3

    class Pixels(Verifier):
        pass

    Pixels.__abstractmethods__ = frozenset()
    other = Pixels()
    assert in_bfloat16(other) is other


def test_only_plain_layers_are_narrowed() -> None:
    """Attention of torch reads the weights of its layers itself, so they must stay as they are."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    found = narrowed(nn.ModuleList([attention, nn.Linear(16, 16)]))
    with torch.no_grad():
        assert torch.equal(found[0](x, x, x)[0], attention(x, x, x)[0])
    assert found[1].weight.dtype == torch.bfloat16 and found[1](x).dtype == torch.float32


def test_a_tokenizer_that_is_no_sprites_decodes_as_always() -> None:
    class Pixels:
        def embed(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    tokenizer, tokens = ToyTokenizer(5, 3), torch.tensor([[1, 2], [3, 4]])
    engine = Bfloat16Engine(tokenizer, Pixels(), 1)
    assert engine.rows == tokenizer.decode_rows
    assert torch.equal(engine.embed([tokens])[0], tokenizer.decode(tokens).flatten(1))


# In a pipeline


def test_the_score_of_the_result_is_that_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "_computes_bfloat16", lambda: True)
    pipeline = Pipeline.load(device="cpu", prior="uniform", engine="bf16")
    result = pipeline.generate("a red fox", beam=2, candidates=20, schedule="2,4", atlas=False)
    assert result.recipe["engine"] == "bf16"
    target = pipeline.verifier.prepare("a red fox")
    pictures = pipeline.tokenizer.decode(torch.tensor([result.tokens]))
    exact = float(pipeline.verifier.score(pictures, target)[0])
    assert result.verifier_score == pytest.approx(exact, abs=1e-4)
    ranked = max(result.steps, key=lambda step: step.best_score)
    assert 2e-5 < abs(ranked.best_verifier_score - exact) < 0.5  # what it was ranked by
    shift = result.verifier_score - ranked.best_verifier_score
    assert result.score == pytest.approx(ranked.best_score + shift)
