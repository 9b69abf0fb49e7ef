"""Every kernel against its PyTorch reference in float64: in Triton's interpreter without a GPU."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding import kernels, picture_kernels, sampling_kernels
from tfgen.decoding.triton_support import triton
from tfgen.tokenizers.flextok_guidance import adaptive_projected, classifier_free
from tfgen.verifiers.clip import ClipVerifier

if triton is None:
    pytest.skip(
        "there is no Triton to check kernels with: torch brings it with its CUDA builds for Linux",
        allow_module_level=True,
    )

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
HALF = {"atol": 2e-2, "rtol": 2e-2}  # of results rounded to bfloat16


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=noise).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor, tolerance: dict[str, float] = CLOSE) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected.double(), **tolerance)


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def table(dim: int) -> Tensor:
    """One block's modulation, [2, 6, D]: gates, shifts and scales are strided views of it."""
    return randn(2, 6, dim)


SHAPES = [(1, 1, 1), (1, 5, 7), (2, 4, 64), (3, 3, 40), (2, 2, 129)]
DTYPES = [torch.float32, torch.bfloat16]


# Norms, gates, residuals


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "patches"),
    list(zip(SHAPES, [0, 2, 9, 2, 0], strict=True)),  # none, some, all
)
def test_norm_and_modulation(shape: tuple[int, ...], patches: int, dtype: torch.dtype) -> None:
    x, m = 3 * randn(*shape, dtype=dtype) + 1, table(shape[2])
    found = kernels.norm_modulate_triton(x, m[:, 2], m[:, 3], patches, torch.float32)
    expected = kernels.norm_modulate_reference(*doubles(x, m[:, 2], m[:, 3]), patches)
    close(found, expected)


def test_norm_and_modulation_reads_strided_tokens() -> None:
    x, m = randn(3, 6, 20), table(20)
    found = kernels.norm_modulate_triton(x[:, :4], m[:, 0], m[:, 1], 4, torch.float32)
    expected = kernels.norm_modulate_reference(*doubles(x[:, :4], m[:, 0], m[:, 1]), 4)
    close(found, expected)
    with pytest.raises(ValueError, match="must be adjacent"):
        kernels.norm_modulate_triton(x.mT, m[:, 0], m[:, 1], 4, torch.float32)


def test_a_constant_token_has_no_norm_but_epsilon() -> None:
    x, m = torch.full((1, 1, 8), 5.0, device=DEVICE), table(8)
    found = kernels.norm_modulate_triton(x, m[:, 0], m[:, 1], 0, torch.float32)
    close(found[0, 0], m[1, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gate_and_residual(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, branch, m = randn(*shape), randn(*shape, seed=1, dtype=dtype), table(shape[2])
    found = kernels.gate_residual_triton(x, branch, m[:, 1], 2)
    close(found, kernels.gate_residual_reference(*doubles(x, branch, m[:, 1]), 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gate_residual_and_the_next_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, branch, m = randn(*shape), randn(*shape, seed=1, dtype=dtype), table(shape[2])
    tables = (m[:, 0], m[:, 4], m[:, 5])
    y, h = kernels.gate_residual_norm_triton(x, branch, *tables, 2, dtype)
    expected = kernels.gate_residual_reference(*doubles(x, branch, m[:, 0]), 2)
    close(y, expected)
    assert h.dtype == dtype
    normed = kernels.norm_modulate_reference(expected, *doubles(*tables[1:]), 2)
    close(h, normed, CLOSE if dtype == torch.float32 else HALF)


# Attention


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(1, 8), (3, 5), (4, 16)])
@pytest.mark.parametrize("bias", ["none", "shared", "own"])
def test_norm_heads(heads: int, dim: int, bias: str, dtype: torch.dtype) -> None:
    n, tokens = 2, 3
    qkv = randn(n, tokens, 3 * heads * dim, dtype=dtype)
    key_bias = {"none": None, "shared": randn(1, tokens), "own": randn(n, tokens)}[bias]
    found = kernels.norm_heads_triton(qkv, heads, key_bias, 0.25)
    wide = None if key_bias is None else key_bias.double()
    expected = kernels.norm_heads_reference(qkv.double(), heads, wide, 0.25)
    for got, right in zip(found, expected, strict=True):
        assert got.dtype == dtype
        assert got.stride(1) == dim and got.stride(3) == 1  # heads lie side by side
        close(got, right, CLOSE if dtype == torch.float32 else HALF)
    assert found[2].data_ptr() == qkv[..., 2 * heads * dim :].data_ptr()  # not copied


@pytest.mark.parametrize("norm_heads", [kernels.norm_heads_reference, kernels.norm_heads_triton])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_of_the_keys_is_added_to_their_logits(norm_heads, dtype: torch.dtype) -> None:
    heads, dim, tokens, scale = 2, 64, 6, 0.125
    key_bias = torch.tensor([[0.0, 0.0, math.log(252), math.log(7 / 3), 0.0, -1.0]], device=DEVICE)
    qkv = randn(1, tokens, 3 * heads * dim, dtype=dtype)
    right_q, right_k, _ = kernels.norm_heads_reference(qkv.double(), heads, None, scale)
    right = scale * right_q @ right_k.mT

    def error(bias: Tensor | None) -> float:
        q, k, _ = norm_heads(qkv, heads, bias, scale)
        expected = right if bias is None else right + bias.double()
        return (scale * q.double() @ k.double().mT - expected).abs().max().item()

    # rounding costs little more than it did; the interpreter truncates to bfloat16
    assert error(key_bias) < 3 * error(None) + 1e-6
    assert error(None) < (1e-5 if dtype == torch.float32 else 0.05)


def test_attention_is_that_with_a_mask() -> None:
    n, tokens, heads, dim = 2, 5, 3, 8
    qkv, key_bias = randn(n, tokens, 3 * heads * dim), randn(n, tokens).abs()
    q, k, v = kernels.norm_heads_reference(qkv.double(), heads, None, 0.3)
    mask = key_bias.double()[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    found = kernels.attention(qkv, heads, key_bias, 0.3)
    close(found, expected.transpose(1, 2).flatten(2))
    without = kernels.attention(qkv, heads, None, 0.3)
    plain = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2)
    close(without, plain)
    assert not torch.allclose(found, without, atol=1e-2)


# The gated MLP


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 14), (1, 2, 2 * 1100)])
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u = 2 * randn(*shape, dtype=dtype)
    found = kernels.swiglu_triton(u)
    close(found, kernels.swiglu_reference(u.double()), CLOSE if dtype == torch.float32 else HALF)


@pytest.mark.parametrize("hidden", [10, 64, 170])
def test_a_padded_hidden_width_changes_nothing(hidden: int) -> None:
    fc1, fc3, fc2 = randn(hidden, 12), randn(hidden, 12, seed=1), randn(12, hidden)
    x = randn(2, 3, 12)
    first, second = kernels.pad_hidden(fc1, fc3, fc2)
    assert first.shape[0] % 128 == 0 and second.shape[1] % 64 == 0
    found = F.linear(kernels.swiglu(F.linear(x, first)), second)
    expected = F.linear(F.silu(F.linear(x, fc1)) * F.linear(x, fc3), fc2)
    close(found, expected, {"atol": 1e-4, "rtol": 1e-4})
    assert torch.equal(kernels.pad_hidden(fc1, fc3, fc2, 1)[1], fc2)


# Guidance and the Euler update


@pytest.mark.parametrize("size", [1, 37])
@pytest.mark.parametrize("apg", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("norm", [0.1, 10.0])
def test_guidance_and_the_euler_update(size: int, apg: bool, shared: bool, norm: float) -> None:
    n = 3
    x, c, average = randn(n, size), randn(n, size, seed=1), randn(n, size, seed=2)
    u = c[: 1 if shared else n] + norm * F.normalize(randn(1 if shared else n, size, seed=3))
    for before in (None, average):
        found = sampling_kernels.guided_step_triton(x, c, u, before, 7.5, 0.05, apg)
        exact = doubles(x, c, u) + [None if before is None else before.double()]
        expected = sampling_kernels.guided_step_reference(*exact, 7.5, 0.05, apg)
        close(found[0], expected[0])
        if apg:
            close(found[1], expected[1])
        else:
            assert found[1] is None and expected[1] is None


@pytest.mark.parametrize(
    "step", [sampling_kernels.guided_step_reference, sampling_kernels.guided_step_triton]
)
def test_guidance_is_that_of_the_sampler(step) -> None:
    shape, average, state = (2, 4, 3, 3), 0.0, None
    for i in range(3):  # the momentum runs over the steps
        x, c, u = (randn(*shape, seed=3 * i + j) for j in range(3))
        v, average = adaptive_projected(c, u, 7.5, average)
        found, state = step(x.flatten(1), c.flatten(1), u.flatten(1), state, 7.5, 0.1, True)
        close(found, (x - 0.1 * v).flatten(1))
        close(state, average.flatten(1))
        plain, _ = step(x.flatten(1), c.flatten(1), u.flatten(1), None, 3.0, 0.1, False)
        close(plain, (x - 0.1 * classifier_free(c, u, 3.0)).flatten(1))
        alone, _ = step(x.flatten(1), c.flatten(1), None, None, 1.0, 0.1, True)
        close(alone, (x - 0.1 * c).flatten(1))


def test_a_step_without_a_velocity_stands_still() -> None:
    x, zero = randn(2, 20), torch.zeros(2, 20, device=DEVICE)
    found, average = sampling_kernels.guided_step_triton(x, zero, zero, None, 7.5, 0.1)
    assert torch.equal(found, x)
    assert torch.equal(average, zero)


# Registers

LEVELS = (8, 8, 8, 5, 5, 5)


def registers(lengths: list[int], longest: int, total: int, size: int, dim: int, assemble):
    noise = torch.Generator().manual_seed(longest)
    tokens = torch.randint(64_000, (len(lengths), longest), generator=noise).to(DEVICE)
    layers = randn(dim, 6), randn(dim), randn(total, dim), randn(dim, seed=9)
    wide = assemble is sampling_kernels.assemble_registers_reference
    return assemble(
        tokens,
        torch.tensor(lengths, device=DEVICE),
        *(doubles(*layers) if wide else layers),
        LEVELS,
        total,
        size,
    )


@pytest.mark.parametrize(
    ("lengths", "longest", "total", "size"),
    [
        ([1], 1, 6, 2),
        ([1, 3, 2], 3, 8, 4),
        ([0, 2], 2, 8, 3),  # an empty prefix
        ([0], 0, 5, 1),
        ([3, 1], 3, 9, 7),  # more rows than are needed, for the sake of alignment
        ([4, 2, 0], 4, 4, 4),  # a full prefix, nothing to collapse
    ],
)
@pytest.mark.parametrize("dim", [5, 32])
def test_registers(lengths: list[int], longest: int, total: int, size: int, dim: int) -> None:
    case = lengths, longest, total, size, dim
    rows, bias = registers(*case, sampling_kernels.assemble_registers_triton)
    right_rows, right_bias = registers(*case, sampling_kernels.assemble_registers_reference)
    close(rows, right_rows)
    close(bias, right_bias)
    for i, length in enumerate(lengths):  # a row's keys count for all the registers there are
        assert bias[i].exp().sum().item() == pytest.approx(total, rel=1e-5)
        assert (bias[i, :length] == 0).all()


def test_registers_that_cannot_hold_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="2 registers cannot hold 3 tokens"):
        registers([3], 3, 8, 2, 4, sampling_kernels.assemble_registers)


# Pictures


def preprocess(**options) -> dict:
    defaults = {
        "size": 6,
        "mean": (0.48, 0.46, 0.41),
        "std": (0.27, 0.26, 0.28),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return {**defaults, **options}


def clip_input(images: Tensor, options: dict) -> Tensor:
    """What the CLIP verifier makes of them."""
    mean, std = (torch.tensor(options[key])[:, None, None].to(images) for key in ("mean", "std"))
    return ClipVerifier._input(SimpleNamespace(preprocess=options, mean=mean, std=std), images)


PICTURES = [
    (9, {}),
    (4, {}),
    (6, {}),
    (13, {"interpolation": "bilinear"}),
    (9, {"size": (4, 7)}),
    (9, {"size": (4, 7), "resize_mode": "squash"}),
    (8, {"size": (6, 3), "resize_mode": "longest", "fill_color": 128}),
]


@pytest.mark.parametrize(("side", "options"), PICTURES)
def test_a_picture_becomes_the_input_of_the_verifier(side: int, options: dict) -> None:
    images = randn(1, 3, side, side).sigmoid()
    images[0, :, :3] = 1  # an edge, where a bicubic resize overshoots
    cfg = preprocess(**options)
    plan = picture_kernels.InputPlan.for_clip(cfg, side, DEVICE)
    found = picture_kernels.verifier_input_triton(images, plan)
    expected = clip_input(images.double(), cfg)
    close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    close(picture_kernels.verifier_input_reference(images.double(), plan), expected, CLOSE)


def test_a_picture_of_a_vae_is_clamped_before_it_is_resized() -> None:
    images = 2 * randn(1, 3, 8, 8)
    plan = picture_kernels.InputPlan.for_clip(preprocess(), 8, DEVICE)
    found = picture_kernels.verifier_input_triton(images, plan, torch.float16, (-1.0, 1.0))
    assert found.dtype == torch.float16
    expected = clip_input(((images.double() + 1) / 2).clamp(0, 1), preprocess())
    close(found, expected, {"atol": 4e-3, "rtol": 1e-3})


def test_a_strided_picture_is_read_as_it_is() -> None:
    images = randn(1, 3, 8, 8).sigmoid().contiguous(memory_format=torch.channels_last)
    plan = picture_kernels.InputPlan.for_clip(preprocess(), 8, DEVICE)
    found = picture_kernels.verifier_input_triton(images, plan)
    close(found, clip_input(images.double(), preprocess()))
