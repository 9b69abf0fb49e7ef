"""Pictures on disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from tfgen import InputError, TfgenError, image_io
from tfgen.image_io import (
    check_writable,
    contact_sheet,
    load_png,
    pixel_hash,
    save_png,
    save_sheet,
    to_image,
)

RED, BLUE = (200, 10, 20), (10, 20, 200)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


# From tensors to pixels


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.5])
    image = to_image(values.expand(3, 1, -1))
    assert [image.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 0, 1, 255, 255]


def test_rows_are_rows_and_channels_are_colours() -> None:
    picture = torch.zeros(3, 2, 3)
    picture[2, 1, 0] = 1
    image = to_image(picture)
    assert image.size == (3, 2)
    assert image.getpixel((0, 1)) == (0, 0, 255)


def test_the_hash_is_of_the_pixels_not_of_the_mode() -> None:
    image = plain(RED)
    assert pixel_hash(image) == pixel_hash(image.convert("RGBA"))
    assert pixel_hash(image) != pixel_hash(plain(BLUE))


# PNG with a recipe


def test_a_recipe_survives_in_the_png(tmp_path: Path) -> None:
    recipe = {"prompt": "ein roter Fuchs 🦊 im Schnee", "tokens": [1, 2], "tfgen": "0.1.0"}
    path = save_png(plain(RED), tmp_path / "fox.png", recipe)
    image, found = load_png(path)
    assert found == recipe
    assert image.tobytes() == plain(RED).tobytes()
    assert Image.open(path).info["Software"] == "tfgen 0.1.0"


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    for colour in (RED, BLUE):
        save_png(plain(colour), tmp_path / "fox.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    assert load_png(tmp_path / "fox.png")[0].getpixel((0, 0)) == BLUE


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(plain(RED), tmp_path / "fox.png", {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_io.os, "replace", full)
    with pytest.raises(TfgenError, match="No space left"):
        save_png(plain(BLUE), path, {})
    assert load_png(path)[0].getpixel((0, 0)) == RED
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]


def test_a_png_without_a_recipe_is_refused(tmp_path: Path) -> None:
    path = save_sheet(plain(RED), tmp_path / "foreign.png")
    with pytest.raises(InputError, match="carries no recipe"):
        load_png(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        load_png(tmp_path / "fox.png")


@pytest.mark.parametrize("content", [b"", b"a fox", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fox.png").write_bytes(content)
    with pytest.raises(InputError, match="no picture"):
        load_png(tmp_path / "fox.png")


def test_a_truncated_png_is_refused(tmp_path: Path) -> None:
    path = save_png(to_image(torch.rand(3, 64, 64)), tmp_path / "fox.png", {"prompt": "fox"})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="no picture"):
        load_png(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "null", '{"a": ' + "[" * 9**5, '{"a": ' + "[" * 99 + "]" * 99 + "}"],
    ids=["empty", "cut", "list", "null", "endless", "deep"],
)
def test_a_damaged_recipe_is_refused(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: text)
    path = save_png(plain(RED), tmp_path / "fox.png", {})
    with pytest.raises(InputError, match="damaged"):
        load_png(path)


# Whether a picture can be written


def test_a_new_file_in_a_folder_is_writable_and_the_check_leaves_nothing(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "fox.png") == tmp_path / "fox.png"
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_is_writable_and_stays_as_it_is(tmp_path: Path) -> None:
    path = save_png(plain(RED), tmp_path / "fox.png", {})
    before = path.read_bytes()
    check_writable(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["fox.jpg", "fox", "fox.png.txt"])
def test_only_png_names_are_writable(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="ends in .png"):
        check_writable(tmp_path / name)


def test_a_missing_folder_is_not_writable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder.*create it first"):
        check_writable(tmp_path / "gone" / "fox.png")


def test_a_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "fox.png").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path / "fox.png")


def test_a_folder_that_takes_no_file_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path / "fox.png")


def test_a_name_that_is_too_long_is_not_writable(tmp_path: Path) -> None:
    for path in (tmp_path / f"{'f' * 300}.png", tmp_path / ("f" * 300) / "fox.png"):
        with pytest.raises(InputError, match="too long|there is no folder"):
            check_writable(path)


# Contact sheets


def test_a_sheet_shows_the_pictures_row_by_row() -> None:
    sheet = contact_sheet([plain(RED), plain(BLUE), plain(RED)], columns=2, gap=4)
    assert sheet.size == (2 * 36 + 4, 2 * 36 + 4)
    assert sheet.getpixel((20, 20)) == RED
    assert sheet.getpixel((56, 20)) == BLUE
    assert sheet.getpixel((20, 56)) == RED
    assert sheet.getpixel((56, 56)) == (255, 255, 255)


def test_a_sheet_without_columns_is_about_square() -> None:
    width, height = contact_sheet([plain(RED)] * 9).size
    assert width == height


def test_a_sheet_is_no_wider_than_its_pictures() -> None:
    assert contact_sheet([plain(RED)] * 2, columns=10, gap=0).size == (64, 32)


def test_labels_stand_below_their_pictures_within_the_cell() -> None:
    bare = contact_sheet([plain(RED)] * 2, columns=2, gap=4)
    sheet = contact_sheet([plain(RED)] * 2, ["a fox", ""], columns=2, gap=4)
    assert sheet.width == bare.width and sheet.height > bare.height
    left = sheet.crop((0, bare.height - 4, sheet.width // 2, sheet.height)).convert("L")
    right = sheet.crop((sheet.width // 2, bare.height - 4, sheet.width, sheet.height)).convert("L")
    assert left.getextrema()[0] < 64
    assert right.getextrema() == (255, 255)


def test_a_long_label_is_wrapped_and_an_endless_word_is_cut() -> None:
    one_line = contact_sheet([plain(RED)], ["fox"]).height
    assert contact_sheet([plain(RED)], ["fox snow sun"]).height > one_line
    sheet = contact_sheet([plain(RED)], ["f" * 500])
    assert sheet.height == one_line
    edges = [sheet.crop((x, 0, x + 1, sheet.height)).convert("L") for x in (0, sheet.width - 1)]
    assert all(edge.getextrema() == (255, 255) for edge in edges)


def test_a_sheet_needs_as_many_labels_as_pictures() -> None:
    with pytest.raises(ValueError, match="2 pictures"):
        contact_sheet([plain(RED)] * 2, ["a fox"])
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
