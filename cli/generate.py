"""tfgen generate: search for the tokens of a picture, and write it."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tfgen.errors import InputError, TfgenError, whole_number

from . import options as o
from .given import check_given
from .report import prompt_warnings, report, search_bar, summary

if TYPE_CHECKING:
    from tfgen.pipeline import Result

STRIP_COLUMNS = 16
INTERRUPTED = 130
LAST_SEED = 2**63 - 1


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
    whole_number("--seed", seed, 0, LAST_SEED + 1 - num_images)
    o.check_prior(prior)
    paths = output_paths(prompt, output, num_images)
    strips = [] if steps_image is None else numbered(steps_image, num_images)
    traces = [] if trace is None else numbered(trace, num_images)
    check_outputs(paths, strips, traces)

    from tfgen.interrupts import ctrl_c_once
    from tfgen.pipeline import Pipeline, check_prompt

    check_prompt(prompt, negative or (), score)
    done: list[tuple[Result, Path]] = []
    steps_paths: list[Path] = []
    failures: list[TfgenError] = []
    stopped = False
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
        check_given(settings, pipeline.settings(**settings))
        try:
            for index, path in enumerate(paths):
                with ctrl_c_once() as ctrl_c:
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
                    path = save(result, path, failures)
                    done.append((result, path))
                    if not quiet:
                        print(summary(result, path), file=sys.stderr)
                    if strips and save_strip(result, strips[index], failures):
                        steps_paths.append(strips[index])
                if result.interrupted or ctrl_c.pressed:
                    stopped = True
                    break
        except KeyboardInterrupt:
            if not done:
                raise
            stopped = True
        except TfgenError as error:
            if not done:
                raise
            tell(error, failures)
    if as_json:
        print(json.dumps(report(prompt, pipeline, done, steps_paths, traces, sentences), indent=2))
    if stopped:
        last, path = done[-1]
        kept = "the best picture so far" if last.interrupted else "the pictures finished so far"
        again = "" if resume is None else f" The same command goes on from {str(resume)!r}."
        print(f"Stopped by Ctrl-C: kept {kept} in {str(path)!r}.{again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if failures:
        raise typer.Exit(failures[-1].exit_code)


def tell(error: TfgenError, failures: list[TfgenError]) -> None:
    """Say and note an error that does not take with it what was found before."""
    failures.append(error)
    print(f"Error: {error}", file=sys.stderr)


def output_paths(prompt: str, output: Path | None, count: int) -> list[Path]:
    """Where the pictures go: `output`, or a file named after the prompt in that folder or here."""
    if output is None or os.path.isdir(output):
        output = (output or Path()) / f"{slug(prompt)}.png"
    elif not output.suffix:
        output = output.with_name(f"{output.name}.png")
    return numbered(output, count)


def numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one picture; name-1.png, name-2.png, ... for several. Raises InputError
    where there is no name to be numbered."""
    if count == 1:
        return [path]
    if path.name in ("", ".."):
        raise InputError(f"Cannot write {str(path)!r}: it is a folder: give the name of a file.")
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
    owners: dict[str, str] = {}
    for name, files in written.items():
        for path in files:
            place = os.path.realpath(path)  # one file has many paths
            if place in owners:
                raise InputError(f"{owners[place]} and {name} are the same file, {str(path)!r}.")
            owners[place] = name


def save(result: Result, path: Path, failures: list[TfgenError]) -> Path:
    """Write the picture; if that fails now, write it to the temporary folder and say so. Returns
    where it is; raises TfgenError where it is nowhere."""
    try:
        return result.save(path)
    except TfgenError as caught:
        error = caught
    refuge = None
    try:
        with tempfile.NamedTemporaryFile(
            prefix=f"tfgen-{path.stem[:40]}-", suffix=".png", delete=False
        ) as file:
            refuge = Path(file.name)
        result.save(refuge)
    except (OSError, TfgenError) as other:
        if refuge is not None:
            refuge.unlink(missing_ok=True)
        raise TfgenError(
            f"{error} Nor could it be written to the temporary folder: make room, and search again."
        ) from other
    tell(TfgenError(f"{error} The picture is in {str(refuge)!r} instead."), failures)
    return refuge


def save_strip(result: Result, path: Path, failures: list[TfgenError]) -> bool:
    """Whether the strip could be written; what comes after it does not depend on it."""
    from tfgen.image_io import contact_sheet, save_sheet

    labels = [f"k={step.length} score {step.best_score:.2f}" for step in result.steps]
    try:
        save_sheet(contact_sheet(result.step_images(), labels, STRIP_COLUMNS), path)
    except TfgenError as error:
        tell(error, failures)
        return False
    return True
