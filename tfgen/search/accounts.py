"""What a search has cost: decodes of each kind, the verifier's work, seconds, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch


@dataclass
class Accounts:
    """The accounts of one search. Pictures that merely fill up a forward pass are not counted."""

    decodes: int = 0
    """Candidate pictures decoded in full and scored: the unit of cost."""

    screened: int = 0
    """Pictures decoded cheaply, by a screening."""

    foretold: int = 0
    """Candidates whose embedding was foretold from their tokens; most were not decoded."""

    encoded: int = 0
    """Pictures decoded for the tokenizer to encode them again; the verifier did not look."""

    gradients: int = 0
    """Pictures decoded for a gradient."""

    cached: int = 0
    """Prefixes whose embedding an atlas or a cache knew: scored, but not decoded nor looked at."""

    cost: float = 0.0
    """Everything above in full decodes; what a budget limits. What a cache knew costs what its
    decode would have, so that a budget finds the same with it; what an atlas knew or a forecaster
    foretold, nothing."""

    verifier_calls: int = 0
    """Pictures that the verifier looked at, each as often as it did (`--views`)."""

    propose_seconds: float = 0.0
    """Spent in drawing candidates from the prior, and in ranking by it."""

    decode_seconds: float = 0.0
    """Spent from tokens to embeddings: in the decoder and in the verifier's picture network."""

    score_seconds: float = 0.0
    """Spent from embeddings to scores; where a verifier has no embeddings, from pictures."""

    peak_memory: int | None = None
    """Bytes: of this process on a CPU, of the device's tensors on CUDA. None: it is not told."""

    @contextmanager
    def timed(self, what: Literal["propose", "decode", "score"]) -> Iterator[None]:
        """Adds the seconds that the body takes, whether or not it ends well."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{what}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    def as_dict(self) -> dict[str, Any]:
        """For recipes, traces and --json."""
        return asdict(self)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use so far: by this process, or on a CUDA device by its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
