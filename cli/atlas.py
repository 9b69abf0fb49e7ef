"""tfgen atlas: what every one-token picture looks like to the verifier, computed once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .building import building

if TYPE_CHECKING:
    from tfgen.pipeline import Pipeline

atlas = typer.Typer(
    help="What every one-token picture looks like: it makes the first step of a search exhaustive.",
    no_args_is_help=True,
)
Seed = Annotated[
    int,
    typer.Option(help="Of the searches it is for; matters only where pictures start from noise."),
]


@atlas.command()
def build(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Default: where searches with these models look.",
            parser=o.new_file,
        ),
    ] = None,
    model: o.Model = "sprites",
    verifier: o.Verifier = None,
    seed: Seed = 0,
    device: o.Device = "auto",
    quiet: o.Quiet = False,
) -> None:
    """Decode and embed every code of the codebook, once for all searches with these models.

    May be stopped at any time: the same command goes on where it was. An atlas that is there and
    up to date is left as it is.
    """
    from tfgen.atlas import Atlas, cached_path
    from tfgen.errors import InputError
    from tfgen.image_io import check_file

    pipeline, models = load(model, verifier, device, seed)
    path = output or cached_path(models)
    tokenizer = pipeline.tokenizer.for_seed(seed)
    try:
        found = Atlas.open(path, pipeline.tokenizer, pipeline.verifier, seed)
    except InputError:
        if output is not None:
            check_file(output)
        with building(quiet, "codes") as progress:
            found = Atlas.build(
                pipeline.tokenizer,
                pipeline.verifier,
                path,
                seed=seed,
                engine=pipeline.engine(tokenizer, pipeline.verifier),
                progress=progress,
            )
    if not quiet:
        size = path.stat().st_size / 1e6
        print(f"{path}  {found.vocab_size:,} codes, {size:,.1f} MB", file=sys.stderr)


@atlas.command()
def info(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Default: the one that searches would use."),
    ] = None,
    model: o.Model = "sprites",
    verifier: o.Verifier = None,
    seed: Seed = 0,
    device: o.Device = "cpu",
) -> None:
    """Say what is in an atlas. A stale or missing one is an error that says so."""
    from tfgen.atlas import Atlas, cached_path
    from tfgen.errors import InputError

    pipeline, models = load(model, verifier, device, seed)
    if file is None:
        found = Atlas.find(pipeline.folder, models, pipeline.tokenizer.vocab_size)
        if found is None:
            raise InputError(
                f"There is no atlas of these models, neither in {str(pipeline.folder)!r} nor at "
                f"{str(cached_path(models))!r}: tfgen atlas build makes one."
            )
    else:
        found = Atlas.open(file, pipeline.tokenizer, pipeline.verifier, seed)
    codes, dimensions = found.embeddings.shape
    print(f"atlas       {found.path}")
    print(f"codes       {codes:,}, as {dimensions} numbers of 16 bits each")
    print(f"size        {found.path.stat().st_size / 1e6:,.2f} MB")
    for part in ("tokenizer", "verifier"):
        print(f"{part:11} {found.header['names'][part]}, fingerprint {models[part]}")
    print(f"noise       {'none' if models['seed'] is None else 'of seed ' + str(models['seed'])}")


def load(
    model: str, verifier: str | None, device: str, seed: int
) -> tuple[Pipeline, dict[str, Any]]:
    from tfgen.pipeline import Pipeline
    from tfgen.tables import models_of

    pipeline = Pipeline.load(model, verifier=verifier, prior="uniform", device=device)
    return pipeline, models_of(pipeline.tokenizer, pipeline.verifier, seed)
