"""Sprites of the objects: fetched from npm, cropped, scaled, and kept as one tensor per tier.

`python -m tfgen.training.sprites` fetches two pinned packages with `npm pack` into the cache folder
($TFGEN_CACHE, else ~/.cache/tfgen) and builds `sprites/sprites-{tier}-{size}.safetensors` there:

- `@lobehub/fluent-emoji-3d` (MIT): 256 px RGBA renders, named by code point;
- `emojibase-data` (MIT): what each code point is called, for `--check`.

Nothing is unpacked: the few members needed are read out of the archives, whose SHA-512 must be the
one npm's registry states. What was fetched and built before is used again.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.training.common import cache_folder
from tfgen.training.objects import TIERS, ObjectSpec, load_objects

MARGIN = 0.02  # empty border on each side, as a fraction of the object's longer side
SIZES = range(8, 513)
LAYOUT = "uint8 [objects, 4, size, size], RGBA, colours premultiplied by alpha"
FETCH_TIMEOUT = 600  # seconds
HOW_TO_BRING_SPRITES = (
    "run python -m tfgen.training.sprites where there is a network, and bring "
    "sprites/sprites-full-192.safetensors, or the smaller npm/lobehub-fluent-emoji-3d-1.1.0.tgz, "
    "of its cache folder."
)
# `1f374@left` in the table is this part (x0, y0, x1, y1) of the picture `1f374`.
CROPS = {"left": (0.0, 0.0, 0.5, 1.0), "right": (0.5, 0.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Package:
    """An npm package at one version; `integrity` is the base64 SHA-512 of its archive."""

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """The file name `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"


SPRITES = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    integrity="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
LABELS = Package(
    name="emojibase-data",
    version="17.0.0",
    integrity="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


def load_sprites(
    tier: str, size: int, cache: Path | None = None
) -> tuple[Tensor, list[ObjectSpec]]:
    """The sprites of a tier, and what they show, in table order; builds the file when missing.

    Returns uint8 [M, 4, size, size] and M specs. The four channels are red, green, blue and alpha,
    0-255, with the colours PREMULTIPLIED by alpha: `sprite[:3] + (255 - sprite[3:]) / 255 * under`
    paints one. Each object fills its frame up to a margin of 2 %. A smaller tier is a prefix of a
    larger one. Raises InputError for an unknown tier or an impossible size, and TfgenError when the
    sprites are not there and cannot be fetched.
    """
    specs = list(load_objects(tier))
    if size not in SIZES:
        raise InputError(
            f"sprites of {size} pixels cannot be made: "
            f"choose a size between {SIZES.start} and {SIZES.stop - 1}"
        )
    cache = cache or cache_folder()
    path = cache / "sprites" / f"sprites-{tier}-{size}.safetensors"
    header = _header(specs)
    sprites = _read(path, header)
    if sprites is None:
        sprites = _build(specs, size, fetch(SPRITES, cache))
        with _scratch(path.parent) as scratch:
            save_file({"sprites": sprites}, scratch / path.name, metadata=header)
            os.replace(scratch / path.name, path)
    return sprites, specs


def read_sprites(path: Path, cache: Path | None = None) -> Tensor:
    """Sprites that were brought along in a file: uint8 [N, 4, S, S], premultiplied, of the first N
    objects of the full table.

    path: what `load_sprites` built for some tier, `sprites-TIER-SIZE.safetensors` in the cache
    folder, or the npm package's archive, from which they are built in the cache folder. Raises
    InputError for anything else.
    """
    cache = cache or cache_folder()
    if not path.is_file():
        raise InputError(f"There is no sprites file {str(path)!r}: {HOW_TO_BRING_SPRITES}")
    if path.suffix == ".tgz":
        if _integrity(path) != SPRITES.integrity:
            raise InputError(f"{str(path)!r} is not the archive of {SPRITES.spec}: fetch it again.")
        with _scratch(cache / "npm") as scratch:
            shutil.copyfile(path, scratch / SPRITES.archive)
            os.replace(scratch / SPRITES.archive, cache / "npm" / SPRITES.archive)
        return load_sprites("full", 192, cache)[0]
    try:
        with safe_open(path, framework="pt") as file:
            sprites, header = file.get_tensor("sprites"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{str(path)!r} is no sprites file ({error}): {HOW_TO_BRING_SPRITES}"
        ) from error
    names = [spec.name for spec in load_objects()][: len(sprites)]
    square = sprites.ndim == 4 and sprites.shape[1] == 4 and sprites.shape[2] == sprites.shape[3]
    if not (square and sprites.dtype == torch.uint8 and header.get("names") == json.dumps(names)):
        raise InputError(
            f"{str(path)!r} holds other sprites than those of this version's table: "
            f"{HOW_TO_BRING_SPRITES}"
        )
    return sprites


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive in the cache folder, fetched with `npm pack` unless it is there whole.

    Raises TfgenError when npm is missing, the registry cannot be reached, or the archive is not the
    one that was pinned.
    """
    archive = cache / "npm" / package.archive
    if archive.is_file() and _integrity(archive) == package.integrity:
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise TfgenError(
            f"npm, which fetches the sprites' package {package.spec}, is not installed: install "
            f"Node.js from https://nodejs.org, or put the package's archive at {archive}"
        )
    with _scratch(archive.parent) as scratch:
        try:
            result = subprocess.run(
                [npm, "pack", package.spec, "--loglevel=error"],
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=FETCH_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise TfgenError(
                f"npm did not fetch {package.spec} in {FETCH_TIMEOUT} s: "
                "check the network connection and try again"
            ) from None
        except OSError as error:
            raise TfgenError(f"{npm} could not be started ({error.strerror})") from None
        fetched = scratch / package.archive
        if result.returncode or not fetched.is_file():
            raise TfgenError(
                f"npm could not fetch {package.spec} ({_reason(result)}): "
                f"check the network connection, or put the package's archive at {archive}"
            )
        if _integrity(fetched) != package.integrity:
            raise TfgenError(
                f"what npm fetched as {package.spec} is not the pinned archive (its SHA-512 "
                "differs): try again, and check which registry npm is set to use"
            )
        os.replace(fetched, archive)
    return archive


def check_table(specs: Sequence[ObjectSpec], cache: Path) -> list[str]:
    """One sentence per object whose sprite does not exist or is called something else altogether.

    An object's words (name, synonyms, plural) and its code point's label and tags in emojibase must
    have at least one word in common.
    """
    stems = set()
    _scan(fetch(SPRITES, cache), lambda name, _: stems.add(Path(name).stem))
    data = _members(fetch(LABELS, cache), {"package/en/data.json"})
    entries = {_code_point(e["hexcode"]): e for e in json.loads(data["package/en/data.json"])}
    problems = []
    for spec in specs:
        stem = spec.sprite.partition("@")[0]
        entry = entries.get(_code_point(stem))
        if stem not in stems:
            problems.append(f"{spec.name}: there is no sprite {stem} in {SPRITES.spec}.")
        elif entry is None:
            problems.append(f"{spec.name}: emojibase does not know the code point {stem}.")
        elif not _words(*spec.words) & _words(entry["label"], *entry.get("tags", ())):
            problems.append(f"{spec.name}: emojibase calls {stem} {entry['label']!r}.")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tfgen.training.sprites",
        description="Fetch the sprites of the sprite world from npm and build their tensors.",
    )
    parser.add_argument("--tier", choices=TIERS, nargs="+", default=TIERS, help="default: all")
    parser.add_argument("--size", type=int, nargs="+", default=[192], help="pixels; default: 192")
    parser.add_argument("--cache", type=Path, help="default: $TFGEN_CACHE, else ~/.cache/tfgen")
    parser.add_argument(
        "--check", action="store_true", help="also compare the table's names with emojibase's"
    )
    args = parser.parse_args(argv)
    cache = args.cache or cache_folder()
    try:
        for package in (SPRITES, LABELS):
            print(fetch(package, cache))
        for tier in args.tier:
            for size in args.size:
                sprites, specs = load_sprites(tier, size, cache)
                print(f"{tier}: {len(specs)} objects, {size} px, {sprites.nbytes / 2**20:.1f} MiB")
        problems = check_table(load_objects(), cache) if args.check else []
    except TfgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.check:
        print(*problems, f"{len(problems)} of {len(load_objects())} names are doubtful", sep="\n")
    return 1 if problems else 0


def _build(specs: Sequence[ObjectSpec], size: int, archive: Path) -> Tensor:
    """uint8 [M, 4, size, size], premultiplied."""
    files = {spec.sprite: f"package/assets/{spec.sprite.partition('@')[0]}.webp" for spec in specs}
    pictures = _members(archive, set(files.values()))
    return torch.stack(
        [_frame(_picture(pictures[files[spec.sprite]], spec, archive), size) for spec in specs]
    )


def _picture(data: bytes, spec: ObjectSpec, archive: Path) -> Tensor:
    """The part of a picture that the table names: Float[4, H, W] in [0, 1], premultiplied."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    except (UnidentifiedImageError, OSError):
        raise TfgenError(
            f"the sprite {spec.sprite} of {spec.name!r} in {archive} is not a picture that Pillow "
            "can read: it must be WebP, and Pillow built with WebP support"
        ) from None
    picture = torch.from_numpy(rgba).permute(2, 0, 1)
    crop = spec.sprite.partition("@")[2]
    if crop:
        x0, y0, x1, y1 = CROPS[crop]
        height, width = picture.shape[1:]
        picture = picture[
            :, round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)
        ]
    return torch.cat([picture[:3] * picture[3:], picture[3:]])


def _frame(picture: Tensor, size: int) -> Tensor:
    """Float[4, H, W] premultiplied -> uint8 [4, size, size]: cropped to what is painted, centred in
    a square with a margin, and scaled."""
    solid = picture[3] > 0.05
    rows, columns = (solid.any(dim).nonzero()[:, 0] for dim in (1, 0))
    if not len(rows):
        raise TfgenError("a sprite is fully transparent: the package is not the one expected")
    picture = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = picture.shape[1:]
    side = round(max(height, width) * (1 + 2 * MARGIN))
    left, top = (side - width) // 2, (side - height) // 2
    square = F.pad(picture, (left, side - width - left, top, side - height - top))
    scaled = F.interpolate(
        square[None], size=(size, size), mode="bicubic", align_corners=False, antialias=True
    )[0].clamp(0, 1)
    # Bicubic overshoots a little: a premultiplied colour can't exceed its alpha.
    scaled = torch.cat([torch.minimum(scaled[:3], scaled[3:]), scaled[3:]])
    return (scaled * 255).round().to(torch.uint8)


def _header(specs: Sequence[ObjectSpec]) -> dict[str, str]:
    """The file's metadata; a file with another header is stale and built anew."""
    return {
        "names": json.dumps([spec.name for spec in specs]),
        "sprites": json.dumps([spec.sprite for spec in specs]),
        "source": SPRITES.spec,
        "licence": "MIT",
        "layout": LAYOUT,
        "margin": str(MARGIN),
    }


def _read(path: Path, header: dict[str, str]) -> Tensor | None:
    """The tensor of a built file; None when it is missing, damaged or stale."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("sprites") if file.metadata() == header else None
    except (OSError, SafetensorError):
        return None


def _members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of the named members of an archive, read without unpacking it."""
    contents: dict[str, bytes] = {}

    def keep(name: str, file: Any) -> None:
        if name in names:
            contents[name] = file.read()

    _scan(archive, keep)
    missing = sorted(set(names) - set(contents))
    if missing:
        raise TfgenError(
            f"{archive} does not hold {', '.join(missing[:3])}: delete it and try again"
        )
    return contents


def _scan(archive: Path, visit: Callable[[str, Any], object]) -> None:
    """Call `visit(name, file)` for each regular file of an archive."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile():
                    visit(member.name, tar.extractfile(member))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise TfgenError(f"{archive} cannot be read ({error}): delete it and try again") from None


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`: what is made there is moved into place in one stroke."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise TfgenError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}): "
            "set TFGEN_CACHE to a folder that can"
        ) from None


def _integrity(path: Path) -> str:
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    """What npm said, in one line."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "warn" not in line] or ["it gave no reason"]
    return errors[0].removeprefix("npm ").removeprefix("error ").removeprefix("ERR! ")


def _code_point(stem: str) -> str:
    """A code point sequence without the "show as emoji" mark, which file names have or have not."""
    return stem.lower().replace("-fe0f", "")


def _words(*phrases: str) -> set[str]:
    """The words of phrases, lower case, roughly singular."""
    words = re.findall(r"[a-z0-9]+", " ".join(phrases).lower())
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words}


if __name__ == "__main__":
    sys.exit(main())
