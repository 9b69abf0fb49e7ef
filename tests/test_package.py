"""The package as pip builds it."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer

import tfgen
from tfgen_cli.app import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_code_is_packaged() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tfgen").rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders} | {"tfgen_cli", "tfgen_benchmarks"}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == names


def test_every_folder_with_code_has_an_init() -> None:
    for path in (ROOT / "tfgen").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path


def test_the_version_is_the_installed_one() -> None:
    assert metadata.version("tfgen") == tfgen.__version__


def test_the_command_is_installed() -> None:
    scripts = metadata.entry_points(group="console_scripts", name="tfgen")
    assert [script.value for script in scripts] == ["tfgen_cli:main"]


@pytest.mark.parametrize("folder", ["cli", "benchmarks"])
def test_folders_of_common_names_are_installed_under_ours(folder: str) -> None:
    assert PYPROJECT["tool"]["setuptools"]["package-dir"][f"tfgen_{folder}"] == folder
    assert folder not in PYPROJECT["tool"]["setuptools"]["packages"]


def test_the_embedded_weights_are_small_and_hold_no_pickle() -> None:
    files = [path for path in (ROOT / "tfgen" / "weights").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    assert sum(path.stat().st_size for path in files) <= 40_000_000


def test_the_readme_tells_every_option() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Options") : readme.index("## From Python")]
    told = set(re.findall(r"`(--[a-z-]+)", table)) - {"--debug"}
    command = typer.main.get_command(app).commands["generate"]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {name for name in options if name.startswith("--")} - {"--help"} == told


def test_the_readme_has_the_two_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in [("run", 'tfgen "a red fox in snow" --beam 16'), ("test", "pytest")]:
        block = readme.split(f"\n<!-- ci:{name} -->\n```sh\n")[1].split("\n```\n")[0]
        install, last = block.split("\n")
        assert install.startswith("pip install")
        assert last == command
