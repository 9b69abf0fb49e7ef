"""tfgen ablate: what each prior, at each strength and weight, makes of a prompt."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfgen.errors import InputError, whole_number

from . import options as o
from .generate import INTERRUPTED, LAST_SEED, check_outputs, output_paths
from .report import prompt_warnings

if TYPE_CHECKING:
    from tfgen.ablation import Ablation, Picture
    from tfgen.spriteeval import Metadata

GRID = "The grid"
DECODES = 256


def ablate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]", help="What the pictures show, in quotes."),
    ] = None,
    prompts: Annotated[
        Path | None,
        o.option(
            GRID,
            "Instead of PROMPT: a file with a prompt a line or, in a .jsonl, GenEval's format.",
            metavar="FILE",
        ),
    ] = None,
    priors: Annotated[
        str | None,
        o.option(
            GRID,
            "Rows: as for --prior of tfgen generate, with commas between them (default: "
            "unigram,frequency,retrieval,autoregressive, those that the model has).",
            metavar="NAMES",
        ),
    ] = None,
    strengths: Annotated[
        str, o.option(GRID, "Columns: λ; 0 is uniform, whatever the prior.", metavar="NUMBERS")
    ] = "0,0.5,1,2",
    weights: Annotated[
        str, o.option(GRID, "w; of several, each prior has a row for each.", metavar="NUMBERS")
    ] = "0",
    seeds: Annotated[
        int, o.option(GRID, "Sheets of each prompt, with seeds SEED, SEED + 1, ...")
    ] = 1,
    budget: Annotated[
        int, o.option(GRID, "Decodes of each search: the same for all, which are made to fit.")
    ] = DECODES,
    output: Annotated[
        Path | None,
        o.option(
            o.OUTPUT,
            "Where the sheet goes, and beside it FILE.json with all numbers; of several sheets "
            "FILE-1.png, FILE-2.png, ... (default: the first prompt as a file name).",
            "--output",
            "-o",
            metavar="FILE.png",
            parser=o.new_file,
        ),
    ] = None,
    size: Annotated[int, o.option(o.OUTPUT, "Of each picture on the sheet, in pixels.")] = 160,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    model: o.Model = "sprites",
    verifier: o.Verifier = None,
    guidance: o.Guidance = None,
    judge: Annotated[
        Path | None,
        o.option(o.MODELS, "Another judge than the packaged one.", metavar="FOLDER"),
    ] = None,
    no_judge: Annotated[bool, o.option(o.MODELS, "Verifier scores only.", "--no-judge")] = False,
    device: o.Device = "auto",
    engine: o.Engine = "auto",
    verbatim: o.Verbatim = False,
    search: o.Search = None,
    beam: o.Beam = None,
    candidates: o.Candidates = None,
    samples: o.Samples = None,
    tokens: o.Tokens = None,
    schedule: o.Schedule = None,
    likelihood: o.Likelihood = False,
    score: o.Score = "contrast",
    views: o.Views = 1,
    negative: o.Negative = None,
    seed: o.Seed = 0,
    lookahead: o.Lookahead = None,
    rollouts: o.Rollouts = None,
    rollout: o.Rollout = None,
    rollout_score: o.RolloutScore = None,
    lookahead_steps: o.LookaheadSteps = None,
    start: o.Start = None,
    branch: o.Branch = None,
    first_step: o.FirstStep = None,
    repeats: o.Repeats = False,
    max_children: o.MaxChildren = None,
    keep: o.Keep = None,
    complete: o.Complete = None,
    shortlist: o.Shortlist = None,
    shortlist_by: o.ShortlistBy = None,
    screen: o.Screen = False,
    refine: o.Refine = None,
    anneal: o.Anneal = None,
    batch_size: o.BatchSize = None,
    cache: o.Cache = None,
) -> None:
    """See what a prior is worth for PROMPT: a sheet of pictures, a row a prior and a column a λ.

    Every search has the same decodes, and no atlas; beam and candidates, left out, suit the budget.
    Under each picture: the verifier's score and, in the sprite world, whether the judge finds in it
    what the prompt asks for. For an answer with intervals: tfgen bench prior_strength. Ctrl-C keeps
    the pictures finished so far.
    """
    settings = o.settings_of(locals())
    grid = (o.parse_numbers("--strengths", strengths), o.parse_numbers("--weights", weights))
    names = None if priors is None else list(dict.fromkeys(priors.split(",")))
    for name in names or ():
        o.check_prior(name)
    whole_number("--seeds", seeds, 1)
    whole_number("--seed", seed, 0, LAST_SEED + 1 - seeds)
    whole_number("--size", size, 16, 1024)

    from tfgen.ablation import Ablation, available, find_judge, fitting, table
    from tfgen.image_io import check_file
    from tfgen.pipeline import Pipeline, check_prompt

    asked = prompts_of(words, prompts)
    for prompt, _ in asked:
        check_prompt(prompt, negative or (), score)
    sheets = output_paths(asked[0][0], output, len(asked) * seeds)
    numbers = output_paths(asked[0][0], output, 1)[0].with_suffix(".json")
    check_outputs(sheets, [], [])
    check_file(numbers)
    if prompts is not None and os.path.realpath(prompts) == os.path.realpath(numbers):
        raise InputError(f"The numbers would replace {str(prompts)!r}: choose another --output.")
    with prompt_warnings(quiet):
        pipeline = Pipeline.load(
            model,
            verifier=verifier,
            prior="uniform",
            device=device,
            score=score,
            views=views,
            cache=None if str(cache) == "off" else cache,
            engine=engine,
            verbatim=verbatim,
        )
        settings = fitting(pipeline, settings)
        if names is None:
            names, sentences = available(pipeline)
            for sentence in [] if quiet else sentences:
                print(f"Warning: {sentence}", file=sys.stderr)
            if not names:
                raise InputError(
                    f"The model {model!r} has none of the usual priors: name some as --priors."
                )
        seer = None if no_judge else find_judge(model, judge)
        ablation = Ablation(pipeline, names, *grid, seer, guidance)
        work = Work(ablation, asked, sheets, numbers, range(seed, seed + seeds), size, judge)
        work.do(quiet, negative=negative or (), **settings)
    print(json.dumps(work.report(), indent=2) if as_json else table(work.pictures))
    if not quiet:
        print(f"Written: {', '.join(map(str, [*work.written, numbers]))}", file=sys.stderr)
    if work.interrupted:
        done = f"{len(work.pictures)} of {work.total} pictures"
        print(f"Stopped by Ctrl-C: kept {done} in {str(numbers)!r}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def prompts_of(words: list[str] | None, path: Path | None) -> list[tuple[str, Metadata | None]]:
    """The prompts, each with what it asks for where a file says so. Raises InputError."""
    from tfgen.ablation import read_prompts

    if bool(words) == (path is not None):
        raise InputError("Give one PROMPT, in quotes, or a file of them as --prompts FILE.")
    if path is not None:
        return read_prompts(path)
    if len(words or ()) > 1:
        raise InputError(
            f'The prompt is one argument, so put it in quotes: "{" ".join(words or ())}".'
        )
    return [(word, None) for word in words or ()]


@dataclass
class Work:
    """The searches of the command, and what they have found so far."""

    ablation: Ablation
    prompts: Sequence[tuple[str, Metadata | None]]
    sheets: Sequence[Path]
    numbers: Path
    seeds: range
    size: int
    judge: Path | None

    pictures: list[Picture] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    interrupted: bool = False

    @property
    def total(self) -> int:
        return len(self.sheets) * len(self.ablation.cells)

    def do(self, quiet: bool, **options: Any) -> None:
        """Each prompt's sheet is written as soon as it is whole; at Ctrl-C, as it is."""
        from tqdm import tqdm

        from tfgen.ablation import write_json
        from tfgen.image_io import save_sheet

        asked = [(p, self.ablation.readable(p, told, self.judge)) for p, told in self.prompts]
        runs = [(*one, seed) for one in asked for seed in self.seeds]
        with tqdm(total=self.total, unit=" pictures", disable=quiet, dynamic_ncols=True) as bar:
            for (prompt, metadata, seed), sheet in zip(runs, self.sheets, strict=True):
                found: list[Picture] = []
                try:
                    for picture in self.ablation.search(prompt, metadata, seed, **options):
                        found.append(picture)
                        bar.update()
                except KeyboardInterrupt:
                    if not self.pictures and not found:
                        raise
                    self.interrupted = True
                self.pictures += found
                if found:
                    save_sheet(self.ablation.sheet(found, self.size), sheet)
                    self.written.append(sheet)
                write_json(self.numbers, self.report())
                if self.interrupted:
                    return

    def report(self) -> dict[str, Any]:
        """The object of --json and of the file."""
        recipe = self.pictures[0].result.recipe
        return {
            **{name: recipe[name] for name in ("tfgen", "model", "verifier", "device", "negative")},
            "settings": {
                name: value
                for name, value in asdict(self.pictures[0].result.settings).items()
                if name not in ("prior_strength", "prior_weight")
            },
            "interrupted": self.interrupted,
            "sheets": [str(path) for path in self.written],
            "pictures": [picture.as_dict() for picture in self.pictures],
        }
