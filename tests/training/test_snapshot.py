"""A recipe's folder in few small files, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tfgen.errors import InputError
from tfgen.training import snapshot
from tfgen.training.common import EMA, load_checkpoint, save_checkpoint


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder as a recipe's, with a checkpoint."""
    out = tmp_path / "out"
    folder = out / "stages" / "apart" / "codes"
    module = nn.Linear(300, 300)
    optimiser = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.ones(1, 300)).sum().backward()
    optimiser.step()
    save_checkpoint(folder / "checkpoint.safetensors", module, optimiser, EMA(module, 0.9), 7)
    (out / "sprites").mkdir()
    (out / "sprites" / "tokenizer.json").write_text("{}")
    (out / "sprites" / "bank.safetensors.parts").mkdir()
    (out / "sprites" / "bank.safetensors.parts" / "000000.safetensors").write_bytes(b"large")
    (out / "stages" / "found.parts").mkdir()
    (out / "stages" / "found.parts" / "000000.safetensors").write_bytes(b"dear")
    return out


def test_another_machine_goes_on_from_a_snapshot(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "LARGEST", 50_000)
    checkpoint = out / "stages" / "apart" / "codes" / "checkpoint.safetensors"
    size = snapshot.save(out, tmp_path / "snap")
    pieces = sorted((tmp_path / "snap").iterdir())
    assert len(pieces) > 1 and sum(p.stat().st_size for p in pieces) == size
    assert all(p.stat().st_size <= 50_000 for p in pieces)
    assert size < checkpoint.stat().st_size / 10
    other = tmp_path / "deep" / "other"
    snapshot.restore(tmp_path / "snap", other)
    files = {str(p.relative_to(other)) for p in other.rglob("*") if p.is_file()}
    assert files == {
        "sprites/tokenizer.json",
        "stages/apart/codes/checkpoint.safetensors",
        "stages/found.parts/000000.safetensors",
    }
    module = nn.Linear(300, 300)
    optimiser = torch.optim.AdamW(module.parameters(), fused=True)
    restored = other / checkpoint.relative_to(out)
    assert load_checkpoint(restored, module, optimiser, EMA(module, 0.9)) == 7
    true = nn.Linear(300, 300)
    load_checkpoint(
        checkpoint, true, torch.optim.AdamW(true.parameters(), fused=True), EMA(true, 0)
    )
    torch.testing.assert_close(module.weight, true.weight, rtol=0, atol=1e-3)
    # A later one takes the place of all files of the one before, and may be made of a light one.
    checkpoint.unlink()
    snapshot.save(out, tmp_path / "snap")
    assert len(list((tmp_path / "snap").iterdir())) == 1
    snapshot.save(other, tmp_path / "again")


def test_a_snapshot_that_is_not_whole_is_refused(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    with pytest.raises(InputError, match="There is no snapshot in"):
        snapshot.restore(tmp_path, other)
    monkeypatch.setattr(snapshot, "LARGEST", 20_000)
    snapshot.save(out, tmp_path / "snap")
    pieces = sorted((tmp_path / "snap").iterdir())
    assert len(pieces) > 2
    for piece in (pieces[1], pieces[-1]):
        there = piece.read_bytes()
        for spoilt in (b"", there[:99] + bytes([there[99] ^ 1]) + there[100:]):
            piece.write_bytes(spoilt)
            with pytest.raises(InputError, match="bring all of its files"):
                snapshot.restore(tmp_path / "snap", other)
        piece.write_bytes(there)
    assert not other.exists() and not list(tmp_path.glob("*.partial"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    snapshot.restore(tmp_path / "snap", Path())
    assert (tmp_path / "here" / "sprites").is_dir()
