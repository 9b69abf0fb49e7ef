"""Counting a frequency prior over pictures: the right counts, and no work lost when stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys import ToyTokenizer
from tfgen.errors import InputError
from tfgen.priors import FrequencyPrior
from tfgen.priors.counting import count_pictures

SOURCE = {"pictures": 9}


class Counted(ToyTokenizer):
    """Remembers how many pictures it encoded."""

    encoded = 0

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        return super().encode(images)


@pytest.fixture
def tokenizer() -> Counted:
    return Counted(vocab_size=5, num_tokens=3)


@pytest.fixture
def tokens(tokenizer: Counted) -> Tensor:
    """Of nine pictures; the first token is 2 in most."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (9, 3), generator=generator)
    tokens[:6, 0] = 2
    return tokens


def pictures(tokenizer: Counted, tokens: Tensor):
    """Parts of 4, 0, 4 and 1 pictures."""
    parts = (tokens[:4], tokens[:0], tokens[4:8], tokens[8:])
    return lambda part: tokenizer.decode(parts[part])


def fit(tokenizer: Counted, tokens: Tensor, path: Path, **options: object) -> FrequencyPrior:
    options = {"source": SOURCE, "min_count": 1} | options
    return count_pictures(pictures(tokenizer, tokens), 4, tokenizer, path, **options)


def test_the_prior_is_that_of_the_pictures_tokens(
    tokenizer: Counted, tokens: Tensor, tmp_path: Path
) -> None:
    found = fit(tokenizer, tokens, tmp_path / "prior.safetensors")
    right = FrequencyPrior.fit([tokens], 5, 3, min_count=1)
    loaded = FrequencyPrior.load(tmp_path / "prior.safetensors")
    empty, some = torch.empty(1, 0, dtype=torch.int64), tokens[:3, :1]
    for prefixes in (empty, some):
        assert torch.equal(found.log_probs(prefixes), right.log_probs(prefixes))
        assert torch.allclose(loaded.log_probs(prefixes), right.log_probs(prefixes))
    assert found.log_probs(empty).argmax() == 2
    assert loaded.metadata["tokenizer"] == tokenizer.fingerprint()
    assert loaded.metadata["pictures"] == 9


def test_a_fit_that_was_stopped_goes_on_where_it_was(
    tokenizer: Counted, tokens: Tensor, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == 3:
            raise KeyboardInterrupt

    path = tmp_path / "prior.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tokens, path, progress=stop)
    assert not path.exists() and tokenizer.encoded == 8
    seen: list[tuple[int, int]] = []
    resumed = fit(tokenizer, tokens, path, progress=lambda *step: seen.append(step))
    assert tokenizer.encoded == 9
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    whole = fit(tokenizer, tokens, tmp_path / "other.safetensors")
    assert torch.equal(resumed.log_probs(tokens[:, :1]), whole.log_probs(tokens[:, :1]))
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "other.safetensors"}


def test_parts_of_other_pictures_are_not_used(
    tokenizer: Counted, tokens: Tensor, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "prior.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tokens, path, progress=stop)
    fit(tokenizer, tokens, path, source={"pictures": 10})
    assert tokenizer.encoded == 4 + 9


def test_a_model_of_other_tokens_is_refused(
    tokenizer: Counted, tokens: Tensor, tmp_path: Path
) -> None:
    class Other(Counted):
        def fingerprint(self) -> str:
            return "f00"

    path = tmp_path / "prior.safetensors"
    fit(tokenizer, tokens, path)
    for place in (path, tmp_path):
        assert FrequencyPrior.for_tokenizer(tokenizer, place).vocab_size == 5
        with pytest.raises(InputError, match=r"another tokenizer \(fingerprint 53\) .*\(f00\)"):
            FrequencyPrior.for_tokenizer(Other(vocab_size=5, num_tokens=3), place)


def test_one_picture_is_too_few(tokenizer: Counted, tokens: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two pictures or more, not 1"):
        count_pictures(
            lambda part: tokenizer.decode(tokens[:1]), 1, tokenizer, tmp_path / "p", source=SOURCE
        )
