"""The painted backgrounds of the sprite world.

Each background is a function of normalised coordinates and a few random parameters, painted in
torch at any resolution, so that the same variant looks the same at 64 and at 256 pixels.
`paint_bank` paints every variant of every background once; scenes then only index into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class BackgroundSpec:
    """A background: its name and the phrases that put an object on it ("in snow")."""

    name: str
    phrases: tuple[str, ...]
    paint: Callable[[Canvas], None]


class Canvas:
    """A square picture being painted; `x` and `y` run over [0, 1], y downwards."""

    def __init__(self, size: int, generator: torch.Generator, device: torch.device):
        axis = (torch.arange(size, device=device) + 0.5) / size
        self.x, self.y = axis[None, :].expand(size, size), axis[:, None].expand(size, size)
        self.rgb = torch.zeros(3, size, size, device=device)
        self.generator = generator
        self.pixel = 1.0 / size

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def colour(self, *rgb: float, jitter: float = 0.03) -> Colour:
        """The colour (components 0-255) as floats in [0, 1], slightly jittered in brightness."""
        shift = self.uniform(-jitter, jitter)
        return tuple(min(max(c / 255 + shift, 0.0), 1.0) for c in rgb)

    def gradient(self, top: Colour, bottom: Colour, start: float = 0.0, end: float = 1.0) -> None:
        t = ((self.y - start) / (end - start)).clamp(0, 1)
        a, b = (torch.tensor(c, device=t.device)[:, None, None] for c in (top, bottom))
        inside = (self.y >= start) & (self.y <= end)
        self.rgb = torch.where(inside, a + (b - a) * t, self.rgb)

    def fill(self, mask: Tensor, colour: Colour, opacity: float = 1.0) -> None:
        """Paint `colour` where the soft mask [size, size] in [0, 1] says."""
        paint = torch.tensor(colour, device=mask.device)[:, None, None]
        self.rgb = self.rgb + (paint - self.rgb) * mask * opacity

    def soft(self, distance: Tensor, width: float | None = None) -> Tensor:
        """1 where the signed distance is negative, 0 outside, with a soft edge of `width`."""
        width = max(width or 0.0, 1.5 * self.pixel)
        return (0.5 - distance / width).clamp(0, 1)

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, soft: float | None = None
    ) -> Tensor:
        r = torch.sqrt(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2)
        return self.soft((r - 1) * min(rx, ry), soft)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Tensor:
        dx = torch.maximum(x0 - self.x, self.x - x1)
        dy = torch.maximum(y0 - self.y, self.y - y1)
        return self.soft(torch.maximum(dx, dy))

    def below(self, height: Tensor | float, soft: float | None = None) -> Tensor:
        return self.soft(height - self.y, soft)

    def hills(self, base: float, amplitude: float, waves: float) -> Tensor:
        """A smooth ridge line: the height [size, size] (constant in y) of rolling hills."""
        phase = self.uniform(0, 2 * math.pi)
        line = torch.sin(self.x * waves * 2 * math.pi + phase)
        line = line + 0.4 * torch.sin(self.x * waves * 4.7 * math.pi + 1.7 * phase)
        return base - amplitude * line / 1.4

    def triangle(self, cx: float, top: float, base: float, half_width: float) -> Tensor:
        slope = (base - top) / half_width
        d = torch.maximum(top + (self.x - cx).abs() * slope - self.y, self.y - base)
        return self.soft(d / math.hypot(1, slope))

    def cloud(self, cx: float, cy: float, r: float, colour: Colour, opacity: float = 0.9) -> None:
        for dx, dy, s in ((-0.9, 0.15, 0.6), (0, -0.1, 0.9), (0.95, 0.12, 0.65), (0.3, 0.25, 0.7)):
            puff = self.ellipse(cx + dx * r, cy + dy * r, s * r, s * r * 0.62, soft=0.35 * r)
            self.fill(puff, colour, opacity)


def _sky(c: Canvas, horizon: float) -> None:
    c.gradient(c.colour(96, 174, 240), c.colour(190, 226, 250), 0.0, horizon)


def _snow(c: Canvas) -> None:
    h = c.uniform(0.5, 0.6)
    c.gradient(c.colour(168, 200, 228), c.colour(222, 234, 244), 0.0, 0.7)
    ridge = c.hills(h, 0.025, c.uniform(0.6, 1.0))
    c.fill(c.below(ridge), c.colour(244, 248, 253, jitter=0.01))
    c.fill(c.below(ridge + 0.24, soft=0.25), c.colour(226, 236, 247, jitter=0.01))
    for _ in range(12):
        x, y = c.uniform(0, 1), c.uniform(0, 0.5)
        c.fill(c.ellipse(x, y, 0.014, 0.014), (1.0, 1.0, 1.0), 0.9)


def _grass(c: Canvas) -> None:
    h = c.uniform(0.48, 0.58)
    _sky(c, 0.65)
    c.fill(c.below(c.hills(h, 0.03, c.uniform(0.6, 1.1))), c.colour(126, 200, 80))
    c.fill(c.below(c.hills(h + 0.2, 0.02, c.uniform(0.8, 1.2)), soft=0.1), c.colour(98, 178, 62))


def _beach(c: Canvas) -> None:
    h = c.uniform(0.36, 0.44)
    _sky(c, h + 0.05)
    c.fill(c.below(h), c.colour(38, 134, 196))
    c.fill(c.below(h + 0.13, soft=0.1), c.colour(76, 186, 214))
    shore = c.hills(h + 0.23, 0.015, c.uniform(0.7, 1.1))
    c.fill(c.below(shore - 0.02), (0.96, 0.98, 1.0))
    c.fill(c.below(shore), c.colour(240, 216, 160))


def _sea(c: Canvas) -> None:
    h = c.uniform(0.3, 0.38)
    _sky(c, h + 0.05)
    c.gradient(c.colour(44, 142, 208), c.colour(14, 74, 150), h, 1.0)
    for row in range(4):
        y = h + 0.1 + row * 0.15
        wave = c.hills(y, 0.012, 2.0 + 0.5 * row)
        c.fill(c.soft((c.y - wave).abs() - 0.008), c.colour(130, 200, 236), 0.7)


def _forest(c: Canvas) -> None:
    c.gradient(c.colour(150, 196, 160), c.colour(88, 140, 96), 0.0, 0.75)
    shift = c.uniform(-0.08, 0.08)
    for i in range(7):
        x = i / 6 + shift
        c.fill(c.triangle(x, 0.1 + 0.07 * (i % 2), 0.68, 0.13), c.colour(38, 104, 62))
    for i in range(6):
        x = (i + 0.5) / 6 + shift
        c.fill(c.triangle(x, 0.26 + 0.05 * (i % 2), 0.72, 0.12), c.colour(24, 78, 46))
    c.fill(c.below(c.hills(0.67, 0.015, 1.1)), c.colour(84, 118, 50))


def _desert(c: Canvas) -> None:
    h = c.uniform(0.46, 0.54)
    c.gradient(c.colour(250, 202, 130), c.colour(255, 232, 186), 0.0, 0.65)
    c.fill(c.below(c.hills(h, 0.045, c.uniform(0.7, 1.0))), c.colour(232, 172, 96))
    c.fill(c.below(c.hills(h + 0.2, 0.04, c.uniform(0.6, 0.9)), soft=0.04), c.colour(214, 148, 74))


def _stars(c: Canvas, count: int, low: float, high: float) -> None:
    for _ in range(count):
        x, y, r = c.uniform(0, 1), c.uniform(low, high), c.uniform(0.006, 0.013)
        c.fill(c.ellipse(x, y, r, r), (1.0, 0.98, 0.86), 0.95)


def _night(c: Canvas) -> None:
    c.gradient(c.colour(10, 18, 62), c.colour(48, 62, 130), 0.0, 1.0)
    _stars(c, 14, 0.0, 0.7)
    mx = c.uniform(0.76, 0.88)
    c.fill(c.ellipse(mx, 0.16, 0.085, 0.085), (1.0, 0.95, 0.72))
    c.fill(c.ellipse(mx - 0.045, 0.14, 0.075, 0.075), (0.09, 0.12, 0.32))
    c.fill(c.below(c.hills(0.84, 0.03, 0.9)), c.colour(14, 26, 48))


def _space(c: Canvas) -> None:
    c.gradient(c.colour(16, 6, 34, jitter=0.01), c.colour(6, 4, 18, jitter=0.01))
    nx = c.uniform(0.2, 0.5)
    c.fill(c.ellipse(nx, 0.75, 0.5, 0.22, soft=0.3), (0.36, 0.1, 0.5), 0.55)
    _stars(c, 22, 0.0, 1.0)
    px = c.uniform(0.1, 0.2)
    c.fill(c.ellipse(px, 0.17, 0.1, 0.1), (0.86, 0.52, 0.3))
    c.fill(c.ellipse(px, 0.18, 0.17, 0.022), (0.95, 0.84, 0.62), 0.85)


def _sunset(c: Canvas) -> None:
    h = c.uniform(0.6, 0.68)
    c.gradient(c.colour(94, 44, 120), c.colour(248, 116, 66), 0.0, 0.42)
    c.gradient(c.colour(248, 116, 66), c.colour(255, 204, 96), 0.42, 0.75)
    c.fill(c.ellipse(c.uniform(0.3, 0.7), h, 0.15, 0.15), (1.0, 0.93, 0.62))
    c.fill(c.below(c.hills(h, 0.012, 0.9)), c.colour(66, 28, 66))


def _mountains(c: Canvas) -> None:
    _sky(c, 0.75)
    shift = c.uniform(-0.06, 0.06)
    for x, top, w in ((0.2, 0.2, 0.36), (0.82, 0.16, 0.4), (0.5, 0.3, 0.34)):
        rock = c.triangle(x + shift, top, 0.75, w)
        c.fill(rock, c.colour(108, 118, 148))
        cap = c.triangle(x + shift, top, top + 0.13, w * 0.13 / (0.75 - top))
        c.fill(cap, (0.97, 0.98, 1.0))
    c.fill(c.below(c.hills(0.7, 0.02, 0.8)), c.colour(92, 152, 92))


def _city(c: Canvas) -> None:
    c.gradient(c.colour(176, 190, 210), c.colour(224, 226, 226), 0.0, 0.75)
    shift = c.uniform(-0.04, 0.04)
    tops = (0.3, 0.14, 0.38, 0.2, 0.34, 0.1, 0.27)
    for i, top in enumerate(tops):
        x0 = i / 7 + shift
        shade = (104, 116, 146) if i % 2 else (136, 134, 150)
        c.fill(c.box(x0, top, x0 + 0.125, 0.75), c.colour(*shade, jitter=0.01))
        for row in range(6):
            y = top + 0.05 + 0.09 * row
            if y < 0.68:
                for wx in (0.02, 0.072):
                    c.fill(c.box(x0 + wx, y, x0 + wx + 0.03, y + 0.04), (0.98, 0.9, 0.6), 0.85)
    c.fill(c.below(0.72), c.colour(92, 94, 102))
    for i in range(4):
        x = 0.05 + i * 0.27 + shift
        c.fill(c.box(x, 0.855, x + 0.14, 0.88), (0.95, 0.95, 0.9))


def _clouds(c: Canvas) -> None:
    c.gradient(c.colour(92, 172, 242), c.colour(170, 216, 250))
    shift = c.uniform(-0.05, 0.05)
    for x, y, r in ((0.2, 0.2, 0.15), (0.8, 0.3, 0.16), (0.25, 0.86, 0.17), (0.85, 0.8, 0.14)):
        c.cloud(x + shift, y, r, (1.0, 1.0, 1.0))


def _rain(c: Canvas) -> None:
    c.gradient(c.colour(104, 116, 134), c.colour(160, 170, 182))
    for x in (0.1, 0.45, 0.85):
        c.cloud(x, 0.07, 0.2, (0.33, 0.36, 0.42), 0.9)
    c.fill(c.below(0.82), c.colour(84, 98, 108))
    shift = c.uniform(0, 0.16)
    for row in range(5):
        for col in range(7):
            x, y = col / 6 + shift - 0.08 * (row % 2), 0.22 + row * 0.16
            d = ((c.x - x) + (c.y - y) * 0.25).abs() - 0.006
            streak = c.soft(torch.maximum(d, (c.y - y).abs() - 0.045))
            c.fill(streak, (0.8, 0.9, 1.0), 0.8)


def _indoors(c: Canvas) -> None:
    h = c.uniform(0.64, 0.7)
    c.gradient(c.colour(236, 214, 186), c.colour(226, 198, 168))
    wx = c.uniform(0.66, 0.72)
    c.fill(c.box(wx - 0.02, 0.1, wx + 0.24, 0.42), (1.0, 1.0, 1.0))
    c.fill(c.box(wx, 0.12, wx + 0.22, 0.4), c.colour(146, 208, 246))
    c.fill(c.box(wx + 0.1, 0.12, wx + 0.12, 0.4), (1.0, 1.0, 1.0))
    c.fill(c.box(0.1, 0.14, 0.3, 0.34), c.colour(150, 92, 56))
    c.fill(c.box(0.125, 0.165, 0.275, 0.315), c.colour(214, 232, 196))
    c.fill(c.below(h), c.colour(170, 112, 68))
    c.fill(c.soft((c.y - h).abs() - 0.012), (0.98, 0.95, 0.9))
    for i in range(1, 4):
        c.fill(c.soft((c.y - h - 0.09 * i).abs() - 0.003), c.colour(140, 88, 52), 0.7)


def _plain(*rgb: int) -> Callable[[Canvas], None]:
    def paint(c: Canvas) -> None:
        base = c.colour(*rgb, jitter=0.02)
        c.gradient(base, tuple(v * 0.94 for v in base))

    return paint


def _plain_phrases(name: str) -> tuple[str, ...]:
    return (f"on a {name} background", f"on {name}", f"against a {name} background")


PLAIN_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (146, 148, 152),
    "black": (26, 26, 30),
    "red": (206, 54, 54),
    "yellow": (248, 214, 76),
    "green": (86, 178, 98),
    "blue": (66, 118, 214),
    "pink": (246, 170, 196),
}

BACKGROUNDS: tuple[BackgroundSpec, ...] = (
    BackgroundSpec("snow", ("in snow", "in the snow", "on snow"), _snow),
    BackgroundSpec("grass", ("on grass", "on the grass", "in a meadow", "in a field"), _grass),
    BackgroundSpec("beach", ("on a beach", "on the beach", "at the beach"), _beach),
    BackgroundSpec("sea", ("in the sea", "at sea", "in the ocean", "in the water"), _sea),
    BackgroundSpec("forest", ("in a forest", "in the forest", "in the woods"), _forest),
    BackgroundSpec("desert", ("in the desert", "in a desert"), _desert),
    BackgroundSpec("night", ("at night", "under the night sky", "in the night sky"), _night),
    BackgroundSpec("space", ("in space", "in outer space"), _space),
    BackgroundSpec("sunset", ("at sunset", "in the sunset"), _sunset),
    BackgroundSpec("mountains", ("in the mountains", "in front of mountains"), _mountains),
    BackgroundSpec("city", ("in a city", "in the city", "on a street"), _city),
    BackgroundSpec("clouds", ("in the sky", "in the clouds", "among clouds"), _clouds),
    BackgroundSpec("rain", ("in the rain", "in rain"), _rain),
    BackgroundSpec("indoors", ("indoors", "in a room", "inside a house"), _indoors),
    *(
        BackgroundSpec(f"{name} background", _plain_phrases(name), _plain(*rgb))
        for name, rgb in PLAIN_COLOURS.items()
    ),
)


def paint(index: int, variant: int, size: int, device: torch.device | None = None) -> Tensor:
    """Paint one variant of background `index`: Float[3, size, size] in [0, 1].

    The random parameters depend on (index, variant) only, so a variant is the same scene at every
    size. Painted at twice the size and averaged down, for smooth edges.
    """
    generator = torch.Generator().manual_seed(7919 * index + variant)
    canvas = Canvas(2 * size, generator, device or torch.device("cpu"))
    BACKGROUNDS[index].paint(canvas)
    return F.avg_pool2d(canvas.rgb[None].clamp(0, 1), 2)[0]


def paint_bank(size: int, variants: int, device: torch.device | None = None) -> Tensor:
    """Every variant of every background: uint8 [backgrounds, variants, 3, size, size]."""
    bank = torch.stack(
        [
            torch.stack([paint(i, v, size, device) for v in range(variants)])
            for i in range(len(BACKGROUNDS))
        ]
    )
    return (bank * 255).round().to(torch.uint8)
