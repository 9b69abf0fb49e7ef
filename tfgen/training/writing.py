"""The tokens of scenes whose ground truth is known."""

from __future__ import annotations

import torch
from torch import Tensor

from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_reading import Scribe
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.world import Scenes, World


def has_scribe(tokenizer: Tokenizer, world: World) -> bool:
    """Whether it can write the tokens of a scene of this world that it is told instead of shown."""
    if not isinstance(tokenizer, SpritesTokenizer) or not tokenizer.model.cfg.scribe:
        return False
    cfg, grounds = tokenizer.model.cfg, len(BACKGROUNDS) * world.variants
    return (cfg.kinds, cfg.grounds) == (world.num_objects, grounds)


def dictated(scribe: Scribe, scenes: Scenes, variants: int) -> Tensor:
    """What a scribe writes of N scenes, Float[N, out]; variants: of each background."""
    return scribe(scenes.grounds(variants), scenes.objects, scenes.colours, scenes.boxes)


@torch.no_grad()
def tokens_of(tokenizer: Tokenizer, world: World, scenes: Scenes) -> Tensor:
    """Tokens Int64[N, T] of scenes: written by the tokenizer's scribe, where it has one, so that
    none is misread and no picture is drawn; else encoded from their pictures."""
    if not has_scribe(tokenizer, world):
        return tokenizer.encode(world.render(scenes, tokenizer.image_size).images)
    encoder = tokenizer.model.encoder
    codes = dictated(encoder.scribe, scenes, world.variants).unflatten(1, encoder.shape)
    return tokenizer.fsq.to_tokens(tokenizer.fsq.quantise(codes))
