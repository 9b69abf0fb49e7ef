"""The network of the autoregressive prior: a small transformer over words and, after them, tokens.

Words look at all words; tokens look at all words and at the tokens before them. Both pass through
the same blocks, so a text is one list of keys and values, computed once, that any number of token
sequences can look at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.verifiers.words import PAD

KeysValues = list[tuple[Tensor, Tensor]]
"""Of each block: keys and values, Float[N, heads, length, width / heads] both."""


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Sizes of the model.

    levels: FSQ levels of the tokenizer's codebook; num_tokens: T; words: entries of the vocabulary
    of words, with the special ones; context_length: words of a text at most, start and end
    included; width: a multiple of heads; depth: transformer blocks.
    """

    levels: tuple[int, ...]
    num_tokens: int
    words: int
    context_length: int
    width: int = 160
    heads: int = 5
    depth: int = 4

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels)


class Block(nn.Module):
    """A transformer block, normalised before each half, whose keys and values the caller keeps."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float[N, L, width] -> queries, keys, values, each Float[N, heads, L, width / heads]."""
        qkv = self.to_qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """seen: Bool, broadcast to [N, heads, L, keys]: what each query may look at."""
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.leave(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class AutoregressiveModel(nn.Module):
    """Logits of the next token, given a text and the tokens so far.

    A token's embedding is its own vector plus one for each of its FSQ digits, so that codes which
    differ in one digit share what is learned of the others. The same table reads tokens and, with
    a bias, predicts them.
    """

    def __init__(self, cfg: AutoregressiveConfig):
        super().__init__()
        if cfg.width % cfg.heads:
            raise ValueError(f"{cfg.heads} heads do not divide a width of {cfg.width}")
        self.cfg = cfg
        self.words = nn.Embedding(cfg.words, cfg.width)
        self.word_positions = nn.Parameter(torch.empty(cfg.context_length, cfg.width))
        self.tokens = nn.Embedding(cfg.vocab_size, cfg.width)
        self.digits = nn.ModuleList(nn.Embedding(levels, cfg.width) for levels in cfg.levels)
        self.begin = nn.Parameter(torch.empty(cfg.width))
        self.positions = nn.Parameter(torch.empty(cfg.num_tokens, cfg.width))
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.heads) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width)
        self.bias = nn.Parameter(torch.zeros(cfg.num_tokens, cfg.vocab_size))
        for parameter in (self.word_positions, self.begin, self.positions):
            nn.init.normal_(parameter, std=0.02)
        for embedding in (self.words, self.tokens, *self.digits):
            nn.init.normal_(embedding.weight, std=0.02)

    def table(self) -> Tensor:
        """Float[vocab_size, width]: the embedding of every token."""
        index = torch.arange(self.cfg.vocab_size, device=self.bias.device)
        table = self.tokens.weight
        for levels, digit in zip(self.cfg.levels, self.digits, strict=True):
            table = table + digit(index % levels)
            index = index // levels
        return table

    def read(self, text: Tensor) -> tuple[KeysValues, Tensor]:
        """Word indices Int64[N, S], padded -> their keys and values, and Bool[N, S], what is no
        padding."""
        exists = text != PAD
        x = self.words(text) + self.word_positions[: text.shape[1]]
        kept = []
        for block in self.blocks:
            q, k, v = block.project(x)
            kept.append((k, v))
            x = block.finish(x, q, k, v, exists[:, None, None])
        return kept, exists

    def forward(
        self,
        tokens: Tensor,
        text: KeysValues,
        exists: Tensor | None = None,
        past: KeysValues | None = None,
        table: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Logits of the next token after each place, and the places' own keys and values.

        tokens: Int64[N, L], the inputs: of a sequence from its start, -1 (the beginning) and then
        tokens; with `past` (the keys and values of the places before, of length p), those from
        place p on. text: from `read`, of N texts, or of one for all; exists: from there as well,
        None where no text is padded. table: `table()`, from whoever has it already.
        Returns Float32[N, L, vocab_size]; entry j is for the token at place p + j.
        """
        start = 0 if past is None else past[0][0].shape[2]
        n, length = tokens.shape
        table = self.table() if table is None else table
        x = torch.where((tokens < 0)[..., None], self.begin, table[tokens.clamp(min=0)])
        x = x + self.positions[start : start + length]
        seen = self._seen(length, start, text[0][0].shape[2], exists, tokens.device)
        kept = []
        for i, block in enumerate(self.blocks):
            q, k, v = block.project(x)
            kept.append((k, v))
            words = [part.expand(n, -1, -1, -1) for part in text[i]]
            before = [words] if past is None else [words, past[i]]
            k = torch.cat([*(pair[0] for pair in before), k], dim=2)
            v = torch.cat([*(pair[1] for pair in before), v], dim=2)
            x = block.finish(x, q, k, v, seen)
        logits = self.norm(x) @ table.T + self.bias[start : start + length]
        return logits.float(), kept

    @staticmethod
    def _seen(
        length: int, start: int, words: int, exists: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """Bool, broadcast to [N, heads, length, words + start + length]; None: everything."""
        if length == 1 and exists is None:
            return None
        place = torch.arange(start + length, device=device)
        causal = place <= place[start:, None]
        if exists is None:
            exists = torch.ones(1, words, dtype=torch.bool, device=device)
        texts = exists[:, None].expand(-1, length, -1)
        return torch.cat([texts, causal.expand(len(texts), -1, -1)], dim=2)[:, None]


def inputs(tokens: Tensor) -> Tensor:
    """Whole sequences Int64[N, T] -> the inputs that predict them, Int64[N, T]: -1 comes first."""
    return F.pad(tokens[:, :-1], (1, 0), value=-1)
