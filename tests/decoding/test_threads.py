"""Passes side by side on a CPU's cores."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.toys import ToyTokenizer
from tfgen.decoding.threads import ThreadedEngine, usable_cores
from tfgen.hub import WEIGHTS
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.verifiers.clip import ClipVerifier


class ThreadCounting(ToyTokenizer):
    """Notes how many threads torch has while it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def decode(self, tokens: Tensor) -> Tensor:
        self.seen.append(torch.get_num_threads())
        if (tokens == 4).all():
            raise torch.OutOfMemoryError("too many")
        return super().decode(tokens)


class Pixels:
    """Embeds a picture as its pixels."""

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def passes(count: int, tokenizer, length: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (tokenizer.decode_rows, length)
    return [torch.randint(tokenizer.vocab_size, shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_embeddings_come_in_the_order_of_the_passes(threads):
    tokenizer = ToyTokenizer()
    given = passes(5, tokenizer)
    found = ThreadedEngine(tokenizer, Pixels(), threads).embed(given)
    for tokens, embedding in zip(given, found, strict=True):
        assert torch.equal(embedding, tokenizer.decode(tokens).flatten(1))


def test_the_packaged_models_give_the_same_bits_alone_and_side_by_side():
    tokenizer = SpritesTokenizer.load(WEIGHTS / "sprites")
    verifier = ClipVerifier.load(WEIGHTS / "sprites-clip")
    given = passes(3, tokenizer)
    together = ThreadedEngine(tokenizer, verifier, 2).embed(given)
    one_by_one = ThreadedEngine(tokenizer, verifier, 1)
    for tokens, embedding in zip(given, together, strict=True):
        assert torch.equal(embedding, one_by_one.embed([tokens])[0])


@pytest.mark.parametrize("count", [1, 3])
def test_each_pass_has_one_thread_and_torch_gets_its_threads_back(count):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tokenizer = ThreadCounting()
        ThreadedEngine(tokenizer, Pixels(), 2).embed(passes(count, tokenizer))
        assert tokenizer.seen == [1] * count
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_running_out_of_memory_reaches_the_caller_and_restores_the_threads():
    before = torch.get_num_threads()
    tokenizer = ThreadCounting()
    given = passes(2, tokenizer) + [torch.full((16, 3), 4)]
    with pytest.raises(torch.OutOfMemoryError):
        ThreadedEngine(tokenizer, Pixels(), 2).embed(given)
    assert torch.get_num_threads() == before


def test_no_more_passes_at_a_time_than_cores():
    assert 1 <= ThreadedEngine(ToyTokenizer(), Pixels()).passes <= usable_cores()


@pytest.mark.parametrize("module", ["engine", "threads"])
def test_a_module_may_be_the_first_that_is_imported(module):
    """Priors compute on one thread, too, and engines import the search, which imports priors."""
    subprocess.run([sys.executable, "-c", f"import tfgen.decoding.{module}"], check=True)
