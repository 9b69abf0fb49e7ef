"""What is written while a search runs: its trace, and the journal from which it can go on."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from tfgen.search.evaluator import Evaluator
from tfgen.search.journal import Journal, encode_state
from tfgen.search.records import SearchResult, Step
from tfgen.search.trace import Trace, end_line, step_line

_OWN = ("news", "generator")  # what only the journal tells of a step


class Recorder:
    """Writes each step to a trace, a journal, or both.

    What the journal has of an earlier run goes into the trace first, so that the trace of a run
    that was taken up again is the one of an unbroken run, but for the seconds.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        *,
        trace: str | PathLike[str] | None = None,
        resume: str | PathLike[str] | None = None,
    ) -> None:
        """trace: the file to write; resume: the folder of the journal; see `Trace`, `Journal`."""
        self.journal = None if resume is None else Journal(resume, header)
        self.trace = None if trace is None else Trace(trace)
        self.earlier = self.journal.steps if self.journal else []
        self.end = self.journal.end if self.journal else None
        if self.trace:
            self.trace.write(header)
            for line in self.earlier:
                self.trace.write({key: value for key, value in line.items() if key not in _OWN})
            if self.end:
                self.trace.write(self.end)

    def step(
        self,
        step: Step,
        evaluator: Evaluator,
        generator: torch.Generator,
        notes: Mapping[str, Any],
    ) -> None:
        line = step_line(step, evaluator.accounts, notes)
        if self.journal:
            own = {"news": evaluator.news(), "generator": encode_state(generator)}
            self.journal.write(line | own)
        if self.trace:
            self.trace.write(line)

    def finish(self, result: SearchResult) -> None:
        """A search that Ctrl-C ended is not at its end for the journal: it may go on."""
        line = end_line(result)
        if self.journal and not result.interrupted:
            self.journal.write(line)
        if self.trace:
            self.trace.write(line)
