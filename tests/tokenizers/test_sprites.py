"""The sprites tokenizer, with a small random network: what holds whatever it has learned."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tfgen.errors import InputError
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_model import (
    SpritesConfig,
    SpritesModel,
    compose,
    place,
    resampling,
)
from tfgen.tokenizers.sprites_render import SpritesRenderer

CONFIG = SpritesConfig(
    levels=(4, 3),
    num_tokens=5,
    image_size=32,
    canvas_size=16,
    slots=3,
    width=32,
    depth=1,
    latent=16,
    encoder_widths=(8, 16, 16),
    background_widths=(16, 16, 8),
    object_widths=(16, 8),
)


def network(seed: int = 0) -> SpritesModel:
    """A random network whose pictures differ from each other, not only in their last bits."""
    torch.manual_seed(seed)
    model = SpritesModel(CONFIG)
    for parameter in model.parameters():
        parameter.data *= 1.6
    return model


def write(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(network(seed).state_dict(), folder / "tokenizer.safetensors")
    config = {"kind": "sprites", "model": asdict(CONFIG), "search_defaults": {}}
    (folder / "tokenizer.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


@pytest.fixture(scope="module")
def tokenizer() -> SpritesTokenizer:
    return SpritesTokenizer(network())


def draw(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(12, (n, length), generator=torch.Generator().manual_seed(seed))


def pictures(n: int, size: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bilinear")


# ---- tokens to pictures


def test_every_prefix_decodes_to_a_whole_picture(tokenizer: SpritesTokenizer) -> None:
    tokens = draw(4, 5)
    seen = []
    for length in range(1, 6):
        images = tokenizer.decode(tokens[:, :length])
        assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1
        seen.append(images)
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(seen, seen[1:], strict=False))


def test_another_token_is_another_picture(tokenizer: SpritesTokenizer) -> None:
    images = tokenizer.decode(torch.arange(tokenizer.vocab_size)[:, None])
    assert tokenizer.vocab_size == 12
    apart = (images[:, None] - images).flatten(2).abs().amax(2)
    assert (apart + torch.eye(12) > 1e-2).all()


def test_prefixes_of_different_lengths_decode_as_each_alone(tokenizer: SpritesTokenizer) -> None:
    tokens, lengths = draw(5, 5), torch.tensor([3, 1, 5, 2, 4])
    together = tokenizer.decode_lengths(tokens, lengths)
    for image, row, length in zip(together, tokens, lengths, strict=True):
        assert torch.allclose(image, tokenizer.decode(row[None, :length])[0], atol=1e-5)


def test_tokens_past_a_prefix_do_not_matter(tokenizer: SpritesTokenizer) -> None:
    tokens = draw(4, 5)
    other = torch.cat([tokens[:, :2], (tokens[:, 2:] + 1) % 12], dim=1)
    lengths = torch.full((4,), 2)
    masked = tokenizer.decode_lengths(tokens, lengths)
    assert torch.equal(tokenizer.decode_lengths(other, lengths), masked)
    assert torch.equal(tokenizer.decode(tokens[:, :2]), masked)


def test_a_picture_does_not_depend_on_its_batch(tokenizer: SpritesTokenizer) -> None:
    tokens = draw(9, 4)
    together = tokenizer.decode(tokens)
    alone = torch.cat([tokenizer.decode(row[None]) for row in tokens])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(tokenizer.decode(tokens.flip(0)).flip(0), together, atol=1e-5)


def test_code_vectors_decode_as_their_tokens(tokenizer: SpritesTokenizer) -> None:
    tokens = draw(4, 3)
    codes = tokenizer.embed(tokens)
    assert tokenizer.code_embeddings().shape == (12, 2) and codes.shape == (4, 3, 2)
    assert torch.allclose(tokenizer.decode_embeddings(codes), tokenizer.decode(tokens), atol=1e-6)


def test_gradients_reach_every_code_vector_of_their_own_picture(
    tokenizer: SpritesTokenizer,
) -> None:
    codes = tokenizer.embed(draw(4, 3)).requires_grad_()
    tokenizer.decode_embeddings(codes)[1].sum().backward()
    assert (codes.grad[1].abs() > 0).all()
    assert (codes.grad[[0, 2, 3]] == 0).all()
    assert all(p.grad is None for p in tokenizer.model.parameters())


def test_without_a_renderer_the_final_picture_is_the_decoded_one(
    tokenizer: SpritesTokenizer,
) -> None:
    tokens = draw(2, 4)
    assert tokenizer.render_size == tokenizer.image_size
    assert torch.equal(tokenizer.render(tokens), tokenizer.decode(tokens))


# ---- pictures to tokens


@pytest.mark.parametrize("size", [16, 32, 50, 128])
def test_pictures_of_any_size_are_encoded(tokenizer: SpritesTokenizer, size: int) -> None:
    tokens = tokenizer.encode(pictures(3, size))
    assert tokens.shape == (3, 5) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < 12
    small = F.interpolate(pictures(3, size), (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(tokens, tokenizer.encode(small))


def test_encoding_does_not_depend_on_the_batch(tokenizer: SpritesTokenizer) -> None:
    images = pictures(8, 32)
    together = tokenizer.encode(images)
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(together, alone)
    assert len(together.unique(dim=0)) > 1


# ---- files


def test_a_saved_model_is_the_same_model(folder: Path, tokenizer: SpritesTokenizer) -> None:
    loaded = SpritesTokenizer.load(folder)
    assert loaded.model.cfg == CONFIG
    assert loaded.device == torch.device("cpu")
    assert torch.equal(loaded.decode(draw(3, 4)), tokenizer.decode(draw(3, 4)))
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_weights_may_be_stored_in_half_precision(folder: Path, tokenizer: SpritesTokenizer) -> None:
    path = folder / "tokenizer.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    loaded = SpritesTokenizer.load(folder)
    assert loaded.decode(draw(3, 4)).dtype == torch.float32
    assert torch.allclose(loaded.decode(draw(3, 4)), tokenizer.decode(draw(3, 4)), atol=0.02)
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_changes_with_any_weight(folder: Path) -> None:
    path = folder / "tokenizer.safetensors"
    before = SpritesTokenizer.load(folder).fingerprint()
    state = load_file(path)
    state["to_places.bias"][3] += 0.01
    save_file(state, path)
    after = SpritesTokenizer.load(folder).fingerprint()
    assert after != before


def test_a_renderer_changes_the_fingerprint_of_pictures_but_not_of_tokens(folder: Path) -> None:
    before = SpritesTokenizer.load(folder)
    assert before.picture_fingerprint() == before.fingerprint()
    torch.manual_seed(0)
    save_file(SpritesRenderer(CONFIG).state_dict(), folder / "renderer.safetensors")
    after = SpritesTokenizer.load(folder)
    assert after.fingerprint() == before.fingerprint()
    assert after.picture_fingerprint() != before.fingerprint()


def test_a_renderer_beside_the_weights_paints_the_final_picture(folder: Path) -> None:
    torch.manual_seed(0)
    save_file(SpritesRenderer(CONFIG).state_dict(), folder / "renderer.safetensors")
    tokenizer = SpritesTokenizer.load(folder)
    tokens = draw(2, 3)
    assert tokenizer.render_size > tokenizer.image_size
    images = tokenizer.render(tokens)
    assert images.shape == (2, 3, tokenizer.render_size, tokenizer.render_size)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(SpritesTokenizer(network()).decode(tokens), tokenizer.decode(tokens))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4000])


def lose_one(path: Path) -> None:
    state = load_file(path)
    del state[min(state)]
    save_file(state, path)


def reshape_one(path: Path) -> None:
    state = load_file(path)
    save_file(state | {min(state): torch.zeros(2, 2)}, path)


def another(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def text(path: Path) -> None:
    path.write_text("no weights")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"run": "me"}))


SPOILT = [truncate, lose_one, reshape_one, another, text, pickled]


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        *(("tokenizer.safetensors", spoil) for spoil in (*SPOILT, Path.unlink)),
        *(("renderer.safetensors", spoil) for spoil in SPOILT),
    ],
)
def test_spoilt_weights_are_refused_in_a_sentence(
    folder: Path, file: str, spoil: Callable[[Path], object]
) -> None:
    if file == "renderer.safetensors":
        save_file(SpritesRenderer(CONFIG).state_dict(), folder / file)
    spoil(folder / file)
    with pytest.raises(InputError) as error:
        SpritesTokenizer.load(folder)
    message = str(error.value)
    assert file in message and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{}",
        '{"model": 5}',
        '{"model": {"tokens": 3}}',
        '{"model": {"width": "wide"}}',
        '{"model": {"width": -1}}',
        '{"model": {"levels": [1, 5]}}',
        '{"model": {"levels": []}}',
        '{"model": {"levels": 8}}',
        '{"model": {"background_widths": []}}',
        '{"model": {"encoder_widths": [30, 60]}}',
        '{"model": {}}',  # the default sizes, which the weights do not have
    ],
)
def test_a_spoilt_config_is_refused_in_a_sentence(folder: Path, config: str) -> None:
    (folder / "tokenizer.json").write_text(config)
    with pytest.raises(InputError) as error:
        SpritesTokenizer.load(folder)
    message = str(error.value)
    assert str(folder) in message and message.endswith(".") and "\n" not in message


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        SpritesTokenizer.load(tmp_path)


# ---- painting in layers


def boxes(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rows)


def test_enlarging_is_bilinear() -> None:
    """As grid_sample does it, transparent outside."""
    canvases = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    where = boxes((0.5, 0.5, 0.9), (0.3, 0.62, 0.41), (0.9, 0.1, 0.6))
    theta = torch.zeros(3, 2, 3)
    for i, (x, y, size) in enumerate(where.tolist()):
        theta[i, 0, 0] = theta[i, 1, 1] = 1 / size
        theta[i, 0, 2], theta[i, 1, 2] = (1 - 2 * x) / size, (1 - 2 * y) / size
    grid = F.affine_grid(theta, [3, 4, 32, 32], align_corners=False)
    expected = F.grid_sample(canvases, grid, mode="bilinear", align_corners=False)
    assert torch.allclose(place(canvases, where, 32), expected, atol=1e-5)


def test_a_canvas_that_fills_the_picture_is_the_picture() -> None:
    canvases = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = boxes((0.5, 0.5, 1.0)).expand(2, 3)
    assert torch.allclose(place(canvases, whole, 16), canvases, atol=1e-5)


@pytest.mark.parametrize("extent", [0.6, 0.4, 0.3])
def test_reducing_conserves_mass(extent: float) -> None:
    """What a canvas paints is in proportion to the area that it covers, wherever it stands."""
    canvas = torch.zeros(1, 1, 48, 48)
    canvas[..., 8:40, 8:40] = torch.rand(32, 32, generator=torch.Generator().manual_seed(2))
    expected = canvas.sum() * (extent * 32 / 48) ** 2
    for x, y in ((0.5, 0.5), (0.47, 0.53), (0.31, 0.66)):
        painted = place(canvas, boxes((x, y, extent)), 32)
        assert painted.sum() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("extent", [0.5, 0.2, 0.1, 0.05])
def test_nothing_is_painted_outside_the_box(extent: float) -> None:
    painted = place(torch.ones(1, 1, 48, 48), boxes((0.4, 0.6, extent)), 64)[0, 0]
    axis = (torch.arange(64) + 0.5) / 64
    reach = extent / 2 + 1.5 / 64
    outside = ((axis - 0.4).abs()[None] > reach) | ((axis - 0.6).abs()[:, None] > reach)
    assert painted[outside].abs().max() < 1e-6
    assert painted.sum() == pytest.approx((64 * extent) ** 2, rel=0.15)


def test_resampling_is_differentiable_in_place_and_size() -> None:
    centre, extent = torch.tensor([0.42]), torch.tensor([0.55])
    profile, ramp = torch.rand(8, generator=torch.Generator().manual_seed(3)), torch.arange(32.0)

    def painted(centre: Tensor, extent: Tensor) -> Tensor:
        return (resampling(centre, extent, 8, 32)[0] @ profile) @ ramp

    for i in range(2):
        inputs = [centre.clone(), extent.clone()]
        inputs[i].requires_grad_()
        painted(*inputs).backward()
        up, down = [centre.clone(), extent.clone()], [centre.clone(), extent.clone()]
        up[i] += 1e-3
        down[i] -= 1e-3
        slope = (painted(*up) - painted(*down)) / 2e-3
        assert inputs[i].grad.item() == pytest.approx(slope.item(), rel=0.05)


def layer(red: float, alpha: float) -> Tensor:
    """A premultiplied layer [4, 2, 2]."""
    return torch.tensor([red * alpha, 0.0, 0.0, alpha])[:, None, None].expand(4, 2, 2)


def test_higher_slots_are_painted_over_lower_ones_whatever_their_order() -> None:
    background = torch.zeros(2, 3, 2, 2)
    layers = torch.stack([layer(0.2, 1.0), layer(0.8, 1.0), layer(0.5, 1.0)])
    rows, slots = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        image = compose(background, layers[order], rows[order], slots[order])
        assert torch.allclose(image[:, 0, 0, 0], torch.tensor([0.8, 0.5]))


def test_a_layer_covers_what_is_under_it_as_far_as_it_is_opaque() -> None:
    background = torch.full((1, 3, 2, 2), 0.4)
    layers = torch.stack([layer(1.0, 0.25)])
    image = compose(background, layers, torch.tensor([0]), torch.tensor([0]))
    assert torch.allclose(image[0, 0], torch.full((2, 2), 0.4 * 0.75 + 0.25))
    assert torch.allclose(image[0, 1], torch.full((2, 2), 0.4 * 0.75))
    assert torch.equal(background, torch.full((1, 3, 2, 2), 0.4))


def test_without_layers_the_background_remains() -> None:
    background = torch.rand(1, 3, 2, 2)
    none = torch.zeros(0, dtype=torch.long)
    assert torch.equal(compose(background, torch.zeros(0, 4, 2, 2), none, none), background)
