"""The atlas: complete, resumable, tied to its models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys import ToyTokenizer, ToyVerifier, rugged
from tfgen.atlas import FILE_NAME, Atlas, cached_path
from tfgen.errors import InputError, TfgenError
from tfgen.tables import models_of


class EmbeddingVerifier(ToyVerifier):
    """Embeds a picture as its first row's red pixels."""

    def embed(self, images: Tensor) -> Tensor:
        return images[:, 0, 0]


class NoisyTokenizer(ToyTokenizer):
    """Its pictures depend on the seed of a search."""

    brightness = 1.0

    def for_seed(self, seed: int) -> NoisyTokenizer:
        other = NoisyTokenizer(self.vocab_size, self.num_tokens)
        other.brightness = 1 / (1 + seed)
        return other

    def decode(self, tokens: Tensor) -> Tensor:
        return super().decode(tokens) * self.brightness


def toys(kind: type[ToyTokenizer] = ToyTokenizer) -> tuple[ToyTokenizer, EmbeddingVerifier]:
    tokenizer = kind(vocab_size=1000, num_tokens=3)
    return tokenizer, EmbeddingVerifier(tokenizer, rugged)


def stop_at(codes: int) -> Callable[[int, int], None]:
    """A progress that presses Ctrl-C."""

    def progress(done: int, total: int) -> None:
        if done >= codes:
            raise KeyboardInterrupt

    return progress


def test_it_knows_every_one_token_prefix_and_no_other(tmp_path: Path) -> None:
    tokenizer, verifier = toys()
    atlas = Atlas.build(tokenizer, verifier, tmp_path / FILE_NAME)
    codes = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:, None]
    known, embeddings = atlas.get(codes)
    assert known.all() and embeddings.dtype == torch.float32
    torch.testing.assert_close(
        embeddings, verifier.embed(tokenizer.decode(codes)), rtol=2**-11, atol=2**-24
    )
    known, _ = atlas.get(torch.cat([codes, codes], dim=1))
    assert not known.any() and len(known) == 1000


def test_each_code_is_decoded_once_in_passes_of_the_searchs_shape(tmp_path: Path) -> None:
    tokenizer, verifier = toys()
    Atlas.build(tokenizer, verifier, tmp_path / FILE_NAME)
    assert {batch.shape for batch in tokenizer.batches} == {(tokenizer.decode_rows, 1)}
    decoded = torch.cat(tokenizer.batches)[:1000, 0]
    assert torch.equal(decoded, torch.arange(1000))


def test_progress_counts_the_codes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    Atlas.build(*toys(), tmp_path / FILE_NAME, progress=lambda *counts: told.append(counts))
    assert [done for done, _ in told] == [*range(16, 1000, 16), 1000]
    assert {total for _, total in told} == {1000}


def test_a_build_that_was_stopped_goes_on_and_gives_the_same_file(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.safetensors", tmp_path / "halves.safetensors"
    Atlas.build(*toys(), whole)
    tokenizer, verifier = toys()
    with pytest.raises(KeyboardInterrupt):
        Atlas.build(tokenizer, verifier, halves, progress=stop_at(600))
    assert not halves.exists()
    tokenizer.batches.clear()
    Atlas.build(tokenizer, verifier, halves)
    assert int(tokenizer.batches[0][0, 0]) == 512  # two parts of 256 were saved
    assert halves.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [halves.name, whole.name]


def test_parts_of_other_models_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with pytest.raises(KeyboardInterrupt):
        Atlas.build(*toys(), path, progress=stop_at(600))
    tokenizer = ToyTokenizer(vocab_size=1000, num_tokens=4)  # another fingerprint, darker pictures
    verifier = EmbeddingVerifier(tokenizer, rugged)
    atlas = Atlas.build(tokenizer, verifier, path)
    assert len(tokenizer.batches) == 63
    assert atlas.get(torch.tensor([[0]]))[1].shape == (1, 4)


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    tokenizer, verifier = toys()
    with pytest.raises(KeyboardInterrupt):
        Atlas.build(tokenizer, verifier, path, progress=stop_at(600))
    (part,) = (tmp_path / f"{FILE_NAME}.parts").glob("000000*")
    part.write_bytes(part.read_bytes()[:-10])
    atlas = Atlas.build(tokenizer, verifier, path)
    embeddings = atlas.get(torch.arange(1000)[:, None])[1]
    expected = verifier.embed(tokenizer.decode(torch.arange(1000)[:, None]))
    torch.testing.assert_close(embeddings, expected, rtol=2**-11, atol=2**-24)


def test_a_stale_atlas_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    Atlas.build(*toys(), path)
    tokenizer = ToyTokenizer(vocab_size=1000, num_tokens=4)
    with pytest.raises(InputError, match=r"is stale: .* 3e83, and here it is 3e84: build it again"):
        Atlas.open(path, tokenizer, EmbeddingVerifier(tokenizer, rugged))


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_damaged_or_missing_atlas_is_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / FILE_NAME
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^.* atlas .*\.$"):
        Atlas.open(path, *toys())


def test_a_noisy_decoder_has_an_atlas_for_each_seed(tmp_path: Path) -> None:
    tokenizer, verifier = toys(NoisyTokenizer)
    path = tmp_path / FILE_NAME
    first = Atlas.build(tokenizer, verifier, path, seed=1)
    code = torch.tensor([[999]])
    assert first.get(code)[1][0, 0] == pytest.approx(0.5, abs=1e-3)
    assert Atlas.open(path, tokenizer, verifier, seed=1).header == first.header
    with pytest.raises(InputError, match="the noise of seed 1, and here it is 2"):
        Atlas.open(path, tokenizer, verifier, seed=2)


def test_it_is_found_in_the_models_folder_or_the_cache_and_only_if_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    tokenizer, verifier = toys()
    models = models_of(tokenizer, verifier)
    assert Atlas.find(model, models, 1000) is None
    Atlas.build(tokenizer, verifier, cached_path(models))
    assert Atlas.find(model, models, 1000) is not None
    assert Atlas.find(None, models, 1000) is not None
    other = ToyTokenizer(vocab_size=1000, num_tokens=4)
    Atlas.build(other, verifier, model / FILE_NAME)
    assert Atlas.find(model, models_of(other, verifier), 1000) is not None
    assert Atlas.find(model, models_of(ToyTokenizer(1000, 5), verifier), 1000) is None


def test_too_little_memory_is_a_sentence(tmp_path: Path) -> None:
    tokenizer = ToyTokenizer(vocab_size=1000, max_rows=8)
    verifier = EmbeddingVerifier(tokenizer, rugged)
    with pytest.raises(TfgenError, match="too little free memory for 16 pictures"):
        Atlas.build(tokenizer, verifier, tmp_path / FILE_NAME)


def test_it_is_memory_mapped(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    atlas = Atlas.build(*toys(), path)
    assert atlas.vocab_size == 1000
    assert str(path) in Path("/proc/self/maps").read_text()
