"""The encoder of the `sprites` tokenizer: what it sees in a picture, and the code it writes of it.

It writes the code at once, or in two steps, for worlds of many kinds of object: it reads the scene
and a scribe writes the code of what was read, see `sprites_reading`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tfgen.tokenizers.sprites_reading import Holds, Reader, Scribe, Sight

if TYPE_CHECKING:
    from tfgen.tokenizers.sprites_model import SpritesConfig


def norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU())


def look(convs: nn.Sequential, head: nn.Module, images: Tensor) -> Sight:
    """What is seen in normalised pictures Float[N, 3, H, W] by convolutions, each followed by its
    norm: of the whole after the last, at each place before the last two halvings, which are the
    last three convolutions."""
    places = convs[:-6](images)
    return Sight(head(convs[-6:](places).flatten(1)), places)


class Encoder(nn.Module):
    """Pictures Float[N, 3, H, W] in [0, 1] -> unquantised codes Float[N, T, d]."""

    features = 768

    def __init__(self, cfg: SpritesConfig):
        super().__init__()
        layers: list[nn.Module] = []
        before, side = 3, cfg.image_size
        for i, channels in enumerate(cfg.encoder_widths):
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), norm_act(channels)]
            if 0 < i < len(cfg.encoder_widths) - 1:
                layers += [nn.Conv2d(channels, channels, 3, padding=1), norm_act(channels)]
            before, side = channels, side // 2
        self.convs = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(before * side * side, self.features),
            nn.LayerNorm(self.features),
            nn.SiLU(),
            nn.Linear(self.features, self.features),
            nn.SiLU(),
        )
        self.cfg, self.shape = cfg, (cfg.num_tokens, len(cfg.levels))
        if cfg.scribe:
            holds = Holds(cfg.slots, cfg.kinds, cfg.colours, cfg.grounds)
            self.reader = Reader(holds, self.features, cfg.encoder_widths[-3])
            self.scribe = Scribe(holds, cfg.scribe, cfg.num_tokens * len(cfg.levels))
        else:
            self.to_codes = nn.Linear(self.features, cfg.num_tokens * len(cfg.levels))

    def describe(self, images: Tensor) -> Sight:
        """What the encoder sees."""
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return look(self.convs, self.head, images)

    def write(self, sight: Sight) -> Tensor:
        """The codes of what is seen."""
        if self.cfg.scribe:
            codes = self.scribe.of_likeliest(self.reader(sight))
        else:
            codes = self.to_codes(sight.whole)
        return codes.unflatten(1, self.shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.write(self.describe(images))
