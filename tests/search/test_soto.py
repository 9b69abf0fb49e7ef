"""The settings by which SoTo searches, against its beam search written down as it is."""

import itertools
import re
from pathlib import Path

import pytest
import torch

from tests.toy_search import pools, run
from tests.toys import ToyPrior, ToyTokenizer, rugged
from tfgen.search import PUBLISHED, SOTO, SearchSettings, prefix_lengths


def soto_beam(vocab_size, lengths, beam_width, candidates, seed):
    """One empty beam; `candidates` independent draws of each; the best of them; the last pool's
    best at the end. Ties aside, which its topk orders as it likes."""
    generator = torch.Generator().manual_seed(seed)
    beams, steps = [()], []
    for length in lengths:
        new = length - len(beams[0])
        rows = len(beams) * candidates
        columns = [torch.rand(rows, vocab_size, dtype=torch.float64, generator=generator)
                   for _ in range(new)]  # fmt: skip
        drawn = torch.stack([column.argmax(dim=1) for column in columns], dim=1).tolist()
        parents = [beam for beam in beams for _ in range(candidates)]
        pool = [parent + tuple(row) for parent, row in zip(parents, drawn, strict=True)]
        pool.sort(key=lambda tokens: (-rugged(tokens), tokens))
        steps.append(pool)
        beams = pool[:beam_width]
    return steps


@pytest.mark.parametrize("schedule", ["one", "geometric", "linear:2"])
@pytest.mark.parametrize(("beam", "candidates"), [(1, 3), (5, 10), (3, 64)])
def test_the_preset_is_sotos_beam_search(schedule, beam, candidates):
    vocab_size, num_tokens = 30, 4
    expected = soto_beam(vocab_size, prefix_lengths(schedule, num_tokens), beam, candidates, 9)
    tokenizer = ToyTokenizer(vocab_size, num_tokens)
    options = {"beam": beam, "candidates": candidates, "schedule": schedule, "seed": 9}
    result = run(tokenizer=tokenizer, **SOTO, **options)
    assert pools(result) == [[list(tokens) for tokens in pool] for pool in expected]
    assert tuple(result.tokens.tolist()) == expected[-1][0]
    assert [len(pool) for pool in expected][:2] == [candidates, min(beam, candidates) * candidates]
    # What it decodes is all of these; what comes up twice costs us nothing.
    assert result.decodes == len(set(itertools.chain(*expected)))


def test_the_preset_knows_no_prior_and_no_atlas():
    options = {"tokenizer": ToyTokenizer(30, 3), "beam": 3, "candidates": 5}
    uniform = run(**options, **SOTO)
    assert pools(uniform) == pools(run(prior=ToyPrior(30, 3), **options, **SOTO))
    settings = SearchSettings(**SOTO)
    assert not settings.atlas and settings.prior_weight == 0


def test_the_published_setting_costs_what_it_costs():
    settings = SearchSettings(**PUBLISHED)
    lengths = prefix_lengths(settings.schedule, settings.tokens)
    first, others = settings.candidates, settings.beam * settings.candidates
    assert len(lengths) == 32
    assert first + others * (len(lengths) - 1) + 1 == 99_841


def test_the_document_names_tests_that_there_are():
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "soto.md").read_text()))
    code = "".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    assert len(named) > 12
    assert {name for name in named if f"def {name}(" not in code} == set()
