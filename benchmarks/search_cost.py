"""What do a right picture and a high score cost in decodes, by each search?

    python -m benchmarks.search_cost                                 # four minutes on two cores
    python -m benchmarks.search_cost --full -o benchmarks/results    # days; stop and go on at will
    python -m benchmarks.search_cost --methods "SoTo beam" default --budgets 64 1024 --prompts 40

Every method has the same budgets and the same prompts, those of SpriteEval's dev split, and is
charged what it would have cost alone: that one-token prefixes and the samples of best-of-n are
decoded once for all prompts only saves time. methods.py has the methods. The table and the figure
have all rows in the file, so that methods and budgets can be added one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tfgen import hub
from tfgen.errors import unknown
from tfgen.search import SearchSettings
from tfgen.spriteeval import load
from tfgen.spriteeval.files import take
from tfgen.spriteeval.scoring import Share

from . import harness
from .harness import Parser, Report, Row, current
from .methods import METHODS, plan
from .options import options_from
from .trials import Setup, Trials, accuracy, add_models, average, judge_notes, shown

QUESTION = __doc__.splitlines()[0]
BUDGETS = (64, 256, 1024)
FULL_BUDGETS = (64, 256, 1024, 4096, 16384, 32768)
SPLIT = "dev"
Curve = list[tuple[int, Share, Share | None, Share]]
"""Of a method by budget: the budget, what it really cost, accuracy, verifier score."""


def main() -> None:
    parser = Parser(QUESTION, prompts=8, seeds=1, full=(104, 1))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="some of the methods")
    parser.add_argument("--budgets", nargs="+", type=int, metavar="N", help="decodes")
    add_models(parser)
    args = parser.parse_args()
    for name in args.methods or ():
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    budgets = sorted(set(args.budgets or (FULL_BUDGETS if args.full else BUDGETS)))

    setup = Setup.of(args, cache=hub.cache_folder() / "bench")
    trials = Trials(setup)
    prompts = take(load(SPLIT), args.prompts)
    trials.check(prompts)
    tasks = plan(trials, METHODS, args.methods, budgets, SPLIT, prompts, args.seeds)
    make = trials.maker(args.jobs)
    harness.run("search_cost", QUESTION, args, tasks, make, report, trials.stale)


def report(rows: list[Row]) -> Report:
    """A line for each method and budget, and two figures over decodes."""
    curves: dict[str, Curve] = {}
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in current(rows, lambda row: (row["method"], row["budget"])):
        groups.setdefault((row["method"], row["budget"]), []).append(row)
    place = {name: i for i, name in enumerate(METHODS)}
    table = []
    for name, budget in sorted(groups, key=lambda key: (place.get(key[0], len(place)), *key)):
        group = groups[name, budget]
        cost, score = average(group, "cost"), average(group, "verifier_score")
        right = accuracy(group) if all("correct" in row for row in group) else None
        curves.setdefault(name, []).append((budget, cost, right, score))
        table.append(
            [
                name,
                f"{budget:,}",
                f"{cost.value:,.0f}",
                shown(right) if right else "",
                shown(score),
                size(group[0]["settings"].get("search", {})),
                str(len({row["prompt"] for row in group})),
                str(len(group)),
            ]
        )
    columns = ["method", "budget", "cost", "right", "verifier score", "beam x candidates"]
    columns += ["prompts", "pictures"]
    judged = any(right for curve in curves.values() for _, _, right, _ in curve)
    notes = [
        "Cost is in full decodes, a mean. Right: by the judge, the share of pictures of all eight "
        "tasks. 95 % intervals: Wilson's, a prompt's seeds counted as alike as they are, and for "
        "scores Student's over prompts, most of whose width is that prompts differ; all methods "
        "have the same prompts. Beam x candidates: prefixes of a step and candidates of each; they "
        "follow from the budget, but `default, own shape` has the model's own.",
        *(judge_notes(rows) if judged else []),
        *savings(groups),
        *unlisted(groups),
    ]
    return Report(columns, table, notes, partial(draw, curves))


def size(search: Mapping[str, Any]) -> str:
    """Prefixes of a step and candidates of each; "" of a search that has none."""
    if search.get("search") == "best-of-n":
        return ""
    usual = SearchSettings()
    return " x ".join(str(search.get(n, getattr(usual, n))) for n in ("beam", "candidates"))


def unlisted(groups: Mapping[tuple[str, int], Sequence[Row]]) -> list[str]:
    """What makes the rows that no method of today makes, such as those of an earlier default: a
    line for each, from its rows' own settings beside the default's at that budget."""
    lines: dict[str, None] = {}
    for (name, budget), group in sorted(groups.items()):
        usual = groups.get(("default", budget))
        if name not in METHODS and usual:
            options = options_from(
                usual[0]["settings"], group[0]["settings"], without=("beam", "candidates")
            )
            lines[f"- {name}: `{options}`"] = None
    if not lines:
        return []
    head = (
        "These are no methods of this benchmark. `python -m benchmarks.alignment --split "
        f"{SPLIT} --budget N --beam B --candidates C` makes them, with the default's other "
        "settings but for"
    )
    return [head, "\n".join(lines)]


def savings(groups: dict[tuple[str, int], list[Row]], than: str = "SoTo beam") -> list[str]:
    """For each method, the first of its budgets with the best verifier score that SoTo's beam has
    at any: a sentence, where that is for fewer decodes.

    On the prompts and seeds that both have been given.
    """
    scores = {
        budget: average(rows, "verifier_score").value
        for (name, budget), rows in groups.items()
        if name == than
    }
    best = max(scores, key=lambda budget: scores[budget], default=None)
    notes = []
    for name, budget in sorted(groups, key=lambda key: key[1]):
        if best is None or name == than or any(note.startswith(f"- {name}:") for note in notes):
            continue
        mine, theirs = common(groups[name, budget], groups[than, best])
        if not mine:
            continue
        score, goal = (average(rows, "verifier_score").value for rows in (mine, theirs))
        cost, whole = (average(rows, "cost").value for rows in (mine, theirs))
        if score >= goal and cost < whole:
            note = f"- {name}: {cost:,.0f} decodes, {whole / cost:.1f} times fewer"
            if all("correct" in row for row in [*mine, *theirs]):
                note += f"; right {shown(accuracy(mine))} against {shown(accuracy(theirs))}"
            notes.append(note)
    if notes:
        head = f"The verifier score of {than} at a budget of {best:,} is reached by"
        return [head, "\n".join(sorted(notes))]
    return []


def common(one: Sequence[Row], two: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of each whose prompt and seed the other has, too."""
    keys = [{(row["prompt"], row["seed"]) for row in rows} for rows in (one, two)]
    both = keys[0] & keys[1]
    mine, theirs = (
        [row for row in rows if (row["prompt"], row["seed"]) in both] for rows in (one, two)
    )
    return mine, theirs


def draw(curves: dict[str, Curve], figure: Any) -> None:
    """Right pictures and verifier score against cost, on a logarithmic axis: baselines dotted,
    SoTo's searches dashed, ours solid; a method of one budget only is a line across."""
    figure.set_size_inches(8, 9)
    panels = figure.subplots(2, 1, sharex=True)
    for i, (name, curve) in enumerate(curves.items()):
        nudge = 1.012 ** (i - len(curves) / 2)  # so that intervals do not hide each other
        style: dict[str, Any] = {
            "color": f"C{i % 10}",
            "linestyle": ":" if "best-of-n" in name else "--" if "SoTo" in name else "-",
            "linewidth": 2.2 if name in ("together", "default") else 1.2,
            "label": name,
        }
        for axes, column in ((panels[0], 2), (panels[1], 3)):
            points = [(point[1].value * nudge, point[column]) for point in curve if point[column]]
            if not points:
                continue
            if METHODS.get(name) and METHODS[name].only:
                axes.axhline(points[0][1].value, **style | {"linestyle": ":"})
                continue
            costs, shares = zip(*points, strict=True)
            values = [share.value for share in shares]
            below = [share.value - share.low for share in shares]
            above = [share.high - share.value for share in shares]
            marker = "os^"[i // 10 % 3]
            axes.errorbar(
                costs, values, [below, above], marker=marker, markersize=4, elinewidth=0.5, **style
            )
    panels[0].set_ylabel("right pictures, by the judge")
    panels[1].set_ylabel("verifier score")
    panels[1].set_xlabel("cost in full decodes")
    panels[1].set_xscale("log")
    for axes in panels:
        axes.grid(alpha=0.3)
    lines, names = panels[1].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", fontsize="x-small", ncols=3)


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
