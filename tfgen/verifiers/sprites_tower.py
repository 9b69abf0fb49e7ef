"""The image tower of `sprites-clip`, which open_clip builds by name once timm knows it."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

TOWER = "tfgen_sprites_tower"
"""Its name among timm's models, in the configs of open_clip."""


class SpritesTower(nn.Module):
    """Six convolutions with GroupNorm, a flatten (positions matter here), two linear layers.

    Pictures Float[N, 3, 64, 64], normalised to [-1, 1] -> Float[N, num_classes].
    """

    # (channels, stride) of each 3x3 convolution
    plan = ((32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (192, 2))
    num_features = 768

    def __init__(self, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, stride in self.plan:
            layers += [
                nn.Conv2d(before, channels, 3, stride=stride, padding=1),
                nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU()),
            ]
            before = channels
        self.convs = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Linear(before * 16, self.num_features),
            nn.LayerNorm(self.num_features),
            nn.SiLU(),
            nn.Linear(self.num_features, self.num_features),
            nn.SiLU(),
        )
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.hidden(self.convs(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


@cache
def tell_timm() -> None:
    """Register the tower with timm, which takes a second to import; call it before open_clip makes
    a model."""
    from timm.models import register_model

    def build(pretrained: bool = False, num_classes: int = 256, **_: Any) -> SpritesTower:
        """Called by timm.create_model; there are no weights to download."""
        return SpritesTower(num_classes)

    build.__name__ = TOWER
    register_model(build)
