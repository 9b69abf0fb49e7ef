"""The image towers of `sprites-clip`, which open_clip builds by name once timm knows them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from torch import Tensor, nn

from tfgen.tokenizers.sprites_encoder import look
from tfgen.tokenizers.sprites_reading import Holds, Reader, Reading, Scribe, Sight

TOWER = "tfgen_sprites_tower"
"""The plain one's name among timm's models, in the configs of open_clip."""
_NAME = re.compile(TOWER + r"(?:_(\d+)x(\d+)x(\d+)x(\d+))?")


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


class ReadingTower(SpritesTower):
    """The same, but for what follows the hidden layers: a reader reads the scene, and a scribe
    writes the embedding of what may be there; for worlds of many kinds."""

    def __init__(self, num_classes: int, holds: Holds, width: int = 512):
        super().__init__(num_classes)
        self.holds = holds
        sizes = self.num_features, self.plan[-4][0]
        self.head = ReadingHead(*sizes, num_classes, holds, width)

    def forward_features(self, x: Tensor) -> Sight:
        return look(self.convs, self.hidden, x)


class ReadingHead(nn.Module):
    """What is seen -> embeddings Float[N, out]. A linear layer beside the reading tells what none
    of it can say, such as that the picture is spoilt."""

    def __init__(self, features: int, channels: int, out: int, holds: Holds, width: int):
        super().__init__()
        self.reader = Reader(holds, features, channels)
        self.scribe = Scribe(holds, width, out)
        self.beside = nn.Linear(features, out)
        nn.init.zeros_(self.beside.weight)
        nn.init.zeros_(self.beside.bias)

    def forward(self, sight: Sight) -> Tensor:
        return self.write(self.reader(sight), sight)

    def write(self, reading: Reading, sight: Sight) -> Tensor:
        """The embeddings of what was read, and is seen beside it."""
        return self.scribe.of_mean(reading) + self.beside(sight.whole)


def tower_name(holds: Holds | None) -> str:
    """What the tower for scenes that hold this is called; None: the plain one."""
    return TOWER if holds is None else TOWER + "_" + "x".join(map(str, holds))


def is_tower(name: object) -> bool:
    """Whether that is the name of a tower of ours."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name))


def make_tower(name: str, num_classes: int) -> SpritesTower:
    """The tower of a name that `is_tower`, with random weights."""
    sizes = _NAME.fullmatch(name)
    assert sizes is not None, name
    if sizes[1] is None:
        return SpritesTower(num_classes)
    return ReadingTower(num_classes, Holds(*map(int, sizes.groups())))


@cache
def tell_timm(name: str = TOWER) -> None:
    """Register a tower of ours with timm, which takes a second to import; call it before open_clip
    makes a model with it."""
    from timm.models import register_model

    def build(pretrained: bool = False, num_classes: int = 256, **_: Any) -> SpritesTower:
        """Called by timm.create_model; there are no weights to download."""
        return make_tower(name, num_classes)

    build.__name__ = name
    register_model(build)
