"""The networks of the `sprites` tokenizer: an encoder, a trunk, a decoder that paints in layers.

The decoder composes the picture as people describe one: a background, and on it up to four objects,
each painted on its own small canvas with transparency and put in its place. Because every object is
painted by the same network wherever it stands, a small network paints sharp objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites_encoder import Encoder
from tfgen.tokenizers.sprites_reading import residual
from tfgen.tokenizers.subpixel import conv_enlarged


@dataclass(frozen=True)
class SpritesConfig:
    """Sizes of the model.

    levels: FSQ levels per token; num_tokens: T; image_size: side of a decoded picture;
    canvas_size: side of an object's canvas; slots: objects at most; width: of the trunk; depth: its
    residual blocks; latent: components that describe one layer; encoder_widths: channels after each
    halving of the picture; background_widths, object_widths: channels of the painters' stages, each
    stage doubling the side; slot_depth: residual blocks over each object's description, the same
    for all slots, so that what a kind of object looks like is learned once; scribe: width of the
    network that writes the code of what the encoder has read, of which there are so many kinds of
    object, colours, and variants of backgrounds (all 0: the encoder writes it at once); memory,
    ground_memory: channels of what the renderer remembers of each kind and of each variant of a
    background (0: it remembers none).
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    num_tokens: int = 16
    image_size: int = 64
    canvas_size: int = 48
    slots: int = 4
    width: int = 512
    depth: int = 3
    latent: int = 128
    encoder_widths: tuple[int, ...] = (32, 64, 128, 192)
    background_widths: tuple[int, ...] = (96, 96, 64, 32)
    object_widths: tuple[int, ...] = (128, 64, 48)
    slot_depth: int = 0
    scribe: int = 0
    kinds: int = 0
    colours: int = 0
    grounds: int = 0
    memory: int = 0
    ground_memory: int = 0


class Layered(NamedTuple):
    """A decoded scene before it is put together.

    background: Float[N, 3, H, W]; present: Float[N, slots] logits; boxes: Float[N, slots, 3] centre
    x, centre y, size in fractions of the picture; slots: Float[N, slots, latent] what to paint.
    """

    background: Tensor
    present: Tensor
    boxes: Tensor
    slots: Tensor


class Trunk(nn.Module):
    """Code vectors of a prefix, absent tokens masked -> a description of the scene, [N, width]."""

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        self.enter = nn.Linear(cfg.num_tokens * (len(cfg.levels) + 1), cfg.width)
        self.blocks = nn.ModuleList(residual(cfg.width, 2 * cfg.width) for _ in range(cfg.depth))
        self.leave = nn.LayerNorm(cfg.width)

    def forward(self, codes: Tensor, keep: Tensor) -> Tensor:
        """codes Float[N, T, d], keep Bool[N, T] (True: token present)."""
        kept = keep[..., None].to(codes.dtype)
        x = self.enter(torch.cat([codes * kept, 2 * kept - 1], dim=2).flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


class Stages(nn.Module):
    """A description Float[N, latent] -> features, twice as large after each stage but the first.

    Convolutions with nearest up-sampling (no transposed ones: those leave checkerboards), each
    stage modulated by the description. side: that would be next.
    """

    def __init__(self, latent: int, widths: tuple[int, ...], side: int):
        super().__init__()
        self.start = side >> len(widths)
        self.widths = widths
        self.seed = nn.Linear(latent, widths[0] * self.start**2)
        inputs = (widths[0], *widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, w, affine=False) for w in widths)
        self.styles = nn.Linear(latent, 2 * sum(widths))

    def features(self, latent: Tensor) -> Tensor:
        """The last stage, Float[N, widths[-1], side / 2, side / 2]."""
        x = self.seed(latent).unflatten(1, (self.widths[0], self.start, self.start))
        x = x.contiguous(memory_format=torch.channels_last)
        styles = self.styles(latent)[..., None, None].split([2 * w for w in self.widths], dim=1)
        for i, (conv, norm, style) in enumerate(zip(self.convs, self.norms, styles, strict=True)):
            x = conv_enlarged(x, conv) if i > 0 else conv(x)
            x = modulated(norm(x), style)
        return x


class Painter(Stages):
    """A description Float[N, latent] -> a picture Float[N, out, side, side], unbounded."""

    def __init__(self, latent: int, widths: tuple[int, ...], out: int, side: int):
        super().__init__(latent, widths, side)
        self.out = nn.Conv2d(widths[-1], 4 * out, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        return F.pixel_shuffle(self.out(self.features(latent)), 2)


def modulated(x: Tensor, style: Tensor) -> Tensor:
    """SiLU of normalised features Float[N, C, H, W] under scales and shifts Float[N, 2 C, 1, 1]."""
    scale, shift = style.to(x.dtype).chunk(2, dim=1)
    x = torch.addcmul(shift, x, 1 + scale)
    return F.silu(x, inplace=not torch.is_grad_enabled())


class SpritesModel(nn.Module):
    """Encoder, trunk and painters; quantisation and nested dropout are the caller's."""

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.trunk = Trunk(cfg)
        self.to_background = nn.Linear(cfg.width, cfg.latent)
        self.to_slots = nn.Linear(cfg.width, cfg.slots * cfg.latent)
        self.to_places = nn.Linear(cfg.width, cfg.slots * 4)
        self.slot_blocks = nn.ModuleList(
            residual(cfg.latent, 4 * cfg.latent) for _ in range(cfg.slot_depth)
        )
        self.background = Painter(cfg.latent, cfg.background_widths, 3, cfg.image_size)
        self.object = Painter(cfg.latent, cfg.object_widths, 4, cfg.canvas_size)

    def layers(self, codes: Tensor, keep: Tensor) -> tuple[Layered, Tensor]:
        """Codes Float[N, T, d], keep Bool[N, T] -> the scene's layers and the trunk's output."""
        x = self.trunk(codes, keep)
        places = self.to_places(x).float().unflatten(1, (self.cfg.slots, 4))
        background = self.background(self.to_background(x))
        slots = self.slots(x)
        boxes = torch.sigmoid(places[..., 1:])
        return Layered(torch.sigmoid(background.float()), places[..., 0], boxes, slots), x

    def slots(self, trunk: Tensor) -> Tensor:
        """What to paint in each slot: Float[N, slots, latent] of the trunk's Float[N, width]."""
        slots = self.to_slots(trunk).unflatten(1, (self.cfg.slots, self.cfg.latent))
        for block in self.slot_blocks:
            slots = slots + block(slots)
        return slots

    def canvases(self, slots: Tensor) -> Tensor:
        """Descriptions Float[P, latent] -> premultiplied RGBA Float[P, 4, canvas, canvas]."""
        rgba = torch.sigmoid(self.object(slots).float())
        return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)


def resampling(centre: Tensor, extent: Tensor, source: int, target: int) -> Tensor:
    """Weights Float[P, target, source] that resample a row of `source` pixels to lie at
    centre +- extent / 2 (fractions of the target row); zero outside; differentiable in both.

    A tent filter as wide as a source pixel, or a target pixel if that is larger: bilinear when
    enlarging, antialiased when reducing.
    """
    pixel = (torch.arange(target, device=centre.device, dtype=centre.dtype) + 0.5) / target
    extent = extent.clamp(min=0.02)[:, None]
    position = ((pixel[None] - centre[:, None]) / extent + 0.5) * source - 0.5  # [P, target]
    # Weights are normalised over an endless row, of which only the source's own pixels exist.
    margin = 4
    reduction = (source / (extent * target)).clamp(1.0, margin)[..., None]
    index = torch.arange(-margin, source + margin, device=centre.device, dtype=centre.dtype)
    distance = (position.clamp(-margin, source - 1 + margin)[..., None] - index).abs()
    tent = (1 - distance / reduction).clamp(min=0)
    return (tent / tent.sum(-1, keepdim=True))[..., margin:-margin]


def place(canvases: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Put canvases Float[P, C, s, s] at boxes Float[P, 3] of empty pictures, [P, C, size, size]."""
    side = canvases.shape[-1]
    across = resampling(boxes[:, 0], boxes[:, 2], side, size)
    down = resampling(boxes[:, 1], boxes[:, 2], side, size)
    return torch.einsum("pyh,pchw,pxw->pcyx", down, canvases, across)


def compose(background: Tensor, layers: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """Lay premultiplied layers Float[P, 4, H, W] over backgrounds Float[N, 3, H, W].

    Layer p belongs to picture rows[p], slot slots[p]; lower slots are painted first.
    """
    image = background
    for slot in range(int(slots.max()) + 1 if len(slots) else 0):
        mine = slots == slot
        if not mine.any():
            continue
        layer, row = layers[mine], rows[mine]
        image = image.index_copy(0, row, image[row] * (1 - layer[:, 3:]) + layer[:, :3])
    return image


def paint(model: SpritesModel, layered: Layered) -> Tensor:
    """Put a decoded scene together: Float[N, 3, H, W]. Objects more likely absent are left out."""
    rows, slots = (layered.present > 0).nonzero(as_tuple=True)
    if len(rows) == 0:
        return layered.background
    canvases = model.canvases(layered.slots[rows, slots])
    painted = place(canvases, layered.boxes[rows, slots], layered.background.shape[-1])
    return compose(layered.background, painted, rows, slots)
