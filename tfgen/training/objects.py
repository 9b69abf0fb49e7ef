"""The objects of the sprite world: what each is called, drawn with, and coloured like.

The table is `objects.csv`, one row an object, written by hand. Rows are ordered by tier, so the
objects of `small` are the first rows of `medium`, and those of `medium` the first rows of `full`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tfgen.errors import unknown

TABLE = Path(__file__).with_name("objects.csv")
TIERS = ("small", "medium", "full")
PACKAGED_TIER = "medium"
"""What the embedded models draw, and SpriteEval asks for."""
NATURAL_COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "black", "white", "gray"),
)


@dataclass(frozen=True)
class ObjectSpec:
    """One nameable object.

    `name` and `plural` are what captions call it, `synonyms` are other words people type for one
    of it, `natural_colours` the colours by which a person would call the sprite as drawn.
    `sprite` is the stem of the picture's file in `@lobehub/fluent-emoji-3d` (its code points in
    hex), optionally with a crop: `1f374@left` is the left half of `1f374`. `tier` is the smallest
    tier the object belongs to.
    """

    name: str
    sprite: str
    synonyms: tuple[str, ...]
    plural: str
    natural_colours: tuple[str, ...]
    tier: str

    @property
    def is_plural(self) -> bool:
        """Whether the name is a grammatical plural ("scissors", "skis") and so takes no "a"."""
        return self.name == self.plural and self.name.endswith("s")

    @property
    def words(self) -> tuple[str, ...]:
        """Every way to name one or more of it: name, synonyms, plural, without repeats."""
        return tuple(dict.fromkeys((self.name, *self.synonyms, self.plural)))


def load_objects(tier: str = "full") -> tuple[ObjectSpec, ...]:
    """The objects of a tier in table order; raises InputError for an unknown tier."""
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    included = TIERS[: TIERS.index(tier) + 1]
    return tuple(spec for spec in _read_table() if spec.tier in included)


@lru_cache(maxsize=1)
def _read_table() -> tuple[ObjectSpec, ...]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            ObjectSpec(
                name=row["name"],
                sprite=row["sprite"],
                synonyms=_split(row["synonyms"]),
                plural=row["plural"],
                natural_colours=_split(row["natural_colours"]),
                tier=row["tier"],
            )
            for row in csv.DictReader(file)
        )


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(";") if part.strip())
