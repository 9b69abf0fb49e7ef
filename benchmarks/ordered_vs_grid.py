"""Do ordered tokens make search pay more than grid tokens?

    python -m benchmarks.ordered_vs_grid                                 # a minute on two cores
    python -m benchmarks.ordered_vs_grid --full -o benchmarks/results    # hours; stop and go on

The controlled experiment of "(1D) Ordered Tokens Enable Efficient Test-Time Search" (arXiv
2604.15453) in the sprite world: two tokenizers of as many tokens and codes, for each an
autoregressive prior of one architecture and budget, one verifier and one judge, under best-of-N,
beam and lookahead; and with the frequency prior and with none. All searches have all tokens, one a
step, and rank by the verifier alone. The tokenizers themselves had as many pictures, but are not of
one size: the model card (tfgen/weights/README.md) tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfgen import hub
from tfgen.errors import InputError
from tfgen.hub import read_json
from tfgen.image_io import to_image
from tfgen.spriteeval import Metadata, load
from tfgen.spriteeval.files import take
from tfgen.spriteeval.scoring import Share

from . import harness
from .harness import Parser, Report, Row, Task, current
from .methods import FREQUENCY, LOOKAHEAD, UNIFORM, Settings, Usual, beam, best_of
from .search_cost import common
from .trials import Setup, Trials, accuracy, add_models, average, judge_notes, shown

QUESTION = __doc__.splitlines()[0]
BUDGETS = (64, 256)
FULL_BUDGETS = (64, 256, 1024)
SPLIT = "dev"
RESULTS = Path(__file__).parent / "results"
AR = "autoregressive"
ORDERED, GRID = "ordered", "grid"
SEARCHES: dict[str, Settings] = {"best-of-N": {}, "beam": {}, "lookahead": LOOKAHEAD}
ROLLOUTS: Settings = {"rollout": "sample"}  # of the uniform prior, none is the most probable


class Decoded(Trials):
    """Trials whose pictures are judged as they are decoded: the grid has no larger rendering."""

    @torch.inference_mode()
    def picture(self, tokens: Sequence[int], seed: int) -> Any:
        tokenizer = self.pipeline.tokenizer.for_seed(seed)
        rows = torch.tensor([tokens], dtype=torch.int64, device=tokenizer.device)
        return to_image(tokenizer.decode(rows)[0])


class Both:
    """The work of the harness: each task with the tokens that it is for."""

    def __init__(self, setups: dict[str, Setup]) -> None:
        self.setups = setups
        self.trials = {name: Decoded(setup) for name, setup in setups.items()}

    def __call__(self, item: tuple[Task, Row | None]) -> dict[str, Any]:
        return self.trials[item[0].settings["on"]](item)


def main() -> None:
    parser = Parser(QUESTION, prompts=8, seeds=1, full=(64, 1))
    parser.add_argument(
        "--grid", default="sprites-grid", help="the grid model (default: %(default)s)"
    )
    parser.add_argument("--budgets", nargs="+", type=int, metavar="N", help="decodes")
    add_models(parser)
    args = parser.parse_args()
    budgets = sorted(set(args.budgets or (FULL_BUDGETS if args.full else BUDGETS)))
    setup = Setup.of(args, cache=hub.cache_folder() / "bench")
    usual = hub.search_defaults(setup.model).get("verifier", hub.DEFAULT_VERIFIER)
    verifier = setup.verifier or usual  # of the ordered model, for both
    setups = {ORDERED: setup, GRID: replace(setup, model=args.grid, verifier=verifier)}
    both = Both(setups)
    prompts = take(load(SPLIT), args.prompts)
    both.trials[ORDERED].check(prompts)
    tasks = plan(both, budgets, prompts, args.seeds)
    make = partial(Both, setups) if args.jobs > 1 else lambda: both
    stale = both.trials[ORDERED].stale
    said = partial(report, models={ORDERED: setup.model, GRID: args.grid})
    harness.run("ordered_vs_grid", QUESTION, args, tasks, make, said, stale)


def plan(both: Both, budgets: Sequence[int], prompts: Sequence[Metadata], seeds: int) -> list[Task]:
    """The tasks, small budgets first. Raises InputError on too few decodes, or a prior that one of
    the two lacks."""
    sizes = {on: trials.pipeline.tokenizer.num_tokens for on, trials in both.trials.items()}
    tokens = max(sizes.values())
    if budgets[0] < 4 * tokens:
        raise InputError(f"--budgets must be {4 * tokens} or more, not {budgets[0]}.")
    usual = Usual(tokens, 1.0, 0.0)
    tasks: list[Task] = []
    for on, trials in both.trials.items():
        usual = replace(usual, tokens=sizes[on])
        for prior in (AR, FREQUENCY, UNIFORM):
            strength = {} if prior == UNIFORM else {"prior_strength": 1.0}
            cells = [("direct", 1)] if prior == AR else []
            cells += [(name, budget) for name in SEARCHES for budget in budgets]
            for name, budget in cells:
                shape = beam if name in ("beam", "lookahead") else best_of
                search = shape(budget, usual) | SEARCHES.get(name, {}) | strength
                if name == "lookahead" and prior == UNIFORM:
                    search |= ROLLOUTS
                settings = trials.settings(prior, defaults=False, **search | {"budget": budget})
                about = {"budget": budget, "on": on, "search": name, "prior": prior}
                method = f"{on}, {prior}, {name}"
                settings |= {"on": on}
                tasks += trials.tasks(method, settings, SPLIT, prompts, seeds, **about)
    return sorted(tasks, key=lambda task: (task.more["budget"], task.seed))  # stable


Cell = tuple[str, str, int, str]  # prior, search, budget, tokens


def report(rows: list[Row], models: Mapping[str, str] | None = None) -> Report:
    """A line for each prior, search, budget and kind of tokens, with the gain over direct samples
    of the same tokens. models: the name of each kind's tokenizer, for what bounds its accuracy."""
    groups: dict[Cell, list[Row]] = {}
    for row in current(rows, lambda row: (row["method"], row["budget"])):
        cell = (row["prior"], row["search"], row["budget"], row["on"])
        groups.setdefault(cell, []).append(row)
    judged = all("correct" in row for group in groups.values() for row in group)
    table = []
    for prior, search, budget, on in sorted(groups, key=_place):
        group = groups[prior, search, budget, on]
        direct = groups.get((AR, "direct", 1, on), [])
        gained = gain(group, direct) if judged and search != "direct" else None
        table.append(
            [
                prior,
                search,
                f"{budget:,}",
                on,
                shown(accuracy(group)) if judged else "",
                shown(gained) if gained else "",
                shown(average(group, "verifier_score")),
                f"{average(group, 'cost').value:,.0f}",
                str(len({row["prompt"] for row in group})),
                str(len(group)),
            ]
        )
    columns = ["prior", "search", "budget", "tokens", "right", "gain", "verifier score"]
    columns += ["decodes", "prompts", "pictures"]
    notes = [
        "Right: by the judge, on pictures as decoded, since grid tokens have no larger rendering "
        "(the judge looks at 64 pixels in any case). Gain: in right pictures over one direct "
        "sample of the autoregressive prior on the same tokens, on the prompts that both have, "
        "with Student's 95 % interval over prompts. A prefix of grid tokens shows the finished "
        "top of the picture and grey: that early grid tokens can hardly be scored is the point. "
        "The two tokenizers had as many training pictures, but not the same size: see the model "
        "card.",
        *(judge_notes(rows) if judged else []),
        *(ceilings(models or {}) if judged else []),
        *early(groups),
    ]
    return Report(columns, table, notes, partial(draw, groups) if judged else None)


def _place(cell: Cell) -> tuple[int, int, int, str]:
    prior, search, budget, on = cell
    priors, searches = (AR, FREQUENCY, UNIFORM), ("direct", *SEARCHES)
    return priors.index(prior), searches.index(search), budget, "" if on == ORDERED else on


def gain(group: Sequence[Row], direct: Sequence[Row]) -> Share | None:
    """What a search adds to direct samples, in right pictures: paired by prompt and seed."""
    mine, theirs = common(group, direct)
    if not mine:
        return None
    before = {(row["prompt"], row["seed"]): row["correct"] for row in theirs}
    paired = [
        row | {"gain": float(row["correct"]) - float(before[row["prompt"], row["seed"]])}
        for row in mine
    ]
    return average(paired, "gain")


def ceilings(models: Mapping[str, str]) -> list[str]:
    """How often the judge names what true scenes show once they are encoded and decoded whole,
    from benchmarks/results/prefixes-MODEL.json: a sentence where a kind of tokens has one.

    No strict bound, since a search chooses among many pictures; but where the two differ much,
    right pictures tell the tokenizers apart before they tell of any search.
    """
    said = []
    for on, model in models.items():
        path = RESULTS / f"prefixes-{model}.json"
        if "/" in model or not path.is_file():
            continue
        prefixes = {k: v for k, v in read_json(path)["prefixes"].items() if k != "true"}
        whole = prefixes[max(prefixes, key=int)]
        said.append(
            f"{on} {whole['main']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}], "
            f"PSNR {whole['psnr']:.1f} dB"
        )
    if not said:
        return []
    return [
        "Ceiling, though no strict one, as a search chooses among many pictures: of true held-out "
        "scenes, encoded and decoded with all tokens, the judge names the main object of "
        f"{'; '.join(said)} (benchmarks/prefixes.py). Where the two differ, right pictures compare "
        "the tokenizers before they compare any search; the gain, too, is bounded by it."
    ]


def early(groups: dict[Cell, list[Row]]) -> list[str]:
    """The verifier score of the best prefix of each step of the largest beams, a line each: how
    early tokens say something."""
    largest = max((budget for _, search, budget, _ in groups if search == "beam"), default=0)
    lines = []
    for prior, search, budget, on in sorted(groups, key=_place):
        if (search, budget) == ("beam", largest):
            steps = [row["by_step"] for row in groups[prior, search, budget, on]]
            same = [row for row in steps if len(row) == max(map(len, steps))]
            means = " ".join(f"{value:.2f}" for value in np.mean(same, axis=0))
            lines.append(f"- {prior}, {on}: {means}")
    if not lines:
        return []
    head = f"Verifier score of the best prefix after 1, 2, ... tokens, beam at {largest:,} decodes:"
    return [head, "\n".join(lines)]


def draw(groups: dict[Cell, list[Row]], figure: Any) -> None:
    """Right pictures against decodes, a panel for each prior; ordered solid, grid dashed."""
    figure.set_size_inches(12, 5)
    priors = [name for name in (AR, FREQUENCY, UNIFORM) if any(cell[0] == name for cell in groups)]
    panels = figure.subplots(1, len(priors), sharey=True, squeeze=False)[0]
    for axes, prior in zip(panels, priors, strict=True):
        for i, search in enumerate(("direct", *SEARCHES)):
            for on in (ORDERED, GRID):
                cells = sorted(c for c in groups if (c[0], c[1], c[3]) == (prior, search, on))
                shares = [accuracy(groups[cell]) for cell in cells]
                if not cells:
                    continue
                axes.errorbar(
                    [cell[2] * (1.03 if on == GRID else 0.97) for cell in cells],
                    [share.value for share in shares],
                    [[s.value - s.low for s in shares], [s.high - s.value for s in shares]],
                    color=f"C{i}",
                    linestyle="-" if on == ORDERED else "--",
                    marker="o" if on == ORDERED else "s",
                    markersize=4,
                    elinewidth=0.5,
                    label=f"{search}, {on}",
                )
        axes.set_title(prior, fontsize="medium")
        axes.set_xscale("log")
        axes.set_xlabel("decodes")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("right pictures, by the judge")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", fontsize="x-small", ncols=4)


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
