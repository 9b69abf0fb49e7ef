"""What the configs of training are to hold: names, types and limits of their settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from tfgen.errors import InputError, unknown
from tfgen.priors.autoregressive_model import AutoregressiveConfig
from tfgen.tokenizers.grid_model import GridConfig
from tfgen.tokenizers.sprites_model import SpritesConfig


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words, and whether one is."""

    words: str
    fits: Callable[[Any], bool]


def _whole(low: int) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return Kind(f"a whole number from {low} up", fits)


def _number(words: str, inside: Callable[[float], bool]) -> Kind:
    def fits(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and inside(value)

    return Kind(words, fits)


def _list(of: Kind, length: int | None = None) -> Kind:
    def fits(value: Any) -> bool:
        right_length = isinstance(value, list) and bool(value) and length in (None, len(value))
        return right_length and all(map(of.fits, value))

    return Kind(f"a list of {length or 'one or more'}, each {of.words}", fits)


COUNT, FROM_ZERO = _whole(1), _whole(0)
POSITIVE = _number("a number above 0", lambda x: x > 0)
WEIGHT = _number("a number from 0 up", lambda x: x >= 0)
SHARE = _number("a number from 0 to 1", lambda x: 0 <= x <= 1)
PART = _number("a number from 0 to below 1", lambda x: 0 <= x < 1)
FLAG = Kind("true or false", lambda x: isinstance(x, bool))
TEXT = Kind("a text", lambda x: isinstance(x, str) and bool(x))


@dataclass(frozen=True)
class Settings:
    """What a config, or a table within it, holds: `needed` settings, `optional` ones, and tables
    of settings that it needs, by name."""

    needed: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    tables: Mapping[str, Settings] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted({*self.needed, *self.optional, *self.tables})

    def check(self, values: Any, where: str) -> None:
        """Raises InputError for the first setting that is unknown, missing or wrong. where: what
        holds the values, for the message."""
        if not isinstance(values, dict):
            raise InputError(f"{where} must be a table of settings, not {values!r}.")
        for name in values:
            if name not in self.names:
                raise InputError(f"{where}: {unknown('setting', name, self.names)}")
        for name in [*self.needed, *self.tables]:
            if name not in values:
                raise InputError(f"{where} lacks the setting {name!r}.")
        for name, kind in {**self.needed, **self.optional}.items():
            if name in values and not kind.fits(values[name]):
                raise InputError(f"{where}: {name} must be {kind.words}, not {values[name]!r}.")
        for name, table in self.tables.items():
            table.check(values[name], f"{where}, {name}")


def sizes_of(networks: type, given: Iterable[str] = ()) -> Settings:
    """The fields of a dataclass of sizes, each of which a config may name, but those `given`."""
    kinds = {}
    for size in fields(networks):
        if size.name in given:
            continue
        assert size.default is not MISSING
        kind = FROM_ZERO if size.default == 0 else COUNT
        kinds[size.name] = _list(COUNT) if isinstance(size.default, tuple) else kind
    return Settings(optional=kinds)


_WORLD = {"free": SHARE, "variants": COUNT}
_TIER = {"tier": TEXT}
_LOGGED = {"seed": FROM_ZERO, "ema": PART, "log_every": COUNT, "save_every": COUNT}
_STEPS = {"steps": COUNT, "batch": COUNT, "peak_lr": POSITIVE}
_TRAINED = _TIER | _LOGGED | _STEPS
_BF16 = {"bf16": FLAG}
_START = {"start": TEXT}

NONE = Settings(_TIER)
APART = Settings(
    _TIER | _LOGGED | _BF16 | {"attribute_weight": WEIGHT, "grafts": SHARE},
    _WORLD | _START,
    {part: Settings(_STEPS) for part in ("painters", "codes", "decoder", "encoder")}
    | {"model": sizes_of(SpritesConfig)},
)
TOKENIZER = Settings(
    _TRAINED | _BF16 | {"attribute_weight": WEIGHT},
    _WORLD | _START | {"grafts": SHARE},
    {"model": sizes_of(SpritesConfig)},
)
GRID = Settings(
    _TRAINED | _BF16 | {"attribute_weight": WEIGHT},
    _WORLD | _START,
    {"model": sizes_of(GridConfig)},
)
RENDERER = Settings(_TRAINED | _BF16 | {"backgrounds": COUNT}, _WORLD)
PRIOR = Settings(_TIER | {"scenes": COUNT, "min_count": COUNT}, _WORLD)
CLIP = Settings(  # of all its stages: the first, on clean scenes, makes no use of some
    {name: kind for name, kind in _TRAINED.items() if name != "batch"}
    | _BF16
    | {"groups": COUNT, "width": COUNT, "flat": PART, "head_weight": WEIGHT, "mine_every": COUNT},
    _WORLD
    | _START
    | {"decoded_share": SHARE, "negatives": FROM_ZERO, "odd": FROM_ZERO, "chimeras": FROM_ZERO}
    | {"found": COUNT, "held_out": COUNT, "reads": FLAG, "told": FROM_ZERO, "named": WEIGHT}
    | {"pairs": SHARE, "factors": _list(WEIGHT, 6)},
)
CLIP_DECODED = Settings(
    CLIP.needed | {name: CLIP.optional[name] for name in ("decoded_share", "negatives", "odd")},
    CLIP.optional,
)
CLIP_FOUND = Settings(CLIP_DECODED.needed | {"found": COUNT}, CLIP.optional)
FOUND = Settings(
    _TIER
    | {"seed": FROM_ZERO, "scenes": COUNT, "pairs": SHARE, "captions": COUNT, "budget": COUNT},
    _WORLD,
)
JUDGE = Settings(
    _TRAINED
    | {"flat": PART, "decoded_share": SHARE, "other": SHARE, "mixed": SHARE, "variants": COUNT}
    | {"widths": _list(COUNT, 4), "neck": COUNT},
    _BF16 | _START | {"free": SHARE, "threshold_scenes": COUNT},
)
BANK = Settings(_TIER | {"scenes": COUNT, "pairs": SHARE}, _WORLD)
FORECAST = Settings(
    _TRAINED
    | dict.fromkeys(("tokens", "width", "depth"), COUNT)
    | {"pictures": _whole(2049)}  # two parts of 1,024 are held out
)
AUTOREGRESSIVE = Settings(
    _TRAINED
    | _BF16
    | {"flat": PART, "drop_texts": SHARE, "drop_words": SHARE, "held_out": COUNT}
    | {"guidance": WEIGHT},
    _WORLD | {"pairs": SHARE},
    {"model": sizes_of(AutoregressiveConfig, ("levels", "num_tokens", "words", "context_length"))},
)
