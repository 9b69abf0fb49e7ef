"""Weights stored small come back nearly the same."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tfgen.packing import LARGE, SCALE, pack, unpack, write_tensors


def test_large_matrices_become_int8_and_come_back_within_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(400, LARGE // 400) * torch.logspace(-3, 1, 400)[:, None]
    packed = pack({"weight": weight})
    assert packed["weight"].dtype == torch.int8
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((unpack(packed)["weight"] - weight).abs() <= 0.501 * step).all()


def test_filters_of_large_convolutions_have_a_scale_each() -> None:
    torch.manual_seed(0)
    weight = (
        torch.randn(LARGE // 90, 10, 3, 3) * torch.logspace(-3, 1, LARGE // 90)[:, None, None, None]
    )
    weight = torch.cat([weight, weight[:1]])
    packed = pack({"w": weight})
    assert packed["w"].dtype == torch.int8 and packed["w"].shape == weight.shape
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((unpack(packed)["w"] - weight).abs() <= 0.501 * step).all()


def test_small_tensors_are_float16_and_whole_numbers_stay():
    packed = pack({"bias": torch.linspace(-1, 1, 7), "steps": torch.tensor([3])})
    assert packed["bias"].dtype == torch.float16
    assert packed["steps"].dtype == torch.int64
    torch.testing.assert_close(unpack(packed)["bias"], torch.linspace(-1, 1, 7), atol=1e-3, rtol=0)


def test_a_row_of_zeros_stays_zero():
    weight = torch.randn(2, LARGE)
    weight[0] = 0
    assert (unpack(pack({"w": weight}))["w"][0] == 0).all()


def test_files_without_int8_are_read_as_float32():
    assert unpack({"w": torch.ones(2, 2, dtype=torch.float16)})["w"].dtype == torch.float32


def test_no_scale_is_left_among_the_weights():
    assert not any(name.endswith(SCALE) for name in unpack(pack({"w": torch.ones(2, LARGE)})))


def test_what_is_large_can_be_said() -> None:
    weights = {"w": torch.randn(20, 10, generator=torch.Generator().manual_seed(0))}
    assert pack(weights)["w"].dtype == torch.float16
    packed = pack(weights, large=200)
    assert packed["w"].dtype == torch.int8
    torch.testing.assert_close(unpack(packed)["w"], weights["w"], atol=0.02, rtol=0)


def test_what_is_to_be_kept_is_not_rounded() -> None:
    weights = {name: torch.randn(20, 10) for name in ("a", "b")}
    packed = pack(weights, large=200, keep=["b"])
    assert (packed["a"].dtype, packed["b"].dtype) == (torch.int8, torch.float16)


def test_a_file_of_tensors_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_tensors({"x": torch.zeros(3)}, tmp_path / "x.safetensors", {"a": "b"})
    (tmp_path / "y").write_text("")
    modes = {(tmp_path / name).stat().st_mode for name in ("x.safetensors", "y")}
    assert len(modes) == 1
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.zeros(3))
