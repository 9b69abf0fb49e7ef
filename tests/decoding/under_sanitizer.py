"""What compute-sanitizer watches, on a GPU: every kernel once, at odd sizes, and the engine.

    compute-sanitizer --tool memcheck python -m tests.decoding.under_sanitizer kernels
    compute-sanitizer --tool racecheck python -m tests.decoding.under_sanitizer kernels
    compute-sanitizer --tool memcheck python -m tests.decoding.under_sanitizer engine

With PYTORCH_NO_CUDA_MEMORY_CACHING=1 a kernel that leaves its tensors leaves its memory, too. That
the results are right is what the tests say.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from tests.tokenizers.flextok_checks import FOLDER
from tests.toy_world import make_world, write_verifier
from tfgen import hub
from tfgen.decoding import (
    attention,
    float8,
    group_norm,
    kernels,
    picture_kernels,
    sampling_kernels,
    vae_step,
)
from tfgen.decoding.kernel_engine import KernelEngine
from tfgen.decoding.triton_support import why_no_float8
from tfgen.tokenizers.flextok import FlexTok
from tfgen.verifiers.clip import ClipVerifier

DEVICE = torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def launch_kernels() -> None:
    for dtype in DTYPES:
        launch_blocks(dtype)
        launch_norms(dtype)
    launch_sampling()
    for side, options in (
        (9, {}),
        (64, {}),
        (256, {"size": 224}),
        (9, {"size": (4, 7)}),
        (8, {"size": (6, 3), "resize_mode": "longest", "fill_color": 128}),
    ):
        preprocess = {
            "size": 6, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2),
            "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0, **options,
        }  # fmt: skip
        plan = picture_kernels.InputPlan.for_clip(preprocess, side, DEVICE)
        picture_kernels.verifier_input_triton(draw(2, 3, side, side), plan, torch.float16, (-1, 1))


def launch_blocks(dtype: torch.dtype) -> None:
    for n, t, dim, patches in ((1, 1, 1, 0), (3, 5, 129, 2), (2, 7, 1792, 4)):
        table = draw(2, 6, dim)
        x, branch = draw(n, t, dim), draw(n, t, dim, dtype=dtype)
        kernels.norm_modulate_triton(branch, table[:, 2], table[:, 3], patches, dtype)
        kernels.gate_residual_triton(x, branch, table[:, 1], patches)
        kernels.gate_residual_norm_triton(
            x, branch, table[:, 0], table[:, 4], table[:, 5], patches, dtype
        )
    for (heads, dim), n in product(((3, 5), (28, 64)), (0, 1, 2)):
        bias, longer = (draw(n, 7), draw(n, 23)) if n else (None, None)
        kernels.norm_heads_triton(draw(2, 7, 3 * heads * dim, dtype=dtype), heads, bias, 0.125)
        if dtype != torch.float32:  # of which a tile has not registers enough
            qkv = draw(2, 23, 3 * heads * dim, dtype=dtype)
            for tile in (attention.TILE, attention.Tile(128, 8)):
                attention.norm_attention_triton(qkv, heads, longer, 0.125, tile)
    for hidden in (1, 1100, 4800):
        kernels.swiglu_triton(draw(2, 3, 2 * hidden, dtype=dtype))
    if why_no_float8(DEVICE) is None:
        for rows, n in ((1, 1), (5, 129), (3, 4800)):
            float8.quantise_rows_triton(draw(rows, n, dtype=dtype))


def launch_norms(dtype: torch.dtype) -> None:
    for n, channels, height, width, groups in (
        (1, 8, 1, 1, 4),
        (2, 48, 5, 7, 8),
        (3, 96, 33, 31, 8),
        (2, 320, 13, 11, 32),
        (1, 7, 70, 71, 7),
        (2, 128, 64, 63, 32),
        (0, 8, 3, 3, 8),
    ):
        x = draw(n, channels, height, width, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        affine = (draw(channels, dtype=dtype), draw(channels, dtype=dtype))
        group_norm.group_norm_triton(x, groups)
        group_norm.group_norm_triton(x, groups, offset=affine[0])
        for enlarge in (1, 2):
            vae_step.add_branches_triton(x, x, affine[1], enlarge)
        style = draw(n, 3 * channels)[:, channels:]  # rows that are not adjacent
        group_norm.group_norm_triton(x, groups, affine, style, silu=True)
    group_norm.group_norm_triton(draw(2, 30, 24, dtype=dtype).mT, 8)  # as an attention has it


def launch_sampling() -> None:
    for size in (37, 16384):
        for others, average, apg in product(
            (None, draw(1, size), draw(3, size)), (None, draw(3, size)), (True, False)
        ):
            sampling_kernels.guided_step_triton(
                draw(3, size), draw(3, size), others, average, 7.5, 0.05, apg
            )
    for (total, size, longest), dim in product(((9, 7, 3), (256, 5, 4)), (5, 1792)):
        sampling_kernels.assemble_registers_triton(
            torch.randint(64000, (2, longest)).to(DEVICE),
            torch.tensor([longest, 1]).to(DEVICE),
            *(draw(dim, 6), draw(dim), draw(total, dim), draw(dim)),
            *((8, 8, 8, 5, 5, 5), total, size),
        )


def run_engine() -> None:
    """A FlexTok with a toy verifier, and the packaged models, recorded and replayed."""
    folder = Path(tempfile.mkdtemp()) / "clip"
    write_verifier(folder, make_world())
    small = FlexTok.from_pretrained(FOLDER, DEVICE).with_sampling(steps=2)
    for tokenizer, verifier in (
        (small, ClipVerifier.load(folder, DEVICE)),
        (
            hub.load_tokenizer("sprites", DEVICE),
            hub.load_verifier("sprites-clip", DEVICE, "contrast"),
        ),
    ):
        engine = KernelEngine(tokenizer, verifier, rows=3)
        tokens = torch.randint(900, (3, 3))
        for count in (3, 2):
            engine.embed([tokens] * count)
        assert all(slot.replay for slot in engine.graphs.slots.values())


if __name__ == "__main__":
    {"kernels": launch_kernels, "engine": run_engine}[sys.argv[1]]()
    torch.cuda.synchronize()
    print("launched all:", sys.argv[1])
