"""The searches that are compared at equal cost, as data: name -> settings for a budget of decodes.

Prompt-blind baselines first, then SoTo's searches, then ours, each idea alone on the same plain
beam and all of them together. All have the model's own number of tokens, one a step, and a beam and
candidates that follow from the budget. A prior is taken as it is (λ = 1), so that only the search
differs; `together` has the model's own strength λ and weight w. `default` has all settings of the
model, its schedule too, but for beam and candidates; `default, own shape` has these as well: it is
what `tfgen PROMPT --budget N` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

from tfgen.errors import InputError
from tfgen.pipeline import Pipeline
from tfgen.search.presets import SOTO
from tfgen.search.schedule import prefix_lengths
from tfgen.spriteeval import Metadata

from .harness import Task

if TYPE_CHECKING:
    from .trials import Trials

Settings = dict[str, Any]
UNIFORM, FREQUENCY, RETRIEVAL = "uniform", "frequency", "retrieval"


@dataclass(frozen=True)
class Usual:
    """The model's own defaults: tokens of the longest prefix, prior strength λ and weight w, rounds
    of crossover, and steps of its schedule (0: one a token)."""

    tokens: int
    strength: float
    weight: float
    crossover: int = 0
    steps: int = 0

    @classmethod
    def of(cls, pipeline: Pipeline) -> Usual:
        """Those of the pipeline's model; without a number of its own, all of its tokens."""
        own = pipeline.settings()
        tokens = own.tokens or pipeline.tokenizer.num_tokens
        steps = len(prefix_lengths(own.schedule, tokens))
        return cls(tokens, own.prior_strength, own.prior_weight, own.crossover, steps)


@dataclass(frozen=True)
class Method:
    """settings: of a search for a budget of decodes; prior: by name."""

    prior: str | None
    settings: Callable[[int, Usual], Settings]

    defaults: bool = False
    """What the settings leave out is the model's own default; else SearchSettings' own. With it, a
    prior of None is the model's own, too."""

    only: int | None = None
    """The only budget it has."""


def plain(usual: Usual) -> Settings:
    """One token a step, and none of our ideas."""
    return {"tokens": usual.tokens, "schedule": "one", "atlas": False}


def best_of(budget: int, usual: Usual) -> Settings:
    """Independent draws, with replacement: those of a smaller budget, from plan.ROUND up, are the
    first of a larger one, and all are the same for every prompt."""
    return plain(usual) | {"search": "best-of-n", "samples": budget, "distinct": False}


def soto(budget: int, usual: Usual) -> Settings:
    """Five prefixes, or fewer where each would have hardly a candidate; the first step, which has
    one parent, takes little of the budget, so the candidates get more."""
    width = min(5, max(1, isqrt(budget // (2 * usual.tokens))))
    candidates = max(1, budget // (1 + (usual.tokens - 1) * width))
    return plain(usual) | SOTO | {"beam": width, "candidates": candidates}


def shape(budget: int, usual: Usual, steps: int | None = None) -> Settings:
    """About half as many prefixes as candidates of each.

    steps: those that cost decodes, by default all.
    """
    steps = steps or usual.tokens
    width = max(1, isqrt(budget // (2 * steps)))
    return {"beam": width, "candidates": max(1, budget // (steps * width))}


def beam(budget: int, usual: Usual) -> Settings:
    """Ours, plain: the first step is as large as the others; the best prefix ever seen."""
    return plain(usual) | shape(budget, usual)


def weight(usual: Usual) -> Settings:
    return {"prior_weight": usual.weight}


def with_atlas(budget: int, usual: Usual) -> Settings:
    """The first step is free, so the others have its share."""
    return plain(usual) | shape(budget, usual, usual.tokens - 1) | {"atlas": True}


def with_crossover(budget: int, usual: Usual) -> Settings:
    """A round decodes as much as a step of the beam."""
    steps = usual.tokens + CROSSOVER["crossover"]
    return plain(usual) | shape(budget, usual, steps) | CROSSOVER


def own(budget: int, usual: Usual) -> Settings:
    """The model's defaults, but for the size of a step."""
    return shape(budget, usual, (usual.steps or usual.tokens) + usual.crossover)


def with_shortlist(search: Settings) -> Settings:
    """All candidates chosen but the few that are drawn in any case."""
    return search | {"shortlist": search["candidates"]}


def together(budget: int, usual: Usual) -> Settings:
    """All ideas but crossover and re-encoding, and screening, which a step has or a shortlist; the
    search plans its steps so that the refinement is within the budget, too. The retrieval prior has
    the frequency prior in it, which it falls back on."""
    search = with_shortlist(with_atlas(budget, usual)) | NEIGHBOURS | REFINE
    return search | {"prior_strength": usual.strength} | weight(usual)


AS_IS = {"prior_strength": 1.0}  # drawn from the prior as it is
SCREEN = {"screen": True}
NEIGHBOURS = {"neighbours": 16}
CROSSOVER = {"crossover": 8}
FORECASTS = {"forecast": 16}
REFINE = {"refine": 1}
REENCODING = {"reencode": 16, "reencode_loss": 1.0}
LOOKAHEAD = {"search": "lookahead", "lookahead": "end", "rollout": "greedy"}

METHODS: dict[str, Method] = {
    "random": Method(UNIFORM, best_of, only=1),
    "best-of-n": Method(UNIFORM, best_of),
    "best-of-n, frequency": Method(FREQUENCY, lambda n, u: best_of(n, u) | AS_IS),
    "SoTo beam": Method(UNIFORM, soto),
    "SoTo beam, frequency": Method(FREQUENCY, lambda n, u: soto(n, u) | AS_IS),
    "SoTo lookahead, frequency": Method(FREQUENCY, lambda n, u: soto(n, u) | LOOKAHEAD | AS_IS),
    "beam": Method(UNIFORM, beam),
    "beam + frequency": Method(FREQUENCY, lambda n, u: beam(n, u) | AS_IS),
    "beam + frequency + typicality": Method(FREQUENCY, lambda n, u: beam(n, u) | AS_IS | weight(u)),
    "beam + retrieval": Method(RETRIEVAL, lambda n, u: beam(n, u) | AS_IS),
    "beam + retrieval + neighbours": Method(
        RETRIEVAL, lambda n, u: beam(n, u) | NEIGHBOURS | AS_IS
    ),
    "beam + retrieval + crossover": Method(RETRIEVAL, lambda n, u: with_crossover(n, u) | AS_IS),
    "beam + retrieval + forecasts": Method(RETRIEVAL, lambda n, u: beam(n, u) | FORECASTS | AS_IS),
    "beam + retrieval + crossover + forecasts": Method(
        RETRIEVAL, lambda n, u: with_crossover(n, u) | FORECASTS | AS_IS
    ),
    "beam + retrieval + re-encoding": Method(
        RETRIEVAL, lambda n, u: beam(n, u) | REENCODING | AS_IS
    ),
    "beam + atlas": Method(UNIFORM, with_atlas),
    "beam + shortlist": Method(UNIFORM, lambda n, u: with_shortlist(beam(n, u))),
    "beam + shortlist by gradient": Method(
        UNIFORM, lambda n, u: with_shortlist(beam(n, u)) | {"shortlist_by": "gradient"}
    ),
    "beam + forecasts": Method(UNIFORM, lambda n, u: beam(n, u) | FORECASTS),
    "beam + screening": Method(UNIFORM, lambda n, u: beam(n, u) | SCREEN),
    "beam + refinement": Method(UNIFORM, lambda n, u: beam(n, u) | REFINE),
    "together": Method(RETRIEVAL, together),
    "default": Method(None, own, defaults=True),
    "default, own shape": Method(None, lambda n, u: {}, defaults=True),
}


def plan(
    trials: Trials,
    methods: Mapping[str, Method],
    names: Sequence[str] | None,
    budgets: Sequence[int],
    split: str,
    prompts: Sequence[Metadata],
    seeds: int,
    no_searches: Container[str] = (),
) -> list[Task]:
    """The tasks: small budgets first, prompt by prompt, so that a run that is stopped has all
    methods with as many prompts each.

    names: None is all that these models have; one that needs what they lack is told, and left out.
    no_searches: those whose name is all of their settings. Raises InputError where a method is
    asked for that needs what the models lack, and for budgets that are too small.
    """
    usual = Usual.of(trials.pipeline)
    if budgets[0] < 4 * usual.tokens:
        raise InputError(
            f"--budgets must be {4 * usual.tokens} or more, with {usual.tokens} tokens, not "
            f"{budgets[0]}."
        )
    tasks: list[Task] = []
    for name in names or methods:
        method = methods[name]
        try:
            for budget in [method.only] if method.only else budgets:
                search = method.settings(budget, usual) | {"budget": budget}
                settings = trials.settings(method.prior, defaults=method.defaults, **search)
                if name in no_searches:
                    settings |= {"search": {"search": name}}
                elif search.get("atlas") and not trials.has_atlas:
                    raise InputError("These models have no atlas: tfgen atlas build makes one.")
                elif search.get("forecast") and trials.forecaster is None:
                    raise InputError(
                        "These models have no forecaster: tfgen.training.forecast makes one."
                    )
                tasks += trials.tasks(name, settings, split, prompts, seeds, budget=budget)
        except InputError as error:
            if names:
                raise
            print(f"Warning: {name} is left out. {error}", file=sys.stderr)
    order = {metadata["prompt"]: i for i, metadata in enumerate(prompts)}
    return sorted(tasks, key=lambda task: (task.more["budget"], task.seed, order[task.prompt]))
