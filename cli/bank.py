"""tfgen bank: pictures as token sequences with what the verifier sees in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .building import building

bank = typer.Typer(
    help="Banks of pictures, from which the retrieval prior takes a prompt's nearest.",
    no_args_is_help=True,
)


@bank.command()
def build(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES_DIR", help="A folder of pictures, at any depth.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="For --prior retrieval:FILE; see also info.",
            parser=o.new_file,
        ),
    ],
    model: o.Model = "sprites",
    verifier: o.Verifier = None,
    device: o.Device = "auto",
    quiet: o.Quiet = False,
) -> None:
    """Make a bank of your own pictures, for tfgen PROMPT --prior retrieval:FILE.

    Pictures are cropped to their middle square. A file that is no picture is named and left out.
    May be stopped at any time: the same command goes on where it was.
    """
    from tfgen.image_io import check_file
    from tfgen.pipeline import Pipeline
    from tfgen.priors.bank import Bank, Pictures

    check_file(output)
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        if not quiet:
            print(f"\r{sentence}", file=sys.stderr)

    pictures = Pictures(images, 0, skip)  # an empty folder is known before models are loaded
    pipeline = Pipeline.load(model, verifier=verifier, prior="uniform", device=device)
    pictures.size = pipeline.tokenizer.image_size
    with building(quiet, "parts") as progress:
        found = Bank.build(
            pictures,
            pictures.parts,
            pipeline.tokenizer,
            pipeline.verifier,
            output,
            source=pictures.source,
            progress=progress,
        )
    if not quiet:
        size = output.stat().st_size / 1e6
        print(f"{output}  {len(found):,} pictures, {size:,.1f} MB", file=sys.stderr)


@bank.command()
def info(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: the bank of the model.")
    ] = None,
    model: o.Model = "sprites",
    verifier: o.Verifier = None,
    device: o.Device = "cpu",
) -> None:
    """Say what is in a bank. One that was made with other models than these is an error."""
    from tfgen.errors import InputError
    from tfgen.pipeline import Pipeline
    from tfgen.priors.bank import FILE_NAME, Bank

    pipeline = Pipeline.load(model, verifier=verifier, prior="uniform", device=device)
    if file is None and pipeline.folder is not None:
        file = pipeline.folder / FILE_NAME
        if not file.is_file():
            raise InputError(f"The model {model} has no bank: tfgen bank build makes one.")
    found = Bank.open(file)
    print(f"bank        {file}")
    print(f"pictures    {len(found):,}, from {json.dumps(found.header['source'], sort_keys=True)}")
    print(f"tokens      {found.num_tokens} each, of a codebook of {found.vocab_size:,}")
    print(f"embeddings  {found.components} components of 8 bits, of {found.dimensions} dimensions")
    print(f"size        {file.stat().st_size / 1e6:,.2f} MB")
    for part, fingerprint in found.header["models"].items():
        print(f"{part:11} {found.header['names'][part]}, fingerprint {fingerprint}")
    found.check(file, **pipeline.fingerprints)
