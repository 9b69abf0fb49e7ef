"""From pictures to a CLIP's input: resize, crop or pad, normalise and lay out, in one kernel.

The PyTorch reference is what `ClipVerifier` does (verifiers/clip.py): an antialiased resize in two
passes, a clamp, a crop, and a normalisation, which move the picture some eight times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding.triton_support import fused, jit, next_power_of_2, tl

_WINDOW = 4096  # elements that one program holds: pixels times their windows


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled: output j is the sum over t of weights[j, t] * input[start[j] + t].

    start[j] is -1 where output j lies in the padding.
    """

    start: Tensor  # Int32[out]
    weights: Tensor  # Float32[out, taps]


@dataclass(frozen=True)
class InputPlan:
    """From pictures of one size to a verifier's input."""

    resized: tuple[int, int]
    """What the picture is resized to, and then cropped or padded about its centre to `size`."""

    size: tuple[int, int]
    mode: str  # of F.interpolate: "bicubic" or "bilinear", both antialiased
    fill: float  # of padding, in [0, 1]
    mean: Tensor  # Float32[3]
    std: Tensor  # Float32[3]
    rows: Axis
    columns: Axis

    @classmethod
    def for_clip(cls, preprocess: Mapping[str, Any], side: int, device: torch.device) -> InputPlan:
        """Of square pictures of this side, as all tokenizers make them. preprocess: open_clip's
        preprocess_cfg of the model."""
        size = preprocess["size"]
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        resized = {  # of a square; where the input is square too, all three are the same
            "squash": (height, width),
            "longest": (min(height, width),) * 2,
        }.get(preprocess["resize_mode"], (max(height, width),) * 2)
        mode = "bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic"
        mean, std = (
            torch.tensor(preprocess[key], dtype=torch.float32).expand(3).contiguous().to(device)
            for key in ("mean", "std")
        )
        rows, columns = (
            make_axis(side, to, out, mode, device)
            for to, out in zip(resized, (height, width), strict=True)
        )
        fill = preprocess.get("fill_color", 0) / 255
        return cls(resized, (height, width), mode, fill, mean, std, rows, columns)


def make_axis(side: int, resized: int, size: int, mode: str, device: torch.device) -> Axis:
    """The table of one axis: `side` pixels resized to `resized`, cut or padded to `size`.

    Its weights are read off what F.interpolate does to each single pixel.
    """
    pixels = torch.eye(side, dtype=torch.float64)[None, None]
    response = F.interpolate(pixels, (resized, side), mode=mode, antialias=True)[0, 0].T
    used = response != 0  # [side, resized]
    first = (used.cumsum(0) == 0).sum(0)  # zeros before the window, and after it
    after = (used.flip(0).cumsum(0) == 0).sum(0)
    taps = side - int((first + after).min())
    start = first.clamp(max=side - taps)  # [resized]
    weights = response.T.gather(1, start[:, None] + torch.arange(taps))  # [resized, taps]
    before = (size - resized) // 2 if size > resized else -round((resized - size) / 2)
    source = torch.arange(size) - before  # the resized pixel of each output
    inside = (source >= 0) & (source < resized)
    source = source.clamp(0, resized - 1)
    return Axis(
        torch.where(inside, start[source], -1).int().to(device),
        weights[source].float().contiguous().to(device),
    )


def verifier_input(
    images: Tensor,
    plan: InputPlan,
    dtype: torch.dtype = torch.float32,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Pictures Float[N, 3, side, side] -> Float[N, 3, *plan.size] in `dtype`, channels last.

    value_range: of the pictures' values, such as (-1, 1) of a VAE; what lies outside is clamped.
    A pixel is clamp(sum_ab wy[a] wx[b] picture[y + a, x + b], 0, 1), minus mean, over std. Moves
    N 3 (side^2 e_in + height width e_out) bytes; pixels that windows share come from the cache.
    """
    if not fused(images):
        return verifier_input_reference(images, plan, value_range).to(dtype)
    return verifier_input_triton(images, plan, dtype, value_range)


def verifier_input_reference(
    images: Tensor, plan: InputPlan, value_range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    low, high = value_range
    images = ((images - low) / (high - low)).clamp(0, 1)
    if images.shape[-2:] != plan.resized:
        images = F.interpolate(images, plan.resized, mode=plan.mode, antialias=True).clamp(0, 1)
    for axis, size in ((2, plan.size[0]), (3, plan.size[1])):
        have = images.shape[axis]
        if have >= size:
            images = images.narrow(axis, round((have - size) / 2), size)
        else:
            before = (size - have) // 2
            pads = (before, size - have - before)
            images = F.pad(images, pads if axis == 3 else (0, 0, *pads), value=plan.fill)
    normalised = (images - plan.mean[:, None, None]) / plan.std[:, None, None]
    return normalised.contiguous(memory_format=torch.channels_last)


def verifier_input_triton(
    images: Tensor,
    plan: InputPlan,
    dtype: torch.dtype = torch.float32,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    n, (height, width) = len(images), plan.size
    out = torch.empty(
        (n, 3, height, width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
    taps = [next_power_of_2(axis.weights.shape[1]) for axis in (plan.rows, plan.columns)]
    block = min(next_power_of_2(width), max(1, _WINDOW // (taps[0] * taps[1])))
    if n:
        _verifier_input_kernel[(n, height, -(-width // block))](
            images,
            out,
            plan.rows.start,
            plan.rows.weights,
            plan.columns.start,
            plan.columns.weights,
            plan.mean,
            plan.std,
            height,
            width,
            *images.stride(),
            value_range[0],
            1 / (value_range[1] - value_range[0]),
            plan.fill,
            plan.rows.weights.shape[1],
            plan.columns.weights.shape[1],
            ROW_TAPS=taps[0],
            COLUMN_TAPS=taps[1],
            BLOCK=block,
            num_warps=8,
        )
    return out


@jit
def _verifier_input_kernel(
    images,
    out,
    row_start,
    row_weights,
    column_start,
    column_weights,
    mean,
    std,
    height,
    width,
    sample_stride,
    channel_stride,
    row_stride,
    column_stride,
    low,
    inverse_range,
    fill,
    row_taps,
    column_taps,
    ROW_TAPS: tl.constexpr,
    COLUMN_TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: some pixels of one row of the output, [1, 1, BLOCK], each of which sums over a
    window [ROW_TAPS, COLUMN_TAPS, 1]."""
    sample = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1)
    x = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    a = tl.arange(0, ROW_TAPS)[:, None, None]
    b = tl.arange(0, COLUMN_TAPS)[None, :, None]
    top = tl.load(row_start + y)
    left = tl.load(column_start + x, mask=inside, other=-1)
    covered = inside & (top >= 0) & (left >= 0)
    column = x[None, None, :]
    used = (a < row_taps) & (b < column_taps) & covered[None, None, :]
    weight = tl.load(row_weights + y * row_taps + a, mask=a < row_taps, other=0.0)
    weight = weight * tl.load(column_weights + column * column_taps + b, mask=used, other=0.0)
    window = (top + a) * row_stride + (left[None, None, :] + b) * column_stride
    window = images + sample * sample_stride + window
    for channel in tl.static_range(3):
        pixel = tl.load(window + channel * channel_stride, mask=used, other=0.0).to(tl.float32)
        pixel = tl.minimum(tl.maximum((pixel - low) * inverse_range, 0.0), 1.0)
        value = tl.sum(tl.sum(weight * pixel, axis=0), axis=0)
        value = tl.where(covered, tl.minimum(tl.maximum(value, 0.0), 1.0), fill)
        value = (value - tl.load(mean + channel)) / tl.load(std + channel)
        place = ((sample * height + y) * width + x) * 3 + channel
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
