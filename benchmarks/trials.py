"""One trial: search for a prompt's picture with some settings, and ask the judge about it."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tfgen import hub
from tfgen.ablation import unknown_to
from tfgen.atlas import Atlas
from tfgen.cache import EmbeddingCache, rounding
from tfgen.decoding.engine import ENGINES
from tfgen.errors import InputError
from tfgen.forecaster import Forecaster
from tfgen.hub import read_json
from tfgen.judge import Judge
from tfgen.pipeline import SCORES, Pipeline, PromptWarning, find_device, render
from tfgen.priors import PRIORS
from tfgen.search import EmbeddingSource, SearchSettings
from tfgen.search.plan import usable_neighbours
from tfgen.spriteeval import Metadata
from tfgen.spriteeval.scoring import Share, judge_picture, share

from .harness import Row, Task
from .workers import cores

JUDGE_RESULTS = Path(__file__).parent / "results" / "judge.json"
DECODES_ARE_COST = (
    "Decodes are a search's cost in full ones: to the candidates that it decodes and scores, which "
    "are the decodes that tfgen tells, it adds what re-encoding decodes for its encoder to read."
)
NOT_IN_KEY = frozenset({"batch_size"})  # settings on which no result depends


@dataclass(frozen=True)
class Setup:
    """Which models; what every process of a benchmark loads."""

    model: str = hub.DEFAULT_MODEL
    verifier: str | None = None
    device: str = "auto"
    score: str = "contrast"
    guidance: float | None = None
    views: int = 1
    judge: str | None = ""
    """A folder; "": the packaged judge; None: no judge."""

    cache: Path | None = None
    """A folder, where what one-token prefixes and the samples of best-of-n look like is kept, which
    is the same for every prompt. They cost each prompt what they would have cost it alone."""

    engine: str = "auto"
    verbatim: bool = False

    @classmethod
    def of(cls, args: Namespace, cache: Path | None = None) -> Setup:
        """From the options of `add_models`. With no --jobs, a GPU gets one process."""
        if args.jobs is None:
            args.jobs = 1 if find_device(args.device).type == "cuda" else cores()
        judge = None if args.no_judge else args.judge
        return cls(
            args.model,
            args.verifier,
            args.device,
            args.score,
            args.guidance,
            args.views,
            judge,
            cache,
            args.engine,
            args.verbatim,
        )


def add_models(parser: ArgumentParser) -> None:
    """The options that say which models."""
    add = parser.add_argument
    add("--model", default=hub.DEFAULT_MODEL, help="the tokenizer: a name or a folder")
    add("--verifier", help="a name, a folder, or an open_clip name (default: the model's)")
    add("--score", choices=SCORES, default="contrast")
    add("--guidance", type=float, help="of a prior that knows the text (default: its own)")
    add("--verbatim", action="store_true", help="search for prompts as they are, not reworded")
    add("--views", type=int, default=1, metavar="N", help="looks of the verifier at a picture")
    add("--judge", default="", metavar="FOLDER", help="another judge than the packaged one")
    add("--no-judge", action="store_true", help="verifier scores only")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--engine", choices=ENGINES, default="auto", help="what decodes (default: auto)")


class Trials:
    """Models loaded once, for many trials."""

    def __init__(self, setup: Setup) -> None:
        warnings.simplefilter("ignore", PromptWarning)  # a benchmark's prompts are what they are
        self.setup = setup
        self.pipeline = Pipeline.load(
            setup.model,
            verifier=setup.verifier,
            guidance=setup.guidance,
            device=setup.device,
            score=setup.score,
            views=setup.views,
            engine=setup.engine,
            verbatim=setup.verbatim,
        )
        self.judge: Judge | None = None
        self.judge_print: str | None = None
        if setup.judge is not None:
            folder = Path(setup.judge) if setup.judge else hub.WEIGHTS / "sprites-judge"
            self.judge = Judge.load(folder, self.pipeline.tokenizer.device)
            self.judge_print = folder_print(folder)
        self._pipelines: dict[str | None, Pipeline] = {None: self.pipeline}
        self._caches: dict[str, EmbeddingCache] = {}

    def __call__(self, item: tuple[Task, Row | None]) -> dict[str, Any]:
        """The work of a harness: the values of a task's row."""
        task, row = item
        if row is not None and not self.misread(row):
            return self.judged_again(task, row)
        search, prior = task.settings["search"], task.settings["prior"]
        values = self.search(task.more["metadata"], task.seed, prior, search)
        reading = self.reading(task.prompt)
        return values if reading == task.prompt else values | {"read_as": reading}

    def maker(self, jobs: int) -> Callable[[], Trials]:
        """What makes the work of each process: these models, where it is this one."""
        return partial(type(self), self.setup) if jobs > 1 else lambda: self

    def settings(
        self, prior: str | None = None, defaults: bool = True, **search: Any
    ) -> dict[str, Any]:
        """All that a trial's result depends on besides its prompt and seed.

        defaults: what is left out is the model's own. Of the search's settings those are told that
        are not SearchSettings' defaults, so that a key stays what it is when a setting is added.
        Raises InputError on a setting that is none.
        """
        pipeline = self.with_prior(prior)
        own = SearchSettings()
        settings = pipeline if defaults else replace(pipeline, defaults={})
        found = settings.settings(**search)
        resolved = asdict(found) | {"neighbours": usable_neighbours(found, pipeline.prior)}
        resolved["atlas"] &= self.has_atlas
        forecaster = self.forecaster if found.forecast > 1 else None
        if forecaster is None and search.get("forecast") is None:
            resolved["forecast"] = own.forecast
        return {
            "search": {
                name: value
                for name, value in resolved.items()
                if value != getattr(own, name) and name not in NOT_IN_KEY
            },
            "prior": pipeline.prior.name if prior is None else prior,
            "models": {
                **pipeline.fingerprints,
                "tokenizer": pipeline.tokenizer.picture_fingerprint(),  # the judge sees pictures
                "score": self.setup.score,
                **prints(words=self._words(), prior=self._prior_files(pipeline.prior.name, prior)),
                **({} if forecaster is None else {"forecaster": forecaster.fingerprint()}),
            },
            **({} if self.setup.guidance is None else {"guidance": self.setup.guidance}),
            **({} if self.setup.engine == "auto" else {"engine": self.setup.engine}),
        }

    @cached_property
    def forecaster(self) -> Forecaster | None:
        """That of the models, which a search uses whose settings ask for forecasts."""
        pipeline = self.pipeline
        return Forecaster.find(pipeline.folder, pipeline.tokenizer, pipeline.verifier)

    def _words(self) -> bytes:
        """The words of the contrast captions, where the score has them."""
        verifier = self.pipeline.verifier
        words = getattr(getattr(verifier, "verifier", verifier), "words", None)
        if words is None or self.setup.score != "contrast":
            return b""
        return json.dumps(asdict(words), sort_keys=True).encode()

    def _prior_files(self, name: str, given: str | None) -> bytes:
        """All that the files of a prior hold."""
        found = []
        for part in (given or name).split("+"):
            kind, _, source = part.partition(":")
            if source and Path(source).expanduser().is_file():
                found.append(Path(source).expanduser())
            folder = self.pipeline.folder
            if folder is not None and kind in PRIORS:
                found += [folder / file for file in PRIORS[kind].files]
        return b"".join(path.read_bytes() for path in found if path.is_file())

    def tasks(
        self,
        method: str,
        settings: dict[str, Any],
        split: str,
        prompts: Sequence[Metadata],
        seeds: int,
        **more: Any,
    ) -> list[Task]:
        """A task for each prompt and seed."""
        return [
            Task(
                method,
                settings,
                metadata["prompt"],
                seed,
                {"split": split, "tag": metadata["tag"], **more, "metadata": metadata},
            )
            for metadata in prompts
            for seed in range(seeds)
        ]

    def search(
        self, metadata: Metadata, seed: int, prior: str | None, search: dict[str, Any]
    ) -> dict[str, Any]:
        """Search, with exactly these settings, and judge what is found."""
        cache = self._cache(search, seed)
        pipeline = replace(self.with_prior(prior), defaults={}, cache=cache)
        started = time.perf_counter()
        result = pipeline.generate(metadata["prompt"], seed=seed, **search)
        waited = time.perf_counter() - started
        if result.interrupted:  # the search has caught it, to keep what it had found
            raise KeyboardInterrupt
        values = {
            "score": result.score,
            "verifier_score": result.verifier_score,
            "cost": round(result.accounts.cost, 3),
            "decodes": result.accounts.decodes,
            "cached": result.accounts.cached,
            "seconds": round(result.seconds, 3),
            "waited": round(waited, 3),  # with what a prior does for a prompt, and the picture
            "by_step": [round(step.best_verifier_score, 4) for step in result.steps],
            "tokens": result.tokens,
        }
        return values | self.judged(result.tokens, metadata, seed)

    def _cache(self, search: dict[str, Any], seed: int) -> EmbeddingSource | None:
        """What prompts share of a search."""
        if self.setup.cache is None:
            return None
        models = self._models(seed)
        key = str(models["seed"])
        if key not in self._caches:
            engine = self.pipeline.engine(self.pipeline.tokenizer, self.pipeline.verifier)
            models |= rounding(engine, self.pipeline.tokenizer.device)
            self._caches[key] = EmbeddingCache(self.setup.cache, models)
        cache = self._caches[key]
        return cache if search.get("search") == "best-of-n" else FirstTokens(cache)

    def _models(self, seed: int) -> dict[str, Any]:
        """What embeddings depend on: the models and, where the decoder is noisy, the seed."""
        noisy = self.pipeline.tokenizer.for_seed(seed) is not self.pipeline.tokenizer
        return {**self.pipeline.fingerprints, "seed": seed if noisy else None}

    @cached_property
    def has_atlas(self) -> bool:
        """Whether the models have an atlas, which a search then uses unless it is told not to."""
        pipeline = self.pipeline
        found = Atlas.find(pipeline.folder, self._models(0), pipeline.tokenizer.vocab_size)
        return found is not None

    def judged(self, tokens: Sequence[int], metadata: Metadata, seed: int) -> dict[str, Any]:
        """What the judge says of the final picture, as a user would see it."""
        if self.judge is None:
            return {}
        image = self.picture(tokens, seed)
        said = judge_picture(self.judge, image, metadata)
        return {"correct": said.correct, "reason": said.reason, "judge": self.judge_print}

    def picture(self, tokens: Sequence[int], seed: int) -> Any:
        """The final picture of tokens, as the pipeline makes it."""
        tokenizer = self.pipeline.tokenizer.for_seed(seed)
        return render(tokenizer, torch.tensor(tokens, dtype=torch.int64))

    def reading(self, prompt: str) -> str:
        """What a search for a prompt searches for: the prompt in the verifier's own words."""
        return prompt if self.setup.verbatim else self.pipeline.verifier.reword(prompt).text

    def misread(self, row: Row) -> bool:
        """Whether a row's search was for another reading of its prompt than today's. A row tells
        its reading ("read_as") where that is not the prompt itself."""
        return bool(row.get("read_as", row["prompt"]) != self.reading(row["prompt"]))

    def stale(self, row: Row) -> bool:
        """Whether a row is to be made anew: its prompt is read otherwise today, which means another
        search, or its verdict is that of another judge, or there is none."""
        judged = self.judge is None or row.get("judge") == self.judge_print
        return self.misread(row) or not judged

    def judged_again(self, task: Task, row: Row) -> dict[str, Any]:
        """The values of a row whose verdict is stale: the picture is made again from its tokens."""
        values = {k: v for k, v in row.items() if k not in task.row({})}
        return values | self.judged(row["tokens"], task.more["metadata"], task.seed)

    def check(self, prompts: Iterable[Metadata]) -> None:
        """Raise InputError on prompts with objects, colours or places that the judge cannot see."""
        if self.judge is None:
            return
        for metadata in prompts:
            if unknown := unknown_to(self.judge, metadata):
                raise InputError(
                    f"The judge does not know {', '.join(map(repr, unknown))}, of the prompt "
                    f"{metadata['prompt']!r}: use --no-judge --pictures DIR, and score the "
                    "pictures with GenEval's own evaluator."
                )

    def with_prior(self, name: str | None) -> Pipeline:
        """The pipeline with another prior; None: the model's own."""
        if name not in self._pipelines:
            prior = hub.load_prior(str(name), self.setup.model, self.pipeline.tokenizer)
            prior = prior.for_verifier(self.pipeline.verifier.fingerprint)
            if self.setup.guidance is not None:
                prior = prior.with_guidance(self.setup.guidance)
            self._pipelines[name] = replace(self.pipeline, prior=prior)
        return self._pipelines[name]


@dataclass(frozen=True)
class FirstTokens:
    """An `EmbeddingSource` that knows what another knows of one-token prefixes: longer ones hardly
    ever come up again for another prompt."""

    source: EmbeddingSource

    def get(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Int64[N, k] -> known Bool[N], embeddings Float32[N, d]."""
        if tokens.shape[1] == 1:
            return self.source.get(tokens)
        return torch.zeros(len(tokens), dtype=torch.bool), torch.zeros(len(tokens), 0)

    def put(self, tokens: Tensor, embeddings: Tensor) -> None:
        if tokens.shape[1] == 1:
            self.source.put(tokens, embeddings)


def prints(**contents: bytes) -> dict[str, str]:
    """A short hex hash of each that is not empty."""
    return {
        name: hashlib.sha256(content).hexdigest()[:16]
        for name, content in contents.items()
        if content
    }


def folder_print(folder: Path) -> str:
    """A short hex hash of a model folder's weights and configurations."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def accuracy(rows: Iterable[Row]) -> Share:
    """The share of right pictures of rows, with a prompt's seeds counted as alike as they are."""
    return share(list(by_prompt(rows, "correct").values()))


def average(rows: Iterable[Row], name: str) -> Share:
    """The mean of a number of the rows over prompts, with Student's 95 % interval; of one prompt,
    an interval is not to be had, and is the mean alone."""
    groups = by_prompt(rows, name).values()
    means = np.array([np.mean(values) for values in groups])
    value, half = float(means.mean()), 0.0
    if len(means) > 1:
        t = float(stats.t.ppf(0.975, len(means) - 1))
        half = t * float(means.std(ddof=1)) / len(means) ** 0.5
    return Share(value, value - half, value + half, sum(map(len, groups)))


def by_prompt(rows: Iterable[Row], name: str) -> dict[str, list[Any]]:
    """A value of the rows, prompt by prompt, in the order of the prompts' names and the seeds."""
    groups: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt"], row["seed"])):
        groups.setdefault(row["prompt"], []).append(row[name])
    return groups


def judge_notes(rows: Iterable[Row]) -> list[str]:
    """How often the judge of these rows is itself right, which bounds what it measures: a sentence
    for each kind of picture, from benchmarks/results/judge.json where that is of the same judge."""
    measured = read_json(JUDGE_RESULTS) if JUDGE_RESULTS.is_file() else {}
    judges = {row["judge"] for row in rows if "judge" in row}
    notes = [
        f"Of true claims about held-out scenes ({kind}) the judge finds right: "
        + ", ".join(f"{name} {value['share']:.3f}" for name, value in measures.items())
        + " (benchmarks/judge.py)."
        for kind, measures in measured.get("right", {}).items()
        if measured["judge"] in judges
    ]
    if others := sorted(judges - {measured.get("judge")}):
        notes.append(
            f"The own accuracy of the judge {', '.join(others)} is not known here: "
            "python -m benchmarks.judge --judge FOLDER measures it."
        )
    return notes


def shown(value: Share) -> str:
    """A share or mean with its interval."""
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
