"""Pictures on disk: a PNG with its recipe inside, contact sheets, step strips.

The recipe is a JSON object in an iTXt chunk named `tfgen`. It holds everything needed to make the
picture again, and nothing that differs between two runs of the same command (no time, no duration,
no memory), so that on the same machine the same command writes the same file. (Only decodes that a
cache has saved are not counted.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from tfgen.errors import InputError, TfgenError

if TYPE_CHECKING:
    from torch import Tensor

RECIPE_KEY = "tfgen"
DEEPEST = 20  # levels of a recipe that is read: what tfgen writes has four
LABEL_SIZE = 14
PAPER, INK = "white", "black"


def to_image(picture: Tensor) -> Image.Image:
    """One picture, Float[3,H,W] in [0,1] on any device, as an 8-bit RGB image (rounded)."""
    pixels = picture.detach().float().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def pixel_hash(image: Image.Image) -> str:
    """sha256 of the 8-bit RGB pixels, row by row."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Find out before a search, not after it, whether a PNG can be written to `path`.

    Returns the path. Raises InputError when the name is no PNG name, or as `check_file` does.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(
            f"Cannot write {str(path)!r}: pictures are written as PNG, which can carry their "
            "recipe: choose a name that ends in .png."
        )
    return check_file(path)


def check_file(path: str | os.PathLike[str]) -> Path:
    """Find out before the work, not after it, whether a file can be written to `path`.

    Returns the path. Raises InputError when it is a folder, its own folder is missing, its name is
    too long, or the folder or the file cannot be written to. Leaves nothing behind.
    """
    path = check_place(path)
    try:
        with suppress(FileNotFoundError), path.open("r+b"):  # one that is there stays as it is
            pass
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem[:40]}."):
            pass
    except OSError as error:
        raise InputError(
            f"Cannot write {str(path)!r} ({error.strerror or error}): choose another output."
        ) from error
    return path


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path, of which it is sure that it is no folder, and that its own folder is there; raises
    InputError."""
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise InputError(
            f"Cannot write {str(path)!r}: there is no folder {str(path.parent)!r}: "
            "create it first, or choose another output."
        )
    if os.path.isdir(path):
        raise InputError(f"Cannot write {str(path)!r}: it is a folder: give the name of a file.")
    return path


def save_png(image: Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any]) -> Path:
    """Write `image` with its recipe as a PNG; the file appears whole or not at all.

    Raises TfgenError when it cannot be written.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"tfgen {recipe.get('tfgen', '')}".strip())
    info.add_itxt(RECIPE_KEY, json.dumps(recipe, sort_keys=True))
    return _write(image, path, pnginfo=info)


def save_sheet(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture without a recipe (a contact sheet, a step strip) as a PNG."""
    return _write(image, Path(path))


def _write(image: Image.Image, path: Path, **options: Any) -> Path:
    partial = path.with_name(f".{path.stem[:40]}.{os.getpid()}.partial")
    try:
        image.save(partial, format="PNG", optimize=True, **options)
        os.replace(partial, path)
    except OSError as error:
        raise TfgenError(f"Could not write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_png(path: str | os.PathLike[str]) -> tuple[Image.Image, dict[str, Any]]:
    """The picture (RGB) and the recipe of a PNG that tfgen wrote.

    Raises InputError when the file is missing, is no picture, or carries no readable recipe.
    """
    path = Path(path)
    try:
        with Image.open(path) as file:
            file.load()
            text = file.info.get(RECIPE_KEY)
            image = file.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {str(path)!r}.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{str(path)!r} is no picture that can be read.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(path)!r} is no picture that can be read: {error}.") from error
    if not isinstance(text, str):
        raise InputError(
            f"{str(path)!r} carries no recipe: it was not made by tfgen, or a program that copied "
            "it dropped its text: give the file that tfgen wrote."
        )
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The recipe in {str(path)!r} is damaged: {error}.") from error
    if not isinstance(recipe, dict):
        raise InputError(f"The recipe in {str(path)!r} is damaged: it is no JSON object.")
    if _is_deep(recipe):  # it could be read, but not be written again
        raise InputError(f"The recipe in {str(path)!r} is damaged: it is nested too deeply.")
    return image, recipe


def _is_deep(value: object) -> bool:
    """Whether a JSON value has more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        lists = [list(one.values()) if isinstance(one, dict) else one for one in level]
        level = [part for one in lists if isinstance(one, list) for part in one]
    return bool(level)


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    label_size: int = LABEL_SIZE,
    gap: int = 8,
) -> Image.Image:
    """The pictures in a grid, row by row, each with its label wrapped below it.

    `labels`: one per picture, or None for none. `columns`: by default a grid about as wide as
    high. Each picture keeps its size and is centred in a cell as large as the largest one.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} pictures need as many labels, not {len(labels)}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)

    font = ImageFont.load_default(label_size)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    texts = [_wrap(label, font, width) for label in labels or [""] * len(images)]
    line_height = math.ceil(label_size * 1.3)
    label_height = line_height * max(len(lines) for lines in texts)
    cell_width, cell_height = width + gap, height + label_height + gap

    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (image, lines) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(index, columns)
        left, top = gap + column * cell_width, gap + row * cell_height
        sheet.paste(image, (left + (width - image.width) // 2, top + height - image.height))
        for number, line in enumerate(lines):
            baseline = top + height + number * line_height + 2
            draw.text((left + width / 2, baseline), line, fill=INK, font=font, anchor="ma")
    return sheet


def _wrap(label: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    """The label in lines that fit `width`; a word wider than that is cut with an ellipsis."""
    lines: list[str] = []
    for word in label.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_shorten(word, font, width))
    return lines


def _shorten(word: str, font: ImageFont.ImageFont, width: int) -> str:
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(word + "…") > width:
        word = word[:-1]
    return word + "…"
