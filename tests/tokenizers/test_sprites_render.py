"""The large decoder, with random networks: the same scene as the small picture, larger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toy_world import tokenizer_model
from tfgen.tokenizers import sprites_model
from tfgen.tokenizers.sprites_model import Layered, SpritesModel, Stages
from tfgen.tokenizers.sprites_render import SCALE, Enlarger, Memory, SpritesRenderer

SMALL, LARGE = 32, 32 * SCALE


@pytest.fixture
def model() -> SpritesModel:
    return tokenizer_model(SMALL).eval().requires_grad_(False)


@pytest.fixture(params=["stages", "memory"])
def renderer(request: pytest.FixtureRequest, model: SpritesModel) -> SpritesRenderer:
    """One that paints objects anew by stages of its own, and one that remembers their kinds."""
    torch.manual_seed(1)
    remembered = {"kinds": 5, "memory": 3, "grounds": 4, "ground_memory": 2}
    remembered = remembered if request.param == "memory" else {}
    made = SpritesRenderer(replace(model.cfg, **remembered)).eval().requires_grad_(False)
    for enlarger in (made.background, made.object):
        assert isinstance(enlarger.own, Memory if remembered else Stages)
    return made


def scene(model: SpritesModel, present: list[list[float]]) -> tuple[Layered, Tensor]:
    """Layers of random scenes with these presence logits (one row a scene), and their trunks."""
    generator = torch.Generator().manual_seed(2)
    n, cfg = len(present), model.cfg
    trunk = torch.randn(n, cfg.width, generator=generator)
    boxes = 0.3 + 0.4 * torch.rand(n, cfg.slots, 3, generator=generator)
    slots = torch.randn(n, cfg.slots, cfg.latent, generator=generator)
    background = torch.sigmoid(model.background(model.to_background(trunk)))
    return Layered(background, torch.tensor(present), boxes, slots), trunk


def test_an_enlarger_paints_eight_times_the_side_of_what_it_sees() -> None:
    """The painter doubles that side; this is SCALE times the painter's."""
    for own in (Stages(16, (8, 8), side=12), Memory(16, kinds=3, channels=8, side=6)):
        enlarger = Enlarger(latent=16, painter_width=8, own=own, own_width=8, out=4)
        assert enlarger(torch.zeros(2, 8, 6, 6), torch.zeros(2, 16)).shape == (2, 4, 48, 48)
    assert SCALE == 4


def test_a_memory_gives_what_it_keeps_of_what_is_described_best() -> None:
    torch.manual_seed(0)
    memory = Memory(latent=3, kinds=3, channels=2, side=6).requires_grad_(False)
    memory.keys.weight.copy_(torch.eye(3))
    memory.keys.bias.zero_()
    described = torch.tensor([[0.0, 0.0, 5.0], [0.6, 0.5, 0.0]])
    assert torch.equal(memory.features(described), memory.values[[2, 0]])


def test_layers_are_painted_at_four_times_the_size(
    model: SpritesModel, renderer: SpritesRenderer
) -> None:
    assert renderer.size == LARGE
    layered, trunk = scene(model, [[1.0] * 4] * 3)
    background = renderer.paint_background(model, trunk)
    assert background.shape == (3, 3, LARGE, LARGE)
    canvases = renderer.paint_objects(model, layered.slots.flatten(0, 1))
    side = SCALE * model.cfg.canvas_size
    assert canvases.shape == (12, 4, side, side)
    for painted in (background, canvases):
        assert painted.dtype == torch.float32 and 0 <= painted.min() and painted.max() <= 1
    assert (canvases[:, :3] <= canvases[:, 3:]).all()  # premultiplied


def test_of_a_description_of_no_background_the_typical_one_is_painted(model: SpritesModel) -> None:
    torch.manual_seed(1)
    sizes = replace(model.cfg, grounds=4, ground_memory=2)
    renderer = SpritesRenderer(sizes).eval().requires_grad_(False)
    assert renderer.typical is not None
    renderer.typical.normal_()
    trunk = 30 * torch.randn(3, model.cfg.width)
    read = renderer.background.named(model.to_background(trunk)).argmax(1)
    expected = renderer.paint_described(model, renderer.typical[read])
    assert torch.equal(renderer.paint_background(model, trunk), expected)


def test_a_rendered_picture_does_not_depend_on_its_batch(
    model: SpritesModel, renderer: SpritesRenderer
) -> None:
    layered, trunk = scene(model, [[1.0, -1.0, 1.0, 1.0], [-1.0] * 4, [1.0, 1.0, -1.0, -1.0]])
    together = renderer.paint(model, layered, trunk)
    assert together.shape == (3, 3, LARGE, LARGE)
    for i in range(3):
        alone = Layered(*(part[i : i + 1] for part in layered))
        assert torch.allclose(
            renderer.paint(model, alone, trunk[i : i + 1])[0], together[i], atol=1e-5
        )


@pytest.fixture(params=["decoded", "rendered"])
def paint(
    request: pytest.FixtureRequest, model: SpritesModel, renderer: SpritesRenderer
) -> Callable[[list[float]], Tensor]:
    """Paints one scene with these presence logits, by either decoder."""

    def run(present: list[float]) -> Tensor:
        layered, trunk = scene(model, [present])
        if request.param == "decoded":
            return sprites_model.paint(model, layered)
        return renderer.paint(model, layered, trunk)

    return run


def test_an_object_is_painted_whole_or_not_at_all(paint: Callable[[list[float]], Tensor]) -> None:
    nothing = paint([-9.0, -9.0, -9.0, -9.0])
    assert torch.equal(paint([-0.01, -9.0, 0.0, -3.0]), nothing)
    sure = paint([9.0, -9.0, -9.0, 9.0])
    assert torch.equal(paint([0.01, -0.01, -9.0, 2.0]), sure)
    assert (sure - nothing).abs().max() > 0.01


def test_objects_stand_where_the_small_picture_has_them(
    model: SpritesModel, renderer: SpritesRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is painted out of the way: opaque squares on black."""
    layered, trunk = scene(model, [[1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]])
    side = model.cfg.canvas_size
    monkeypatch.setattr(model, "canvases", lambda s: torch.ones(len(s), 4, side, side))
    monkeypatch.setattr(
        renderer, "paint_objects", lambda _, s: torch.ones(len(s), 4, SCALE * side, SCALE * side)
    )
    monkeypatch.setattr(
        renderer, "paint_background", lambda _, t: torch.zeros(len(t), 3, LARGE, LARGE)
    )
    small = sprites_model.paint(model, layered._replace(background=torch.zeros(2, 3, SMALL, SMALL)))
    large = F.avg_pool2d(renderer.paint(model, layered, trunk), SCALE)
    assert small.max() > 0.99 and small.min() < 0.01
    off = (large - small).abs()
    assert off.mean() < 0.01 and off.max() < 0.3  # the edges are sharper
