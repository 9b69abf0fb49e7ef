"""How weights are stored small: float16, and large matrices as int8 with one scale a row.

A row of a matrix, or a filter of a convolution, is rounded to 255 steps between minus and plus its
largest weight. Networks are
unpacked to float32 when they are loaded, so packing costs bytes in the file only and no time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tfgen.errors import TfgenError

LARGE = 60_000
"""Matrices and convolutions of at least this many weights are stored as int8, unless another size
is named."""

SCALE = ".int8_scale"


def pack(
    tensors: dict[str, Tensor], large: int = LARGE, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """Weights as they are stored: matrices and convolutions of `large` weights or more int8, with
    their scales Float32[rows, 1, ..] under the name + SCALE; other floating-point tensors float16;
    whatever else as it is. keep: names of weights that stay float16, however large."""
    packed = {}
    for name, value in tensors.items():
        value = value.detach().cpu()
        if (
            value.is_floating_point()
            and value.ndim >= 2
            and value.numel() >= large
            and name not in keep
        ):
            largest = value.float().abs().amax(dim=tuple(range(1, value.ndim)), keepdim=True)
            scale = largest.clamp(min=1e-12) / 127
            packed[name] = (value / scale).round().to(torch.int8)
            packed[name + SCALE] = scale
        else:
            packed[name] = value.half() if value.is_floating_point() else value
        packed[name] = packed[name].contiguous()
    return packed


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` stored, floating-point tensors as float32; files without int8 are fine too."""
    unpacked = {}
    for name, value in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        if name + SCALE in tensors:
            value = value.float() * tensors[name + SCALE]
        unpacked[name] = value.float() if value.is_floating_point() else value
    return unpacked


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file with the permissions of any new file. Raises OSError or SafetensorError
    where it cannot be written."""
    save_file(dict(tensors), path, metadata)
    as_any_new_file(path)


def write_whole(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """The same, of a file that appears whole or not at all. Raises TfgenError where it cannot be
    written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, partial, metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TfgenError(
            f"Could not write {str(path)!r} ({reason}): make room there, and begin again where "
            "this stopped."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def as_any_new_file(path: str | Path) -> None:
    """Give a file the permissions that the user gives to new ones: those that safetensors 0.8
    writes may be read by nobody but their owner."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def fingerprint(*networks: nn.Module) -> str:
    """A short hex hash of all weights, as float16: packing, device and layout do not show in it."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
