"""What the verifier is shown in a step of its training: pictures, captions, and what fits which."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.ahead import ahead
from tfgen.training.captions import Captioner, Mentions
from tfgen.training.found import Found
from tfgen.training.groups import FACTOR_WEIGHTS, PAIRS, augment, grouped
from tfgen.training.lessons import Lessons
from tfgen.training.negatives import (
    Negatives,
    mistaken_chimeras,
    odd_ones_out,
    search_failures,
)
from tfgen.training.reading import Reader
from tfgen.training.world import Scenes, World
from tfgen.training.writing import tokens_of
from tfgen.verifiers.words import UNKNOWN, WordTokenizer

NOTHING = ""
"""The caption of pictures that show nothing that can be named."""
FORGOTTEN = 0.01
"""Of the words of captions, those that are made unknown, as some of a prompt's may be."""
COARSE = 4
"""Prefixes of fewer tokens than this count less: what they show cannot always be told."""


@dataclass
class Batch:
    """N pictures of scenes and M negatives.

    images: Float[N, 3, S, S] in [0, 1], of `scenes`; weights: Float[N]; negatives:
    Float[M, 3, S, S], which fit the empty caption only, or None; text: Int64[N + A + 1, L], the
    pictures' captions, A others, and the empty one; mentions: what the first N + A state. decoded:
    Int64[D, T], tokens of some of the scenes, in place of whose pictures there are prefixes of
    these; rows: Int64[D], which scenes; without a tokenizer there are none. generator: the step's.
    told: what the scenes hold is to be learned from, not what they look like: images are empty,
    Float[N, 0, 0, 0].
    """

    images: Tensor
    scenes: Scenes
    weights: Tensor
    text: Tensor
    mentions: Mentions
    generator: torch.Generator
    negatives: Tensor | None = None
    decoded: Tensor | None = None
    rows: Tensor | None = None
    told: bool = False


@dataclass
class Drawn:
    """The scenes of a batch, their captions and what these state, and the states of the random
    numbers after them: plain values, see `ahead`."""

    scenes: list[np.ndarray]
    captions: list[str]
    mentions: list[np.ndarray]
    generator: np.ndarray
    rng: Any


class Batches:
    """Makes the batches of a run: of a config's "groups" of scenes that differ in one factor each
    and, with a tokenizer, decoded prefixes, negatives, and what searches found."""

    def __init__(
        self,
        world: World,
        captioner: Captioner,
        words: WordTokenizer,
        config: dict[str, Any],
        tokenizer: SpritesTokenizer | None = None,
        found: Found | None = None,
    ) -> None:
        """found: pictures of the tokenizer."""
        self.world, self.captioner, self.words, self.config = world, captioner, words, config
        self._on_cpu = world.on_cpu()
        self.tokenizer = tokenizer
        self._negatives = self._lessons = None
        # Of the chimeras that pass for a caption, how many become negatives each time.
        self._chimeras = config.get("chimeras", 0)
        if tokenizer is not None:
            reader = Reader(world, tokenizer)
            self._negatives = Negatives(tokenizer, mixed=self._chimeras > 0, reader=reader)
            if found is not None:
                self._lessons = Lessons(found, reader, captioner)

    def autocast(self) -> torch.autocast:
        kind = self.world.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.config["bf16"])

    def each(self, steps: Iterable[int], last: int, workers: int) -> Iterator[tuple[int, Batch]]:
        """The steps, up to the one before `last`, each with its batch: the same for the same
        config, but for the negatives that were mined before. workers: see `ahead`."""
        for step, drawn in ahead(self._draw, steps, last, workers):
            yield step, self._batch(drawn, step < self.config.get("told", 0))

    def _draw(self, step: int) -> Drawn:
        """What can be drawn ahead of time."""
        seed = self.config["seed"] * 1_000_003 + step
        generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
        scenes, captions, mentions = grouped(
            self._on_cpu,
            self.captioner,
            self.config["groups"],
            generator,
            rng,
            self.config.get("factors", FACTOR_WEIGHTS),
            self.config.get("pairs", PAIRS),
        )
        states = generator.get_state().numpy(), rng.getstate()
        return Drawn(scenes.arrays(), captions, mentions.arrays(), *states)

    @torch.no_grad()
    def _batch(self, drawn: Drawn, told: bool) -> Batch:
        device, rng, generator = self.world.device, random.Random(), torch.Generator()
        rng.setstate(drawn.rng)
        generator.set_state(torch.from_numpy(drawn.generator))
        scenes, captions = Scenes.of_arrays(drawn.scenes).to(device), drawn.captions
        mentions = Mentions.of_arrays(drawn.mentions).to(device)
        n = len(scenes)
        images = torch.empty(n, 0, 0, 0, device=device)
        if not told:
            images = self.world.render(scenes).images
        weights = torch.ones(n, device=device)
        batch = Batch(images, scenes, weights, torch.empty(0), mentions, generator, told=told)
        with self.autocast():
            if self._negatives is not None and not told:
                self._decode(batch)
            if self._lessons is not None and not told:
                captions = captions + self._teach(batch, rng)
        text = self.words([*captions, NOTHING])
        forgotten = torch.rand(text.shape, generator=generator) < FORGOTTEN
        forgotten &= (text > 2) & (text != self.words.end)
        batch.text = text.masked_fill(forgotten, UNKNOWN).to(device)
        if not told:
            batch.images = augment(batch.images, generator)
        return batch

    def _decode(self, batch: Batch) -> None:
        """Put decoded prefixes in the place of some pictures, and add negatives."""
        config, decoder, size = self.config, self.tokenizer, len(batch.images)
        generator = batch.generator
        rows = torch.randperm(size, generator=generator)[: int(size * config["decoded_share"])]
        true = tokens_of(decoder, self.world, batch.scenes[rows.to(self.world.device)])
        lengths = torch.randint(2, decoder.num_tokens + 1, (len(rows),), generator=generator)
        early = torch.rand(len(rows), generator=generator) < 0.5
        lengths = torch.where(early, lengths.clamp(max=8), lengths)
        shown = decoder.decode_lengths(true, lengths.to(true.device)).float()
        batch.decoded, batch.rows = true.cpu(), rows
        extra = self._negatives.draw(config["negatives"], batch.decoded, generator).float()
        if config["odd"]:
            odd = odd_ones_out(self._on_cpu, config["odd"], generator).to(self.world.device)
            odd = self.world.render(odd).images
            redrawn = decoder.decode(decoder.encode(odd[::2])).float()
            extra = torch.cat([extra, odd[1::2], redrawn])
        batch.negatives = extra
        batch.images[rows] = shown
        batch.weights[rows[lengths < COARSE]] = 0.3

    def _teach(self, batch: Batch, rng: random.Random) -> list[str]:
        """Add pictures that searches found; returns the captions that come with them."""
        device = batch.images.device
        lesson = self._lessons.draw(self.config["found"], batch.generator, rng)
        tokens, lengths = lesson.tokens.to(device), lesson.lengths.to(device)
        pictures = self.tokenizer.decode_lengths(tokens, lengths).float()
        shown = len(lesson.captions)
        batch.images = torch.cat([batch.images, pictures[:shown]])
        batch.negatives = torch.cat([batch.negatives, pictures[shown:]])
        batch.scenes = Scenes.cat([batch.scenes, lesson.scenes])
        batch.weights = F.pad(batch.weights, (0, shown), value=1.0)
        told = [lesson.mentions.to(device), lesson.asked_mentions.to(device)]
        batch.mentions = Mentions.cat([batch.mentions, *told])
        return lesson.captions + lesson.asked

    def mined(self) -> dict[str, Tensor]:
        """What was mined so far, for a checkpoint: later batches depend on it."""
        return self._negatives.state() if self._negatives is not None else {}

    def remember(self, mined: dict[str, Tensor]) -> None:
        """Go on with what was `mined` in an earlier call, if anything was."""
        if self._negatives is not None and mined:
            self._negatives.restore(mined)

    @torch.no_grad()
    def mine(self, model: nn.Module, batch: Batch) -> None:
        """Search against the model under training for a caption of the batch, and look for chimeras
        that it mistakes for another: these are negatives of later batches."""
        if self._negatives is None or batch.told:
            return
        generator = batch.generator
        with self.autocast():
            texts = batch.text[[0, int(batch.rows[0])]]
            asked, told = model.encode_text(texts, normalize=True).float()
            self._negatives.add(search_failures(model, self.tokenizer, asked, generator))
            if self._chimeras:
                mistaken = mistaken_chimeras(
                    model,
                    self.tokenizer,
                    told,
                    batch.decoded[0],
                    batch.decoded,
                    generator,
                    self._chimeras,
                )
                self._negatives.add(mistaken)
