"""The forecaster: a file tied to its models, and what the pipeline makes of it; its training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.toys import GridTokenizer, GridVerifier, HoldingPrior
from tfgen.errors import InputError
from tfgen.forecaster import FILE_NAME, Forecaster, ForecastNetwork
from tfgen.pipeline import Pipeline
from tfgen.tables import models_of, open_table, save_table
from tfgen.training import forecast as training
from tfgen.training.common import TimeUp

TOKENS = 3


@pytest.fixture
def pipeline(toy_weights: Path) -> Pipeline:
    return Pipeline.load(device="cpu")


def models() -> tuple[GridTokenizer, GridVerifier]:
    return GridTokenizer(num_tokens=TOKENS), GridVerifier(lambda x: x.sum(dim=(1, 2)))


def forecaster(width: int = 8) -> Forecaster:
    torch.manual_seed(0)
    tokenizer, verifier = models()
    network = ForecastNetwork(TOKENS, 2, 2 * TOKENS, width, 1)
    return Forecaster(network, tokenizer.code_embeddings(), models_of(tokenizer, verifier), None)


def prefixes(count: int, length: int = TOKENS) -> torch.Tensor:
    return torch.randint(100, (count, length), generator=torch.Generator().manual_seed(1))


def test_it_foretells_unit_vectors_each_from_its_own_tokens() -> None:
    told = forecaster()
    tokens = prefixes(2500)
    seen = told.embed(tokens)
    assert seen.shape == (2500, 2 * TOKENS)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(2500))
    torch.testing.assert_close(told.embed(tokens[2200:2300]), seen[2200:2300])
    assert torch.get_num_threads() >= 1


def test_the_tokens_after_a_prefix_are_not_looked_at() -> None:
    told = forecaster()
    short = told.embed(prefixes(5, 2))
    longer = told.embed(torch.cat([prefixes(5, 2), torch.zeros(5, 1, dtype=torch.int64)], dim=1))
    assert (short - longer).norm(dim=1).min() > 1e-3  # a token 0 is not an absent one


def test_a_saved_one_is_the_same_but_for_packing(tmp_path: Path) -> None:
    told = forecaster()
    told.save(tmp_path / FILE_NAME)
    again = Forecaster.open(tmp_path / FILE_NAME, *models())
    torch.testing.assert_close(
        again.embed(prefixes(20)), told.embed(prefixes(20)), rtol=0, atol=5e-3
    )
    assert Forecaster.find(tmp_path, *models()) is not None
    assert again.fingerprint() != forecaster(width=9).fingerprint() != told.fingerprint()
    assert Forecaster.open(tmp_path / FILE_NAME, *models()).fingerprint() == again.fingerprint()
    assert Forecaster.find(tmp_path / "elsewhere", *models()) is None
    assert Forecaster.find(None, *models()) is None


def test_one_of_other_models_is_refused_and_passed_over(tmp_path: Path) -> None:
    forecaster().save(tmp_path / FILE_NAME)
    _, verifier = models()
    with pytest.raises(InputError, match="is stale.*train it again"):
        Forecaster.open(tmp_path / FILE_NAME, GridTokenizer(side=9), verifier)
    assert Forecaster.find(tmp_path, GridTokenizer(side=9), verifier) is None


@pytest.mark.parametrize(
    "sizes",
    [None, {}, [1], {"tokens": 2, "features": 2, "dim": 6, "width": 8, "depth": 1}]
    + [{"tokens": 3, "features": 2, "dim": 6, "width": 8, "depth": -1}]
    + [{"tokens": 3, "features": 2, "dim": 6, "width": 9, "depth": 1}],
)
def test_a_damaged_one_is_refused(tmp_path: Path, sizes: object) -> None:
    path = tmp_path / FILE_NAME
    forecaster().save(path)
    tensors, header = open_table(path, "forecaster")
    save_table(path, tensors, header | {"sizes": sizes})
    with pytest.raises(InputError):
        Forecaster.open(path, *models())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a usable forecaster"):
        Forecaster.open(path, *models())
    with pytest.raises(InputError, match="not a usable forecaster"):
        Forecaster.find(tmp_path, *models())
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="it is no forecaster"):
        Forecaster.open(path, *models())


def test_without_one_the_models_default_is_left_out_and_a_wish_refused(pipeline: Pipeline) -> None:
    pipeline = replace(pipeline, defaults={**pipeline.defaults, "forecast": 4})
    assert pipeline.settings().forecast == 4
    assert pipeline.generate("a toy").settings.forecast == 1
    with pytest.raises(InputError, match="use forecast 1, or train a forecaster"):
        pipeline.generate("a toy", forecast=4)


def test_a_screening_or_a_shortlist_takes_the_place_of_the_models_forecast(
    pipeline: Pipeline,
) -> None:
    pipeline = replace(pipeline, defaults={**pipeline.defaults, "forecast": 4})
    assert pipeline.settings(screen=True).forecast == 1
    assert pipeline.settings(shortlist=1).forecast == 1
    assert pipeline.settings(distinct=False).forecast == 1
    assert pipeline.settings(search="lookahead").forecast == 1
    with pytest.raises(InputError, match="with forecast 1"):
        pipeline.settings(screen=True, forecast=4)


# its training

CONFIG = {"seed": 1, "pictures": 4000, "tokens": 3, "width": 32, "depth": 1, "steps": 400}
CONFIG |= {"batch": 256, "peak_lr": 0.01, "ema": 0.9, "log_every": 100, "save_every": 200}


class Bank:
    def __init__(self) -> None:
        self.prior = HoldingPrior(prefixes(500), 100)

    def __len__(self) -> int:
        return 500

    def tokens(self, rows: torch.Tensor) -> torch.Tensor:
        return self.prior.pictures[rows]


def test_it_learns_what_pictures_look_like(tmp_path: Path) -> None:
    tokenizer, verifier = models()
    told = training.train(CONFIG, tmp_path, tokenizer, verifier, Bank())
    tokens = prefixes(300)
    true = torch.nn.functional.normalize(verifier.embed(tokenizer.decode(tokens)), dim=1)
    error = (told.embed(tokens) - true).square().sum(dim=1).mean()
    spread = true.var(dim=0, correction=0).sum()
    assert error < 0.05 * spread


def test_its_training_may_be_cut_anywhere(tmp_path: Path) -> None:
    config = CONFIG | {"steps": 40, "save_every": 1000}
    whole = training.train(config, tmp_path / "whole", *models(), Bank())
    calls = 0
    while True:
        calls += 1
        try:
            part = training.train(config, tmp_path / "part", *models(), Bank(), deadline=0.0)
            break
        except TimeUp:
            assert calls < 100
    assert calls > 20
    for a, b in zip(whole.network.parameters(), part.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_its_prefixes_are_mixtures_of_scenes_of_all_lengths() -> None:
    scenes = torch.arange(40)[:, None].expand(-1, 6)  # token = number of the scene
    tokens, lengths = training.draw(scenes, 4, torch.Generator().manual_seed(0))
    assert tokens.shape == (training.PART, 6) and set(lengths.tolist()) <= set(range(1, 7))
    assert (lengths == 4).float().mean() > 0.4
    kinds = [len(set(row[:k].tolist())) for row, k in zip(tokens, lengths.tolist(), strict=True)]
    assert {1, 2, 3} <= set(kinds)
    assert all((row[k:] == 0).all() for row, k in zip(tokens, lengths.tolist(), strict=True))
