"""What was asked for and can do nothing is refused; a model's defaults may say it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.toys import ToyPrior, ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import InputError
from tfgen.pipeline import Pipeline
from tfgen_cli.given import check_given

DEFAULTS = {
    "beam": 4,
    "crossover": 12,
    "forecast": 16,
    "forecast_in": "crossover",
    "reencode": 16,
    "reencode_loss": 1.0,
}


def pipeline(**defaults: Any) -> Pipeline:
    tokenizer = ToyTokenizer(7, 4)
    return Pipeline(tokenizer, ToyPrior(7, 4), ToyVerifier(tokenizer, rugged), defaults=defaults)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"patience": 3, "crossover": 0}, "patience ends a crossover: leave it out, or use it"),
        ({"reencode_loss": 1.0, "reencode": 0}, "reencode_loss is what a re-encoding may lose"),
        ({"shortlist_by": "gradient"}, "shortlist_by says what a shortlist is chosen by"),
        ({"forecast": 8, "crossover": 0}, "Forecasts in the rounds of a crossover need one"),
        ({"forecast_in": "crossover", "crossover": 0}, "Forecasts in the rounds of a crossover"),
        ({"forecast_in": "crossover", "forecast": 1}, "forecast_in says where forecasts choose"),
    ],
)
def test_what_can_do_nothing_is_refused(options: dict[str, Any], complaint: str) -> None:
    settings = pipeline(**DEFAULTS).settings(**options)
    with pytest.raises(InputError, match=complaint):
        check_given(options | {"beam": None}, settings)


@pytest.mark.parametrize(
    "options",
    [
        {"crossover": 0, "reencode": 0},
        {"crossover": 0, "forecast": 8, "forecast_in": "all"},
        {"crossover": 0, "forecast": 1, "patience": 0},
        {"reencode": 0, "reencode_loss": 0.0},
        {"patience": 3, "forecast": 8},
        {"shortlist": 2, "shortlist_by": "gradient"},
    ],
)
def test_defaults_may_be_switched_off(options: dict[str, Any]) -> None:
    settings = pipeline(**DEFAULTS).settings(**options)
    assert asdict(settings).items() >= options.items()
    check_given(options, settings)


@pytest.mark.parametrize("off", [{}, {"crossover": 0}, {"reencode": 0}, {"forecast": 1}])
def test_in_python_the_settings_of_a_result_may_be_given_again(off: dict[str, int]) -> None:
    for defaults in ({}, DEFAULTS):
        settings = pipeline(**defaults).settings(**off)
        again = {name: value for name, value in asdict(settings).items() if value is not None}
        assert pipeline(**defaults).settings(**again) == settings
        assert pipeline().settings(**again) == settings  # as benchmarks do
