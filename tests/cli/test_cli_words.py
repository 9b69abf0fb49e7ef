"""tfgen words: what the packaged verifier knows, and how it reads a prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.running import is_one_sentence
from tfgen.errors import InputError
from tfgen.hub import load_verifier
from tfgen.verifiers import Verifier
from tfgen_cli import main

Words = Callable[..., tuple[int, str, str]]


@pytest.fixture
def words(capsys: pytest.CaptureFixture[str]) -> Words:
    def run(*arguments: str) -> tuple[int, str, str]:
        return (main(["words", *map(str, arguments)]), *capsys.readouterr())

    return run


def test_it_lists_what_can_be_said(words: Words) -> None:
    code, out, _ = words()
    assert code == 0 and out.startswith("objects (126)\n") and "in the mountains" in out
    told = json.loads(words("--json")[1])
    assert len(told["objects"]) == 126 and told["numbers"] == ["a", "two", "three", "four"]


def test_it_says_how_a_prompt_is_read(words: Words) -> None:
    code, out, _ = words("a majestic ship in a storm")
    assert code == 0
    assert out == "The prompt is read as 'a sailboat in the rain', without 'majestic'.\n"
    assert words("a red fox")[1] == "The prompt is read as it is: 'a red fox'.\n"
    told = json.loads(words("a snowy forest", "--json")[1])
    assert told["read_as"] == "a pine tree in a forest" and told["added"] == "a pine tree"


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return load_verifier("sprites-clip", torch.device("cpu"), "contrast")


@pytest.mark.parametrize("prompt", ["赤い狐", "!!!", "ein roter Fuchs", "qwx " * 99])
def test_what_a_search_refuses_is_refused_in_its_words(
    words: Words, verifier: Verifier, prompt: str
) -> None:
    with pytest.raises(InputError) as error:
        verifier.prepare(verifier.reword(prompt).text)
    for arguments in ((prompt,), (prompt, "--json")):
        assert words(*arguments) == (2, "", f"Error: {error.value}\n")


def test_words_that_the_verifier_does_not_know_are_told(words: Words, verifier: Verifier) -> None:
    said = words("a red fuchs")
    assert said[0] == 0 and "does not know: 'fuchs'." in said[1]
    assert any("'fuchs'" in sentence for sentence in verifier.warnings("a red fuchs"))
    assert json.loads(words("a red fuchs", "--json")[1])["unknown"] == ["fuchs"]
    assert json.loads(words("a red fox", "--json")[1])["unknown"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "ship"),
        (" ",),
        ("--verifier", "ViT-B-32/laion2b_s34b_b79k"),
        ("--verifier", "sprites-clop"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: Words, arguments: tuple[str, ...]) -> None:
    code, out, err = words(*arguments)
    assert (code, out) == (2, "") and is_one_sentence(err)


def test_a_verifier_without_a_vocabulary_is_refused(words: Words, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    code, _, err = words("--verifier", tmp_path)
    assert code == 2 and is_one_sentence(err)


def test_it_loads_no_weights() -> None:
    code = "import sys, tfgen_cli; tfgen_cli.main(['words']); print('open_clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
