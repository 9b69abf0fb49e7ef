"""tfgen models: what is packaged, cached, and on the hub by name."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tfgen.hub import list_models

COLUMNS = ("name", "role", "where", "size", "licence", "about")


def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list on stdout, and only that.")
    ] = False,
) -> None:
    """List the models, with size and licence: packaged, in the hub's cache, on the hub by name."""
    rows = list_models()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    for line in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = f"{row['parameters'] / 1e6:,.0f} M parameters" if row["parameters"] else "?"
    if row["bytes"] is not None:
        size = f"{row['bytes'] / 1e6:,.1f} MB"
    return row["name"], row["role"], row["where"], size, row["licence"], row["about"]
