"""What is written while a search runs: its trace, and the journal from which it can go on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from tfgen.errors import TfgenError
from tfgen.search.evaluator import Evaluator
from tfgen.search.journal import Journal, encode_state
from tfgen.search.records import SearchResult, Step
from tfgen.search.trace import Trace, end_line, step_line

_OWN = ("news", "generator")  # what only the journal tells of a step


class RecordWarning(UserWarning):
    """A trace or a journal ends here, and why."""


class Recorder:
    """Writes each step to a trace, a journal, or both. Where one cannot be written any more, it
    warns (RecordWarning) and leaves it: a full disk must not cost what the search finds.

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
        self._trace_line(header)
        for line in self.earlier:
            self._trace_line({key: value for key, value in line.items() if key not in _OWN})
        if self.end:
            self._trace_line(self.end)

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
            self._journal_line(line | own)
        self._trace_line(line)

    def finish(self, result: SearchResult) -> None:
        """A search that Ctrl-C ended is not at its end for the journal: it may go on."""
        line = end_line(result)
        if not result.interrupted:
            self._journal_line(line)
        self._trace_line(line)

    def close(self) -> None:
        for file in (self.journal, self.trace):
            if file:
                file.close()

    def _journal_line(self, line: Mapping[str, Any]) -> None:
        if self.journal and not _written(self.journal, line):
            self.journal = None

    def _trace_line(self, line: Mapping[str, Any]) -> None:
        if self.trace and not _written(self.trace, line):
            self.trace = None


def _written(file: Journal | Trace, line: Mapping[str, Any]) -> bool:
    """False, with a warning, where it cannot be."""
    try:
        file.write(line)
    except TfgenError as error:
        warnings.warn(f"{error} The search goes on without it.", RecordWarning, stacklevel=2)
        file.close()
        return False
    return True
