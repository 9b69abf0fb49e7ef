"""A picture made again from the recipe in its PNG."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tfgen import hub
from tfgen.errors import InputError
from tfgen.image_io import load_png, pixel_hash, save_png
from tfgen.pipeline import find_device, render


@dataclass(frozen=True)
class Replay:
    """A picture made again from the recipe of a PNG."""

    image: Image.Image
    recipe: dict[str, Any]
    max_difference: int | None
    """Of the new pixels to those in the file, 0 to 255; None where even the sizes differ."""

    edited: bool
    """The pixels in the file are not those that tfgen wrote."""

    device: str

    @property
    def identical(self) -> bool:
        """Bit for bit."""
        return self.max_difference == 0

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the new picture, with the recipe, as a PNG."""
        recipe = {**self.recipe, "pixels_sha256": pixel_hash(self.image)}
        return save_png(self.image, path, recipe)


def replay(path: str | PathLike[str], *, model: str | None = None, device: str = "auto") -> Replay:
    """Decode the tokens in the recipe of a PNG again and compare. Loads the tokenizer only.

    model: where its weights are now, if not where the recipe says. Raises InputError on a PNG
    without a usable recipe, or one that was made with other weights.
    """
    stored, recipe = load_png(path)
    try:
        name, fingerprint = recipe["model"]["name"], recipe["model"]["fingerprint"]
        tokens, written = recipe["tokens"], recipe["pixels_sha256"]
        if not isinstance(name, str) or not all(type(token) is int for token in tokens):
            raise TypeError("its model or its tokens are of the wrong type")
        row = torch.tensor(tokens, dtype=torch.int64)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"The recipe in {str(path)!r} is damaged or of another version of tfgen "
            f"({type(error).__name__}: {error}): give the file that tfgen wrote."
        ) from error
    place = find_device(device)
    tokenizer = hub.load_tokenizer(model or name, place)
    here = tokenizer.picture_fingerprint()
    if here != fingerprint:
        raise InputError(
            f"{str(path)!r} was made with other weights of {name!r} (fingerprint {fingerprint}, "
            f"by tfgen {recipe.get('tfgen', 'unknown')}) than {model or name!r} has here "
            f"({here}): give the folder with those weights as --model."
        )
    tokenizer.check(row[None])
    image = render(tokenizer.for_seed(recipe.get("seed", 0)), row)
    return Replay(
        image=image,
        recipe=recipe,
        max_difference=_max_difference(image, stored),
        edited=pixel_hash(stored) != written,
        device=place.type,
    )


def _max_difference(a: Image.Image, b: Image.Image) -> int | None:
    if a.size != b.size:
        return None
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())
