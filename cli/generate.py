"""tfgen generate: search for the tokens of a picture, and write it."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tfgen.errors import InputError, TfgenError, whole_number

from . import options as o
from .report import prompt_warnings, report, search_bar, summary

if TYPE_CHECKING:
    from tfgen.pipeline import Result

STRIP_COLUMNS = 16
INTERRUPTED = 130


def generate(
    words: o.Prompt,
    output: o.Output = None,
    num_images: o.NumImages = 1,
    steps_image: o.StepsImage = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    model: o.Model = "sprites",
    verifier: o.Verifier = None,
    prior: o.Prior = None,
    guidance: o.Guidance = None,
    device: o.Device = "auto",
    engine: o.Engine = "auto",
    verbatim: o.Verbatim = False,
    search: o.Search = None,
    beam: o.Beam = None,
    candidates: o.Candidates = None,
    samples: o.Samples = None,
    tokens: o.Tokens = None,
    schedule: o.Schedule = None,
    prior_strength: o.PriorStrength = None,
    prior_weight: o.PriorWeight = None,
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
    forecast: o.Forecast = None,
    forecast_in: o.ForecastIn = None,
    neighbours: o.Neighbours = None,
    crossover: o.Crossover = None,
    patience: o.Patience = None,
    refine: o.Refine = None,
    anneal: o.Anneal = None,
    reencode: o.Reencode = None,
    reencode_loss: o.ReencodeLoss = None,
    no_atlas: o.NoAtlas = False,
    budget: o.Budget = None,
    time_limit: o.TimeLimit = None,
    batch_size: o.BatchSize = None,
    cache: o.Cache = None,
    trace: o.TraceFile = None,
    resume: o.Resume = None,
) -> None:
    """Make a picture of PROMPT by token search. `tfgen PROMPT` is short for it.

    What is left out takes the model's own default. Ctrl-C writes the best picture found so far.
    """
    settings = o.settings_of(locals())
    if len(words) > 1:
        raise InputError(f'The prompt is one argument, so put it in quotes: "{" ".join(words)}".')
    prompt = words[0]
    whole_number("--num-images", num_images, 1)
    paths = output_paths(prompt, output, num_images)
    strips = [] if steps_image is None else numbered(steps_image, num_images)
    traces = [] if trace is None else numbered(trace, num_images)
    check_outputs(paths, strips, traces)

    from tfgen.pipeline import Pipeline, check_prompt

    check_prompt(prompt, negative or (), score)
    done: list[tuple[Result, Path]] = []
    with prompt_warnings(quiet) as sentences:
        pipeline = Pipeline.load(
            model,
            verifier=verifier,
            prior=prior,
            guidance=guidance,
            device=device,
            score=score,
            views=views,
            cache=None if str(cache) == "off" else cache,
            engine=engine,
            verbatim=verbatim,
        )
        try:
            for index, path in enumerate(paths):
                with search_bar(quiet) as progress:
                    result = pipeline.generate(
                        prompt,
                        negative=negative or (),
                        seed=seed + index,
                        progress=progress,
                        trace=traces[index] if traces else None,
                        resume=resume,
                        **settings,
                    )
                save(result, path)
                done.append((result, path))
                if not quiet:
                    print(summary(result, path), file=sys.stderr)
                if strips:
                    save_strip(result, strips[index])
                if result.interrupted:
                    break
        except KeyboardInterrupt:
            if not done:
                raise
    if as_json:
        print(json.dumps(report(prompt, pipeline, done, strips, traces, sentences), indent=2))
    interrupted = len(done) < num_images or done[-1][0].interrupted
    if interrupted:
        last, path = done[-1]
        kept = "the best picture so far" if last.interrupted else "the pictures finished so far"
        again = "" if resume is None else f" The same command goes on from {str(resume)!r}."
        print(f"Stopped by Ctrl-C: kept {kept} in {str(path)!r}.{again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def output_paths(prompt: str, output: Path | None, count: int) -> list[Path]:
    """Where the pictures go: `output`, or a file named after the prompt in that folder or here."""
    if output is None or output.is_dir():
        output = (output or Path()) / f"{slug(prompt)}.png"
    elif not output.suffix:
        output = output.with_name(f"{output.name}.png")
    return numbered(output, count)


def numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one picture; name-1.png, name-2.png, ... for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]


def slug(prompt: str, limit: int = 60) -> str:
    """A file name for a prompt: its words joined by hyphens, at most `limit` characters."""
    name = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    if len(name) > limit:
        name = name[: limit + 1].rpartition("-")[0] or name[:limit]
    return name or "picture"


def check_outputs(paths: list[Path], strips: list[Path], traces: list[Path]) -> None:
    """Find out before a search whether all that it makes can be written. Raises InputError."""
    from tfgen.image_io import check_writable
    from tfgen.search.trace import check_trace

    for path in paths + strips:
        check_writable(path)
    for path in traces:
        check_trace(path)
    written = {"--output": paths, "--steps-image": strips, "--trace": traces}
    owners: dict[Path, str] = {}
    for name, files in written.items():
        for path in files:
            if path in owners:
                raise InputError(f"{owners[path]} and {name} are the same file, {str(path)!r}.")
            owners[path] = name


def save(result: Result, path: Path) -> None:
    """Write the picture; if that fails now, write it to the temporary folder and say where."""
    try:
        result.save(path)
    except TfgenError as error:
        with tempfile.NamedTemporaryFile(
            prefix=f"tfgen-{path.stem[:60]}-", suffix=".png", delete=False
        ) as file:
            refuge = file.name
        result.save(refuge)
        raise TfgenError(f"{error} The picture is in {refuge!r} instead.") from error


def save_strip(result: Result, path: Path) -> None:
    from tfgen.image_io import contact_sheet, save_sheet

    labels = [f"k={step.length} score {step.best_score:.2f}" for step in result.steps]
    save_sheet(contact_sheet(result.step_images(), labels, STRIP_COLUMNS), path)
