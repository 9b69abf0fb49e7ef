"""The engine of a GPU, here on the CPU, where it takes the kernels' references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tokenizers.flextok_checks import model
from tests.toy_world import make_world, tokenizer_model, write_verifier
from tests.toys import ToyTokenizer
from tfgen.decoding import (
    group_norm,
    kernel_engine,
    kernels,
    picture_kernels,
    sampling_kernels,
)
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.kernel_engine import KernelEngine, KernelEngines
from tfgen.decoding.sprites_step import decode_all_slots
from tfgen.decoding.triton_support import triton
from tfgen.priors.uniform import UniformPrior
from tfgen.search import PlainEngine, SearchSettings, search
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.clip import ClipVerifier

TOKENS = torch.tensor([[3, 1], [0, 7], [11, 2]])


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> ClipVerifier:
    folder = tmp_path_factory.mktemp("verifier") / "clip"
    write_verifier(folder, make_world())
    return ClipVerifier.load(folder)


class MeanColour(Verifier):
    """No CLIP: a picture's embedding is its mean colour."""

    name = "colour"

    def embed(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def prepare(self, prompt, negatives=()):
        raise NotImplementedError

    def score(self, images, target):
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "0"


def tokenizers() -> dict[str, Tokenizer]:
    return {
        "flextok": model().with_sampling(steps=2, guidance=3.0).for_seed(1),
        "sprites": SpritesTokenizer(tokenizer_model()),
    }


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_embeddings_are_those_of_the_plain_engine(name: str, verifier: ClipVerifier) -> None:
    tokenizer = tokenizers()[name]
    passes = [TOKENS, TOKENS.flip(0)]
    for judge in (verifier, MeanColour()):
        plain = PlainEngine(tokenizer, judge).embed(passes)
        found = KernelEngine(tokenizer, judge).embed(passes)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            assert a.std(dim=0).max() > 1e-4  # the pictures differ


def test_a_flextok_decodes_through_the_kernels_and_a_clip_is_fed_by_one(
    verifier: ClipVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    right, feed = FusedFlexTok.latents, kernel_engine.verifier_input
    monkeypatch.setattr(
        FusedFlexTok,
        "latents",
        lambda self, *rest: calls.append("decode") or right(self, *rest),
    )
    monkeypatch.setattr(
        kernel_engine,
        "verifier_input",
        lambda images, plan, **rest: calls.append("feed") or feed(images, plan, **rest),
    )
    KernelEngine(tokenizers()["flextok"], verifier).embed([TOKENS, TOKENS])
    assert calls == ["decode", "feed"] * 2


def test_weights_are_packed_once_for_all_searches(verifier: ClipVerifier) -> None:
    tokenizer = tokenizers()["flextok"]
    engines = [KernelEngine(tokenizer.for_seed(seed), verifier) for seed in (0, 1)]
    assert engines[0].tokenizer.fused is engines[1].tokenizer.fused
    assert not torch.equal(engines[0].tokenizer.noise, engines[1].tokenizer.noise)


def test_rows_and_passes_are_those_of_the_tokenizer_and_its_device() -> None:
    engine = KernelEngine(ToyTokenizer(5, 3), MeanColour())
    assert (engine.rows, engine.passes) == (ToyTokenizer.decode_rows, 1)


def test_prefixes_are_padded_to_few_lengths(verifier: ClipVerifier) -> None:
    flextok = KernelEngine(tokenizers()["flextok"], verifier)
    assert [flextok.bucket(k) for k in (1, 4, 5, 8, 9, 16)] == [4, 4, 8, 8, 16, 16]
    sprites = KernelEngine(tokenizers()["sprites"], verifier)
    assert [sprites.bucket(k) for k in (1, 5, 8)] == [8, 8, 8]
    assert KernelEngine(ToyTokenizer(5, 3), MeanColour()).bucket(2) == 2


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_prefixes_of_mixed_lengths_are_embedded_as_each_alone(
    name: str, verifier: ClipVerifier
) -> None:
    tokenizer = tokenizers()[name]
    engine = KernelEngine(tokenizer, verifier, rows=2)
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randint(12, (5, 8), generator=noise)
    lengths = torch.tensor([1, 8, 3, 5, 1])
    found = engine.embed_prefixes(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = verifier.embed(tokenizer.decode(tokens[row : row + 1, :length]))[0]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=0)


def test_sprites_painted_without_a_look_at_which_objects_there_are() -> None:
    tokenizer = tokenizers()["sprites"]
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.vocab_size, (64, 8), generator=noise)
    lengths = torch.randint(1, 9, (64,), generator=noise)
    codes = tokenizer.fsq.to_codes(tokens)
    layers, _ = tokenizer.model.layers(codes, torch.arange(8) < lengths[:, None])
    assert 0 < (layers.present > 0).float().mean() < 1  # some are there, some are not
    found = decode_all_slots(tokenizer.model, codes, lengths)
    torch.testing.assert_close(found, tokenizer.decode_lengths(tokens, lengths), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_a_search_finds_what_it_finds_with_the_plain_engine(
    name: str, verifier: ClipVerifier
) -> None:
    tokenizer = tokenizers()[name]
    target = verifier.prepare("a red fox")
    settings = SearchSettings(beam=2, candidates=3, tokens=3)
    prior = UniformPrior(tokenizer.vocab_size, tokenizer.num_tokens)
    results = [
        search(target, tokenizer, prior, verifier, settings, 0, engine=engine)
        for engine in (PlainEngine(tokenizer, verifier), KernelEngine(tokenizer, verifier))
    ]
    assert torch.equal(results[0].tokens, results[1].tokens)
    assert results[0].score == pytest.approx(results[1].score, abs=1e-4)
    assert [s.best_tokens.tolist() for s in results[0].steps] == [
        s.best_tokens.tolist() for s in results[1].steps
    ]


def replayed(shapes: list[tuple[int, ...]]):
    """Records as CUDA does, as far as a CPU can: what is replayed is the work on the memory that it
    was recorded with."""

    def record(work):
        result = work()
        shapes.append(tuple(result.shape))
        return lambda: result.copy_(work()), result

    return record


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_passes_are_recorded_once_a_shape_and_replayed(name: str, verifier: ClipVerifier) -> None:
    tokenizer, shapes = tokenizers()[name], []
    engine = KernelEngine(tokenizer, verifier, record=replayed(shapes))
    plain = PlainEngine(tokenizer, verifier)
    passes = [TOKENS, TOKENS.flip(0), TOKENS.flip(1), TOKENS]
    for length in (2, 1):  # of one bucket
        given = [tokens[:, :length] for tokens in passes]
        for a, b in zip(engine.embed(given), plain.embed(given), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert len(shapes) == 1


def test_searches_with_the_same_models_share_an_engine_and_those_of_other_noise_its_rows(
    verifier: ClipVerifier,
) -> None:
    make, models = KernelEngines(), tokenizers()
    sprites = make(models["sprites"], verifier)
    assert make(models["sprites"], verifier) is sprites
    flextok = make(models["flextok"], verifier)
    assert flextok is not sprites
    flextok.rows = 5  # what fits
    other = make(models["flextok"].for_seed(9), verifier)
    assert other is not flextok
    assert other.rows == 5
    assert make(models["sprites"], verifier).rows == sprites.rows  # not those of a FlexTok


def test_beside_a_graph_there_is_memory_for_a_pass_that_is_none(verifier: ClipVerifier) -> None:
    tokenizer, free = tokenizers()["sprites"], 6500  # 64 rows take 6,400, and 32 take 3,200
    for record, rows in ((None, 32), (replayed([]), 16)):
        engine = KernelEngine(tokenizer, verifier, rows=64, record=record)
        engine._peak_memory = lambda n: 100 * n
        assert engine._fitting_rows(free) == rows


@pytest.mark.parametrize("name", ["draft", "encode_again"])
def test_a_draft_without_memory_gives_up_the_graphs(
    name: str, verifier: ClipVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self, tokens: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    engine = KernelEngine(tokenizers()["sprites"], verifier, record=replayed([]))
    engine.embed([TOKENS, TOKENS])
    assert engine.graphs.slots
    monkeypatch.setattr(SpritesTokenizer, name, full)
    with pytest.raises(torch.OutOfMemoryError):
        getattr(engine, name)(TOKENS)
    assert not engine.graphs.slots


class NoHost(TorchDispatchMode):
    """As under a recording CUDA graph: nothing may look at a value, or bring one from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        needs_host = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique")
        name = function.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name.startswith(needs_host) or masks:
            raise RuntimeError(f"{name} needs the host")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_what_is_recorded_needs_no_host(name: str, verifier: ClipVerifier) -> None:
    tokenizer = tokenizers()[name]
    engine = KernelEngine(tokenizer, verifier)
    tokens = torch.nn.functional.pad(TOKENS, (0, engine.bucket(2) - 2))
    lengths = torch.full((3,), 2)
    with torch.inference_mode():
        first = engine._run(tokens, lengths)  # as before a recording
        with NoHost():
            assert torch.equal(engine._run(tokens, lengths), first)
            with pytest.raises(RuntimeError, match="needs the host"):  # as the usual way does
                tokenizer.decode(TOKENS)


@pytest.mark.skipif(
    triton is None or torch.cuda.is_available(), reason="needs Triton's interpreter"
)  # test_cuda does it on a GPU
@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_the_kernels_themselves_give_the_plain_engines_embeddings(
    name: str, verifier: ClipVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers()[name]
    if name == "flextok":
        tokenizer = tokenizer.with_sampling(steps=1)  # an interpreter takes its time
    plain = PlainEngine(tokenizer, verifier).embed([TOKENS[:1]])[0]
    for module in (kernels, sampling_kernels, picture_kernels, group_norm):  # as if on a GPU
        monkeypatch.setattr(module, "fused", lambda x: True)
    found = KernelEngine(tokenizer, verifier).embed([TOKENS[:1]])[0]
    torch.testing.assert_close(found, plain, atol=2e-5, rtol=0)
