"""tfgen generate: search for the tokens of a picture, and write it."""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tfgen
from tfgen.errors import InputError, TfgenError, whole_number

if TYPE_CHECKING:
    from tfgen.pipeline import Pipeline, Result
    from tfgen.search import Progress

STRIP_COLUMNS = 16
INTERRUPTED = 130
OUTPUT, MODELS, SEARCH = "Output", "Models", "Search"


def option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


def generate(
    words: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="What the picture shows, in quotes.")
    ],
    output: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Where to write the picture (default: the prompt as a file name).",
            "--output",
            "-o",
            metavar="FILE.png",
        ),
    ] = None,
    num_images: Annotated[
        int,
        option(
            OUTPUT,
            "Pictures: as many searches, with seeds SEED, SEED + 1, ..., "
            "written as FILE-1.png, FILE-2.png, ...",
        ),
    ] = 1,
    steps_image: Annotated[
        Path | None,
        option(
            OUTPUT, "Also write the best picture after each step, side by side.", metavar="FILE.png"
        ),
    ] = None,
    as_json: Annotated[
        bool, option(OUTPUT, "Print one JSON object on stdout, and only that.", "--json")
    ] = False,
    quiet: Annotated[bool, option(OUTPUT, "Print only errors.", "--quiet", "-q")] = False,
    model: Annotated[
        str, option(MODELS, "The tokenizer: a name (see: tfgen models) or a folder.")
    ] = "sprites",
    verifier: Annotated[
        str | None,
        option(
            MODELS,
            "The verifier: a name, a folder, or an open_clip name like ViT-B-32/laion2b_s34b_b79k "
            "(default: the model's).",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        option(
            MODELS,
            "What proposes tokens: uniform, frequency or autoregressive (default: the model's).",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        option(MODELS, "How closely an autoregressive prior follows the prompt: 1 is as trained."),
    ] = None,
    device: Annotated[
        str,
        option(
            MODELS, "Where to compute; auto is CUDA where there is one.", metavar="auto|cpu|cuda"
        ),
    ] = "auto",
    beam: Annotated[
        int | None, option(SEARCH, "Beam width: prefixes kept after each step.")
    ] = None,
    candidates: Annotated[int | None, option(SEARCH, "Candidates per beam and step.")] = None,
    tokens: Annotated[int | None, option(SEARCH, "Tokens of the longest prefix.")] = None,
    schedule: Annotated[
        str | None,
        option(
            SEARCH,
            "Prefix length after each step: one, geometric, linear:STEP, or a list as 1,2,4,8.",
        ),
    ] = None,
    prior_strength: Annotated[
        float | None,
        option(SEARCH, "λ: proposals are drawn from prior^λ; 0 is uniform, 1 is the prior."),
    ] = None,
    prior_weight: Annotated[
        float | None,
        option(SEARCH, "w: rank by verifier score + w x typicality under the prior."),
    ] = None,
    likelihood: Annotated[
        bool,
        option(
            SEARCH,
            "With --prior-weight: the mean log p itself in place of typicality.",
            "--likelihood",
        ),
    ] = False,
    score: Annotated[
        str,
        option(
            SEARCH,
            "Rank against contrast captions (one-word swaps of the prompt), or by the bare cosine.",
            metavar="contrast|cosine",
        ),
    ] = "contrast",
    negative: Annotated[
        list[str] | None,
        option(SEARCH, "A caption the picture must not fit; may be repeated.", metavar="TEXT"),
    ] = None,
    budget: Annotated[int | None, option(SEARCH, "At most so many decodes.")] = None,
    batch_size: Annotated[
        int | None,
        option(SEARCH, "Pictures a batch (default: what suits the device); changes no result."),
    ] = None,
    seed: Annotated[int, option(SEARCH, "Same seed, same picture.")] = 0,
) -> None:
    """Make a picture of PROMPT by token search. `tfgen PROMPT` is short for it.

    What is left out takes the model's own default. Ctrl-C writes the best picture found so far.
    """
    if len(words) > 1:
        raise InputError(f'The prompt is one argument, so put it in quotes: "{" ".join(words)}".')
    prompt = words[0]
    whole_number("--num-images", num_images, 1)
    paths = output_paths(prompt, output, num_images)
    strips = [] if steps_image is None else numbered(steps_image, num_images)
    from tfgen.image_io import check_writable

    for path in paths + strips:
        check_writable(path)
    if repeated := set(paths) & set(strips):
        raise InputError(f"--output and --steps-image are the same file, {str(repeated.pop())!r}.")

    from tfgen.pipeline import Pipeline, check_prompt

    check_prompt(prompt, negative or (), score)
    done: list[tuple[Result, Path]] = []
    with prompt_warnings(quiet) as sentences:
        pipeline = Pipeline.load(
            model, verifier=verifier, prior=prior, guidance=guidance, device=device, score=score
        )
        search = {
            "beam": beam,
            "candidates": candidates,
            "tokens": tokens,
            "schedule": schedule,
            "prior_strength": prior_strength,
            "prior_weight": prior_weight,
            "typicality": False if likelihood else None,
            "budget": budget,
            "batch_size": batch_size,
        }
        settings = pipeline.settings(**search)
        try:
            for index, path in enumerate(paths):
                with search_bar(settings, quiet) as progress:
                    result = pipeline.generate(
                        prompt,
                        negative=negative or (),
                        seed=seed + index,
                        progress=progress,
                        **search,
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
        print(json.dumps(report(prompt, pipeline, done, strips, sentences), indent=2))
    interrupted = len(done) < num_images or done[-1][0].interrupted
    if interrupted:
        last, path = done[-1]
        kept = "the best picture so far" if last.interrupted else "the pictures finished so far"
        print(f"Stopped by Ctrl-C: kept {kept} in {str(path)!r}.", file=sys.stderr)
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


@contextmanager
def prompt_warnings(quiet: bool) -> Iterator[list[str]]:
    """Say on stderr, unless quiet, what the verifier warns of; yields the sentences."""
    from tfgen.pipeline import PromptWarning

    sentences: list[str] = []
    show_others = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any) -> None:
        if not issubclass(category, PromptWarning):
            show_others(message, category, *where)
            return
        sentences.append(str(message))
        if not quiet:
            print(f"Warning: {message}", file=sys.stderr)

    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        warnings.simplefilter("always", PromptWarning)
        warnings.showwarning = show
        try:
            yield sentences
        finally:
            logging.disable(disabled)


@contextmanager
def search_bar(settings: Any, quiet: bool) -> Iterator[Any]:
    """A bar on stderr with step, decodes and best score, fed through the callable it yields."""
    from tqdm import tqdm

    bar: tqdm | None = None  # not before there is progress: a setting may still be refused

    def show(progress: Progress) -> None:
        nonlocal bar
        most = settings.beam * settings.candidates * progress.steps
        total = max(progress.decodes, min(most, settings.budget or most))
        if bar is None:
            bar = tqdm(total=total, unit=" decodes", disable=quiet, dynamic_ncols=True, delay=1e-9)
        bar.set_description(f"step {progress.step}/{progress.steps}", refresh=False)
        bar.set_postfix_str(f"best score {progress.best_score:.3f}", refresh=False)
        bar.update(progress.decodes - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.total = bar.n  # candidates that came up before cost no decode
            bar.close()


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


def summary(result: Result, path: Path) -> str:
    rate = result.decodes / result.seconds if result.seconds else 0.0
    return (
        f"{path}  score {result.score:.3f}  {result.decodes:,} decodes in {result.seconds:.1f} s "
        f"({rate:,.0f} decodes/s)"
    )


def report(
    prompt: str,
    pipeline: Pipeline,
    done: list[tuple[Result, Path]],
    strips: list[Path],
    sentences: list[str],
) -> dict[str, Any]:
    """The object of --json. At the top: the best picture; decodes and seconds of all together."""
    best, _ = max(done, key=lambda item: item[0].score)
    return {
        "tfgen": tfgen.__version__,
        "prompt": prompt,
        "negative": best.recipe["negative"],
        "model": best.recipe["model"],
        "verifier": best.recipe["verifier"],
        "prior": best.recipe["prior"],
        "device": str(pipeline.tokenizer.device),
        "settings": asdict(best.settings),
        "seed": best.recipe["seed"],
        "tokens": best.tokens,
        "score": best.score,
        "verifier_score": best.verifier_score,
        "decodes": sum(result.decodes for result, _ in done),
        "seconds": sum(result.seconds for result, _ in done),
        "interrupted": any(result.interrupted for result, _ in done),
        "warnings": sentences,
        "paths": [str(path) for _, path in done],
        "steps_paths": [str(path) for path in strips[: len(done)]],
        "images": [
            {
                "path": str(path),
                "seed": result.recipe["seed"],
                "tokens": result.tokens,
                "score": result.score,
                "verifier_score": result.verifier_score,
                "decodes": result.decodes,
                "seconds": result.seconds,
                "interrupted": result.interrupted,
                "steps": [
                    {
                        "length": step.length,
                        "decodes": step.decodes,
                        "seconds": step.seconds,
                        "best_score": step.best_score,
                        "best_tokens": step.best_tokens.tolist(),
                    }
                    for step in result.steps
                ],
            }
            for result, path in done
        ],
    }
