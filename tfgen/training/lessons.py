"""What the verifier learns from pictures that searches found: see `found`."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tfgen.training.captions import Captioner, Mentions, fits
from tfgen.training.found import ASKED, Found
from tfgen.training.reading import Reader, Reading
from tfgen.training.world import Scenes

SHOWN = replace(ASKED, colour=1.0)
"""What is said of a picture: all colours but natural ones. Otherwise as little as was asked for, or
the verifier would learn that terse captions are wrong."""
WRONG = 0.7
"""Of a lesson, the share that does not show what it was asked for."""
AT_ONCE = 512  # pictures read at a time


@dataclass(frozen=True)
class Lesson:
    """Some found pictures: those that show a scene, and after them the spoilt ones.

    tokens Int64[N, T], of which row i's first lengths[i] count. scenes, captions, mentions: of the
    first P, what they show, in words. asked: captions that pictures here were found for and do not
    show, with `asked_mentions`.
    """

    tokens: Tensor
    lengths: Tensor
    scenes: Scenes
    captions: list[str]
    mentions: Mentions
    asked: list[str]
    asked_mentions: Mentions


class Lessons:
    """Draws lessons. Pictures that are neither clear nor spoilt are never in them.

    A picture of an object in an odd colour does not show what a caption asks for that says none:
    else searches would find such pictures, and the verifier learn from them that any will do.
    """

    def __init__(self, found: Found, reader: Reader, captioner: Captioner) -> None:
        self.found, self.captioner = found, captioner
        self.meant = captioner.meant(found.mentions)
        starts = range(0, len(found), AT_ONCE)
        rows = [slice(start, start + AT_ONCE) for start in starts]
        parts = [reader.read(found.tokens[part], found.lengths[part]) for part in rows]
        self.reading = Reading.cat(parts)
        mentions = self.meant.to(self.reading.error.device)
        fit = torch.cat([fits(mentions, part.scenes) for part in parts], dim=1)  # [captions, N]
        right = self.reading.clear & fit.gather(0, found.asked[None].to(fit.device))[0]
        wrong = self.reading.spoilt | (self.reading.clear & ~right)
        self.right, self.wrong = (rows.nonzero()[:, 0].cpu() for rows in (right, wrong))

    def draw(self, n: int, generator: torch.Generator, rng: random.Random) -> Lesson:
        """At most n pictures, fewer where there are not enough right or wrong ones."""

        def some(rows: Tensor, count: int) -> Tensor:
            return rows[torch.randperm(len(rows), generator=generator)[:count]]

        many = round(WRONG * n)
        wrong = some(self.wrong, many)
        rows = torch.cat([some(self.right, n - many), wrong])
        clear = self.reading.clear.cpu()
        shown, spoilt = rows[clear[rows]], rows[~clear[rows]]
        rows = torch.cat([shown, spoilt])
        scenes = self.reading.scenes[shown.to(self.reading.error.device)]
        captions, mentions = self.captioner.write(scenes, rng, SHOWN)
        asked = self.found.asked[wrong].unique()
        return Lesson(
            self.found.tokens[rows],
            self.found.lengths[rows],
            scenes,
            captions,
            mentions,
            [self.found.captions[i] for i in asked.tolist()],
            self.meant[asked],
        )
