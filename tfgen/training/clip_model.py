"""The verifier `sprites-clip` in training: the open_clip model, heads beside it, and the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tfgen.tokenizers.sprites_reading import Holds, Reading, Sight
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import (
    RELATION_WORDS,
    Mentions,
    fits,
)
from tfgen.training.clip_batches import Batch
from tfgen.training.colours import COLOURS
from tfgen.training.named import Named
from tfgen.training.tokenizer import misread
from tfgen.training.world import LAYOUTS, MAX_OBJECTS, Scenes
from tfgen.training.writing import dictated
from tfgen.verifiers.sprites_tower import SpritesTower, tell_timm, tower_name

CONTEXT_LENGTH = 24


def model_config(vocab_size: int, width: int, holds: Holds | None = None) -> dict[str, Any]:
    """The open_clip config of the verifier (the content of its open_clip_config.json); holds: what
    it reads in pictures, None: it has the plain tower."""
    return {
        "model_cfg": {
            "embed_dim": 256,
            "vision_cfg": {
                "timm_model_name": tower_name(holds),
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "",
                "image_size": 64,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": vocab_size,
                "width": width,
                "heads": width // 32,
                "layers": 3,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def create(vocab_size: int, width: int, holds: Holds | None = None) -> nn.Module:
    """A fresh open_clip CLIP of this config."""
    from open_clip.model import CLIP

    tell_timm(tower_name(holds))
    config = model_config(vocab_size, width, holds)["model_cfg"]
    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


class ClipTrainer(nn.Module):
    """The open_clip model, the attribute heads, and the loss.

    named: with it pictures learn names, too, with a weight; holds: what a reading tower reads,
    whose reader takes the place of the heads; None: the plain tower.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        num_objects: int,
        head_weight: float,
        named: Named | None = None,
        named_weight: float = 0.0,
        holds: Holds | None = None,
    ):
        super().__init__()
        self.model = create(vocab_size, width, holds)
        self.named, self.named_weight = named, named_weight
        self.holds, self.head_weight = holds, head_weight
        features = SpritesTower.num_features
        self.heads_alone = False  # see HEADS_ALONE
        if holds is None:
            self.sizes = (
                len(BACKGROUNDS),
                len(LAYOUTS),
                MAX_OBJECTS * num_objects,
                MAX_OBJECTS * len(COLOURS),
            )
            self.heads = nn.Linear(features, sum(self.sizes))
        # What a caption states: background, two kinds, relation, size, place.
        self.said_sizes = (len(BACKGROUNDS), num_objects, num_objects, len(RELATION_WORDS), 2, 2)
        self.said = nn.Linear(256, sum(self.said_sizes))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, of N pictures of scenes, M that fit the empty caption only, and A
        captions that were asked for, and its parts."""
        images, scenes, weights = batch.images, batch.scenes, batch.weights
        n, negatives = len(images), batch.negatives
        # Caption i also fits picture j.
        clash = fits(batch.mentions, scenes).fill_diagonal_(False)
        shown = images if negatives is None else torch.cat([images, negatives])
        tower = self.model.visual.trunk
        if batch.told:
            seen = dictated(tower.head.scribe, scenes, self._variants)
        else:
            shown = (shown * 2 - 1).contiguous(memory_format=torch.channels_last)
            known = sight = tower.forward_features(shown)
            if isinstance(sight, Sight):
                known = tower.head.reader(sight)
                seen = tower.head.write(known, sight)
            else:
                seen = tower.head(sight)
        seen = F.normalize(seen.float(), dim=-1)
        with sdpa_kernel(SDPBackend.MATH):  # for 24 words the fused kernel's backward is slower
            spoken = self.model.encode_text(batch.text).float()
        text = F.normalize(spoken, dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.model.logit_scale.exp().clamp(max=80) * seen @ text.T  # [N+M, N+A+1]
        mask = F.pad(clash.T, (0, 1, 0, len(shown) - n))  # the empty caption clashes with nothing
        logits = logits.masked_fill(mask, -1e4)
        index = torch.arange(n, device=text.device)
        by_image = F.cross_entropy(logits[:n], index, reduction="none")
        by_text = F.cross_entropy(logits[:, :n].T, index, reduction="none")
        parts = {
            "by_image": (by_image * weights).sum() / weights.sum(),
            "by_text": (by_text * weights).sum() / weights.sum(),
        }
        loss = parts["by_image"] + parts["by_text"]
        if negatives is not None:
            last = torch.full((len(negatives),), len(text) - 1, device=images.device)
            parts["nothing"] = F.cross_entropy(logits[n:], last)
            loss = loss + 0.5 * parts["nothing"]
        if self.named is not None:
            scale = self.model.logit_scale.exp().clamp(max=80)
            parts["named"] = self.named(seen[:n], scale, scenes, weights)
            loss = loss + self.named_weight * parts["named"]
        if self.head_weight:
            if self.heads_alone:
                spoken = spoken.detach()
            parts["said"] = self._said(spoken[:-1], batch.mentions)
            loss = loss + self.head_weight * parts["said"]
        if self.head_weight and not batch.told:
            parts["heads"] = self._heads(known, scenes, weights)
            loss = loss + self.head_weight * parts["heads"]
        return loss, parts

    @property
    def _variants(self) -> int:
        assert self.holds is not None
        return self.holds.grounds // len(BACKGROUNDS)

    def _heads(self, known: Reading | Tensor, scenes: Scenes, weights: Tensor) -> Tensor:
        """How wrong it is what the tower has read, or the heads tell from its features, of these
        scenes, which the first pictures show."""
        if isinstance(known, Reading):
            read = known.first(len(weights))
            return sum(misread(read, scenes, self._variants, weights).values())
        hidden = known[: len(weights)].float()
        if self.heads_alone:
            hidden = hidden.detach()
        background, layout, objects, colours = self.heads(hidden).split(self.sizes, dim=1)
        present = scenes.objects >= 0
        each = weights[:, None].expand_as(present)[present]
        loss = F.cross_entropy(background, scenes.background, reduction="none") * weights
        loss = loss + F.cross_entropy(layout, scenes.layout, reduction="none") * weights
        loss = loss.sum() / weights.sum()
        for logits, labels in ((objects, scenes.objects), (colours, scenes.colours)):
            picked = logits.unflatten(1, (MAX_OBJECTS, -1))[present]
            loss = (
                loss
                + (F.cross_entropy(picked, labels[present], reduction="none") * each).sum()
                / each.sum()
            )
        return loss

    def _said(self, spoken: Tensor, mentions: Mentions) -> Tensor:
        labels = (
            mentions.background,
            *mentions.kinds.unbind(1),
            mentions.relation,
            mentions.size,
            mentions.place,
        )
        loss = spoken.new_zeros(())
        for logits, label in zip(
            self.said(spoken).split(self.said_sizes, dim=1), labels, strict=True
        ):
            # summed over the captions that state it: none may, and a mean of nothing is NaN
            each = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
            loss = loss + each / max(1, int((label >= 0).sum()))
        return loss
