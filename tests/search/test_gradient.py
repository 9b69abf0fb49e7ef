"""Gradients of the score are computed as many at a time as the memory of the device holds."""

import pytest
import torch

from tests.toy_search import pools, run
from tests.toys import GridTokenizer, GridVerifier
from tfgen.errors import InputError


class Small(GridTokenizer):
    """Has memory for the gradients of so many rows."""

    def __init__(self, memory):
        super().__init__(10, 3)
        self.memory, self.parts = memory, []

    def decode_embeddings(self, embeddings):
        if embeddings.requires_grad:
            if len(embeddings) > self.memory:
                raise torch.OutOfMemoryError(f"{len(embeddings)} rows are too many")
            self.parts.append(len(embeddings))
        return super().decode_embeddings(embeddings)


def go(tokenizer):
    verifier = GridVerifier(lambda points: -(points - 0.3).square().sum(dim=(1, 2)))
    options = {"beam": 4, "candidates": 48, "shortlist": 24, "shortlist_by": "gradient"}
    return run(tokenizer=tokenizer, verifier=verifier, **options)


def test_gradients_that_do_not_fit_the_memory_are_computed_of_fewer_at_a_time():
    small, large = Small(5), Small(100)
    results = go(small), go(large)
    assert pools(results[0]) == pools(results[1])
    assert max(large.parts) > 5 >= max(small.parts)
    assert sum(small.parts) == sum(large.parts)
    assert results[0].accounts.gradients == results[1].accounts.gradients


def test_without_memory_for_one_gradient_there_is_no_shortlist_by_it():
    with pytest.raises(InputError, match="use the shortlist by 'surrogate'"):
        go(Small(0))
