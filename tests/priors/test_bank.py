"""A bank of pictures: what is stored of them, how it is built, what is left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.toys import ToyTokenizer, ToyVerifier, rugged
from tfgen.errors import InputError
from tfgen.priors.bank import FILE_NAME, Bank, Pictures

SIZE = 8


class EmbeddingVerifier(ToyVerifier):
    """Embeds a picture as its first row, of length 1."""

    def embed(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images[:, :, 0].flatten(1) - 0.5, dim=1)


def toys(vocab_size: int = 50) -> tuple[ToyTokenizer, EmbeddingVerifier]:
    tokenizer = ToyTokenizer(vocab_size, SIZE)
    return tokenizer, EmbeddingVerifier(tokenizer, rugged)


def scenes(part: int) -> Tensor:
    """Five pictures for each part."""
    tokenizer, _ = toys()
    generator = torch.Generator().manual_seed(part)
    return tokenizer.decode(torch.randint(50, (5, SIZE), generator=generator))


def build(path: Path, parts: int = 4, pictures: Callable[[int], Tensor] = scenes) -> Bank:
    return Bank.build(pictures, parts, *toys(), path, source={"test": parts})


def test_it_holds_the_tokens_and_nearly_the_embeddings_of_every_picture(tmp_path: Path) -> None:
    bank = build(tmp_path / FILE_NAME)
    tokenizer, verifier = toys()
    images = torch.cat([scenes(part) for part in range(4)])
    assert (len(bank), bank.num_tokens, bank.vocab_size) == (20, SIZE, 50)
    assert torch.equal(bank.tokens(torch.arange(20)), tokenizer.encode(images))
    expected, stored = verifier.embed(images), bank.embeddings(slice(0, 20))
    assert (expected * stored).sum(dim=1).min() > 0.9
    nearest = (stored @ expected.T).argmax(dim=1)
    assert torch.equal(nearest, torch.arange(20))


@pytest.mark.parametrize("kept", [True, False])
def test_a_function_of_all_embeddings_is_that_of_each(
    tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfgen.priors.bank._SLICE", 7)
    monkeypatch.setattr("tfgen.priors.bank._KEPT", 10**6 * kept)
    bank = build(tmp_path / FILE_NAME)
    expected = bank.embeddings(slice(0, 20)).sum(dim=1)
    for _ in range(2):
        found = bank.map_embeddings(lambda part: part.sum(dim=1))
        assert torch.allclose(found, expected, atol=1e-5)
    assert (bank._whole is not None) is kept


def test_it_keeps_no_more_components_than_the_variance_needs(tmp_path: Path) -> None:
    def flat(part: int) -> Tensor:  # pictures that differ in one way only
        shade = torch.linspace(0.1, 0.4, 5) + part / 10
        images = torch.full((5, 3, SIZE, SIZE), 0.9)
        images[:, 0, 0, :4] = shade[:, None]
        return images

    bank = build(tmp_path / FILE_NAME, pictures=flat)
    assert bank.dimensions == 3 * SIZE
    assert bank.components <= 2


def test_a_large_codebook_needs_wider_tokens(tmp_path: Path) -> None:
    tokenizer = ToyTokenizer(64_000, SIZE)
    tokens = torch.tensor([[63_999] * SIZE, [0] * SIZE, [40_000] * SIZE])
    bank = Bank.build(
        lambda part: tokenizer.decode(tokens),
        1,
        tokenizer,
        EmbeddingVerifier(tokenizer, rugged),
        tmp_path / FILE_NAME,
        source={},
    )
    assert torch.equal(bank.tokens(torch.arange(3)), tokens)


def test_a_build_that_was_stopped_goes_on_and_gives_the_same_file(tmp_path: Path) -> None:
    asked = []

    def stopping(part: int) -> Tensor:
        asked.append(part)
        if asked.count(2) == 1 and part == 2:
            raise KeyboardInterrupt
        return scenes(part)

    path, whole = tmp_path / "halves.safetensors", tmp_path / "whole.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build(path, pictures=stopping)
    assert not path.exists()
    build(path, pictures=stopping)
    assert asked == [0, 1, 2, 2, 3]
    build(whole)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, whole.name]


def test_progress_counts_the_parts(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    Bank.build(scenes, 3, *toys(), tmp_path / FILE_NAME, source={},
               progress=lambda *counts: told.append(counts))  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_one_picture_is_no_bank(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A bank needs two pictures or more, not 1"):
        build(tmp_path / FILE_NAME, 1, lambda part: scenes(part)[:1])


@pytest.mark.parametrize("part", ["tokenizer", "verifier"])
def test_a_bank_of_other_models_is_stale(tmp_path: Path, part: str) -> None:
    path = tmp_path / FILE_NAME
    bank = build(path)
    tokenizer, verifier = toys()
    bank.check(path, tokenizer=tokenizer.fingerprint(), verifier=verifier.fingerprint())
    message = f"is stale: it was made with the {part} .*tfgen bank build"
    with pytest.raises(InputError, match=message):
        bank.check(path, **{part: "another"})


@pytest.mark.parametrize("damage", ["missing", "foreign", "cut", "out of range"])
def test_an_unusable_file_is_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE_NAME
    if damage == "foreign":
        path.write_bytes(b"no safetensors")
    if damage == "cut":
        build(path)
        path.write_bytes(path.read_bytes()[:-20])
    if damage == "out of range":
        build(path)
        data = path.read_bytes()
        path.write_bytes(data.replace(rb"\"vocab_size\": 50", rb"\"vocab_size\": 10"))
    with pytest.raises(InputError, match=r"^[^\n]* bank [^\n]*\.$"):
        Bank.open(path)


# pictures in a folder


def save(path: Path, colour: str, size: tuple[int, int] = (20, 10), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def nothing(sentence: str) -> None:
    raise AssertionError(sentence)


def test_pictures_are_found_at_any_depth_and_come_in_order(tmp_path: Path) -> None:
    save(tmp_path / "b.png", "red")
    save(tmp_path / "a" / "c.JPG", "lime", format="JPEG")
    (tmp_path / "notes.txt").write_text("no picture")
    images = Pictures(tmp_path, SIZE, nothing)(0)
    assert images.shape == (2, 3, SIZE, SIZE)
    assert images[:, :, 0, 0].round().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_they_are_cropped_to_the_middle_square(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), "white")
    image.paste("black", (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    assert Pictures(tmp_path, SIZE, nothing)(0).max() < 0.1


def test_transparency_is_laid_on_white_and_a_camera_turned_is_turned_back(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "a.png")
    turned = Image.new("RGB", (16, 16), "white")
    turned.paste("black", (0, 0, 16, 8))  # the top; turned by a quarter, the right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    clear, upright = Pictures(tmp_path, SIZE, nothing)(0)
    assert clear.min() == 1
    assert upright[:, :, :3].min() > 0.9 and upright[:, :, 5:].max() < 0.1


def test_what_is_no_picture_is_named_and_left_out(tmp_path: Path) -> None:
    save(tmp_path / "good.png", "red")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    save(tmp_path / "cut.png", "red", (200, 200))
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    told: list[str] = []
    images = Pictures(tmp_path, SIZE, told.append)(0)
    assert len(images) == 1
    assert [sentence.split("'")[1].rsplit("/")[-1] for sentence in told] == ["bad.png", "cut.png"]
    assert all(sentence.endswith("left out.") for sentence in told)


@pytest.mark.parametrize(
    ("name", "message"), [("", "There are no pictures in"), ("gone", "There is no folder")]
)
def test_a_folder_without_pictures_is_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=f"^{message}[^\n]*\\.$"):
        Pictures(tmp_path / name, SIZE, nothing)


def test_many_pictures_come_in_parts_and_a_changed_folder_is_another_source(
    tmp_path: Path,
) -> None:
    for index in range(65):
        save(tmp_path / f"{index:02}.png", "red", (8, 8))
    pictures = Pictures(tmp_path, SIZE, nothing)
    assert (pictures.parts, len(pictures(0)), len(pictures(1))) == (2, 64, 1)
    before = pictures.source
    assert before == Pictures(tmp_path, SIZE, nothing).source
    os.utime(tmp_path / "00.png", (1, 1))
    assert before != Pictures(tmp_path, SIZE, nothing).source


def test_a_part_without_a_readable_picture_does_no_harm(tmp_path: Path) -> None:
    for index in range(64):
        (tmp_path / f"{index:02}.png").write_bytes(b"not a picture")
    for name, colour in [("y.png", "red"), ("z.png", "blue")]:
        save(tmp_path / name, colour)
    pictures = Pictures(tmp_path, SIZE, lambda sentence: None)
    tokenizer, verifier = toys()
    tokenizer.encode = lambda images: torch.zeros(len(images), SIZE, dtype=torch.int64)
    path = tmp_path / FILE_NAME
    bank = Bank.build(pictures, pictures.parts, tokenizer, verifier, path, source=pictures.source)
    assert len(bank) == 2
