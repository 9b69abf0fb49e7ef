"""Options that were given, and can do nothing in the search that was asked for.

Of commands alone: in Python, the settings of one search may be given to another as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tfgen.errors import InputError

if TYPE_CHECKING:
    from tfgen.search import SearchSettings

NEEDS = {  # what a setting is of, and the setting without which there is none
    "patience": ("patience ends a crossover", "crossover"),
    "reencode_loss": ("reencode_loss is what a re-encoding may lose", "reencode"),
    "shortlist_by": ("shortlist_by says what a shortlist is chosen by", "shortlist"),
}


def check_given(given: Mapping[str, Any], settings: SearchSettings) -> None:
    """Raises InputError where `given`, a part of the settings (None: not given), says something of
    what the search does not have.

    The other settings are a model's defaults, which may: the user has switched off what they are
    of. So may, as everywhere, what is given as it is in SearchSettings anyway.
    """
    usual = {field.name: field.default for field in fields(settings)}
    said = {name for name, value in given.items() if value not in (None, usual[name])}
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
