"""One trial: what the pipeline would do, judged; and what prompts share costs no result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import Row, Task
from benchmarks.trials import (
    Setup,
    Trials,
    accuracy,
    average,
    folder_print,
    shown,
)
from tests.benchmarks.conftest import PROMPTS
from tests.toy_judge import write_judge
from tfgen.atlas import Atlas
from tfgen.errors import InputError
from tfgen.pipeline import Pipeline
from tfgen.priors.frequency import FrequencyPrior
from tfgen.spriteeval.scoring import Share, judge_picture, wilson
from tfgen.verifiers.rewording import Reworded

FOX, CAR = PROMPTS[:2]
BEAM = {"beam": 2, "candidates": 3, "tokens": 3, "atlas": False}
COUNTS = ("decodes", "cached", "seconds", "waited")


@pytest.fixture
def setup(toys: dict[str, Path]) -> Setup:
    names = {name: str(toys[name]) for name in ("model", "verifier", "judge")}
    return Setup(**names, device="cpu")


@pytest.fixture
def trials(setup: Setup) -> Trials:
    return Trials(setup)


def task(trials: Trials, metadata: dict[str, Any], seed: int = 0, **search: Any) -> Task:
    settings = trials.settings("uniform", defaults=False, **(search or BEAM))
    return trials.tasks("beam", settings, "dev", [metadata], seed + 1)[seed]


def values(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in COUNTS}


def test_a_trial_is_what_the_pipeline_does(trials: Trials, setup: Setup) -> None:
    row = trials((task(trials, FOX, seed=1), None))
    pipeline = Pipeline.load(
        setup.model, verifier=setup.verifier, prior="uniform", device="cpu", score="contrast"
    )
    result = pipeline.generate("a fox", seed=1, **BEAM)
    assert row["tokens"] == result.tokens
    assert (row["score"], row["verifier_score"]) == (result.score, result.verifier_score)
    assert row["cost"] == row["decodes"] == result.decodes
    assert trials.judge is not None
    said = judge_picture(trials.judge, result.image, FOX)
    assert (row["correct"], row["reason"]) == (said.correct, said.reason)
    assert row["judge"] == folder_print(Path(setup.judge or ""))


@pytest.mark.parametrize(
    "search", [BEAM, {"search": "best-of-n", "samples": 9, "tokens": 3, "distinct": False}]
)
def test_what_prompts_share_changes_time_and_nothing_else(
    trials: Trials, setup: Setup, tmp_path: Path, search: dict[str, Any]
) -> None:
    sharing = Trials(replace(setup, cache=tmp_path))
    for index, metadata in enumerate((FOX, CAR)):
        work = task(trials, metadata, **search)
        alone, shared = trials((work, None)), sharing((work, None))
        assert values(shared) == values(alone)
        assert alone["cached"] == 0
        if index == 1:
            assert shared["cached"] > 0
            assert shared["decodes"] + shared["cached"] == alone["decodes"]
            if "samples" in search:
                assert shared["decodes"] == 0


def test_settings_are_those_that_are_no_defaults_and_the_models(trials: Trials) -> None:
    settings = trials.settings("uniform", defaults=False, beam=2, candidates=32, batch_size=7)
    assert settings["search"] == {"beam": 2, "atlas": False}
    assert settings["prior"] == "uniform"
    pipeline = trials.pipeline
    assert settings["models"] == {
        "tokenizer": pipeline.tokenizer.fingerprint(),
        "verifier": pipeline.verifier.fingerprint(),
        "score": "contrast",
        "words": settings["models"]["words"],
    }


def test_rows_tell_the_words_and_the_files_of_the_prior_that_they_were_made_with(
    setup: Setup, tmp_path: Path
) -> None:
    model, verifier = (tmp_path / name for name in ("model", "verifier"))
    shutil.copytree(setup.model, model)
    shutil.copytree(str(setup.verifier), verifier)
    here = replace(setup, model=str(model), verifier=str(verifier))

    def models(prior: str, score: str = "contrast") -> dict[str, Any]:
        return Trials(replace(here, score=score)).settings(prior)["models"]

    before = {prior: models(prior) for prior in ("uniform", "frequency")}
    assert "prior" not in before["uniform"]
    assert "words" not in models("uniform", "cosine")

    drawn = torch.randint(12, (200, 8), generator=torch.Generator().manual_seed(1))
    FrequencyPrior.fit([drawn], 12, 8).save(model / "prior.safetensors")
    assert models("uniform") == before["uniform"]
    changed = models("frequency")
    assert changed["prior"] != before["frequency"]["prior"]
    assert models(f"frequency:{model / 'prior.safetensors'}")["prior"]

    words = json.loads((verifier / "contrast.json").read_text())
    words["colours"].pop()
    (verifier / "contrast.json").write_text(json.dumps(words))
    again = models("frequency")
    assert again["words"] != changed["words"]
    assert again["prior"] == changed["prior"] and again["verifier"] == changed["verifier"]


def test_an_atlas_is_among_the_settings_where_there_is_one(
    trials: Trials, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trials.settings("uniform")["search"]["atlas"] is False
    monkeypatch.setattr(Atlas, "find", lambda *_: object())
    there = Trials(setup).settings("uniform")
    assert "atlas" not in there["search"]  # the default
    assert Trials(setup).settings("uniform", atlas=False)["search"]["atlas"] is False


def test_what_is_left_out_is_the_models_own_if_wanted(trials: Trials) -> None:
    trials._pipelines[None] = replace(trials.pipeline, defaults={"beam": 3, "candidates": 4})
    assert trials.settings(None, beam=2)["search"] == {"beam": 2, "candidates": 4, "atlas": False}
    assert trials.settings(None, defaults=False, beam=2)["search"] == {"beam": 2, "atlas": False}
    assert trials.settings(None)["prior"] == trials.pipeline.prior.name


def test_a_setting_that_is_none_is_refused(trials: Trials) -> None:
    with pytest.raises(InputError, match="no search setting 'beams'; did you mean 'beam'"):
        trials.settings(None, beams=2)


def test_another_judge_judges_the_rows_that_are_there(
    trials: Trials, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = task(trials, FOX)
    row: Row = work.row(trials((work, None)))
    assert not trials.stale(row)
    folder = write_judge(tmp_path / "judge")
    config = folder / "judge.json"
    values = json.loads(config.read_text())
    values["thresholds"]["centre"] /= 2
    config.write_text(json.dumps(values))
    other = Trials(replace(setup, judge=str(folder)))
    assert other.stale(row)
    monkeypatch.setattr(Pipeline, "generate", None)  # no search
    again = other((work, row | {"correct": "?", "reason": "?"}))
    assert again["judge"] == folder_print(folder) != row["judge"]
    assert again["correct"] in (True, False) and again["reason"] != "?"
    kept = ("tokens", "score", "cost", "seconds")
    assert {name: again[name] for name in kept} == {name: row[name] for name in kept}
    assert not other.stale(work.row(again))


def test_an_engine_that_is_not_auto_is_told(setup: Setup, trials: Trials) -> None:
    assert "engine" not in trials.settings("uniform")  # as before it was told
    eager = Trials(replace(setup, engine="eager")).settings("uniform")
    assert eager == trials.settings("uniform") | {"engine": "eager"}


def read_as(trials: Trials, monkeypatch: pytest.MonkeyPatch, **readings: str) -> None:
    """The verifier says these prompts in other words."""
    monkeypatch.setattr(
        type(trials.pipeline.verifier),
        "reword",
        lambda _, prompt: Reworded(readings.get(prompt.split()[-1], prompt), prompt),
    )


def test_a_row_tells_how_its_prompt_was_read_if_otherwise(
    trials: Trials, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = task(trials, FOX)
    read_as(trials, monkeypatch, fox="a red fox")
    assert task(trials, FOX) == plain  # how a prompt is read is none of its row's key
    row = plain.row(trials((plain, None)))
    assert row["read_as"] == "a red fox" and not trials.stale(row)
    other = task(trials, CAR)
    assert "read_as" not in trials((other, None))
    verbatim = Trials(replace(setup, verbatim=True))
    assert "read_as" not in verbatim((plain, None))
    assert verbatim.stale(row)


def test_a_prompt_that_is_read_otherwise_today_is_searched_for_again(
    trials: Trials, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [task(trials, metadata) for metadata in (FOX, CAR)]
    before = [work.row(trials((work, None))) for work in works]
    for today, stale in [("a red fox", True), ("a fox", False)]:
        read_as(trials, monkeypatch, fox=today)
        assert [trials.stale(row) for row in before] == [stale, False]
    read_as(trials, monkeypatch, fox="a red fox")
    unjudged = Trials(replace(setup, judge=None))
    assert [unjudged.stale(row) for row in before] == [True, False]

    searched: list[str] = []
    generate = Pipeline.generate
    monkeypatch.setattr(
        Pipeline,
        "generate",
        lambda self, prompt, **more: searched.append(prompt) or generate(self, prompt, **more),
    )
    again = works[0].row(trials((works[0], before[0])))
    assert searched == ["a fox"] and again["read_as"] == "a red fox"
    assert not trials.stale(again)
    read_as(trials, monkeypatch)  # and back: what a row told is not what is searched for now
    assert trials.stale(again)
    assert "read_as" not in trials((works[0], again))
    assert searched == ["a fox"] * 2
    trials((works[1], before[1] | {"judge": "another"}))  # only the judge is another
    assert searched == ["a fox"] * 2


def test_without_a_judge_there_are_no_verdicts(setup: Setup) -> None:
    trials = Trials(replace(setup, judge=None))
    work = task(trials, FOX)
    row = work.row(trials((work, None)))
    assert "correct" not in row and "judge" not in row
    assert not trials.stale(row)
    trials.check([{"include": [{"class": "bench"}], "prompt": "a bench"}])


def test_an_object_that_the_judge_does_not_know_is_refused(trials: Trials) -> None:
    trials.check(PROMPTS)
    bench = {"tag": "a", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"}
    with pytest.raises(InputError, match="does not know 'bench'.*--no-judge --pictures"):
        trials.check([FOX, bench])


def test_a_search_that_ctrl_c_ended_early_is_no_row(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []

    def interrupted(embeddings: torch.Tensor, target: Any) -> torch.Tensor:
        scored.append(len(embeddings))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return torch.zeros(len(embeddings))

    monkeypatch.setattr(trials.pipeline.verifier, "score_embeddings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trials((task(trials, FOX), None))
    assert len(scored) == 2


# Numbers


def rows_of(*by_prompt: list[Any], name: str = "correct") -> list[Row]:
    return [
        {"prompt": f"prompt {i}", "seed": seed, name: value}
        for i, group in enumerate(by_prompt)
        for seed, value in enumerate(group)
    ]


def test_accuracy_is_by_prompt() -> None:
    found = accuracy(rows_of([True, True], [False, False], [True, True], [True, True]))
    assert (found.low, found.high) == pytest.approx(wilson(0.75, 4))
    assert (found.value, found.count) == (0.75, 8)


def test_an_average_has_students_interval_over_prompts() -> None:
    found = average(rows_of([1.0, 3.0], [4.0], [6.0, 6.0], name="score"), "score")
    assert found.value == 4.0 and found.count == 5
    assert found.high - 4.0 == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)
    assert found.high - 4.0 == 4.0 - found.low


def test_an_average_of_one_prompt_has_no_interval() -> None:
    assert average(rows_of([1.0, 2.0], name="score"), "score") == Share(1.5, 1.5, 1.5, 2)


def test_a_share_is_shown_with_its_interval() -> None:
    assert shown(Share(0.5, 0.405, 0.6, 100)) == "0.50 [0.41, 0.60]"
