"""What the documents say is where it is said to be."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"


def test_tests_that_the_documents_name_are_there() -> None:
    """As `test_beam.py`: `test_this`, `test_that`; a test alone may be anywhere."""
    files = list(TESTS.rglob("test_*.py"))
    defined = [(path.name, path.read_text(encoding="utf-8")) for path in files]
    named = 0
    for path in DOCS.glob("*.md"):
        for file, tests in re.findall(
            r"(?:`(test_\w+\.py)`:? ?)?((?:`test_\w+`(?:, | and )?)+)",
            path.read_text(encoding="utf-8"),
        ):
            for name in re.findall(r"`(test_\w+)`", tests):
                named += 1
                places = [where for where, text in defined if f"def {name}(" in text]
                assert places, f"{path.name}: there is no {name}"
                assert file in ("", *places), f"{path.name}: {name} is in {places}, not {file}"
    assert named > 10
