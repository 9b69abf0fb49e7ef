"""What is a prior worth at fixed decodes, by its strength λ and its weight w in the ranking?

    python -m benchmarks.prior_strength                                 # two minutes on two cores
    python -m benchmarks.prior_strength --full -o benchmarks/results    # hours; stop and go on
    python -m benchmarks.prior_strength --priors unigram frequency --strengths 0 1 4 --decodes 1024

From a prior that knows nothing to one that read the prompt: uniform, unigram (tokens counted by
position), frequency (pairs of them: a bigram), retrieval, frequency+retrieval, autoregressive. The
search is the plain beam of methods.py on SpriteEval's dev prompts. λ is varied at w = 0, where
λ = 0 is the uniform prior whatever the prior is; w at the λs of --weights-at, where λ = 0 is a
prior that ranks and does not propose.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from tfgen import hub
from tfgen.errors import InputError, finite_number, whole_number
from tfgen.spriteeval import load
from tfgen.spriteeval.files import take
from tfgen.spriteeval.scoring import Share

from . import harness
from .harness import Parser, Report, Row, Task, current
from .methods import FREQUENCY, RETRIEVAL, UNIFORM, Usual, beam
from .trials import Setup, Trials, accuracy, add_models, average, judge_notes, shown

QUESTION = __doc__.splitlines()[0]
SPLIT = "dev"
PRIORS = (
    UNIFORM, "unigram", FREQUENCY, RETRIEVAL, f"{FREQUENCY}+{RETRIEVAL}", "autoregressive",
)  # fmt: skip
STRENGTHS, FULL_STRENGTHS = (0.0, 0.5, 1.0, 2.0), (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
WEIGHTS, FULL_WEIGHTS = (0.0, 0.3), (0.0, 0.3, 1.0)
WEIGHTS_AT, FULL_WEIGHTS_AT = (1.0,), (0.0, 1.0)
DECODES = 128


class Cell(NamedTuple):
    """A row of the table."""

    prior: str
    strength: float
    weight: float


def main() -> None:
    parser = Parser(QUESTION, prompts=24, seeds=1, full=(104, 1))
    add = parser.add_argument
    add("--decodes", type=int, default=DECODES, metavar="N",
        help=f"of every search (default: {DECODES})")  # fmt: skip
    add("--priors", nargs="+", metavar="NAME",
        help="as in tfgen --prior (default: those of this list that the model has: "
        f"{' '.join(PRIORS)})")  # fmt: skip
    text = "{} by default, and {} with --full"
    add("--strengths", nargs="+", type=float, metavar="λ",
        help=text.format(listed(STRENGTHS), listed(FULL_STRENGTHS)))  # fmt: skip
    add("--weights", nargs="+", type=float, metavar="w",
        help=text.format(listed(WEIGHTS), listed(FULL_WEIGHTS)))  # fmt: skip
    text = f"at which w is varied: {text.format(listed(WEIGHTS_AT), listed(FULL_WEIGHTS_AT))}"
    add("--weights-at", nargs="+", type=float, metavar="λ", help=text)
    add_models(parser)
    args = parser.parse_args()
    whole_number("--decodes", args.decodes, 1)
    complete(args)

    setup = Setup.of(args, cache=hub.cache_folder() / "bench")
    trials = Trials(setup)
    prompts = take(load(SPLIT), args.prompts)
    trials.check(prompts)
    tasks = plan(trials, args, prompts)
    make = trials.maker(args.jobs)
    harness.run("prior_strength", QUESTION, args, tasks, make, report, trials.stale)


def listed(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def complete(args: Namespace) -> None:
    """The values to be tried, sorted. Raises InputError on one that cannot be."""
    usual = {
        "strengths": (STRENGTHS, FULL_STRENGTHS),
        "weights": (WEIGHTS, FULL_WEIGHTS),
        "weights_at": (WEIGHTS_AT, FULL_WEIGHTS_AT),
    }
    for name, values in usual.items():
        given = getattr(args, name)
        for value in given or ():
            finite_number("--" + name.replace("_", "-"), value, 0)
        setattr(args, name, sorted(set(given or values[args.full])))


def plan(trials: Trials, args: Namespace, prompts: Sequence[dict[str, Any]]) -> list[Task]:
    """The tasks, prompt by prompt, so that a run that is stopped has every cell with as many.

    A prior of the usual ones that these models lack is told, and left out. Raises InputError where
    such a one is asked for, or for too few decodes.
    """
    usual, tasks = Usual.of(trials.pipeline), []
    tokens = usual.tokens
    if args.decodes < 4 * tokens:
        raise InputError(
            f"--decodes must be {4 * tokens} or more, with {tokens} tokens, not {args.decodes}."
        )
    uniform = [Cell(UNIFORM, 0.0, 0.0)]
    for name in args.priors or PRIORS:
        try:
            for cell in uniform + cells(name, args):
                search = beam(args.decodes, usual) | {"budget": args.decodes}
                search |= {"prior_strength": cell.strength, "prior_weight": cell.weight}
                tasks += trials.tasks(
                    cell.prior,
                    trials.settings(cell.prior, defaults=False, **search),
                    SPLIT,
                    prompts,
                    args.seeds,
                    decodes_allowed=args.decodes,
                    strength=cell.strength,
                    weight=cell.weight,
                )
            uniform = []  # all priors share it
        except InputError as error:
            if args.priors:
                raise
            print(f"Warning: {name} is left out. {error}", file=sys.stderr)
    order = {metadata["prompt"]: i for i, metadata in enumerate(prompts)}
    return sorted(tasks, key=lambda task: (task.seed, order[task.prompt]))


def cells(prior: str, args: Namespace) -> list[Cell]:
    """What is varied of a prior; of the uniform one there is nothing to vary."""
    if prior == UNIFORM:
        return []
    values = [(strength, 0.0) for strength in args.strengths]
    values += [(strength, weight) for strength in args.weights_at for weight in args.weights]
    return [Cell(prior, *value) for value in dict.fromkeys(values) if value != (0.0, 0.0)]


Found = dict[Cell, tuple[Share | None, Share]]
"""By cell: accuracy, where a judge has looked, and verifier score."""


def report(rows: list[Row]) -> Report:
    """A line for each prior, λ and w, beside uniform on the same prompts; for each number of
    decodes in the file, of which the figure has the latest."""
    groups: dict[tuple[int, Cell], list[Row]] = {}
    for row in current(rows, key):
        groups.setdefault(key(row), []).append(row)
    place = {name: i for i, name in enumerate(PRIORS)}
    order = sorted(groups, key=lambda k: (k[0], place.get(k[1].prior, len(place)), k[1]))
    table, found, drawn = [], {}, rows[-1]["decodes_allowed"]
    for decodes, cell in order:
        group = groups[decodes, cell]
        base = groups.get((decodes, Cell(UNIFORM, 0.0, 0.0)), [])
        right = accuracy(group) if judged(group) else None
        score = average(group, "verifier_score")
        if decodes == drawn:
            found[cell] = (right, score)
        better = [over(group, base, name) for name in ("correct", "verifier_score")]
        table.append(
            [
                cell.prior,
                f"{cell.strength:g}",
                f"{cell.weight:g}",
                f"{average(group, 'cost').value:,.0f} of {decodes:,}",
                shown(right) if right else "",
                better[0] if right else "",
                shown(score),
                better[1],
                f"{average(group, 'seconds').value:.1f}",
                str(len({row["prompt"] for row in group})),
                str(len(group)),
            ]
        )
    columns = ["prior", "λ", "w", "decodes", "right", "right over uniform", "verifier score"]
    columns += ["score over uniform", "seconds", "prompts", "pictures"]
    notes = [
        "Proposals are drawn from p^λ, and prefixes ranked by verifier score + w x typicality. The "
        "prior unigram is of tokens by position, frequency of pairs of them (a bigram, backed off "
        "to the unigram). With λ = 0 and w = 0 every prior is uniform.",
        "Decodes and seconds are means of a picture. Right: by the judge, the share of pictures of "
        "all eight tasks. 95 % intervals: Wilson's, a prompt's seeds counted as alike as they are; "
        "for scores Student's over prompts. Over uniform: the mean difference to the uniform prior "
        "on the same prompts and seeds, with Student's interval over prompts.",
    ]
    if any(right for right, _ in found.values()):
        notes += judge_notes(rows)
    return Report(columns, table, notes, partial(draw, found, drawn))


def key(row: Row) -> tuple[int, Cell]:
    return row["decodes_allowed"], Cell(row["method"], row["strength"], row["weight"])


def judged(rows: Sequence[Row]) -> bool:
    return all("correct" in row for row in rows)


def over(rows: Sequence[Row], base: Sequence[Row], name: str) -> str:
    """The mean difference in a value to `base`, on the prompts and seeds that both have."""
    theirs = {(row["prompt"], row["seed"]): row for row in base if name in row}
    pairs = [(row, theirs.get((row["prompt"], row["seed"]))) for row in rows if name in row]
    differences = [
        {**row, name: row[name] - other[name]} for row, other in pairs if other is not None
    ]
    if not differences or all(row is other for row, other in pairs):
        return ""
    value = average(differences, name)
    return f"{value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def draw(found: Found, decodes: int, figure: Any) -> None:
    """A line for each prior: against λ at w = 0, and against w at the λs it was varied at."""
    panel = 0 if all(right for right, _ in found.values()) else 1  # without a judge: scores
    figure.set_size_inches(10, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    base = found.get(Cell(UNIFORM, 0.0, 0.0))
    if base:
        for axes in (left, right):
            axes.axhline(base[panel].value, color="0.6", linestyle=":", label=UNIFORM)
    priors = [name for name in dict.fromkeys(cell.prior for cell in found) if name != UNIFORM]
    varied = sorted({cell.strength for cell in found if cell.weight}, reverse=True)
    styles = dict(zip(varied, ("-", "--", "-.", ":"), strict=False))
    for i, prior in enumerate(priors):
        own = {cell: shares[panel] for cell, shares in found.items() if cell.prior == prior}
        if base:
            own[Cell(prior, 0.0, 0.0)] = base[panel]
        nudge = 0.008 * (i - (len(priors) - 1) / 2)  # so that intervals do not hide each other
        line(left, {c.strength: s for c, s in own.items() if not c.weight}, i, "-", prior, nudge)
        for strength, style in styles.items():
            points = {c.weight: s for c, s in own.items() if c.strength == strength}
            line(right, points, i, style, None, nudge)
    left.set_xlabel("strength λ, at w = 0")
    names = {"-": "solid", "--": "dashed", "-.": "dash-dot", ":": "dotted"}
    at = ", ".join(f"λ = {strength:g} ({names[style]})" for strength, style in styles.items())
    right.set_xlabel(f"weight w, at {at}" if at else "weight w")
    left.set_ylabel("verifier score" if panel else "right pictures, by the judge")
    for axes in (left, right):
        axes.set_title(f"{decodes:,} decodes", fontsize="small")
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)


def line(
    axes: Any, points: dict[float, Share], index: int, style: str, label: str | None, nudge: float
) -> None:
    """One prior's values with their intervals."""
    places = sorted(points)
    values = [points[x].value for x in places]
    axes.errorbar(
        [x + nudge for x in places],
        values,
        [
            [points[x].value - points[x].low for x in places],
            [points[x].high - points[x].value for x in places],
        ],
        color=f"C{index}",
        linestyle=style,
        marker="os^vD"[index % 5],
        markersize=4,
        elinewidth=0.5,
        label=label,
    )


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
