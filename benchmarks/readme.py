"""Write the documents' tables from the files under benchmarks/results/, so that they equal them.

    python -m benchmarks.readme            # rewrites the blocks of README.md and the findings

A block begins with a line that says what it holds, and the tool fills in the rest:

    <!-- results: search_cost.md | columns: method, budget, right | method: SoTo beam; default -->
    <!-- end -->

After the file, in any order: `columns:` which, in this order (default: all); NAME: of column NAME,
the values whose rows are kept, in the file's order. Values are parted by `;`, column names by `;`
or `,`. The first table of the file is taken; cells are copied as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from tfgen.errors import InputError, unknown

from . import harness

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/findings.md", "docs/findings_small.md")
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- results: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def rewritten(text: str, results: Path = RESULTS) -> str:
    """A page's text with its blocks as they should be. Raises InputError on a block that asks
    for what is not there, or has no end."""
    blocks = list(BLOCK.finditer(text))
    if text.count("<!-- results: ") != len(blocks) or any(
        "<!-- results: " in block[3] for block in blocks
    ):
        raise InputError("A block of results has no end: write <!-- end --> on a line below it.")
    return BLOCK.sub(lambda block: f"{block[1]}{selected(block[2], results)}\n{block[4]}", text)


def selected(wanted: str, results: Path = RESULTS) -> str:
    """The Markdown table that a block asks for."""
    name, *choices = [part.strip() for part in wanted.split(" | ")]
    head, rows = table(results / name)
    shown = head
    for choice in choices:
        column, colon, values = choice.partition(":")
        if not colon:
            raise InputError(f"{choice!r} of a block of {name} lacks a colon: write COLUMN: VALUE.")
        if column == "columns":
            shown = [value.strip() for value in re.split("[;,]", values)]
            continue
        if column not in head:
            raise unknown(f"column of {name}", column, head)
        kept = [value.strip() for value in values.split(";")]
        for value in kept:
            if all(row[head.index(column)] != value for row in rows):
                raise InputError(f"No row of {name} has {value!r} as its {column}.")
        rows = [row for row in rows if row[head.index(column)] in kept]
    for column in shown:
        if column not in head:
            raise unknown(f"column of {name}", column, head)
    places = [head.index(column) for column in shown]
    return harness.markdown(shown, [[row[place] for place in places] for row in rows])


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the first Markdown table of a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error.strerror or error}): name a file of "
            "benchmarks/results."
        ) from error
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            break
    if len(lines) < 2:
        raise InputError(f"There is no table in {str(path)!r}.")
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    head, _, *rows = cells
    if any(len(row) != len(head) for row in rows):
        raise InputError(f"The table of {str(path)!r} has rows of other lengths than its head.")
    return head, rows


def update() -> None:  # not main: it is no benchmark, which tfgen bench would list
    for page in PAGES:
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            harness.write_whole(path, after.encode())
        blocks = len(BLOCK.findall(after))
        print(f"{page}: {blocks} blocks; {'changed' if after != before else 'as they were'}.")


if __name__ == "__main__":
    raise SystemExit(harness.command(update))
