"""tfgen tree: draw the tree of a search from its trace."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfgen.errors import InputError, TfgenError, whole_number

from . import options as o

if TYPE_CHECKING:
    from tfgen.tokenizers.base import Tokenizer


def tree(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="What tfgen PROMPT --trace FILE.jsonl wrote.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=o.new_file,
            help="A .png, or an .html page that shows tokens and scores (default: TRACE-tree.png).",
        ),
    ] = None,
    pruned: Annotated[
        int, typer.Option(help="Show so many of the candidates that each step did not keep.")
    ] = 8,
    size: Annotated[int, typer.Option(help="Of each picture, in pixels.")] = 64,
    model: Annotated[
        str | None,
        typer.Option(help="Where the tokenizer's weights are now (default: as in the trace)."),
    ] = None,
    device: o.Device = "auto",
    quiet: o.Quiet = False,
) -> None:
    """Draw what each step of a search kept and pruned, and where it came from.

    A row a step: the kept candidates, then the best pruned ones, faded; the way to the result in
    orange. Every picture is decoded again from its tokens.
    """
    from tfgen.image_io import check_file, check_writable, save_sheet
    from tfgen.search_tree import draw, lay_out, page, read_tree, thumbnails

    whole_number("--pruned", pruned, 0)
    whole_number("--size", size, 16, 1024)
    if os.path.isdir(trace):
        raise InputError(f"{str(trace)!r} is a folder: give the trace that a search wrote.")
    output = output or trace.with_name(f"{trace.stem}-tree.png")
    is_page = output.suffix.lower() in (".html", ".htm")
    if is_page:
        check_file(output)
    else:
        check_writable(output)
    found = read_tree(trace, pruned)
    tokenizer = load_tokenizer(found.header, model, device)
    pictures, layout = thumbnails(found, tokenizer, size), lay_out(found, size)
    if is_page:
        write(output, page(found, pictures, layout))
    else:
        save_sheet(draw(found, pictures, layout), output)
    if not quiet:
        shown = sum(len(step.nodes) for step in found.steps)
        print(f"{output}  {len(found.steps)} steps, {shown:,} candidates", file=sys.stderr)


def load_tokenizer(header: dict[str, Any], model: str | None, device: str) -> Tokenizer:
    """The tokenizer that the search used. Raises InputError where its weights are others now."""
    from tfgen import hub
    from tfgen.pipeline import find_device

    try:
        name, fingerprint = header["model"]["name"], header["model"]["fingerprint"]
        if not isinstance(name, str):
            raise TypeError
    except (KeyError, TypeError):
        raise InputError("The trace does not say of which model it is: make it again.") from None
    tokenizer = hub.load_tokenizer(model or name, find_device(device))
    here = tokenizer.picture_fingerprint()
    if here != fingerprint:
        raise InputError(
            f"The trace was made with other weights of {name!r} (fingerprint {fingerprint}) than "
            f"{model or name!r} has here ({here}): give the folder with those "
            "weights as --model."
        )
    return tokenizer


def write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f".{path.stem[:40]}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise TfgenError(f"Could not write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
