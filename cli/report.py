"""What tfgen generate tells: warnings, a bar, a line a picture, the object of --json."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tfgen

if TYPE_CHECKING:
    from tfgen.pipeline import Pipeline, Result
    from tfgen.search import Accounts, Progress

BY = {"budget": "--budget", "time": "--time-limit"}  # what stopped a search, as the user knows it


@contextmanager
def prompt_warnings(quiet: bool) -> Iterator[list[str]]:
    """Say on stderr, unless quiet, what a search warns of; yields the sentences."""
    from tfgen.cache import CacheWarning
    from tfgen.decoding.engine import EngineWarning
    from tfgen.pipeline import PromptWarning
    from tfgen.search import RecordWarning

    ours = (PromptWarning, CacheWarning, RecordWarning, EngineWarning)
    sentences: list[str] = []
    show_others = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any) -> None:
        if not issubclass(category, ours):
            show_others(message, category, *where)
            return
        sentences.append(str(message))
        if not quiet:
            print(f"Warning: {message}", file=sys.stderr)

    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        for category in ours:
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        try:
            yield sentences
        finally:
            logging.disable(disabled)


@contextmanager
def search_bar(quiet: bool) -> Iterator[Any]:
    """A bar on stderr with step, decodes and best score, fed through the callable it yields."""
    from tqdm import tqdm

    bar: tqdm | None = None  # not before there is progress: a setting may still be refused

    def show(progress: Progress) -> None:
        nonlocal bar
        if bar is None:
            total = max(progress.decodes, progress.planned)
            bar = tqdm(total=total, unit=" decodes", disable=quiet, dynamic_ncols=True, delay=1e-9)
        bar.set_description(f"step {progress.step}/{progress.steps}", refresh=False)
        bar.set_postfix_str(f"best score {progress.best_score:.3f}", refresh=False)
        bar.update(progress.decodes - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.total = bar.n  # candidates that came up before cost no decode
            bar.close()


def summary(result: Result, path: Path) -> str:
    """One line: where the picture is, its score, and what it cost."""
    rate = result.decodes / result.seconds if result.seconds else 0.0
    line = (
        f"{path}  score {result.score:.3f}  {result.decodes:,} decodes in {result.seconds:.1f} s "
        f"({rate:,.0f} decodes/s)"
    )
    accounts = result.accounts
    beside = {"foretold": accounts.foretold, "screened": accounts.screened}
    beside |= {"known": accounts.cached}
    beside |= {"encoded again": accounts.encoded, "for gradients": accounts.gradients}
    for what, count in beside.items():
        line += f", {count:,} {what}" if count else ""
    return line + (f", stopped by {BY[result.stopped]}" if result.stopped in BY else "")


def report(
    prompt: str,
    pipeline: Pipeline,
    done: Sequence[tuple[Result, Path]],
    strips: Sequence[Path],
    traces: Sequence[Path],
    sentences: Sequence[str],
) -> dict[str, Any]:
    """The object of --json. At the top: the best picture; the accounts and seconds of all. strips:
    those that could be written."""
    best, _ = max(done, key=lambda item: item[0].score)
    return {
        "tfgen": tfgen.__version__,
        "prompt": prompt,
        "read_as": best.recipe.get("read_as", prompt),
        "negative": best.recipe["negative"],
        "model": best.recipe["model"],
        "verifier": best.recipe["verifier"],
        "prior": best.recipe["prior"],
        "device": str(pipeline.tokenizer.device),
        "settings": asdict(best.settings),
        "seed": best.recipe["seed"],
        "tokens": best.tokens,
        "score": best.score,
        "verifier_score": best.verifier_score,
        "decodes": sum(result.decodes for result, _ in done),
        "accounts": total([result.accounts for result, _ in done]),
        "seconds": sum(result.seconds for result, _ in done),
        "interrupted": any(result.interrupted for result, _ in done),
        "warnings": list(sentences),
        "paths": [str(path) for _, path in done],
        "steps_paths": [str(path) for path in strips],
        "trace_paths": [str(path) for path in traces[: len(done)]],
        "images": [picture(result, path) for result, path in done],
    }


def picture(result: Result, path: Path) -> dict[str, Any]:
    """What --json tells of one picture."""
    return {
        "path": str(path),
        "seed": result.recipe["seed"],
        "tokens": result.tokens,
        "score": result.score,
        "verifier_score": result.verifier_score,
        "decodes": result.decodes,
        "accounts": result.accounts.as_dict(),
        "seconds": result.seconds,
        "stopped": result.stopped,
        "interrupted": result.interrupted,
        "steps": [
            {
                "phase": step.phase,
                "length": step.length,
                "candidates": len(step.pool.tokens),
                "decodes": step.decodes,
                "seconds": step.seconds,
                "best_score": step.best_score,
                "best_tokens": step.best_tokens.tolist(),
            }
            for step in result.steps
        ],
    }


def total(accounts: Sequence[Accounts]) -> dict[str, Any]:
    """The accounts of several searches together; of the memory, the most."""
    told = [account.as_dict() for account in accounts]
    peaks = [peak for one in told if (peak := one.pop("peak_memory")) is not None]
    sums = {name: sum(one[name] for one in told) for name in told[0]}
    return {**sums, "peak_memory": max(peaks, default=None)}
