"""What tfgen raises: each message is a sentence that says what was wrong and what is right."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from difflib import get_close_matches


class TfgenError(Exception):
    """A failure that the user can act on; the command line prints it and exits with `exit_code`."""

    exit_code = 1


class InputError(TfgenError):
    """The user's input is at fault: a value, a name, a file."""

    exit_code = 2


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is in no registry: says which are, and which was perhaps meant."""
    known = list(known)
    close = get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return InputError(f"There is no {kind} {name!r}{hint} Known: {', '.join(known)}.")


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as an int, or InputError where it is none or lies outside low..high."""
    try:
        number = int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        limits = f"from {low} up" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be a whole number {limits}, not {value!r}.")
    return number


def finite_number(name: str, value: object, low: float) -> float:
    """`value` as a float, or InputError where it is none, not finite, or below low."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= low):
        raise InputError(f"{name} must be a finite number from {low:g} up, not {value!r}.")
    return number
