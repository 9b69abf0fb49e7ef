"""What a recipe has come to, in few small files, for a machine that is given back after each call.

A snapshot is the --out folder as a compressed archive, cut into files of at most 15 MiB. Instead of
a training's checkpoint it holds the averaged weights alone, packed: a tenth of the size or less. A
training that goes on from it has lost Adam's moments, and so does not come to the same weights, bit
for bit.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tfgen.errors import InputError, TfgenError
from tfgen.packing import write_whole
from tfgen.training.common import lightened

LARGEST = 15 * 2**20
"""Bytes of a file."""
NAME = "snapshot.tgz"
CHECKPOINT = "checkpoint.safetensors"
LEFT_OUT = ("pictures.parts", "bank.safetensors.parts", "prior.safetensors.parts")
"""Folders of parts of tables that are large and quickly made again."""


def save(out: Path, folder: Path) -> int:
    """Write a snapshot of `out` to the flat folder, in place of what is there of an earlier one;
    returns its bytes. Raises TfgenError where it cannot be written."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            whole = Path(scratch) / NAME
            with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
                for path in _files(out):
                    kept = path
                    if path.name == CHECKPOINT:
                        kept = Path(scratch) / CHECKPOINT
                        tensors, metadata = lightened(path)
                        write_whole(tensors, kept, metadata)
                    archive.add(kept, path.relative_to(out))
            folder.mkdir(parents=True, exist_ok=True)
            return _cut(whole, folder)
    except OSError as error:
        raise TfgenError(
            f"The snapshot {str(folder)!r} could not be written ({error}): what was done is saved "
            f"in {str(out)!r}."
        ) from error


def restore(folder: Path, out: Path) -> None:
    """Put what a snapshot holds into the folder `out`. Raises InputError where there is no snapshot
    or it is not whole, and leaves `out` as it was."""
    pieces = _pieces(folder)
    if not pieces:
        raise InputError(f"There is no snapshot in {str(folder)!r}: it has no {NAME}.00.")
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        # All of it, with its checksum, which tarfile does not look at.
        whole = gzip.decompress(b"".join(piece.read_bytes() for piece in pieces))
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as archive:
            for member in archive:
                _extract(archive, member, partial)
        if out.exists():
            shutil.copytree(partial, out, dirs_exist_ok=True)
        else:
            os.replace(partial, out)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"The snapshot in {str(folder)!r} could not be put into {str(out)!r} ({error}): bring "
            f"all of its files, {NAME}.00 and those that follow."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """As extract(filter="data"), which early versions of Python 3.10 and 3.11 lack; `save` puts
    nothing else than files into an archive."""
    path, source = Path(member.name), archive.extractfile(member)
    if source is None or path.is_absolute() or ".." in path.parts:
        raise tarfile.ExtractError(f"{member.name!r} is no file of a snapshot")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with source, (folder / path).open("wb") as file:
        shutil.copyfileobj(source, file)


def _files(out: Path) -> Iterator[Path]:
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        if path.is_file() and path.suffix != ".partial" and not set(parts) & set(LEFT_OUT):
            yield path


def _pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{NAME}.[0-9][0-9]"))


def _cut(whole: Path, folder: Path) -> int:
    """Write the pieces, and then put them in the place of what is there."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with whole.open("rb") as source:
            while piece := source.read(LARGEST):
                number = len(os.listdir(scratch))
                (Path(scratch) / f"{NAME}.{number:02d}").write_bytes(piece)
        for old in _pieces(folder):
            old.unlink()
        for new in _pieces(Path(scratch)):
            os.replace(new, folder / new.name)
    return whole.stat().st_size
