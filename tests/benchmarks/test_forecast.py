"""The benchmark of the forecaster, on few prefixes of the packaged models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import forecast
from tfgen.errors import InputError
from tfgen.training import forecast as training


def test_it_measures_prefixes_of_each_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "PART", 64)
    command = ["forecast", "--prompts", "3", "--parts", "2", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    forecast.main()
    rows = json.loads((tmp_path / "forecast.json").read_text())["rows"]
    assert [row["tokens"] for row in rows] == [2, 4, 8, 12]
    for row in rows:
        assert 100 < row["prefixes"] <= 128
        assert row["unexplained"] < 0.3 and row["rank correlation"] > 0.7
        assert row["recall of 1/4"] >= row["recall of 1/16"] >= row["recall of 1/64"] > 0
        assert 0 < row["decodes a forecast"] < 0.5
    page = (tmp_path / "forecast.md").read_text()
    assert page.startswith(f"# {forecast.QUESTION}") and capsys.readouterr().out in page


def test_a_model_without_a_forecaster_has_nothing_to_measure(
    toy_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["forecast"])
    with pytest.raises(InputError, match="has no forecaster"):
        forecast.main()
