"""Reading a scene: looking where objects are, and writing of what may be there."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tfgen.tokenizers.sprites_reading import POINTS, Holds, Reader, Scribe, Sight, closely

HOLDS = Holds(slots=2, kinds=5, colours=3, grounds=4)


def sights(n: int) -> Sight:
    generator = torch.Generator().manual_seed(0)
    return Sight(
        torch.randn(n, 24, generator=generator), torch.randn(n, 8, 16, 16, generator=generator)
    )


def test_an_object_is_looked_at_inside_its_box() -> None:
    """Of a map that tells where its places are, the points of a box are seen."""
    line = (torch.arange(16) + 0.5) / 16
    places = torch.stack([line.expand(16, 16), line[:, None].expand(16, 16)])[None]
    boxes = torch.tensor([[[0.5, 0.4, 0.3], [0.6, 0.6, 0.0]]])
    seen = closely(places, boxes).unflatten(2, (POINTS, POINTS, 2))
    assert seen.shape == (1, 2, POINTS, POINTS, 2)
    across = 0.5 + 0.3 * torch.tensor([-0.4, -0.2, 0.0, 0.2, 0.4])
    torch.testing.assert_close(seen[0, 0, :, :, 0], across.expand(5, 5))
    torch.testing.assert_close(seen[0, 0, :, :, 1], (across - 0.1)[:, None].expand(5, 5))
    torch.testing.assert_close(seen[0, 1], torch.full((5, 5, 2), 0.6))


def test_outside_of_the_picture_nothing_is_seen() -> None:
    seen = closely(torch.ones(1, 1, 8, 8), torch.tensor([[[1.5, 0.5, 0.2]]]))
    assert (seen == 0).all()


def test_a_reader_learns_where_an_object_is_and_what_it_is_from_what_is_near() -> None:
    """The whole tells nothing but roughly where it is; what it is stands at its place alone."""
    torch.manual_seed(0)
    reader = Reader(HOLDS, 4, 8)
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(5, (64, 1), generator=generator)
    centres = 0.3 + 0.4 * torch.rand(64, 2, generator=generator)
    line = (torch.arange(16) + 0.5) / 16
    near = (line - centres[:, :1]).abs()[:, None] + (line - centres[:, 1:]).abs()[:, :, None] < 0.2
    places = torch.zeros(64, 8, 16, 16)
    places[torch.arange(64), kinds[:, 0]] = near.float()
    sight = Sight(torch.cat([centres, torch.ones(64, 2)], 1), places)
    optimiser = torch.optim.Adam(reader.parameters(), lr=1e-3)
    box = torch.cat([centres, torch.full((64, 1), 0.3)], 1)
    for _ in range(120):
        read = reader(sight)
        off = (read.tries[:, :, 0] - box).abs().mean()
        loss = F.cross_entropy(read.kinds[:, 0], kinds[:, 0]) + 5 * off
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    read = reader(sight)
    assert (read.kinds[:, 0].argmax(1) == kinds[:, 0]).float().mean() > 0.9
    assert (read.boxes[:, 0, :2] - centres).abs().mean() < 0.05


def test_a_reading_does_not_depend_on_its_company() -> None:
    torch.manual_seed(0)
    reader, sight = Reader(HOLDS, 24, 8).eval(), sights(6)
    with torch.no_grad():
        whole, alone = reader(sight), reader(Sight(sight.whole[2:3], sight.places[2:3]))
    assert whole.boxes.shape == (6, 2, 3) and whole.kinds.shape == (6, 2, 6)
    for field in ("ground", "kinds", "colours", "boxes"):
        together, single = getattr(whole, field)[2:3], getattr(alone, field)
        torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


def test_the_mean_of_a_sure_reading_is_the_likeliest_and_of_an_unsure_one_lies_between() -> None:
    torch.manual_seed(0)
    scribe = Scribe(HOLDS, 16, 6)
    read = Reader(HOLDS, 24, 8)(sights(3))
    logits = {f: getattr(read, f) for f in ("ground", "kinds", "colours")}
    likeliest = {f: F.one_hot(v.argmax(-1), v.shape[-1]) for f, v in logits.items()}
    sure = read._replace(**{f: 50.0 * v for f, v in likeliest.items()})
    torch.testing.assert_close(scribe.of_mean(sure), scribe.of_likeliest(sure), atol=2e-3, rtol=0)
    torch.testing.assert_close(scribe.of_likeliest(sure), scribe.of_likeliest(read))
    flat = read._replace(kinds=torch.zeros_like(read.kinds))
    assert not torch.allclose(scribe.of_mean(flat), scribe.of_likeliest(flat), atol=1e-2)
