"""The same searches by other priors, strengths λ and weights w: what each is worth for a prompt."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

from PIL import Image

from tfgen import hub
from tfgen.errors import InputError, TfgenError
from tfgen.image_io import contact_sheet
from tfgen.judge import Judge, Verdict, metadata_of
from tfgen.pipeline import Pipeline, PromptWarning, Result
from tfgen.search.schedule import prefix_lengths
from tfgen.spriteeval import Metadata, read
from tfgen.spriteeval.scoring import judge_picture

PRIORS = ("unigram", "frequency", "retrieval", "autoregressive")
SPRITE_KINDS = ("sprites", "grid")  # whose pictures the judge can read


@dataclass(frozen=True)
class Cell:
    """What is varied. A row of a sheet has one prior and weight, a column one strength."""

    prior: str
    strength: float
    weight: float


@dataclass(frozen=True)
class Picture:
    """What one cell found for a prompt and a seed."""

    prompt: str
    seed: int
    cell: Cell
    result: Result
    verdict: Verdict | None
    """The judge's; None where it does not read the model's pictures, or the prompt."""

    @property
    def label(self) -> str:
        """In letters that the sheet's font has, so that prior^λ stands for λ."""
        weight = f" w={self.cell.weight:g}" if self.cell.weight else ""
        said = "" if self.verdict is None else " right" if self.verdict.correct else " wrong"
        score = f"{self.result.verifier_score:.2f}"
        return f"{self.cell.prior}^{self.cell.strength:g}{weight}: {score}{said}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            **asdict(self.cell),
            "score": self.result.score,
            "verifier_score": self.result.verifier_score,
            "verdict": None if self.verdict is None else asdict(self.verdict),
            "decodes": self.result.decodes,
            "cost": self.result.accounts.cost,
            "seconds": self.result.seconds,
            "tokens": self.result.tokens,
        }


PLAIN = {"atlas": False, "neighbours": 0, "crossover": 0, "reencode": 0, "forecast": 1}
"""What would hide what a prior proposes; see `Ablation`."""


class Ablation:
    """A grid of priors, strengths and weights, by which to search for any number of prompts.

    The atlas is not used, since with it a prior proposes no first token; nor neighbours and
    crossover, which take pictures of a prior's bank and are no proposals, nor re-encoding, nor
    forecasts, which choose among proposals.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        priors: Sequence[str],
        strengths: Sequence[float],
        weights: Sequence[float],
        judge: Judge | None = None,
        guidance: float | None = None,
    ) -> None:
        """priors: by name, as `hub.load_prior` takes them; guidance: for those that read text.

        Raises InputError on a prior that the pipeline's model cannot have.
        """
        self.judge = judge
        self.cells = [
            Cell(prior, strength, weight)
            for prior in priors
            for weight in weights
            for strength in strengths
        ]
        self.columns = len(strengths)
        self._pipelines = {name: with_prior(pipeline, name) for name in priors}
        if guidance is not None:
            self._pipelines = guided(self._pipelines, guidance)

    def readable(
        self, prompt: str, metadata: Metadata | None, folder: Path | None = None
    ) -> Metadata | None:
        """What a prompt asks for, by its metadata, else by its words as the judge of the folder
        reads them; None where there is no judge and, with a warning (PromptWarning), where it
        cannot tell."""
        if self.judge is None:
            return None
        try:
            metadata = metadata or metadata_of(prompt, folder)
        except InputError as error:
            reason = str(error)
        else:
            unknown = unknown_to(self.judge, metadata)
            if not unknown:
                return metadata
            reason = f"The judge does not know {', '.join(map(repr, unknown))}."
        warnings.warn(f"{prompt!r} is not judged. {reason}", PromptWarning, stacklevel=2)
        return None

    def search(
        self, prompt: str, metadata: Metadata | None, seed: int, **options: Any
    ) -> Iterator[Picture]:
        """The picture of each cell, row by row; options: as `Pipeline.generate` takes them.

        metadata: what the prompt asks for, if the judge is to say whether it is there. Raises
        KeyboardInterrupt at Ctrl-C: a search that did not end is in no comparison.
        """
        for cell in self.cells:
            varied = {"prior_strength": cell.strength, "prior_weight": cell.weight, **PLAIN}
            result = self._pipelines[cell.prior].generate(prompt, seed=seed, **options | varied)
            if result.interrupted:
                raise KeyboardInterrupt
            said = None
            if self.judge is not None and metadata is not None:
                said = judge_picture(self.judge, result.image, metadata)
            yield Picture(prompt, seed, cell, result, said)

    def sheet(self, pictures: Sequence[Picture], size: int) -> Image.Image:
        """Pictures of one prompt and seed, size x size pixels each, in rows and columns."""
        resized = [
            picture.result.image.resize((size, size), Image.Resampling.LANCZOS)
            for picture in pictures
        ]
        return contact_sheet(resized, [picture.label for picture in pictures], self.columns)


def unknown_to(judge: Judge, metadata: Metadata) -> list[str]:
    """The objects, colours and backgrounds that a prompt asks for and the judge cannot name: of
    them it would find none in any picture."""
    things = [*metadata.get("include", ()), *metadata.get("exclude", ())]
    asked = [(name, judge.objects) for t in things for name in (t["class"], *t.get("or", ()))]
    asked += [(thing["color"], judge.colours) for thing in things if "color" in thing]
    if place := metadata.get("background"):
        asked.append((place, judge.backgrounds))
    return list(dict.fromkeys(name for name, known in asked if name not in known))


def with_prior(pipeline: Pipeline, name: str) -> Pipeline:
    """The pipeline with another prior of its model. Raises InputError where it cannot have it."""
    prior = hub.load_prior(name, pipeline.model_name, pipeline.tokenizer)
    return replace(pipeline, prior=prior.for_verifier(pipeline.verifier.fingerprint))


def guided(pipelines: Mapping[str, Pipeline], scale: float) -> dict[str, Pipeline]:
    """Guidance goes to the priors that take it. Raises InputError where none does."""
    found, refusals = dict(pipelines), []
    for name, pipeline in pipelines.items():
        try:
            found[name] = replace(pipeline, prior=pipeline.prior.with_guidance(scale))
        except InputError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(found):
        raise refusals[0]
    return found


def fitting(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    """Search options with a beam that suits the budget, half as many prefixes as candidates of
    each, unless they say what it is: cut to the budget, a wide beam has hardly a candidate."""
    settings = pipeline.settings(**options)
    said = any(options.get(name) is not None for name in ("beam", "candidates"))
    if said or settings.search == "best-of-n" or settings.budget is None:
        return dict(options)
    tokens = settings.tokens or pipeline.tokenizer.num_tokens
    steps = len(prefix_lengths(settings.schedule, tokens))
    width = max(1, isqrt(settings.budget // (2 * steps)))
    return {**options, "beam": width, "candidates": max(1, settings.budget // (steps * width))}


def available(pipeline: Pipeline) -> tuple[list[str], list[str]]:
    """Those of PRIORS that the pipeline's model has, and a sentence about each other."""
    found, sentences = [], []
    for name in PRIORS:
        try:
            with_prior(pipeline, name)
            found.append(name)
        except InputError as error:
            sentences.append(f"{name} is left out. {error}")
    return found, sentences


def find_judge(model: str, folder: Path | None) -> Judge | None:
    """The judge of a folder, else the packaged one where it can read the model's pictures."""
    if folder is None and hub.kind_of(hub.locate(model)) not in SPRITE_KINDS:
        return None
    return Judge.load(folder)


def read_prompts(path: Path) -> list[tuple[str, Metadata | None]]:
    """The prompts of a file: a prompt a line or, in a .jsonl, GenEval's format with what each asks
    for. Raises InputError where it cannot be read, or holds none that can be searched for."""
    if path.suffix == ".jsonl":
        return [(metadata["prompt"], metadata) for metadata in read(path)]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(f"The prompt file {str(path)!r} cannot be read: {reason}.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"The prompt file {str(path)!r} is empty: give one with a prompt a line.")
    return [(prompt, None) for prompt in prompts]


def table(pictures: Sequence[Picture]) -> str:
    """Text, a line a cell: mean verifier score, right pictures of those judged, mean decodes."""
    groups: dict[Cell, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.cell, []).append(picture)
    lines = [("prior", "λ", "w", "verifier score", "right", "decodes")]
    for cell, group in groups.items():
        verdicts = [picture.verdict for picture in group if picture.verdict is not None]
        right = sum(verdict.correct for verdict in verdicts)
        score = sum(picture.result.verifier_score for picture in group) / len(group)
        decodes = sum(picture.result.accounts.cost for picture in group) / len(group)
        lines.append(
            (
                cell.prior,
                f"{cell.strength:g}",
                f"{cell.weight:g}",
                f"{score:.3f}",
                f"{right} of {len(verdicts)}" if verdicts else "-",
                f"{decodes:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """The file appears whole or not at all. Raises TfgenError where it cannot be written."""
    partial = path.with_name(f".{path.stem[:40]}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise TfgenError(f"Could not write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
