"""Commands on toy models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import Run
from tfgen_cli import main


@pytest.fixture
def run(toy_weights: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command on toy models in an empty working folder."""

    def run(*arguments: str) -> Run:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return Run(code, *capsys.readouterr())

    return run
