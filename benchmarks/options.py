"""The settings of a search as options of a command, and back."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Container, Mapping
from dataclasses import fields
from typing import Any

from tfgen.search import SearchSettings


def search_options(parser: ArgumentParser) -> None:
    """An option for each setting of a search, so that none is ever missing here."""
    group = parser.add_argument_group("search", "as in tfgen generate; left out: the model's own")
    group.add_argument("--prior", help="what proposes tokens")
    for setting in fields(SearchSettings):
        name = "--" + setting.name.replace("_", "-")
        if isinstance(setting.default, bool):
            for option, value in ((name, True), (name.replace("--", "--no-"), False)):
                group.add_argument(
                    option, dest=f"set_{setting.name}", action="store_const", const=value
                )
        else:
            group.add_argument(name, dest=f"set_{setting.name}", type=_value, metavar="X")


def given(args: Namespace) -> dict[str, Any]:
    """The settings that the options of `search_options` said."""
    values = {f.name: getattr(args, f"set_{f.name}") for f in fields(SearchSettings)}
    return {name: value for name, value in values.items() if value is not None}


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def options_from(
    base: Mapping[str, Any], settings: Mapping[str, Any], without: Container[str] = ()
) -> str:
    """The options that turn the search of `base` into that of `settings`, both as rows have them
    (`Trials.settings`): "--schedule one --forecast 1"; "" where they are alike.

    without: settings that are not told. Models are not compared.
    """
    said = [
        f"--{name} {settings[name]}"
        for name in ("prior", "guidance", "engine")
        if name in settings and settings[name] != base.get(name)
    ]
    searches = [settings.get("search", {}), base.get("search", {})]
    for setting in fields(SearchSettings):
        value, usual = (search.get(setting.name, setting.default) for search in searches)
        if value == usual or setting.name in without:
            continue
        name = setting.name.replace("_", "-")
        if isinstance(value, bool):
            said.append(f"--{name}" if value else f"--no-{name}")
        elif value is None:
            said.append(f"without --{name}")
        else:
            said.append(f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}")
    return " ".join(said)
