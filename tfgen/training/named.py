"""Every kind of object in every colour, by name: what the verifier's pictures learn to be like.

A batch shows a picture only as many other captions as it has pictures; of hundreds of kinds most
are never in it. Here each picture is also compared with "a red fox" for every kind and colour at
once. These captions' embeddings are a table that is renewed now and then, so they cost little; only
the pictures learn from them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.training.captions import Captioner
from tfgen.training.colours import COLOURS
from tfgen.training.world import Scenes
from tfgen.verifiers.words import WordTokenizer, article

RENEWED = 100
"""After so many steps the table is made anew."""
AT_ONCE = 512


class Named(nn.Module):
    """The table of a captioner's objects, M kinds in C colours, as embeddings of d components, and
    the loss. The table goes into checkpoints, so that a run that resumes goes on with it."""

    table: Tensor

    def __init__(self, captioner: Captioner, words: WordTokenizer, d: int = 256):
        super().__init__()
        nouns = [
            f"{colour} {spec.name}" if c else spec.name
            for spec in captioner.specs
            for c, colour in enumerate(COLOURS)
        ]
        text = words([f"{article(noun)} {noun}" for noun in nouns])
        self.register_buffer("text", text, persistent=False)
        # right[m, k, c]: said with colour word c (0: none), it is right for kind m in colour k.
        right = captioner.allowed.transpose(1, 2).clone()
        right[:, :, 0] = captioner.usual
        self.register_buffer("right", right, persistent=False)
        self.register_buffer("table", torch.zeros(len(nouns), d))

    @torch.no_grad()
    def renew(self, model: nn.Module) -> None:
        """Embed the captions as the model does now."""
        parts = [model.encode_text(part).float() for part in self.text.split(AT_ONCE)]
        self.table.copy_(F.normalize(torch.cat(parts), dim=-1))

    def forward(self, seen: Tensor, scale: Tensor, scenes: Scenes, weights: Tensor) -> Tensor:
        """Of N pictures' embeddings Float[N, d]: the cross-entropy of each object's name among all
        but those that are right for another object of the picture, or right as well.

        scale: of the logits; weights: Float[N]. Pictures that show a kind twice do not count, as a
        name in the singular is not right for them.
        """
        kinds, present = scenes.objects, scenes.objects >= 0
        twice = (kinds[:, :, None] == kinds[:, None]) & present[:, :, None] & present[:, None]
        there = present & (twice.sum((1, 2)) == present.sum(1))[:, None]
        logits = (scale * seen @ self.table.T).unflatten(1, self.right.shape[::2])  # [N, M, C]
        row, slot = present.nonzero(as_tuple=True)
        fits = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        kind, colour = kinds[row, slot], scenes.colours[row, slot]
        fits.index_put_((row, kind), self.right[kind, colour], accumulate=True)
        others = logits.masked_fill(fits, -1e4).flatten(1).logsumexp(1)
        mine = there[row, slot]
        row, kind, colour = row[mine], kind[mine], colour[mine]
        each = F.softplus(others[row] - logits[row, kind, colour])
        return (each * weights[row]).sum() / weights[row].sum().clamp(min=1)
