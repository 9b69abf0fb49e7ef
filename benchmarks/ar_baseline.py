"""Where does training-free search beat a trained autoregressive model, and where does it not?

    python -m benchmarks.ar_baseline                                 # two minutes on two cores
    python -m benchmarks.ar_baseline --full -o benchmarks/results    # hours; stop and go on at will
    python -m benchmarks.ar_baseline --arms "AR sample" nearest --prompts 160 --report

Right pictures, by the judge, against decodes and against the seconds that a user waits. The trained
model is the `autoregressive` prior at its own guidance, prior strength 1 and no filters: its direct
samples, and searched with. "nearest" searches nothing: it decodes the picture of the bank that the
verifier scores best, and is the floor of the retrieval prior, whose bank holds training scenes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from tfgen.errors import unknown
from tfgen.spriteeval import Metadata, load
from tfgen.spriteeval.files import take
from tfgen.spriteeval.scoring import Share

from . import harness
from .harness import Parser, Report, Row, current
from .methods import (
    AS_IS,
    FREQUENCY,
    LOOKAHEAD,
    NEIGHBOURS,
    REENCODING,
    RETRIEVAL,
    UNIFORM,
    Method,
    beam,
    best_of,
    plan,
    weight,
    with_atlas,
    with_crossover,
)
from .trials import (
    DECODES_ARE_COST,
    Setup,
    Trials,
    accuracy,
    add_models,
    average,
    judge_notes,
    shown,
)

QUESTION = __doc__.splitlines()[0]
BUDGETS = (64, 256)
FULL_BUDGETS = (64, 256, 1024)
SPLIT = "dev"
AR = "autoregressive"
NEAREST = "nearest"

ARMS: dict[str, Method] = {
    "AR sample": Method(AR, lambda n, u: best_of(n, u) | AS_IS | {"tokens": None}, only=1),
    "AR + best-of-N": Method(AR, lambda n, u: best_of(n, u) | AS_IS),
    "AR + beam": Method(AR, lambda n, u: beam(n, u) | AS_IS | weight(u)),
    "AR + beam, re-encoding": Method(AR, lambda n, u: beam(n, u) | AS_IS | weight(u) | REENCODING),
    "AR + lookahead": Method(AR, lambda n, u: beam(n, u) | AS_IS | weight(u) | LOOKAHEAD),
    NEAREST: Method(RETRIEVAL, lambda n, u: {}, only=1),
    "beam, uniform": Method(UNIFORM, beam),
    "beam, frequency": Method(FREQUENCY, lambda n, u: beam(n, u) | AS_IS | weight(u)),
    "best-of-N, retrieval": Method(RETRIEVAL, lambda n, u: best_of(n, u) | AS_IS),
    "beam, retrieval": Method(RETRIEVAL, lambda n, u: beam(n, u) | AS_IS | weight(u)),
    "beam, retrieval, neighbours": Method(
        RETRIEVAL, lambda n, u: beam(n, u) | AS_IS | weight(u) | NEIGHBOURS
    ),
    "beam, retrieval, crossover": Method(
        RETRIEVAL, lambda n, u: with_crossover(n, u) | AS_IS | weight(u)
    ),
    "beam, retrieval, re-encoding": Method(
        RETRIEVAL, lambda n, u: beam(n, u) | AS_IS | weight(u) | REENCODING
    ),
    "beam, retrieval, atlas": Method(RETRIEVAL, lambda n, u: with_atlas(n, u) | AS_IS | weight(u)),
}


class Arms(Trials):
    """Trials that know how to search nothing."""

    def search(
        self, metadata: Metadata, seed: int, prior: str | None, search: dict[str, Any]
    ) -> dict[str, Any]:
        if search.get("search") == NEAREST:
            return self.nearest(metadata, seed)
        return super().search(metadata, seed, prior, search)

    @torch.inference_mode()
    def nearest(self, metadata: Metadata, seed: int) -> dict[str, Any]:
        """The picture of the bank that scores best by its stored embedding, decoded."""
        pipeline = self.with_prior(RETRIEVAL)  # loaded before the clock starts, as for a search
        started = time.perf_counter()
        verifier, device = pipeline.verifier, pipeline.tokenizer.device
        target = verifier.prepare(self.reading(metadata["prompt"]))
        score_embeddings = partial(verifier.score_embeddings, target=target)
        tokens = pipeline.prior.nearest(1, score_embeddings)  # [1, num_tokens]
        decoder = pipeline.tokenizer.for_seed(seed)
        score = float(verifier.score(decoder.decode(tokens.to(device)), target)[0])
        found = tokens[0].tolist()
        self.picture(found, seed)  # as a search's final picture, it is waited for
        waited = round(time.perf_counter() - started, 3)
        values = {"score": score, "verifier_score": score, "cost": 1.0, "decodes": 1, "cached": 0}
        values |= {"seconds": waited, "waited": waited, "tokens": found}
        return values | self.judged(found, metadata, seed)


def main() -> None:
    parser = Parser(QUESTION, prompts=16, seeds=1, full=(104, 1))
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="some of the arms")
    parser.add_argument("--budgets", nargs="+", type=int, metavar="N", help="decodes")
    add_models(parser)
    args = parser.parse_args()
    for name in args.arms or ():
        if name not in ARMS:
            raise unknown("arm", name, ARMS)
    budgets = sorted(set(args.budgets or (FULL_BUDGETS if args.full else BUDGETS)))
    trials = Arms(Setup.of(args))  # no cache: seconds are those of a search alone
    prompts = take(load(SPLIT), args.prompts)
    trials.check(prompts)
    tasks = plan(trials, ARMS, args.arms, budgets, SPLIT, prompts, args.seeds, [NEAREST])
    make = trials.maker(args.jobs)
    harness.run("ar_baseline", QUESTION, args, tasks, make, report, trials.stale)


Point = tuple[str, int, Share, Share, Share | None, Share]
"""Arm, budget, what it cost, seconds waited, right, verifier score."""


def report(rows: list[Row]) -> Report:
    """A line for each arm and budget, right pictures over decodes and over seconds, and which
    arms nothing beats for less."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in current(rows, lambda row: (row["method"], row["budget"])):
        groups.setdefault((row["method"], row["budget"]), []).append(row)
    place = {name: i for i, name in enumerate(ARMS)}
    points: list[Point] = []
    table = []
    for name, budget in sorted(groups, key=lambda key: (place.get(key[0], len(place)), *key)):
        group = groups[name, budget]
        cost, seconds, score = (average(group, k) for k in ("cost", "waited", "verifier_score"))
        right = accuracy(group) if all("correct" in row for row in group) else None
        points.append((name, budget, cost, seconds, right, score))
        table.append(
            [
                name,
                f"{budget:,}",
                f"{cost.value:,.0f}",
                f"{seconds.value:.2f}",
                shown(right) if right else "",
                shown(score),
                str(len({row["prompt"] for row in group})),
                str(len(group)),
            ]
        )
    columns = ["arm", "budget", "decodes", "seconds", "right", "verifier score"]
    columns += ["prompts", "pictures"]
    notes = [
        f"Decodes and seconds are means of a picture. {DECODES_ARE_COST} Seconds are what is "
        "waited for with the "
        "models loaded: the prior's work for a prompt, the search, and the final picture, in one "
        "of as many processes beside each other as the last lines tell. AR: the autoregressive "
        "prior, trained on text. Right: by the judge; 95 % intervals.",
    ]
    if any(point[4] for point in points):
        notes += [*wins(points), *judge_notes(rows)]
    return Report(columns, table, notes, partial(draw, points))


def wins(points: Sequence[Point]) -> list[str]:
    """What nothing beats for less, by decodes and by seconds: two sentences."""
    notes = []
    for axis, unit in ((2, "decodes"), (3, "seconds")):
        best, front = -1.0, []
        for point in sorted(points, key=lambda point: (point[axis].value, -_right(point))):
            if _right(point) > best:
                best = _right(point)
                cost = point[axis].value
                said = f"{cost:,.0f}" if axis == 2 else f"{cost:.2f}"
                share = shown(point[4]) if point[4] else ""
                front.append(f"{point[0]} ({said}: {share})")
        notes.append(f"Right more often than all that takes fewer {unit}: {', '.join(front)}.")
    return notes


def _right(point: Point) -> float:
    return point[4].value if point[4] else -1.0


def draw(points: Sequence[Point], figure: Any) -> None:
    """Right pictures against decodes and against seconds; the trained model's arms dashed."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure.set_size_inches(11, 5.5)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(point[0] for point in points))
    for axes, axis in ((panels[0], 2), (panels[1], 3)):
        for i, name in enumerate(names):
            mine = [point for point in points if point[0] == name and point[4]]
            if not mine:
                continue
            nudge = 1.012 ** (i - len(names) / 2)  # so that intervals do not hide each other
            shares = [point[4] for point in mine if point[4]]
            axes.errorbar(
                [max(point[axis].value, 1e-3) * nudge for point in mine],
                [share.value for share in shares],
                [[s.value - s.low for s in shares], [s.high - s.value for s in shares]],
                color=f"C{i % 10}",
                linestyle="--" if name.startswith("AR") else "-",
                marker="o",
                markersize=4,
                elinewidth=0.5,
                label=name,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("right pictures, by the judge")
    panels[0].set_xlabel("cost in full decodes")
    panels[1].set_xlabel("seconds waited")
    lines, labels = panels[0].get_legend_handles_labels()
    if lines:
        figure.legend(lines, labels, loc="outside lower center", fontsize="x-small", ncols=5)


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
