"""What the tests of the command line share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROMPT = "a red fox in snow"
FILE = "a-red-fox-in-snow.png"


@dataclass
class Run:
    code: int
    out: str
    err: str


def is_one_sentence(text: str) -> bool:
    return text.startswith("Error: ") and text.endswith(".\n") and text.count("\n") == 1


def files() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())
