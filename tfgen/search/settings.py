"""What to search with: every setting of every search, validated in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tfgen.errors import InputError, finite_number, unknown, whole_number
from tfgen.priors.base import BRANCHES

SEARCH_NAMES = ("beam", "lookahead", "best-of-n")
CHOICES: dict[str, tuple[str, ...]] = {
    "search": SEARCH_NAMES,
    "branch": BRANCHES,
    "first_step": ("beam", "candidates"),
    "keep": ("best", "last"),
    "complete": ("greedy", "sample"),
    "rollout": ("sample", "greedy"),
    "rollout_score": ("mean", "max"),
    "shortlist_by": ("surrogate", "gradient"),
    "forecast_in": ("all", "crossover"),
}
ONLY_FOR = {  # settings that say nothing in the other searches, which therefore refuse them
    "samples": ("best-of-n",),
    "lookahead": ("lookahead",),
    "rollouts": ("lookahead",),
    "rollout": ("lookahead",),
    "rollout_score": ("lookahead",),
    "lookahead_steps": ("lookahead",),
    "max_children": ("beam", "lookahead"),
    "complete": ("beam", "lookahead"),
    "shortlist": ("beam",),
    "screen": ("beam",),
    "forecast": ("beam",),
    "forecast_in": ("beam",),
    "neighbours": ("beam", "lookahead"),
    "crossover": ("beam", "lookahead"),
    "patience": ("beam", "lookahead"),
    "refine": ("beam", "lookahead"),
    "reencode": ("beam", "lookahead"),
    "reencode_loss": ("beam", "lookahead"),
}
LEAST = {  # of the whole numbers
    **dict.fromkeys(("beam", "candidates", "rollouts", "forecast", "samples"), 1),
    **dict.fromkeys(("refine", "shortlist", "neighbours", "crossover", "patience", "reencode"), 0),
    **dict.fromkeys(("tokens", "max_children", "budget", "batch_size"), 1),
    "lookahead_steps": 0,
}
OPTIONAL = ("samples", "tokens", "max_children", "budget", "batch_size", "lookahead_steps")
MOST = {  # more could not even be planned: a plan has a number for each step
    "beam": 10**6,
    "candidates": 10**6,
    "rollouts": 10**6,
    "samples": 10**8,
    "forecast": 10**4,
    "crossover": 10**5,
    "refine": 10**4,
}
MOST_WEIGHT = 1e6  # above it, 32 bits have no digits left for the verifier's score


@dataclass(frozen=True)
class SearchSettings:
    """What to search with. Raises InputError on a value outside its range.

    Numbers are kept as those of Python, whatever they came as, such as NumPy's.
    """

    search: Literal["beam", "lookahead", "best-of-n"] = "beam"

    beam: int = 16
    """Beam width: prefixes kept after each step. From 1."""

    candidates: int = 32
    """Candidates per beam and step. From 1; more than there are continuations means all of them."""

    tokens: int | None = None
    """Search prefixes of up to this many tokens. 1 to the tokenizer's num_tokens; None is that."""

    schedule: str | Sequence[int] = "one"
    """Prefix length after each step; see `prefix_lengths`."""

    start: Sequence[int] | Sequence[Sequence[int]] | None = None
    """Given tokens that every candidate begins with: one prefix, or several of one length. The
    schedule's lengths stay what they are; the search takes up those that are longer."""

    branch: Literal["all", "last"] = "all"
    """In a step of several tokens, a beam's candidates differ in "all" of them or in the "last"."""

    first_step: Literal["beam", "candidates"] = "beam"
    """The first step draws beam * candidates proposals in all, or `candidates` a start prefix."""

    distinct: bool = True
    """Candidates are drawn without replacement, and a pool holds none twice. False: with it."""

    max_children: int | None = None
    """At most so many prefixes of a beam have one parent, from the second step on. From 1."""

    keep: Literal["best", "last"] = "best"
    """The result is the best prefix ever seen, or that of the last step."""

    complete: Literal["greedy", "sample"] | None = None
    """After the search, complete the last beam to num_tokens, by the most probable tokens or by
    draws, and score that too."""

    samples: int | None = None
    """best-of-n: sequences to draw. From 1; None is what a beam search of these settings draws."""

    lookahead: int | Literal["end"] | None = None
    """lookahead: tokens of a rollout. From 0, which is none; "end" and -1 go to the end of the
    search's tokens, as does None."""

    rollouts: int = 1
    """lookahead: rollouts of each candidate. From 1."""

    rollout: Literal["sample", "greedy"] = "sample"
    """lookahead: the tokens of a rollout are drawn from p^λ, or the most probable."""

    rollout_score: Literal["mean", "max"] = "mean"
    """lookahead: what a candidate is ranked by, of the scores of its rollouts."""

    lookahead_steps: int | None = None
    """lookahead: only in so many first steps; later ones are plain beam search. From 0."""

    prior_strength: float = 0.0
    """λ: candidates are drawn from p^λ. From 0, which is uniform; 1 is the prior."""

    prior_weight: float = 0.0
    """w: prefixes are ranked by verifier score + w * typicality. From 0."""

    typicality: bool = True
    """False: rank by verifier score + w * mean log p instead."""

    shortlist: int = 0
    """Of the candidates per beam, so many are chosen from the whole codebook by an estimate of
    their scores, and the others drawn. From 0; an eighth of the candidates, and one of each beam,
    is drawn in any case."""

    shortlist_by: Literal["surrogate", "gradient"] = "surrogate"
    """The estimate: a Gaussian process fitted to the pictures of the step, or a first-order
    expansion, each gradient of which is charged as 3 of the candidates."""

    screen: bool = False
    """Look at drafts of more candidates than are decoded, and decode the best of them. Drafts are
    charged by the tokenizer's `draft_cost`, within what the candidates may cost."""

    forecast: int = 1
    """Draw so many times the candidates of a step or crossover, and decode those that a forecaster
    expects to fit best. From 1, which is no forecast; it needs a forecaster of these models."""

    forecast_in: Literal["all", "crossover"] = "all"
    """Where forecasts choose: in all steps, or in the rounds of a crossover alone."""

    neighbours: int = 0
    """After the search, so many pictures of the prior's bank, those that fit the prompt best by
    their stored embeddings, compete with what was found. From 0; it is 0 where the prior has no
    bank, and at λ = 0."""

    crossover: int = 0
    """After the search, so many rounds in which its best prefixes take runs of tokens from each
    other and from those pictures of the prior's bank. From 0."""

    patience: int = 0
    """crossover: it ends after so many rounds in a row that found nothing better. From 0, which is
    never."""

    refine: int = 0
    """After the search, sweeps over the tokens of its best prefixes, each chosen again with all
    others held fixed. From 0."""

    anneal: float = 0.0
    """refine: the temperature that it starts at, in units of the score. From 0, which keeps the
    best; above, worse prefixes may be kept for a while."""

    reencode: int = 0
    """At the end, so many of the best prefixes are decoded, and the tokenizer encodes the pictures;
    the best of what those tokens decode to is the result, at a loss of up to `reencode_loss`. From
    0; more than `beam` means all of them."""

    reencode_loss: float = 0.0
    """reencode: how much lower it may score than the best prefix, in units of the score. From 0."""

    atlas: bool = True
    """Where all one-token prefixes are embedded already, the first step looks at all of them."""

    budget: int | None = None
    """At most this many decodes. From 1; None is no limit. Steps are shrunk so that all happen."""

    time_limit: float | None = None
    """At most this many seconds, above 0; the search is planned for it, as for a budget. What is
    found then depends on how fast the machine is."""

    batch_size: int | None = None
    """See `Evaluator`; results do not depend on it. From 1; None chooses."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "complete" and value is None):
                raise unknown(name, value, choices)
        self._keep_numbers()
        for name, searches in ONLY_FOR.items():
            if self.search not in searches and getattr(self, name) != getattr(type(self), name):
                raise InputError(
                    f"{name} means nothing to the search {self.search!r}: leave it out, or use "
                    f"{' or '.join(map(repr, searches))}."
                )
        if self.rollout == "greedy" and self.rollouts > 1:
            raise InputError(
                f"{self.rollouts} greedy rollouts of a candidate are all the same: use rollouts 1, "
                "or the rollout 'sample'."
            )
        if not self.distinct and self.branch == "last":
            raise InputError(
                "branch 'last' draws distinct last tokens: use it with distinct, or branch 'all'."
            )
        if self.anneal and not self.refine:
            raise InputError("anneal is the temperature of a refinement: give refine too.")
        if self.screen and self.shortlist:
            raise InputError("A step has a screening or a shortlist: use screen with shortlist 0.")
        if self.forecast > 1 and (self.screen or self.shortlist or not self.distinct):
            raise InputError(
                "A forecast chooses among distinct candidates, as a screening or a shortlist does: "
                "use those, or draws with replacement, with forecast 1."
            )

    def _keep_numbers(self) -> None:
        """All that are numbers or flags in range, and as Python's."""
        kept: dict[str, object] = {}
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                kept[name] = number = whole_number(name, value, low)
                if number > MOST.get(name, number):
                    raise InputError(f"{name} must be {MOST[name]} at most, not {number}.")
        for name in ("prior_strength", "prior_weight", "anneal", "reencode_loss"):
            kept[name] = finite_number(name, getattr(self, name), 0)
        if kept["prior_weight"] > MOST_WEIGHT:
            raise InputError(
                f"prior_weight must be at most {MOST_WEIGHT:,.0f}, not {self.prior_weight:g}: the "
                "verifier's score would not count."
            )
        if self.time_limit is not None:
            kept["time_limit"] = finite_number("time_limit", self.time_limit, 0)
            if kept["time_limit"] == 0:
                raise InputError("time_limit must be a number of seconds above 0, not 0.")
        for name in ("distinct", "typicality", "screen", "atlas"):
            if getattr(self, name) not in (True, False):
                raise InputError(f"{name} must be True or False, not {getattr(self, name)!r}.")
            kept[name] = bool(getattr(self, name))
        kept["lookahead"] = _rollout_length(self.lookahead)
        if not isinstance(self.schedule, str):
            lengths = _listed("schedule", self.schedule)
            kept["schedule"] = [whole_number("A length in the schedule", n, 1) for n in lengths]
        if self.start is not None:
            rows, given = self.start_prefixes, _listed("start", self.start)
            kept["start"] = rows if isinstance(given[0], Sequence) else rows[0]
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def start_prefixes(self) -> list[list[int]]:
        """`start` as a list of prefixes; [[]], the empty one, where there is none.

        Raises InputError where they are no prefixes of one length.
        """
        rows = [[]] if self.start is None else _listed("start", self.start)
        if rows and not isinstance(rows[0], Sequence):
            rows = [rows]
        rows = [[whole_number("A token of start", token, 0) for token in row] for row in rows]
        if len({len(row) for row in rows}) != 1 or len(set(map(tuple, rows))) != len(rows):
            raise InputError(
                "start is one prefix, as in [12, 7], or several different ones of the same length, "
                f"not {self.start!r}."
            )
        return rows


def _listed(name: str, value: object) -> list[Any]:
    """A list, tuple or array as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Iterable):
        raise InputError(f"{name} must be a list of whole numbers, not {value!r}.")
    return list(value)


def _rollout_length(value: object) -> int | str | None:
    if value is None or value == "end":
        return value
    try:
        return whole_number("lookahead", value, -1)
    except InputError:
        raise InputError(
            "lookahead must be a whole number from 0 up, or 'end' (-1) for the end of the search's "
            f"tokens, not {value!r}."
        ) from None
