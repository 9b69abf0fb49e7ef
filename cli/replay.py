"""tfgen replay: make a picture again from the recipe in its PNG, and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import new_file

if TYPE_CHECKING:
    from tfgen.replaying import Replay


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE.png", help="A picture that tfgen wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.png",
            help="Also write the new picture here.",
            parser=new_file,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the tokenizer's weights are now (default: as in the recipe)."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, and only that.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors; the exit code tells.")
    ] = False,
) -> None:
    """Decode the tokens in FILE.png again, and say whether the picture is identical, bit for bit.

    Exit code 0: identical; 1: not; 2: the file has no usable recipe, or it needs other weights.
    Only the tokenizer is loaded.
    """
    from tfgen.image_io import check_writable
    from tfgen.replaying import replay as make_again

    if output is not None:
        check_writable(output)
    found = make_again(file, model=model, device=device)
    if output is not None:
        found.save(output)
    if as_json:
        print(json.dumps(report(found, file, output), indent=2))
    elif not quiet:
        print(verdict(found, file))
    raise typer.Exit(0 if found.identical else 1)


def verdict(found: Replay, file: Path) -> str:
    if found.identical:
        return f"identical: {file} is what its recipe makes, bit for bit"
    if found.max_difference is None:
        width, height = found.image.size
        difference = f"its recipe makes {width} x {height} pixels"
    else:
        difference = f"its pixels differ by up to {found.max_difference} of 255"
    if found.edited:
        reason = "the pixels in the file were changed after tfgen wrote it"
    else:
        recipe = found.recipe
        reason = (
            f"made on {recipe.get('device')} with torch {recipe.get('torch')}, "
            f"made again on {found.device}, where numbers may round differently"
        )
    return f"not identical: {file}: {difference} ({reason})"


def report(found: Replay, file: Path, output: Path | None) -> dict[str, Any]:
    return {
        "path": str(file),
        "identical": found.identical,
        "max_difference": found.max_difference,
        "edited": found.edited,
        "device": found.device,
        "output": None if output is None else str(output),
        "recipe": found.recipe,
    }
