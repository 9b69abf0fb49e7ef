"""tfgen judge: what pictures of the sprite world show, and whether a prompt asks for that."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfgen.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from tfgen.judge import Seen, Verdict

HEADER = ("object", "colour", "left", "top", "right", "bottom", "confidence")


def judge(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Pictures: PNG, JPEG or WebP.")
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Also say whether each shows this.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Another judge than the packaged one.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list on stdout, and only that.")
    ] = False,
) -> None:
    """Say what pictures of the sprite world show: objects with colour and box, the background.

    With --prompt also whether that is what the prompt asks for, and if not, why. The exit code is 0
    whatever the verdict; 2 where a picture cannot be read or the prompt names nothing.
    """
    from tfgen.judge import Judge, metadata_of, verdict
    from tfgen.judge_prompt import reword, unjudged

    metadata = None
    if prompt is not None:
        metadata = metadata_of(prompt, model)
        for sentence in reword(prompt, model).sentences():
            print(f"Warning: {sentence}", file=sys.stderr)
        if words := unjudged(prompt, model):
            said = ", ".join(map(repr, words))
            print(f"Warning: not judged, as the judge does not read it: {said}.", file=sys.stderr)
    pictures = [read(path) for path in images]
    found = Judge.load(model)
    rows = []
    for path, picture in zip(images, pictures, strict=True):
        seen = found.look(picture[None])[0]
        rows.append((path, seen, verdict(seen, metadata) if metadata else None))
    if as_json:
        print(json.dumps([report(*row) for row in rows], indent=2))
    else:
        print("\n\n".join(table(*row) for row in rows))


def read(path: Path) -> Tensor:
    """A picture as Float[3, H, W] in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"There is no file {str(path)!r}: give the path of a picture.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{str(path)!r} is no picture that can be read: give a PNG.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(path)!r} is no picture that can be read: {error}.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def report(path: Path, seen: Seen, said: Verdict | None) -> dict[str, Any]:
    out = {"path": str(path), **asdict(seen)}
    return out | (asdict(said) if said else {})


def table(path: Path, seen: Seen, said: Verdict | None) -> str:
    """What was seen, a line an object; boxes in percent of the picture."""
    lines = [HEADER] if seen.objects else []
    for d in seen.objects:
        colour = "/".join((d.colour, *d.also)) or "-"
        box = (f"{100 * v:.0f}%" for v in d.box)
        lines.append((d.object, colour, *box, f"{d.confidence:.2f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{path}: {len(seen.objects)} object{'s' * (len(seen.objects) != 1)}"]
    text += [
        "  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.append(f"  background: {seen.background} ({seen.background_confidence:.2f})")
    if said:
        text.append("  right" if said.correct else f"  wrong: {said.reason}")
    return "\n".join(text)
