"""Where does a verifier's score go on rising while the judge no longer follows?

    python -m benchmarks.verifiers                                 # six minutes on two cores
    python -m benchmarks.verifiers --full -o benchmarks/results    # hours; stop and go on at will
    python -m benchmarks.verifiers --verifiers sprites-clip:cosine ~/my-clip:contrast:5

Reward hacking made visible. Each verifier is searched with at growing decodes, by the plain beam of
methods.py and the uniform prior, so that nothing but the verifier says what a picture should look
like; what is found is measured by its own score, by the judge, and by every other verifier. A
verifier is NAME[:SCORE[:VIEWS]]: a name or folder, how it scores, and how often it looks at a
picture. A verifier that is added measures the pictures that are there already, without a search.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tfgen import hub
from tfgen.decoding.engine import ENGINES
from tfgen.decoding.threads import one_thread
from tfgen.errors import InputError, whole_number
from tfgen.judge import Seen, verdict
from tfgen.pipeline import SCORES, find_device
from tfgen.spriteeval import Metadata, load
from tfgen.spriteeval.files import take
from tfgen.spriteeval.scoring import Share
from tfgen.verifiers import Verifier
from tfgen.verifiers.views import VIEWS, Views

from . import harness
from .hacking import UNJUDGED, Groups, hacking
from .harness import Parser, Report, Row, Task, current
from .methods import UNIFORM, Usual, beam
from .trials import Setup, Trials, accuracy, average, judge_notes, shown

QUESTION = __doc__.splitlines()[0]
BUDGETS = (64, 256, 1024)
FULL_BUDGETS = (64, 256, 1024, 4096)
SPLIT = "dev"
FORM = re.compile(rf"(?P<name>.+?)(:(?P<score>{'|'.join(SCORES)})(:(?P<views>\d+))?)?")


class Spec(NamedTuple):
    """A verifier: a name or folder, how it scores, and how often it looks at a picture."""

    name: str
    score: str = Setup.score
    views: int = 1

    @classmethod
    def of(cls, text: str) -> Spec:
        """From NAME[:SCORE[:VIEWS]]. Raises InputError where it is none, or has too many views."""
        found = FORM.fullmatch(text)
        name = found["name"] if found else ""
        colon = ":" in name and not (name.startswith("hf-hub:") or Path(name).is_dir())
        if not found or colon:
            raise InputError(
                f"{text!r} names no verifier: write NAME, NAME:SCORE or NAME:SCORE:VIEWS, with the "
                f"score {' or '.join(SCORES)}."
            )
        views = whole_number(f"The views of {text!r}", int(found["views"] or 1), 1, len(VIEWS))
        return cls(name, found["score"] or Setup.score, views)

    def __str__(self) -> str:
        return f"{self.name}:{self.score}" + (f":{self.views}" if self.views > 1 else "")


class Looked(Trials):
    """Trials whose judge also tells how sure it is of what was asked for."""

    def judged(self, tokens: Sequence[int], metadata: Metadata, seed: int) -> dict[str, Any]:
        if self.judge is None:
            return {}
        pixels = torch.tensor(np.asarray(self.picture(tokens, seed).convert("RGB")))  # [H, W, 3]
        seen = self.judge.look(pixels.permute(2, 0, 1)[None].float() / 255)[0]
        said = verdict(seen, metadata)
        return {
            "correct": said.correct,
            "reason": said.reason,
            "confidence": round(confidence(seen, metadata), 4),
            "judge": self.judge_print,
        }


def confidence(seen: Seen, metadata: Metadata) -> float:
    """The judge's mean confidence, in [0, 1], over all that a prompt asks for: each object, the
    most confident of its name first, and the background; 0 for what is not seen at all."""
    wanted: Counter[str] = Counter()
    for entry in metadata["include"]:
        wanted[entry["class"]] += entry["count"]
    sure: list[float] = []
    for name, count in wanted.items():
        found = sorted((d.confidence for d in seen.objects if d.object == name), reverse=True)
        sure += (found + [0.0] * count)[:count]
    if background := metadata.get("background"):
        sure.append(seen.background_confidence if seen.background == background else 0.0)
    return float(np.mean(sure))


class Panel:
    """The work of the harness: search with the verifier of a task, measure with all the others."""

    def __init__(self, setup: Setup, searched: Sequence[Spec], measured: Sequence[Spec]) -> None:
        """searched: those of the tasks; measured: those that only measure."""
        self.trials = {
            str(spec): Looked(
                replace(setup, verifier=spec.name, score=spec.score, views=spec.views)
            )
            for spec in searched
        }
        self.verifiers: dict[str, Verifier] = {
            name: trials.pipeline.verifier for name, trials in self.trials.items()
        }
        for spec in measured:
            if str(spec) not in self.verifiers:
                self.verifiers[str(spec)] = load_verifier(spec, setup.device)
        self.networks = {name: network(verifier) for name, verifier in self.verifiers.items()}

    def __call__(self, item: tuple[Task, Row | None]) -> dict[str, Any]:
        task, row = item
        trials = self.trials[task.method]
        if row is None or trials.stale(row):
            values = trials(item)
        else:
            values = {k: v for k, v in row.items() if k not in task.row({})}
        return values | {"others": self.measure(task, values)}

    @torch.inference_mode()
    def measure(self, task: Task, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What the other verifiers give a task's picture, as a search sees it: those that are known
        already, and the lacking ones, of the picture made again from its tokens."""
        known = values.get("others", {})
        lacking = self.lacking(task.method, known)
        if not lacking:
            return known
        tokenizer = self.trials[task.method].pipeline.tokenizer.for_seed(task.seed)
        tokens = torch.tensor([values["tokens"]], dtype=torch.int64, device=tokenizer.device)
        found = {}
        with one_thread():  # what it rounds does not depend on --jobs
            image = tokenizer.decode(tokens)
            for name in lacking:
                verifier = self.verifiers[name]
                score = float(verifier.score(image, verifier.prepare(task.prompt))[0])
                found[name] = {"score": score, "network": self.networks[name]}
        return known | found

    def lacking(self, method: str, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The other verifiers that have not measured yet, or did with other weights."""
        return [
            name
            for name, weights in self.networks.items()
            if name != method and known.get(name, {}).get("network") != weights
        ]

    def stale(self, row: Row) -> bool:
        """Whether a row's picture is to be judged, or measured, anew."""
        method = row["method"]
        return self.trials[method].stale(row) or bool(self.lacking(method, row["others"]))


def load_verifier(spec: Spec, device: str) -> Verifier:
    """As the pipeline loads it."""
    verifier = hub.load_verifier(spec.name, find_device(device), spec.score)
    return verifier if spec.views == 1 else Views(verifier, spec.views)


def network(verifier: Verifier) -> str:
    """The fingerprint of what looks, however often it does, and however that is scored."""
    return (verifier.verifier if isinstance(verifier, Views) else verifier).fingerprint()


def main() -> None:
    parser = Parser(QUESTION, prompts=48, seeds=1, full=(104, 1))
    add = parser.add_argument
    form = "NAME[:SCORE[:VIEWS]]"
    add("--verifiers", nargs="+", metavar=form,
        help="that are searched with (default: the model's own, by contrast, by cosine, and by "
        f"contrast over {len(VIEWS)} views)")  # fmt: skip
    add("--measure", nargs="+", metavar=form, default=[], help="that only measure what is found")
    add("--budgets", nargs="+", type=int, metavar="N", help="decodes")
    add_models(parser)
    args = parser.parse_args()
    budgets = sorted(set(args.budgets or (FULL_BUDGETS if args.full else BUDGETS)))
    searched = specs(args.verifiers or usual(args.model))
    measured = specs(args.measure)

    setup = Setup.of(args, cache=hub.cache_folder() / "bench")
    panel = Panel(setup, searched, measured)
    prompts = take(load(SPLIT), args.prompts)
    panel.trials[str(searched[0])].check(prompts)
    tasks = plan(panel, budgets, prompts, args.seeds)
    make = partial(Panel, setup, searched, measured) if args.jobs > 1 else lambda: panel
    harness.run("verifiers", QUESTION, args, tasks, make, report, panel.stale)


def add_models(parser: Parser) -> None:
    """The options that say which models: those of the other benchmarks, without one verifier."""
    add = parser.add_argument
    add("--model", default=hub.DEFAULT_MODEL, help="the tokenizer: a name or a folder")
    add("--judge", default="", metavar="FOLDER", help="another judge than the packaged one")
    add("--no-judge", action="store_true", help="verifier scores only")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--engine", choices=ENGINES, default="auto", help="what decodes (default: auto)")
    parser.set_defaults(verifier=None, score=Setup.score, guidance=None, views=1, verbatim=False)


def specs(texts: Iterable[str]) -> list[Spec]:
    """Each verifier once."""
    return list(dict.fromkeys(map(Spec.of, texts)))


def usual(model: str) -> list[str]:
    """The model's own verifier, in three ways."""
    name = hub.search_defaults(model).get("verifier", hub.DEFAULT_VERIFIER)
    return [f"{name}:contrast", f"{name}:cosine", f"{name}:contrast:{len(VIEWS)}"]


def plan(
    panel: Panel, budgets: Sequence[int], prompts: Sequence[Metadata], seeds: int
) -> list[Task]:
    """The tasks: small budgets first, prompt by prompt, so that a run that is stopped has all
    verifiers with as many prompts each. Raises InputError on too few decodes."""
    tasks: list[Task] = []
    for name, trials in panel.trials.items():
        tokens = Usual.of(trials.pipeline).tokens
        if budgets[0] < 4 * tokens:
            raise InputError(
                f"--budgets must be {4 * tokens} or more, with {tokens} tokens, not {budgets[0]}."
            )
        for budget in budgets:
            search = beam(budget, Usual(tokens, 0.0, 0.0)) | {"budget": budget}
            settings = trials.settings(UNIFORM, defaults=False, **search)
            about = {"budget": budget, "network": panel.networks[name]}
            tasks += trials.tasks(name, settings, SPLIT, prompts, seeds, **about)
    order = {metadata["prompt"]: i for i, metadata in enumerate(prompts)}
    return sorted(tasks, key=lambda t: (t.more["budget"], t.seed, order[t.prompt]))  # stable


def report(rows: list[Row]) -> Report:
    """A line for each verifier and budget, with what all others say of the same pictures; the
    figure has a column for each verifier; the notes tell where hacking shows."""
    networks = latest(rows)
    groups: Groups = {}
    for row in newest(rows):
        groups.setdefault(row["method"], {}).setdefault(row["budget"], []).append(row)
    groups = {name: dict(sorted(groups[name].items())) for name in sorted(groups)}
    every = [group for budgets in groups.values() for group in budgets.values()]
    judged = all("correct" in row for group in every for row in group)
    names = sorted(networks)
    table = []
    for method, budgets in groups.items():
        for budget, group in budgets.items():
            others = [
                "own" if name == method else digits(score(group, name, networks)) for name in names
            ]
            table.append(
                [
                    method,
                    f"{budget:,}",
                    f"{average(group, 'cost').value:,.0f}",
                    digits(average(group, "verifier_score")),
                    shown(accuracy(group)) if judged else "",
                    shown(sureness(group)) if judged else "",
                    *others,
                    str(len({row["prompt"] for row in group})),
                    str(len(group)),
                ]
            )
    columns = ["searched with", "budget", "decodes", "own score", "right", "confidence"]
    columns += [*(f"by {name}" for name in names), "prompts", "pictures"]
    notes = [
        "Plain beam, uniform prior, no atlas: what the verifier alone asks for. Decodes are a mean "
        "of a picture. Verifiers score the picture as it is decoded in a search; the judge looks "
        "at the final one. Right: by the judge. Confidence: the judge's, a mean over the objects "
        "and the background that the prompt asks for, 0 for what it does not see. 95 % intervals: "
        "Wilson's, a prompt's seeds counted as alike as they are, and for all else Student's over "
        "prompts, most of whose width is that prompts differ. In the figure each score is less "
        "its mean over the pictures of its column, in their standard deviations.",
        *kinship(networks, judged),
        *(hacking(groups) if judged else [UNJUDGED]),
        *(judge_notes(rows) if judged else []),
    ]
    return Report(columns, table, notes, partial(draw, groups, networks, judged))


def newest(rows: Iterable[Row]) -> list[Row]:
    """The current rows; of each verifier those with its latest models only, as budgets of one
    network are not to be compared with those of another."""
    rows = current(rows, lambda row: (row["method"], row["budget"]))
    models = {row["method"]: row["settings"]["models"] for row in rows}
    return [row for row in rows if row["settings"]["models"] == models[row["method"]]]


def latest(rows: Iterable[Row]) -> dict[str, str]:
    """The network of each verifier, as the last row that names it has it."""
    found: dict[str, str] = {}
    for row in rows:
        found[row["method"]] = row["network"]
        found |= {name: other["network"] for name, other in row["others"].items()}
    return found


def scored(group: Sequence[Row], name: str, networks: Mapping[str, str]) -> list[Row] | None:
    """The rows with what verifier `name` gives their pictures as "by"; None where one of them lacks
    that, or has it of older weights."""
    found = []
    for row in group:
        own = {"score": row["verifier_score"], "network": row["network"]}
        other = own if name == row["method"] else row["others"].get(name, {})
        if other.get("network") != networks[name]:
            return None
        found.append(row | {"by": other["score"]})
    return found


def score(group: Sequence[Row], name: str, networks: Mapping[str, str]) -> Share | None:
    """The mean of what verifier `name` gives a group's pictures, where it has measured all."""
    found = scored(group, name, networks)
    return average(found, "by") if found else None


def sureness(group: Sequence[Row]) -> Share:
    """The judge's mean confidence; its interval ends where confidences do."""
    value = average(group, "confidence")
    return replace(value, low=max(value.low, 0.0), high=min(value.high, 1.0))


def digits(value: Share | None) -> str:
    """A mean with its interval, to three digits after the point: a cosine varies in the third."""
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" if value else ""


def kinship(networks: Mapping[str, str], judged: bool) -> list[str]:
    """Who are independent witnesses of each other, and who are not: a paragraph."""
    alike: dict[str, list[str]] = {}
    for name in sorted(networks):
        alike.setdefault(networks[name], []).append(name)
    said = [
        f"{', '.join(names)} share one network: they are not independent of each other, and what "
        "fools one may fool all."
        for names in alike.values()
        if len(names) > 1
    ]
    if judged:
        said.append("The judge is independent: a network of its own, which no search maximises.")
    return [" ".join(said)] if said else []


def draw(groups: Groups, networks: Mapping[str, str], judged: bool, figure: Any) -> None:
    """A column for each verifier: above, what all verifiers say of its pictures, its own score
    bold; below, what the judge says of the same."""
    figure.set_size_inches(1 + 3.6 * max(len(groups), 2), 8 if judged else 5)
    height = 2 if judged else 1
    panels = figure.subplots(height, len(groups), sharex=True, sharey="row", squeeze=False)
    names = sorted(networks)
    every = sorted({budget for budgets in groups.values() for budget in budgets})
    for (method, budgets), above, below in zip(groups.items(), panels[0], panels[-1], strict=True):
        for i, name in enumerate(names):
            parts = [scored(group, name, networks) for group in budgets.values()]
            if all(parts):
                nudge = 1.03 ** (i - (len(names) - 1) / 2)  # so that intervals do not hide others
                shares = standardised([part for part in parts if part])
                own = {"linestyle": "-", "linewidth": 2.4} if name == method else {}
                style = {"color": f"C{i}", "linestyle": "--", "linewidth": 1} | own
                curve(above, [budget * nudge for budget in budgets], shares, **style)
        if judged:
            right, sure = (list(map(of, budgets.values())) for of in (accuracy, sureness))
            curve(below, list(budgets), right, color="k", linewidth=2.4)
            curve(below, [budget * 1.03 for budget in budgets], sure, color="0.5", linestyle=":")
            below.set_ylim(-0.03, 1.03)
        above.set_title(f"searched with {method}", fontsize="small")
        below.set_xlabel("decodes")
        below.set_xscale("log")
        below.set_xticks(every, [f"{budget:,}" for budget in every])
        below.set_xticks([], minor=True)
    panels[0][0].set_ylabel("scores, standardised (bold: its own)")
    lines = [panels[0][0].plot([], [], color=f"C{i}", label=n)[0] for i, n in enumerate(names)]
    if judged:
        below = panels[1][0]
        below.set_ylabel("by the judge")
        lines += below.plot([], [], color="k", linewidth=2.4, label="right pictures")
        lines += below.plot([], [], color="0.5", linestyle=":", label="confidence")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    figure.legend(handles=lines, loc="outside lower center", fontsize="small", ncols=3)


def standardised(parts: Sequence[Sequence[Row]]) -> list[Share]:
    """The mean "by" of each part, less the mean over all parts, in standard deviations."""
    values = [row["by"] for part in parts for row in part]
    mean, spread = float(np.mean(values)), float(np.std(values)) or 1.0
    return [
        average([row | {"by": (row["by"] - mean) / spread} for row in part], "by") for part in parts
    ]


def curve(axes: Any, costs: Sequence[float], shares: Sequence[Share], **style: Any) -> None:
    """Values with their intervals."""
    axes.errorbar(
        costs,
        [share.value for share in shares],
        [[s.value - s.low for s in shares], [s.high - s.value for s in shares]],
        marker="o",
        markersize=4,
        elinewidth=0.7,
        **style,
    )


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
