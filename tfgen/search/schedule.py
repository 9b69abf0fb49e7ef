"""Token schedules: how long the prefixes are after each step of a search."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen.errors import InputError, unknown, whole_number

NAMES = ("one", "geometric", "linear")


def prefix_lengths(schedule: str | Sequence[int], num_tokens: int) -> list[int]:
    """The strictly increasing prefix lengths that `schedule` stands for, none above `num_tokens`.

    "one"         1, 2, 3, ..., num_tokens: one new token a step
    "geometric"   1, 2, 4, 8, ..., num_tokens
    "linear:S"    S, 2S, 3S, ..., num_tokens; "linear" is "linear:1"
    "1,2,4,8"     exactly these, or as a sequence of whole numbers

    Named schedules end at num_tokens even when that makes the last step shorter; an explicit one
    ends where it says. Raises InputError on anything else: a schedule is never silently read as
    another.
    """
    if not isinstance(schedule, str):
        return _explicit(list(schedule), num_tokens)
    name, _, argument = schedule.partition(":")
    if name == "linear":
        step = _whole(argument, schedule) if ":" in schedule else 1
        step = whole_number("The step of the schedule linear", step, 1, num_tokens)
        return [*range(step, num_tokens, step), num_tokens]
    if schedule == "one":
        return list(range(1, num_tokens + 1))
    if schedule == "geometric":
        return [*(2**i for i in range((num_tokens - 1).bit_length())), num_tokens]
    if "," in schedule or schedule.strip().isdigit():
        return _explicit([_whole(part, schedule) for part in schedule.split(",")], num_tokens)
    raise unknown("schedule", schedule, [*NAMES, "linear:STEP", "a list such as 1,2,4,8"])


def _explicit(lengths: list[int], num_tokens: int) -> list[int]:
    shown = ",".join(map(str, lengths))
    lengths = [whole_number(f"A length in the schedule {shown}", n, 1, num_tokens) for n in lengths]
    if not lengths or any(a >= b for a, b in zip(lengths, lengths[1:], strict=False)):
        raise InputError(
            f"The lengths of a schedule must rise, as in 1,2,4,8: {shown or 'none'} do not."
        )
    return lengths


def _whole(text: str, schedule: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"The schedule {schedule!r} holds {text!r}, which is no whole number: "
            "write it as in 1,2,4,8 or linear:4."
        ) from None
