"""The engine of a GPU, here on the CPU, where it takes the kernels' references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tokenizers.flextok_checks import model
from tests.toy_world import make_world, tokenizer_model, write_verifier
from tests.toys import ToyTokenizer
from tfgen.decoding import kernel_engine
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.kernel_engine import KernelEngine
from tfgen.search import PlainEngine
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
    right, feed = FusedFlexTok.decode_latents, kernel_engine.verifier_input
    monkeypatch.setattr(
        FusedFlexTok,
        "decode_latents",
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
