"""A search's settings as options, and back."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from dataclasses import fields
from typing import Any

import pytest

from benchmarks.options import given, options_from, search_options
from tfgen.search import SearchSettings


def test_every_setting_of_a_search_is_an_option() -> None:
    parser = ArgumentParser()
    search_options(parser)
    told = parser.format_help()
    for setting in fields(SearchSettings):
        assert f"--{setting.name.replace('_', '-')}" in told
    args = parser.parse_args(
        ["--beam", "4", "--prior-strength", "0.5", "--schedule", "1,2,4", "--no-atlas", "--screen"]
    )
    assert given(args) == {
        "beam": 4,
        "prior_strength": 0.5,
        "schedule": "1,2,4",
        "atlas": False,
        "screen": True,
    }


@pytest.mark.parametrize(
    ("base", "settings", "options"),
    [
        ({}, {}, ""),
        ({"beam": 2}, {"beam": 2}, ""),
        ({"forecast_in": "crossover"}, {}, "--forecast-in all"),
        (
            {"schedule": "geometric", "candidates": 2, "crossover": 12, "forecast": 16},
            {"candidates": 6, "crossover": 8},
            "--candidates 6 --schedule one --forecast 1 --crossover 8",
        ),
        ({}, {"prior_strength": 0.5, "atlas": False, "screen": True}, None),
        ({"atlas": False, "reencode_loss": 1.0, "search": "lookahead"}, {"beam": 3}, None),
        ({"budget": 64}, {}, "without --budget"),
    ],
)
def test_options_turn_one_search_into_another(
    base: dict[str, Any], settings: dict[str, Any], options: str | None
) -> None:
    said = options_from({"search": base}, {"search": settings})
    if options is not None:
        assert set(said.split(" --")) == set(options.split(" --"))
    if "without" in said:
        return
    parser = ArgumentParser()
    search_options(parser)
    changes = given(parser.parse_args(shlex.split(said)))
    assert SearchSettings(**base | changes) == SearchSettings(**settings)


def test_options_name_prior_and_engine_and_leave_out_what_is_not_wanted() -> None:
    base = {"search": {"beam": 2}, "prior": "retrieval", "models": {"verifier": "a"}}
    other = {"search": {"budget": 9}, "prior": "uniform", "models": {}, "engine": "bf16"}
    assert options_from(base, other, without=("beam",)) == (
        "--prior uniform --engine bf16 --budget 9"
    )
