"""tfgen models: what is packaged, cached, and on the hub by name; and fetching it from there."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from tfgen.hub import list_models

COLUMNS = ("name", "role", "where", "size", "licence", "about")

models = typer.Typer()


@models.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list on stdout, and only that.")
    ] = False,
) -> None:
    """List the models, with size and licence: packaged, in the hub's cache, on the hub by name."""
    if context.invoked_subcommand is not None:
        return
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


@models.command()
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A tokenizer on the hub; see: tfgen models.")
    ],
) -> None:
    """Download a tokenizer from the Hugging Face hub, or say where it is already."""
    from tfgen.hub import locate

    print(f"{name} is in {str(locate(name))!r}.", file=sys.stderr)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = f"{row['parameters'] / 1e6:,.0f} M parameters" if row["parameters"] else "?"
    if row["bytes"] is not None:
        size = f"{row['bytes'] / 1e6:,.1f} MB"
    return row["name"], row["role"], row["where"], size, row["licence"], row["about"]
