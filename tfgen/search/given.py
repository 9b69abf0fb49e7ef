"""Settings that were asked for, and can do nothing in the search that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfgen.errors import InputError
from tfgen.search.settings import SearchSettings

NEEDS = {  # what a setting is of, and the setting without which there is none
    "patience": ("patience ends a crossover", "crossover"),
    "reencode_loss": ("reencode_loss is what a re-encoding may lose", "reencode"),
    "shortlist_by": ("shortlist_by says what a shortlist is chosen by", "shortlist"),
}
MOST_WEIGHT = 1e6  # above it, 32 bits have no digits left for the verifier's score


def check_given(given: Mapping[str, Any], settings: SearchSettings) -> None:
    """Raises InputError where `given`, a part of the settings, says something of what the search
    does not have, or leaves the verifier nothing to say.

    The other settings are a model's defaults, which may: the user has switched off what they are
    of. So may, as everywhere, what is given as it is in SearchSettings anyway.
    """
    said = {name for name, value in given.items() if value != getattr(SearchSettings, name)}
    for name, (what, part) in NEEDS.items():
        if name in said and not getattr(settings, part):
            raise InputError(f"{what}: leave it out, or use it with {part} from 1 up.")
    if "forecast_in" in said and settings.forecast == 1:
        raise InputError("forecast_in says where forecasts choose: use it with forecast from 2 up.")
    crossed = settings.forecast_in == "crossover" and not settings.crossover
    if said & {"forecast", "forecast_in"} and crossed:
        raise InputError(
            "Forecasts in the rounds of a crossover need one: use crossover from 1 up, or "
            "forecast_in 'all'."
        )
    if settings.prior_weight > MOST_WEIGHT:
        raise InputError(
            f"prior_weight must be at most {MOST_WEIGHT:,.0f}, not {settings.prior_weight:g}: the "
            "verifier's score would not count."
        )
