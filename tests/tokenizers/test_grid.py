"""The grid tokenizer, with a small random network: what holds whatever it has learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toy_grid import grid_model, write_grid
from tfgen import hub
from tfgen.errors import InputError
from tfgen.tokenizers.grid import GridTokenizer
from tfgen.tokenizers.grid_model import FILL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_grid(tmp_path / "model")


@pytest.fixture(scope="module")
def tokenizer() -> GridTokenizer:
    return GridTokenizer(grid_model())


def draw(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(12, (n, length), generator=torch.Generator().manual_seed(seed))


def cell(images: Tensor, index: int) -> Tensor:
    """Cell `index` of pictures of 2 x 2 cells, in raster order."""
    y, x = divmod(index, 2)
    return images[:, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_prefix_shows_its_cells_and_fills_the_rest(tokenizer, length: int) -> None:
    images = tokenizer.decode(draw(3, length))
    assert images.shape == (3, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1
    for index in range(4):
        empty = (cell(images, index) == FILL).all()
        assert empty if index >= length else not empty


def test_given_cells_do_not_look_at_absent_ones(tokenizer) -> None:
    decoder = tokenizer.model.decoder
    keep = torch.tensor([[True, True, False, False]])
    codes = tokenizer.fsq.to_codes(draw(1, 4))
    other = torch.cat([codes[:, :2], -codes[:, 2:] + 0.3], dim=1)
    images = decoder.paint(decoder.describe(codes, keep))
    assert torch.equal(images, decoder.paint(decoder.describe(other, keep)))


def test_a_cell_is_decoded_from_all_given_cells(tokenizer) -> None:
    tokens = draw(1, 4)
    changed = tokens.clone()
    changed[0, 3] = (tokens[0, 3] + 5) % 12
    before, after = tokenizer.decode(tokens), tokenizer.decode(changed)
    assert (cell(before, 0) - cell(after, 0)).abs().max() > 1e-4
    assert (cell(before, 3) - cell(after, 3)).abs().mean() > (
        cell(before, 0) - cell(after, 0)
    ).abs().mean()


def test_pictures_do_not_depend_on_the_rest_of_the_batch(tokenizer) -> None:
    tokens = draw(5, 3)
    alone = torch.cat([tokenizer.decode(row[None]) for row in tokens])
    torch.testing.assert_close(tokenizer.decode(tokens), alone, atol=1e-5, rtol=0)


def test_embeddings_decode_to_the_same_pictures_and_have_gradients(tokenizer) -> None:
    tokens = draw(2, 3)
    embeddings = tokenizer.embed(tokens).requires_grad_()
    images = tokenizer.decode_embeddings(embeddings)
    torch.testing.assert_close(images.detach(), tokenizer.decode(tokens))
    images.sum().backward()
    assert (embeddings.grad.abs().sum(dim=2) > 0).all()


def test_pictures_of_any_size_encode_to_tokens_of_the_codebook(tokenizer) -> None:
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, (32, 32), mode="bilinear")
    tokens = tokenizer.encode(images)
    assert torch.equal(tokenizer.check(tokens), tokens) and tokens.shape == (4, 4)
    assert len(tokens.unique(dim=0)) > 1
    larger = F.interpolate(images, (64, 64), mode="nearest")
    assert (tokenizer.encode(larger) == tokens).float().mean() > 0.8


def test_the_hub_loads_it_by_its_kind(folder: Path) -> None:
    loaded = hub.load_tokenizer(str(folder), torch.device("cpu"))
    assert isinstance(loaded, GridTokenizer)
    tokens = draw(2, 4)
    assert torch.equal(loaded.decode(tokens), GridTokenizer(grid_model()).decode(tokens))


def test_the_fingerprint_tells_weights_apart(tokenizer, folder: Path) -> None:
    assert GridTokenizer.load(folder).fingerprint() == tokenizer.fingerprint()
    assert GridTokenizer(grid_model(seed=1)).fingerprint() != tokenizer.fingerprint()


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "tokenizer.safetensors").unlink()
    with pytest.raises(InputError, match="no weights file"):
        GridTokenizer.load(folder)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"depth": 3}, "does not describe a grid tokenizer"),
        (None, "does not describe a grid tokenizer"),
        ({"width": 20, "heads": 3}, "cannot be made"),
        ({"levels": [1]}, "cannot be made"),
        ({"image_size": 36}, "cannot be made"),
        ({"grid": 0}, "cannot be made"),
        ({"grid": 2, "image_size": 32}, "another model"),  # the default widths
    ],
)
def test_sizes_that_do_not_fit_are_refused(folder: Path, sizes, message: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"kind": "grid", "model": sizes}))
    with pytest.raises(InputError, match=message):
        GridTokenizer.load(folder)
