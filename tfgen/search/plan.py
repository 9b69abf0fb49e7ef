"""Which steps a search makes, and how many candidates each may have, so that all of them happen
within budget and time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tfgen.errors import InputError, whole_number
from tfgen.priors.base import Prior
from tfgen.priors.uniform import UniformPrior
from tfgen.search.schedule import prefix_lengths
from tfgen.search.settings import MOST, SearchSettings
from tfgen.tokenizers.base import Tokenizer

ROUND = 512
"""Sequences that best-of-n draws at a time."""
REFINED = 4
"""Prefixes whose tokens a refinement draws again."""
ENCODED = 2
"""Decodes of a prefix that is encoded again: of the picture that the encoder sees, and of the one
that comes of it."""


class Plan:
    """What each step of a search wants, and what it gets of what is left.

    wants: decodes of each step, in order, if no candidate comes up twice. Stages that follow the
    search (neighbours, crossover, completion, refinement, re-encoding) append theirs, so that it
    leaves them their share.
    """

    def __init__(
        self,
        settings: SearchSettings,
        start: Tensor,
        lengths: Sequence[int],
        vocab_size: int,
        num_tokens: int,
    ) -> None:
        """start: Int64[B, k], the prefixes that the first step extends; lengths: of the prefixes
        after each step. Raises InputError where best-of-n would draw too many."""
        self.settings, self.lengths = settings, list(lengths)
        before = [start.shape[1], *lengths]
        beams = [len(start), *(settings.beam for _ in lengths[1:])]
        self._most = [  # candidates of one prefix in each step
            self._candidates(index, len(start), vocab_size, length - before[index])
            for index, length in enumerate(lengths)
        ]
        self.wants = [
            beams[index] * most * self.rollouts(index) for index, most in enumerate(self._most)
        ]
        self.samples = settings.samples or sum(self.wants)
        if settings.search == "best-of-n":
            if self.samples > MOST["samples"]:
                raise InputError(
                    f"A beam search of these settings draws {self.samples} sequences: say how many "
                    f"best-of-n shall draw, {MOST['samples']} at most, as samples."
                )
            self.wants = [min(ROUND, self.samples - made) for made in range(0, self.samples, ROUND)]
        else:
            self.wants += [settings.neighbours] if settings.neighbours else []
            self.wants += settings.crossover * [settings.beam * settings.candidates]
            completed = settings.complete and lengths[-1] < num_tokens
            self.wants += [settings.beam] if completed else []
        positions = (num_tokens if settings.complete else lengths[-1]) - start.shape[1]
        each = min(REFINED, settings.beam) * min(settings.candidates, vocab_size - 1)
        self.wants += settings.refine * positions * [each]
        read = min(settings.reencode, settings.beam)
        self.wants += [ENCODED * read] if read else []

    @property
    def steps(self) -> int:
        return len(self.wants)

    @property
    def total(self) -> int:
        return sum(self.wants)

    def drop(self, index: int, count: int) -> None:
        """Steps `index` to `index` + `count` are not needed."""
        del self.wants[index : index + count]

    def reach(self, index: int) -> int:
        """The length that candidates of step `index` (from 0) are rolled out to; their own length
        where they are not."""
        settings, length, end = self.settings, self.lengths[index], self.lengths[-1]
        early = settings.lookahead_steps is None or index < settings.lookahead_steps
        if settings.search != "lookahead" or not early:
            return length
        if settings.lookahead in (None, "end", -1):
            return end
        return min(length + settings.lookahead, end)

    def rollouts(self, index: int) -> int:
        """Pictures of a candidate in step `index`."""
        return self.settings.rollouts if self.reach(index) > self.lengths[index] else 1

    def share(self, index: int, left: float) -> int:
        """Decodes that step `index` may make, of `left`: what it wants if there is enough for all
        that are ahead, else in proportion to what each wants, but one at least."""
        ahead = self.wants[index:]
        if sum(ahead) <= left:
            return ahead[0]
        return max(1, int(left * ahead[0] / sum(ahead)))

    def split(self, index: int, beam: Tensor, share: int) -> tuple[Tensor, int]:
        """The prefixes that step `index` extends and the candidates of each, for `share` decodes:
        first fewer candidates, then fewer prefixes."""
        candidates = max(1, share // self.rollouts(index))
        beam = beam[:candidates]
        return beam, min(self._most[index], candidates // len(beam))

    def _candidates(self, index: int, starts: int, vocab_size: int, new_tokens: int) -> int:
        settings, count = self.settings, self.settings.candidates
        if index == 0 and settings.first_step == "beam":
            count = max(1, settings.beam * settings.candidates // starts)
        if not settings.distinct:
            return count
        return min(count, vocab_size ** (1 if settings.branch == "last" else new_tokens))


def start_prefixes(settings: SearchSettings, tokenizer: Tokenizer) -> Tensor:
    """Int64[B, k], k from 0: what the first step of a search extends. Raises InputError where the
    tokens of settings.start are none of the tokenizer's."""
    rows = torch.tensor(settings.start_prefixes, dtype=torch.int64)
    if rows.shape[1]:
        tokenizer.check(rows)
    return rows.to(tokenizer.device)


def usable_neighbours(settings: SearchSettings, prior: Prior) -> int:
    """The neighbours that a search with this prior can have: at λ = 0 a prior is not asked."""
    return min(settings.neighbours, prior.held) if settings.prior_strength else 0


def step_lengths(
    settings: SearchSettings, tokenizer: Tokenizer, prior: Prior, start: int
) -> list[int]:
    """The lengths of the schedule that are longer than a start of that many tokens.

    Raises InputError where there are none, or the prior is not one for such a search.
    """
    limit = tokenizer.num_tokens
    if settings.tokens is not None:
        limit = whole_number("tokens", settings.tokens, 1, limit)
    scheduled = prefix_lengths(settings.schedule, limit)
    lengths = [length for length in scheduled if length > start]
    if not lengths:
        raise InputError(
            f"start has {start} tokens and the schedule ends at {scheduled[-1]}, "
            "so there is nothing to search for: give fewer tokens, or a longer schedule."
        )
    most = tokenizer.num_tokens if settings.complete else lengths[-1]
    if prior.vocab_size != tokenizer.vocab_size or prior.num_tokens < most:
        raise InputError(
            f"The prior {prior.name} is for {prior.num_tokens} tokens of a codebook of "
            f"{prior.vocab_size}, but the search needs {most} of {tokenizer.vocab_size}: "
            "use the prior that belongs to the model, or uniform."
        )
    greedy = "greedy" in (settings.complete, settings.rollout)
    if greedy and (settings.prior_strength == 0 or isinstance(prior, UniformPrior)):
        raise InputError(
            "A greedy completion takes the most probable tokens, but at prior strength 0, or with "
            "the uniform prior, all are alike: use 'sample', or another prior."
        )
    return lengths
