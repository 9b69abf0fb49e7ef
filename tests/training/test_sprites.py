"""Fetching and building sprites from a made-up npm and archives: no network, no sprites."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from tfgen.errors import InputError, TfgenError
from tfgen.training import sprites
from tfgen.training.objects import ObjectSpec

RED, BLUE, CLEAR = (255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)


def spec(name: str, sprite: str) -> ObjectSpec:
    return ObjectSpec(name, sprite, (), name + "s", ("red",), "small")


TABLE = (spec("bar", "1f600"), spec("half", "1f601@left"), spec("ball", "2708-fe0f"))


def picture(draw) -> bytes:
    image = Image.new("RGBA", (64, 64), CLEAR)
    draw(ImageDraw.Draw(image))
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=True)
    return data.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pictures() -> dict[str, bytes]:
    return {
        # wide, low and off centre
        "package/assets/1f600.webp": picture(lambda d: d.rectangle((10, 4, 49, 13), fill=RED)),
        # red left of blue
        "package/assets/1f601.webp": picture(
            lambda d: (
                d.rectangle((4, 8, 27, 31), fill=RED),
                d.rectangle((36, 8, 59, 31), fill=BLUE),
            )
        ),
        "package/assets/2708-fe0f.webp": picture(lambda d: d.ellipse((20, 20, 59, 59), fill=BLUE)),
        "package/../../escaped.webp": b"never written anywhere",
        "package/package.json": b"{}",
    }


def pin(monkeypatch, which: str, path: Path) -> None:
    """Make the archive at `path` the pinned one."""
    package = replace(getattr(sprites, which), integrity=sprites._integrity(path))
    monkeypatch.setattr(sprites, which, package)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """A cache folder with the made-up archives in it, a three-row table, and no npm."""
    folder = tmp_path / "cache"
    pin(monkeypatch, "SPRITES", archive(folder / "npm" / sprites.SPRITES.archive, pictures()))
    labels = [
        {"label": "chocolate bar", "hexcode": "1F600"},
        {"label": "portion", "hexcode": "1F601", "tags": ["half"]},
        {"label": "airplane", "hexcode": "2708", "tags": ["plane"]},
    ]
    data = {"package/en/data.json": json.dumps(labels).encode()}
    pin(monkeypatch, "LABELS", archive(folder / "npm" / sprites.LABELS.archive, data))
    monkeypatch.setattr(sprites, "load_objects", lambda tier="full": TABLE)
    monkeypatch.setattr(sprites.shutil, "which", lambda name: None)
    return folder


def fake_npm(monkeypatch, *, writes: Path | None = None, returncode: int = 0, stderr: str = ""):
    """Let `npm pack` copy a file into the folder it runs in; returns the list of its calls."""
    calls = []

    def run(command, cwd, **_):
        calls.append(command)
        if writes is not None:
            (Path(cwd) / sprites.SPRITES.archive).write_bytes(writes.read_bytes())
        return subprocess.CompletedProcess(command, returncode, stdout="", stderr=stderr)

    monkeypatch.setattr(sprites.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sprites.subprocess, "run", run)
    return calls


def test_sprites_come_in_table_order_with_their_names(cache):
    images, specs = sprites.load_sprites("small", 32, cache)
    assert images.shape == (3, 4, 32, 32) and images.dtype == torch.uint8
    assert [s.name for s in specs] == ["bar", "half", "ball"]
    with safe_open(cache / "sprites" / "sprites-small-32.safetensors", "pt") as file:
        assert json.loads(file.metadata()["names"]) == ["bar", "half", "ball"]


def test_objects_fill_their_frame_centred_with_a_small_margin(cache):
    images, _ = sprites.load_sprites("small", 50, cache)
    solid = images[0, 3] > 128
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    assert 1 <= columns[0] <= 2 and 47 <= columns[-1] <= 48  # 2 % of the width on either side
    assert len(rows) == pytest.approx(12, abs=1)  # 40 x 10 became 48 x 12
    assert int(rows[0] + rows[-1]) == pytest.approx(49, abs=1)


def test_a_crop_keeps_its_part_of_the_picture(cache):
    images, _ = sprites.load_sprites("small", 32, cache)
    assert images[1, 0, 16, 16] == 255
    assert images[1, 2].max() == 0


def test_colours_are_premultiplied(cache):
    images, _ = sprites.load_sprites("small", 17, cache)
    assert (images[:, :3] <= images[:, 3:]).all()
    soft = (images[2, 3] > 20) & (images[2, 3] < 235)
    assert soft.any(), "the edge of a disc is antialiased"
    assert torch.equal(images[2, 2][soft], images[2, 3][soft])  # blue as far as it covers


def test_a_built_file_is_used_again_without_the_package(cache):
    first, _ = sprites.load_sprites("small", 32, cache)
    (cache / "npm" / sprites.SPRITES.archive).unlink()
    again, _ = sprites.load_sprites("small", 32, cache)
    assert torch.equal(first, again)


def test_a_changed_table_or_a_damaged_file_is_built_anew(cache, monkeypatch):
    sprites.load_sprites("small", 32, cache)
    monkeypatch.setattr(sprites, "load_objects", lambda tier="full": TABLE[:2])
    assert len(sprites.load_sprites("small", 32, cache)[0]) == 2
    built = cache / "sprites" / "sprites-small-32.safetensors"
    built.write_bytes(built.read_bytes()[:200])
    assert len(sprites.load_sprites("small", 32, cache)[0]) == 2


def test_sprites_are_brought_along_in_a_built_file_or_in_the_archive(cache, tmp_path):
    built, _ = sprites.load_sprites("full", 192, cache)
    file = cache / "sprites" / "sprites-full-192.safetensors"
    elsewhere = tmp_path / "elsewhere"
    assert torch.equal(sprites.read_sprites(file, elsewhere), built)
    brought = Path(shutil.copy(cache / "npm" / sprites.SPRITES.archive, tmp_path / "brought.tgz"))
    assert torch.equal(sprites.read_sprites(brought, elsewhere), built)
    other = archive(tmp_path / "other.tgz", {"package/package.json": b"{}"})
    with pytest.raises(InputError, match="is not the archive of @lobehub"):
        sprites.read_sprites(other, elsewhere)


def test_brought_sprites_of_another_table_are_refused(cache, monkeypatch):
    sprites.load_sprites("small", 32, cache)
    file = cache / "sprites" / "sprites-small-32.safetensors"
    monkeypatch.setattr(sprites, "load_objects", lambda tier="full": (spec("new", "1f600"), *TABLE))
    with pytest.raises(InputError, match="other sprites than those of this version's table"):
        sprites.read_sprites(file, cache)


@pytest.mark.parametrize("size", [0, 7, 100_000])
def test_impossible_sizes_are_refused(cache, size):
    with pytest.raises(InputError, match="between 8 and 512"):
        sprites.load_sprites("small", size, cache)


def test_nothing_of_the_archive_is_unpacked(cache, tmp_path):
    sprites.load_sprites("small", 32, cache)
    assert not list(tmp_path.rglob("*.webp"))
    assert sorted(p.name for p in (cache / "sprites").iterdir()) == ["sprites-small-32.safetensors"]


def test_a_missing_member_is_named(cache, monkeypatch):
    monkeypatch.setattr(sprites, "load_objects", lambda tier="full": (spec("gone", "1f999"),))
    with pytest.raises(TfgenError, match="1f999.webp"):
        sprites.load_sprites("small", 32, cache)


def test_a_picture_that_is_none_is_named(cache, monkeypatch):
    broken = {**pictures(), "package/assets/1f600.webp": b"not a picture"}
    pin(monkeypatch, "SPRITES", archive(cache / "npm" / sprites.SPRITES.archive, broken))
    with pytest.raises(TfgenError, match="1f600 of 'bar'"):
        sprites.load_sprites("small", 32, cache)


def test_missing_npm_is_one_clear_sentence(cache):
    (cache / "npm" / sprites.SPRITES.archive).unlink()
    with pytest.raises(TfgenError, match="npm.*not installed: install Node.js") as raised:
        sprites.load_sprites("small", 32, cache)
    assert raised.value.exit_code == 1


def test_npm_pack_fetches_what_is_not_there(cache, tmp_path, monkeypatch):
    there = cache / "npm" / sprites.SPRITES.archive
    there.rename(tmp_path / "registry.tgz")
    calls = fake_npm(monkeypatch, writes=tmp_path / "registry.tgz")
    assert sprites.fetch(sprites.SPRITES, cache) == there
    assert calls == [["/usr/bin/npm", "pack", "@lobehub/fluent-emoji-3d@1.1.0", "--loglevel=error"]]
    sprites.fetch(sprites.SPRITES, cache)
    assert len(calls) == 1, "what is there whole is not fetched again"


def test_a_truncated_archive_is_fetched_again(cache, tmp_path, monkeypatch):
    there = cache / "npm" / sprites.SPRITES.archive
    whole = there.read_bytes()
    (tmp_path / "registry.tgz").write_bytes(whole)
    there.write_bytes(whole[: len(whole) // 2])
    calls = fake_npm(monkeypatch, writes=tmp_path / "registry.tgz")
    sprites.fetch(sprites.SPRITES, cache)
    assert len(calls) == 1 and there.read_bytes() == whole


def test_another_archive_than_the_pinned_one_is_refused(cache, tmp_path, monkeypatch):
    (cache / "npm" / sprites.SPRITES.archive).unlink()
    fake_npm(monkeypatch, writes=archive(tmp_path / "other.tgz", {"package/package.json": b"{}"}))
    with pytest.raises(TfgenError, match="not the pinned archive"):
        sprites.fetch(sprites.SPRITES, cache)
    assert not (cache / "npm" / sprites.SPRITES.archive).exists()


def test_a_failed_fetch_says_what_npm_said(cache, monkeypatch):
    (cache / "npm" / sprites.SPRITES.archive).unlink()
    stderr = "npm warn Unknown user config\nnpm error network request to registry failed\n"
    fake_npm(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(TfgenError, match=r"\(network request to registry failed\): check the"):
        sprites.fetch(sprites.SPRITES, cache)


def test_an_unwritable_cache_is_one_clear_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where a folder should be")
    fake_npm(monkeypatch)
    with pytest.raises(TfgenError, match="cannot be written.*set TFGEN_CACHE"):
        sprites.fetch(sprites.SPRITES, tmp_path / "file")


def test_the_check_names_sprites_that_are_called_something_else(cache):
    assert sprites.check_table(TABLE, cache) == ["ball: emojibase calls 2708-fe0f 'airplane'."]
    unknown = (spec("gone", "1f999"),)
    assert "there is no sprite 1f999" in sprites.check_table(unknown, cache)[0]


def test_the_command_builds_and_checks(cache, capsys):
    argv = ["--tier", "small", "--size", "16", "--cache", str(cache), "--check"]
    assert sprites.main(argv) == 1  # one name is doubtful, see above
    out = capsys.readouterr().out
    assert "small: 3 objects, 16 px" in out and "1 of 3 names are doubtful" in out
    assert (cache / "sprites" / "sprites-small-16.safetensors").is_file()


def test_the_command_reports_errors_without_a_traceback(cache, capsys):
    (cache / "npm" / sprites.LABELS.archive).unlink()
    assert sprites.main(["--cache", str(cache)]) == 1
    assert capsys.readouterr().err.startswith("error: npm,")
