"""The forecaster's training where the engine of a search embeds passes of one length alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_forecaster import CONFIG, Bank, models
from tfgen.decoding.threads import ThreadedEngine
from tfgen.search.evaluator import PlainEngine
from tfgen.training import forecast
from tfgen.training.forecast import for_prefixes


def test_an_engine_without_prefixes_of_mixed_lengths_gets_a_stand_in() -> None:
    tokenizer, verifier = models()
    threaded = ThreadedEngine(tokenizer, verifier)
    assert for_prefixes(threaded) is threaded
    plain = for_prefixes(PlainEngine(tokenizer, verifier))
    tokens = torch.randint(100, (40, 3), generator=torch.Generator().manual_seed(0))
    lengths = 1 + torch.arange(40) % 3
    seen = plain.embed_prefixes(tokens, lengths)
    torch.testing.assert_close(seen, threaded.embed_prefixes(tokens, lengths))


def test_it_trains_on_a_gpu_on_which_kernels_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, `engine_maker` makes plain engines."""
    config = CONFIG | {"steps": 2}
    usual = forecast.train(config, tmp_path / "usual", *models(), Bank())
    monkeypatch.setattr(forecast, "engine_maker", lambda *_: PlainEngine)
    made = forecast.train(config, tmp_path / "made", *models(), Bank())
    for a, b in zip(usual.network.parameters(), made.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
