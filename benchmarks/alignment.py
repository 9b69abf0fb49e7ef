"""How often does the picture show what the prompt asks for, task by task?

    python -m benchmarks.alignment --split dev                # SpriteEval, the default search
    python -m benchmarks.alignment --split dev --beam 32 --name "beam 32"    # beside it, another
    python -m benchmarks.alignment --split test --full        # a number to report
    python -m benchmarks.alignment --prompt-file evaluation_metadata.jsonl --no-judge \\
        --model flextok-d18-in1k --pictures out    # then GenEval's evaluate_images.py out

The judge (tfgen/judge.py) looks at the final pictures. `dev` is to tune on; `test` is for reported
numbers only. Every option of a search can be given. The table has all configurations in the file.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tfgen.image_io import save_sheet
from tfgen.spriteeval import EVERYDAY, SPLITS, TASKS, load, read
from tfgen.spriteeval.files import sample_path, take
from tfgen.spriteeval.scoring import Outcome, Share, Summary, summarise

from . import harness
from .harness import Parser, Report, Row, Task, current, row_key
from .options import given, options_from, search_options
from .trials import DECODES_ARE_COST, Setup, Trials, add_models, average, judge_notes, shown

QUESTION = __doc__.splitlines()[0]


def main() -> None:
    parser = Parser(QUESTION, prompts=40, seeds=1)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--split", choices=SPLITS + EVERYDAY, default="dev", help="of SpriteEval")
    source.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="in GenEval's format, a prompt a line"
    )
    parser.add_argument("--name", help="of this configuration in the table (default: its options)")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="write the pictures as GenEval reads them"
    )
    add_models(parser)
    search_options(parser)
    args = parser.parse_args()

    setup = Setup.of(args)
    prompts = take(read(args.prompt_file) if args.prompt_file else load(args.split), args.prompts)
    trials = Trials(setup)
    trials.check(prompts)
    tasks = trials.tasks(
        args.name or label(args),
        trials.settings(args.prior, **given(args)),
        named(args.prompt_file) if args.prompt_file else args.split,
        prompts,
        args.seeds,
    )
    make = trials.maker(args.jobs)
    rows = harness.run("alignment", QUESTION, args, tasks, make, report, trials.stale)
    if args.pictures:
        write_pictures(args.pictures, trials, tasks, rows)


def named(file: Path) -> str:
    """The name of a prompt file, with a hash of what it holds: the prompts of two files of one name
    are two sets."""
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:6]}"


def label(args: Namespace) -> str:
    """What tells a configuration from the default: the options that were given."""
    options = given(args) | {
        name: getattr(args, name)
        for name in ("prior", "guidance")
        if getattr(args, name) is not None
    }
    if args.model != Setup.model:
        options["model"] = Path(args.model).name
    if args.verifier is not None:
        options["verifier"] = Path(args.verifier).name
    for name in ("score", "views", "verbatim"):
        if getattr(args, name) != getattr(Setup, name):
            options[name] = getattr(args, name)
    return " ".join(f"{name}={value}" for name, value in options.items()) or "default"


def report(rows: list[Row]) -> Report:
    """A line for each configuration: accuracy by task, GenEval's overall, scores and cost."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in current(rows, lambda row: (row["split"], row["method"])):
        groups.setdefault((row["split"], row["method"]), []).append(row)
    groups = dict(sorted(groups.items()))
    said = {row["tag"] for group in groups.values() for row in group}
    tags = [tag for tag in TASKS if tag in said] + sorted(said - set(TASKS))
    summaries = {key: summary(group) for key, group in groups.items()}
    table = [
        [method, split, *cells(summaries[split, method], tags), *costs(group)]
        for (split, method), group in groups.items()
    ]
    columns = ["configuration", "prompts", "overall", *tags]
    columns += ["verifier score", "decodes", "seconds", "pictures"]
    judged = {key: found for key, found in summaries.items() if found is not None}
    notes = [f"Decodes and seconds are means of a picture. {DECODES_ARE_COST}"]
    if judged:
        notes += [
            "Shares of right pictures, by the judge, with 95 % intervals (Wilson's, a prompt's "
            "seeds counted as alike as they are); overall is the mean of GenEval's six tasks.",
            *judge_notes(rows),
        ]
    notes += [*read_otherwise(groups), *other_options(groups)]
    return Report(columns, table, notes, partial(draw, judged, tags) if judged else None)


def read_otherwise(groups: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    """For how many prompts a search was for other words than the prompt's own."""
    said = []
    for (split, method), group in groups.items():
        prompts = {row["prompt"] for row in group}
        if read := {row["prompt"] for row in group if "read_as" in row}:
            said.append(f"{method} ({split}) {len(read)} of {len(prompts)}")
    head = "Prompts that were searched for in the verifier's own words: "
    return [f"{head}{', '.join(said)}."] if said else []


def other_options(groups: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    """What makes the other configurations of a split where it has a default: options that are not
    the default's, from the rows' own settings."""
    lines = []
    for (split, method), group in groups.items():
        usual = groups.get((split, "default"))
        options = usual and options_from(usual[0]["settings"], group[0]["settings"])
        if options:
            lines.append(f"- {method} ({split}): `{options}`")
    head = "Settings of the rows that are not those of the default's rows, as options:"
    return [head, "\n".join(lines)] if lines else []


def summary(rows: Sequence[Row]) -> Summary | None:
    """None where no judge has looked."""
    if not all("correct" in row for row in rows):
        return None
    return summarise(
        Outcome(row["tag"], row["prompt"], row["seed"], row["correct"]) for row in rows
    )


def cells(found: Summary | None, tags: Sequence[str]) -> list[str]:
    shares = [None] * (1 + len(tags))
    if found:
        shares = [found.overall, *(found.tasks.get(tag) for tag in tags)]
    return [shown(value) if value else "" for value in shares]


def costs(rows: Sequence[Row]) -> list[str]:
    """Verifier score, decodes, seconds, and the number of pictures."""
    decodes, seconds = (average(rows, name).value for name in ("cost", "seconds"))
    return [
        shown(average(rows, "verifier_score")),
        f"{decodes:,.0f}",
        f"{seconds:.1f}",
        str(len(rows)),
    ]


def draw(judged: dict[tuple[str, str], Summary], tags: Sequence[str], figure: Any) -> None:
    """Bars by task, one for each configuration, with intervals."""
    axes = figure.subplots()
    shown_tags = [*tags, "overall"]
    width = 0.8 / len(judged)
    for i, ((split, method), found) in enumerate(judged.items()):
        shares = {**found.tasks, "overall": found.overall}
        for j, tag in enumerate(shown_tags):
            value: Share | None = shares.get(tag)
            if value is None:
                continue
            axes.bar(
                j + (i - (len(judged) - 1) / 2) * width,
                value.value,
                width,
                yerr=[[value.value - value.low], [value.high - value.value]],
                color=f"C{i}",
                label=f"{method} ({split})" if j == 0 else None,
                error_kw={"linewidth": 1},
            )
    axes.set_xticks(range(len(shown_tags)), [tag.replace("_", "\n") for tag in shown_tags])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("right pictures, by the judge")
    axes.set_xlim(-0.6, len(shown_tags) - 0.4)
    figure.legend(loc="outside upper center", fontsize="small", ncols=2)
    axes.grid(axis="y", alpha=0.3)


def write_pictures(folder: Path, trials: Trials, tasks: Sequence[Task], rows: list[Row]) -> None:
    """The tasks' pictures, made again from their rows' tokens, in GenEval's layout."""
    found = {row_key(row): row for row in rows}
    order: dict[str, int] = {}
    for task in tasks:
        index = order.setdefault(task.prompt, len(order))
        path = sample_path(folder, index, task.more["metadata"], task.seed)
        if not path.exists() and task.key in found:
            save_sheet(trials.picture(found[task.key]["tokens"], task.seed), path)


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
