"""tfgen bench: list the benchmarks, or run one."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tfgen.errors import TfgenError, unknown

PACKAGE = "tfgen_benchmarks"
PASS_ON = {  # as options of `app.command`: whatever follows NAME is the benchmark's
    "context_settings": {
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
}


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME [OPTIONS]]", help="Which benchmark, and its own options."),
    ] = None,
) -> None:
    """List the benchmarks with the question each answers, or run one (NAME --help: its options)."""
    name, *options = words or [""]
    if name in ("", "-h", "--help"):
        print(listing())
        return
    known = questions()
    if name not in known:
        raise unknown("benchmark", name, known)
    module = import_module(f"{PACKAGE}.{name}")
    before, sys.argv = sys.argv, [f"tfgen bench {name}", *options]
    try:
        module.main()
    except SystemExit as stop:  # after --help
        raise typer.Exit(stop.code if isinstance(stop.code, int) else 1) from None
    finally:
        sys.argv = before


def listing() -> str:
    """The benchmarks as text, a line each."""
    known = questions()
    width = max(map(len, known))
    lines = [f"  {name.ljust(width)}  {question}" for name, question in known.items()]
    head = "tfgen bench NAME [OPTIONS] runs a benchmark; tfgen bench NAME --help lists its options."
    return "\n".join([head, "", *lines])


def questions() -> dict[str, str]:
    """The benchmarks by name, with the question each answers. Imports none of them."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise TfgenError("The benchmarks are not installed: install tfgen again.")
    found = {}
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or path.stem).splitlines()[0]
    return found
