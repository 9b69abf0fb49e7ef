"""What commands that build something share: a bar, and what Ctrl-C leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from .generate import INTERRUPTED


@contextmanager
def building(quiet: bool, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, fed with what is done and all there is through the callable it yields.

    Ctrl-C ends the command with a sentence: what was done is saved, and will be found again.
    """
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", disable=quiet, dynamic_ncols=True, delay=1e-9) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield show
        except KeyboardInterrupt:
            bar.close()
            done = f"{bar.n:,} of {bar.total:,} {unit}" if bar.total else "the start"
            print(f"Stopped by Ctrl-C at {done}: the same command goes on there.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
