"""tfgen prior: a prior counted over your own pictures."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .building import building

prior = typer.Typer(help="Priors counted over your own pictures.", no_args_is_help=True)


@prior.command()
def fit(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES_DIR", help="A folder of pictures, at any depth.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="For --prior frequency:FILE.",
            parser=o.new_file,
        ),
    ],
    model: o.Model = "sprites",
    device: o.Device = "auto",
    min_count: Annotated[
        int, typer.Option(help="Leave out pairs of tokens that are rarer than this.")
    ] = 2,
    quiet: o.Quiet = False,
) -> None:
    """Count which tokens your pictures use, for tfgen PROMPT --prior frequency:FILE.

    Pictures are cropped to their middle square. A file that is no picture is named and left out.
    May be stopped at any time: the same command goes on where it was.
    """
    from tfgen import hub
    from tfgen.errors import whole_number
    from tfgen.image_io import check_file
    from tfgen.pipeline import find_device
    from tfgen.priors.bank import Pictures
    from tfgen.priors.counting import count_pictures

    whole_number("--min-count", min_count, 1)
    check_file(output)

    def skip(sentence: str) -> None:
        if not quiet:
            print(f"\r{sentence}", file=sys.stderr)

    pictures = Pictures(images, 0, skip)  # an empty folder is known before models are loaded
    tokenizer = hub.load_tokenizer(model, find_device(device))
    pictures.size = tokenizer.image_size
    with building(quiet, "parts") as progress:
        found = count_pictures(
            pictures,
            pictures.parts,
            tokenizer,
            output,
            source=pictures.source,
            min_count=min_count,
            progress=progress,
        )
    if not quiet:
        bits = -found.expected_log_prob(found.num_tokens) / math.log(2)
        print(
            f"{output}  {found.metadata['scenes']:,} pictures counted, {bits:.2f} bits a token on "
            f"{found.metadata['held_out']:,} others, of {math.log2(found.vocab_size):.2f}",
            file=sys.stderr,
        )
