"""Pictures that fit no caption, for training the verifier: what a search would come upon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.colours import COLOURS
from tfgen.training.reading import SHORTEST, Reader
from tfgen.training.world import LAYOUT_INDEX, Scenes, World

ALIKE = 0.004
"""Mean squared difference of pixels below which two pictures look alike: 24 dB."""


class Negatives:
    """Pictures that fit no caption, as a search would come upon them.

    Thirds: random tokens; true tokens of which some early ones are resampled (with `mixed`, half of
    them are chimeras instead); and a pool of what searches against the current model found,
    refilled a little at a time. With a `reader`, those that show a scene after all are left out.
    """

    def __init__(
        self,
        tokenizer: SpritesTokenizer,
        pool: int = 512,
        mixed: bool = False,
        reader: Reader | None = None,
    ):
        self.tokenizer, self.pool, self.size = tokenizer, [], pool
        self.mixed, self.reader = mixed, reader

    def draw(self, n: int, true: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures Float[<= n, 3, S, S]; true: encoded scenes Int64[N, T] to perturb."""
        vocab, length = self.tokenizer.vocab_size, self.tokenizer.num_tokens
        third = n // 3
        noise = torch.randint(vocab, (third, length), generator=generator)
        spoilt = true[torch.randint(len(true), (third,), generator=generator)].clone()
        resampled = third // 2 if self.mixed else third
        for row in spoilt[:resampled]:
            places = torch.randperm(8, generator=generator)[
                : 2 + int(torch.randint(3, (), generator=generator))
            ]
            row[places] = torch.randint(vocab, (len(places),), generator=generator)
        spoilt[resampled:] = chimeras(spoilt[resampled:], true, generator)
        found = (
            [
                self.pool[int(i)]
                for i in torch.randint(len(self.pool), (third,), generator=generator)
            ]
            if self.pool
            else []
        )
        rows = [*noise, *spoilt]
        lengths = torch.randint(2, length + 1, (len(rows),), generator=generator).tolist()
        rows = [r[:k] for r, k in zip(rows, lengths, strict=True)] + found
        if self.reader is not None:
            shown = self.reader.read(*padded(rows, length)).clear.tolist()
            rows = [r for r, s in zip(rows, shown, strict=True) if len(r) < SHORTEST or not s]
        return decode_mixed(self.tokenizer, rows)

    def add(self, tokens: list[Tensor]) -> None:
        self.pool = (self.pool + tokens)[-self.size :]

    def state(self) -> dict[str, Tensor]:
        """The pool: tokens Int64[P, T], of which row i's first lengths[i] count."""
        tokens, lengths = padded(self.pool, self.tokenizer.num_tokens)
        return {"tokens": tokens, "lengths": lengths}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Have the pool that `state` gave."""
        rows = zip(state["tokens"], state["lengths"].tolist(), strict=True)
        self.pool = [row[:length] for row, length in rows]


def chimeras(hosts: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens Int64[N, T] with one to three of those from the third on being of other scenes, as a
    search with a prior of true pictures mixes them. others: Int64[M, T]."""
    mixed = hosts.clone()
    for row in mixed:
        count = 1 + int(torch.randint(3, (), generator=generator))
        places = 2 + torch.randperm(hosts.shape[1] - 2, generator=generator)[:count]
        sources = torch.randint(len(others), (count,), generator=generator)
        row[places] = others[sources, places]
    return mixed


@torch.no_grad()
def mistaken_chimeras(
    model: nn.Module,
    tokenizer: SpritesTokenizer,
    text: Tensor,
    host: Tensor,
    others: Tensor,
    generator: torch.Generator,
    keep: int,
    tries: int = 48,
) -> list[Tensor]:
    """Of `tries` chimeras of a scene's tokens, host Int64[T], and others Int64[M, T], the `keep`
    (or fewer) that the model under training takes most for the scene's caption (features Float[d]),
    though they no longer look like it: Int64[T] each."""
    pool = chimeras(host.expand(tries, -1), others, generator)
    images = tokenizer.decode(torch.cat([host[None], pool]).to(tokenizer.device))
    off = (images[1:] - images[:1]).square().flatten(1).mean(1).cpu()
    seen = (embed(model, images[1:]) @ text).cpu().masked_fill(off < ALIKE, -1.0)
    best = seen.topk(keep)
    return [pool[i] for i in best.indices[best.values > -1.0]]


def odd_ones_out(world: World, n: int, generator: torch.Generator) -> Scenes:
    """n scenes of three or four objects, one of another kind than the others, half of the time in
    another colour too.

    No caption says such a thing, and no training scene shows it, but a search comes upon it: three
    apples and something red pass for four apples with a verifier that has only ever counted. (One
    in another colour alone would still be "four apples".)
    """
    layouts = torch.tensor([LAYOUT_INDEX["row of three"], LAYOUT_INDEX["two by two"]])
    draw = world.sample(n, generator)
    layout = layouts[torch.randint(2, (n,), generator=generator)]
    objects, colours = draw.objects.cpu().clone(), draw.colours.cpu().clone()
    objects[:], colours[:] = objects[:, :1].clone(), colours[:, :1].clone()
    rows, odd = torch.arange(n), torch.randint(3, (n,), generator=generator)
    odd = odd + (layout == layouts[1]) * torch.randint(2, (n,), generator=generator)
    other = 1 + torch.randint(world.num_objects - 1, (n,), generator=generator)
    objects[rows, odd] = (objects[rows, odd] + other) % world.num_objects
    colour = torch.randint(len(COLOURS), (n,), generator=generator)
    recoloured = torch.rand(n, generator=generator) < 0.5
    colours[rows, odd] = colour.where(recoloured, colours[rows, odd])
    boxes = world.places(layout, generator)
    return world.scenes(draw.background, draw.variant, layout, objects, colours, boxes)


def decode_mixed(tokenizer: SpritesTokenizer, prefixes: list[Tensor]) -> Tensor:
    """Decode prefixes of different lengths in one pass."""
    full, lengths = padded(prefixes, tokenizer.num_tokens)
    return tokenizer.decode_lengths(full.to(tokenizer.device), lengths.to(tokenizer.device))


def padded(prefixes: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Prefixes of different lengths as Int64[N, length], and their lengths Int64[N]."""
    full = torch.zeros(len(prefixes), length, dtype=torch.int64)
    for row, prefix in zip(full, prefixes, strict=True):
        row[: len(prefix)] = prefix
    return full, torch.tensor([len(prefix) for prefix in prefixes], dtype=torch.int64)


@torch.no_grad()
def search_failures(
    model: nn.Module,
    tokenizer: SpritesTokenizer,
    text: Tensor,
    generator: torch.Generator,
    beam: int = 6,
    candidates: int = 10,
    length: int = 6,
) -> list[Tensor]:
    """A small beam search against the model under training for one caption (features Float[d]);
    returns the winners' tokens. They look wrong while the model is poor; when it is good some are
    right, which is why they weigh little."""
    prefixes = torch.zeros(1, 0, dtype=torch.long)
    for step in range(length):
        count = beam * candidates if step == 0 else candidates
        new = torch.randint(tokenizer.vocab_size, (len(prefixes), count, 1), generator=generator)
        pool = torch.cat([prefixes[:, None].expand(-1, count, -1), new], 2).flatten(0, 1)
        seen = embed(model, tokenizer.decode(pool.to(tokenizer.device)))
        top = (seen @ text).topk(beam).indices.cpu()
        prefixes = pool[top]
    return list(prefixes[:2])


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Normalised features Float32[N, d] of pictures Float[N, 3, 64, 64] in [0, 1]."""
    shown = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
    return F.normalize(model.encode_image(shown).float(), dim=-1)
