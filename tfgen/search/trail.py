"""`Trail`: one run of a search. It plans, proposes, ranks, records, and keeps the best prefix."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tfgen.errors import InputError, TfgenError, whole_number
from tfgen.interrupts import hold_ctrl_c
from tfgen.priors.base import Prior
from tfgen.search.accounts import Accounts, peak_memory
from tfgen.search.evaluator import (
    BudgetExhausted,
    EmbeddingSource,
    Engine,
    Evaluator,
    Progress,
    Spent,
    TimeExhausted,
)
from tfgen.search.journal import decode_state
from tfgen.search.plan import Plan, start_prefixes, step_lengths, usable_neighbours
from tfgen.search.ranking import best_picture, rank_pool
from tfgen.search.recorder import Recorder
from tfgen.search.records import SearchResult, Step, Stopped
from tfgen.search.settings import SearchSettings
from tfgen.search.trace import FORMAT, read_step
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Target, Verifier

if TYPE_CHECKING:
    from tfgen.forecaster import Forecaster

REENCODED = "reencode"
"""The phase of a step whose pictures may be the result though they score less."""
DONORS = 64
"""Pictures of the prior's bank that are looked up at a time."""
CAUTION = 0.9
"""Of the decodes that the time seems to allow, the share that steps are planned for."""


class Trail:
    """One run of a search. Between two steps, all that an algorithm knows is here, in `steps`,
    `beam`, `generator` and `notes`, so that a run can be taken up again after any of them.

    As a context manager it ends the search quietly, with the best so far, when the budget or the
    time is spent or on Ctrl-C; a Ctrl-C before anything was scored propagates.

    For those who extend a search:
      `rank(tokens)` scores any pool of candidates, wherever they come from, and makes a step of it;
      the pool may come in rounds, of which each is made when those before it are scored.
      `evaluator.score(tokens)` scores prefixes without making a step; it costs the same.
      `tokenizer`, `verifier`, `target`, `prior` are what the search is of (the tokenizer is the one
      of this seed: see `Tokenizer.for_seed`); work done with them directly is charged by
      `evaluator.account`.
      `notes` holds JSON values that a stage wants to find again when the run is taken up; they are
      in the trace.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Tokenizer,
        prior: Prior,
        verifier: Verifier,
        settings: SearchSettings,
        seed: int = 0,
        *,
        callback: Callable[[Step], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
        engine: Engine | None = None,
        cache: EmbeddingSource | None = None,
        atlas: EmbeddingSource | None = None,
        forecaster: Forecaster | None = None,
    ) -> None:
        """atlas: knows all prefixes of one token; with it, and with settings.atlas, a first step to
        one token looks at the whole codebook, at no decode. forecaster: for settings.forecast. The
        others: see `Evaluator`, and `search`."""
        self.started = time.perf_counter()
        self.target, self.tokenizer, self.prior, self.verifier = target, tokenizer, prior, verifier
        settings = replace(settings, neighbours=usable_neighbours(settings, prior))
        self.settings, self.callback, self.forecaster = settings, callback, forecaster
        self.seed = whole_number("seed", seed, 0, 2**63 - 1)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.start = start_prefixes(settings, tokenizer)  # Int64[B, k], k from 0
        self.beam = self.start  # Int64[B, k], what the next step extends
        self.lengths = step_lengths(settings, tokenizer, prior, self.start.shape[1])
        if tokenizer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(tokenizer.device)
        limit = settings.time_limit
        self.evaluator = Evaluator(
            tokenizer,
            verifier,
            target,
            batch_size=settings.batch_size,
            budget=settings.budget,
            deadline=math.inf if limit is None else self.started + limit,
            progress=progress,
            engine=engine,
            cache=cache,
            atlas=atlas if settings.atlas else None,
        )
        self.plan = Plan(
            settings, self.beam, self.lengths, tokenizer.vocab_size, tokenizer.num_tokens
        )
        self.exhaustive = self._is_exhaustive()
        if self.exhaustive:
            self.plan.wants[0] = 0
        self._tell_plan()
        self.steps: list[Step] = []
        self.notes: dict[str, Any] = {}
        self.stopped: Stopped = "done"
        self.recorder: Recorder | None = None
        self._end: tuple[float, Accounts] | None = None  # of the run taken up
        self._kept = [-1] * len(self.beam)  # the beam's rows in the latest pool
        self._nearest: Tensor | None = None  # see `nearest`

    def _is_exhaustive(self) -> bool:
        """Whether the atlas knows every candidate that the first step could draw."""
        first_is_one_token = self.start.shape[1] == 0 and self.lengths[0] == 1
        return (
            self.evaluator.atlas is not None
            and self.settings.search != "best-of-n"
            and self.settings.distinct
            and first_is_one_token
            and self.plan.reach(0) == 1  # it is ranked by its own picture, not by rollouts
        )

    def header(self) -> dict[str, Any]:
        """What the search is of, as far as it knows itself: for the header of a trace."""
        return {
            "kind": "header",
            "format": FORMAT,
            "settings": asdict(self.settings),
            "seed": self.seed,
            "start": self.start.tolist(),
            "lengths": self.lengths,
        }

    def record(self, recorder: Recorder) -> None:
        """Write all steps with this recorder; first take up the run that its journal tells of.

        Raises InputError where the journal lacks a part.
        """
        self.recorder = recorder
        try:
            self._take_up(recorder.earlier, recorder.end)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise InputError(
                f"{str(recorder.journal.path)!r} is damaged or no journal of a search: "
                "give another folder."
            ) from None

    def _take_up(self, lines: Sequence[Mapping[str, Any]], end: Mapping[str, Any] | None) -> None:
        for line in lines:
            self.steps.append(read_step(line))
            self.evaluator.restore(line["news"])
        if end is not None:
            self._end = end["seconds"], Accounts(**end["accounts"])
            self.stopped = end["stopped"]
        elif not lines:
            return
        line = lines[-1]  # there is no end without a step
        accounts, pool = line["accounts"], self.steps[-1].pool
        self.evaluator.accounts = Accounts(**accounts)
        self.generator.set_state(decode_state(line["generator"]))
        self.notes = dict(line["notes"])
        self.started -= line["seconds"]
        self.evaluator.deadline -= line["seconds"]
        self.beam = pool.tokens[pool.kept].to(self.start.device)
        self._kept = pool.kept.tolist()

    @property
    def finished(self) -> bool:
        """The run taken up was at its end already: there is only `result` left to ask for."""
        return self._end is not None

    def __enter__(self) -> Trail:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        hold_ctrl_c()  # what comes now is quick, and must not lose what was found
        if isinstance(error, BudgetExhausted):
            self.stopped = "budget"
        if isinstance(error, TimeExhausted):
            self.stopped = "time"
        if isinstance(error, KeyboardInterrupt):
            self.stopped = "interrupt"
        return bool(self.steps) and self.stopped != "done"

    def ahead(self) -> Iterator[int]:
        """The prefix lengths of the steps that are still to be made."""
        yield from self.lengths[len(self.steps) :]

    def parents(self, length: int) -> tuple[Tensor, int]:
        """What a step to this length extends: prefixes Int64[B, k], and candidates of each.

        As the settings say, or fewer where budget or time would otherwise not suffice for all steps
        that are ahead: first fewer candidates, then fewer prefixes.
        """
        if self.exhaustive and not self.steps:
            return self.beam, self.tokenizer.vocab_size
        return self.plan.split(len(self.steps), self.beam, self.share())

    def share(self, made: int = 0) -> int:
        """Decodes that the next step may make, of which `made` are made already."""
        left = self.left()
        share = self.plan.share(len(self.steps), made + left)
        if left < self.evaluator.left:  # time is short; a pass takes as much of it full or not
            share = max(1, share // self.evaluator.rows) * self.evaluator.rows
        return share

    def left(self) -> float:
        """Decodes that budget and time still allow; infinite where neither is limited."""
        return min(self.evaluator.left, CAUTION * self.evaluator.left_in_time)

    def propose(self, prefixes: Tensor, length: int, count: int) -> Tensor:
        """Int64[B, k] -> Int64[B * count, length]: `count` continuations of each prefix."""
        settings, new = self.settings, length - prefixes.shape[1]
        with self.evaluator.accounts.timed("propose"):
            if not settings.distinct:
                repeated = prefixes.repeat_interleave(count, dim=0)
                return self.prior.complete(
                    repeated, length, settings.prior_strength, self.generator
                )
            drawn = self.prior.propose(  # [B, C, new]
                prefixes, count, settings.prior_strength, self.generator, new, settings.branch
            )
            repeated = prefixes[:, None].expand(-1, drawn.shape[1], -1)
            return torch.cat([repeated, drawn], dim=2).flatten(0, 1)

    def complete(self, prefixes: Tensor, length: int, how: str, name: str | None = None) -> Tensor:
        """Int64[B, k] -> Int64[B, length]: one continuation of each prefix.

        how: "sample" draws from p^λ, "greedy" takes the most probable token, the lowest of equals.
        name: draw with a generator of this name and step, so that the search's own draws stay as
        they are; None: with the search's own.
        """
        with self.evaluator.accounts.timed("propose"):
            if how == "sample":
                generator = self.generator if name is None else self._generator(name)
                strength = self.settings.prior_strength
                return self.prior.complete(prefixes, length, strength, generator)
            tokens = prefixes
            while tokens.shape[1] < length:
                likeliest = self.prior.log_probs(tokens).argmax(dim=1, keepdim=True)
                tokens = torch.cat([tokens, likeliest.to(tokens.device)], dim=1)
            return tokens

    def skip(self, phase: str, count: int) -> None:
        """Of a phase's steps the `count` that follow those made are not needed: what comes after
        may have their share."""
        made = [place for place, step in enumerate(self.steps, start=1) if step.phase == phase]
        self.plan.drop(made[-1] if made else len(self.steps), count)
        self._tell_plan()

    def _tell_plan(self) -> None:
        """How much is to come, for a progress bar."""
        self.evaluator.steps = self.plan.steps
        self.evaluator.planned = min(self.plan.total, self.settings.budget or self.plan.total)

    def nearest(self, count: int) -> Tensor:
        """Int64[N, num_tokens]: of the pictures in the prior's bank the `count` that score best by
        their stored embeddings, or all, best first."""
        if self._nearest is None or len(self._nearest) < min(count, self.prior.held):
            score = partial(self.verifier.score_embeddings, target=self.target)
            self._nearest = self.prior.nearest(max(count, DONORS), score)
        return self._nearest[:count]

    def _generator(self, name: str) -> torch.Generator:
        told = f"{name} {len(self.steps) + 1} of seed {self.seed}"
        digest = hashlib.sha256(told.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def rank(
        self,
        tokens: Tensor | Iterable[Tensor],
        *,
        parents: Tensor | None = None,
        rollouts: Tensor | None = None,
        phase: str = "search",
        position: int | None = None,
        temperature: float = 0.0,
    ) -> Tensor:
        """Score a pool of candidates and record it as a step: Int64[N, k] -> the new beam.

        The beam, Int64[B, k], best first, is what the settings keep of the pool; it is also in
        `self.beam`.

        tokens: the pool, or its parts in rounds, each of which is scored before the next is asked
        for. parents: Int64[N], rows of the beam until now that the candidates descend from, -1 for
        none; by default the one that is their prefix or, with a `position`, that differs from them
        there only. rollouts: Int64[N, M, l], continuations whose pictures are scored in place of
        the candidates' own. phase: which part of the search this is, for the records. temperature:
        above 0 the beam is drawn in proportion to exp(score / temperature), in place of the best.
        """
        self.evaluator.step = len(self.steps) + 1
        pool: list[Tensor] = []
        try:
            for part in [tokens] if isinstance(tokens, Tensor) else tokens:
                pool.append(part)
                fits = self._score(part if rollouts is None else rollouts)
                pool[-1] = part[:fits]
                rollouts = None if rollouts is None else rollouts[:fits]
        except (Spent, KeyboardInterrupt):
            if pool:
                self._record(torch.cat(pool), parents, rollouts, phase, position, partial=True)
            raise
        self._record(torch.cat(pool), parents, rollouts, phase, position, temperature)
        return self.beam

    def _score(self, pictures: Tensor) -> int:
        """Score the pictures of a pool, Int64[N, k] or Int64[N, M, l]; returns how many of its
        candidates. They are all, but in a search with a time limit in the first step of a run,
        which learns from the first passes how many it has the time for."""
        fits, each = len(pictures), 1 if pictures.ndim == 2 else pictures.shape[1]
        flat = pictures.view(-1, pictures.shape[-1])
        if self.settings.time_limit is not None and self.evaluator.left_in_time == math.inf:
            few, before = math.ceil(2 * self.evaluator.batch_size / each), self.evaluator.decodes
            self.evaluator.score(flat[: few * each])
            if self.evaluator.left_in_time < math.inf:  # there was something to measure
                share = self.share(self.evaluator.decodes - before)
                fits = min(fits, max(few, share // each))
        self.evaluator.score(flat[: fits * each])
        return fits

    def _parents(self, tokens: Tensor, position: int | None) -> Tensor:
        shared = torch.arange(self.beam.shape[1])
        shared = shared[shared != position] if position is not None else shared
        rows: dict[tuple[int, ...], int] = {}
        for index, row in enumerate(self.beam.cpu()[:, shared].tolist()):
            rows.setdefault(tuple(row), index)
        return torch.tensor([rows.get(tuple(row), -1) for row in tokens[:, shared].tolist()])

    def _record(
        self,
        tokens: Tensor,
        parents: Tensor | None,
        rollouts: Tensor | None,
        phase: str,
        position: int | None,
        temperature: float = 0.0,
        partial: bool = False,
    ) -> None:
        tokens = tokens.cpu()
        parents = self._parents(tokens, position) if parents is None else parents.cpu()
        parents = parents[: len(tokens)]
        rollouts = None if rollouts is None else rollouts.cpu()
        pictures = tokens[:, None] if rollouts is None else rollouts  # [N, M, l]
        flat, shape = pictures.flatten(0, 1), pictures.shape[:2]
        verifier_scores = self.evaluator.known(flat).view(shape)  # [N, M], NaN where not scored
        if verifier_scores.isnan().all():
            return
        with self.evaluator.accounts.timed("propose"):
            scores = verifier_scores + self.prior_term(flat).view(shape)
        row, column = best_picture(pictures, scores)
        rows_before = torch.tensor([-1, *self._kept])  # of the beam in the pool, as of its parents
        pool = rank_pool(
            tokens,
            rows_before[parents + 1],
            scores,
            verifier_scores,
            rollouts,
            self.settings,
            limited=bool(self.steps),
            noise=self._noise(len(tokens), temperature),
        )
        step = Step(
            len(self.steps) + 1,
            phase,
            tokens.shape[1],
            self.evaluator.decodes,
            time.perf_counter() - self.started,
            float(scores[row, column]),
            float(verifier_scores[row, column]),
            pictures[row, column],
            pool,
            partial,
        )
        self.steps.append(step)
        self.beam = pool.tokens[pool.kept].to(self.beam.device)
        self._kept = pool.kept.tolist()
        if self.recorder:
            self.recorder.step(step, self.evaluator, self.generator, self.notes)
        if self.callback:
            self.callback(step)

    def _noise(self, count: int, temperature: float) -> Tensor | None:
        """Gumbel noise, Float64[N]: the greatest noisy scores are draws without replacement."""
        if temperature == 0:
            return None
        uniform = torch.rand(count, dtype=torch.float64, generator=self.generator)
        return -temperature * uniform.log_().neg_().log_()

    def prior_term(self, tokens: Tensor) -> Tensor:
        """Float32[N] on the CPU: the prior's share of the scores of Int64[N, k]."""
        weight = self.settings.prior_weight
        if weight == 0:
            return torch.zeros(len(tokens))
        if self.settings.typicality:
            return weight * self.prior.typicality(tokens).cpu()
        return weight * self.prior.sequence_log_prob(tokens).mean(dim=1).cpu()

    def _best(self) -> Step:
        """The step whose picture is the result."""
        found = [step for step in self.steps if step.phase != REENCODED]
        best = max(found, key=lambda step: step.best_score)  # the first of equals
        if self.settings.keep == "last":
            best = found[-1]
        last = self.steps[-1]
        if last.phase == REENCODED:
            least = best.best_score - self.settings.reencode_loss
            return last if last.best_score >= least else best
        return best

    def result(self) -> SearchResult:
        """The best picture of all steps or, as the settings say, of the last one, or what it was
        encoded again as.

        Raises TfgenError where the verifier gave no picture a usable score.
        """
        best = self._best()
        if best.best_score == -math.inf:
            raise TfgenError(
                f"The verifier {self.verifier.name} gave no picture a usable score: "
                "check its weights, or use another verifier."
            )
        seconds, accounts = time.perf_counter() - self.started, self.evaluator.accounts
        accounts.peak_memory = peak_memory(self.tokenizer.device)
        if self._end is not None:
            seconds, accounts = self._end
        verifier_score = self.evaluator.reported(best.best_tokens, best.best_verifier_score)
        result = SearchResult(
            best.best_tokens,
            best.best_score + (verifier_score - best.best_verifier_score),
            verifier_score,
            self.steps,
            accounts,
            seconds,
            self.stopped,
            self.settings,
        )
        if self.recorder:
            if not self.finished:
                self.recorder.finish(result)
            self.recorder.close()
        return result
