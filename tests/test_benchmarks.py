"""tfgen bench, and the scripts in benchmarks/ at toy size (tests/benchmarks has the others)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tfgen_cli
from tests.toy_models import TOKENS
from tests.toy_world import make_world, write_tokenizer, write_verifier
from tfgen.atlas import Atlas
from tfgen.judge import Detection, Seen
from tfgen.pipeline import Pipeline

SCRIPTS = ("gallery", "prefixes", "verifier")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., list[dict[str, Any]]]:
    """Runs a script's main() in the toy world; returns the rows of JSON that it prints."""

    def main(name: str, *options: object) -> list[dict[str, Any]]:
        script = import_module(f"benchmarks.{name}")
        if hasattr(script, "World"):
            monkeypatch.setattr(script, "World", lambda _, sizes, free: make_world(*sizes, free))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        script.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return main


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        import_module(f"benchmarks.{name}").main()
    assert stop.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


# tfgen bench


def bench(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = tfgen_cli.main(["bench", *words])
    return (code, *capsys.readouterr())


def is_one_sentence(text: str) -> bool:
    return text.startswith("Error: ") and text.endswith(".\n") and text.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_benchmarks_are_listed_with_their_questions(
    capsys: pytest.CaptureFixture, words: tuple[str, ...]
) -> None:
    code, out, _ = bench(capsys, *words)
    assert code == 0
    head, _, *lines = out.splitlines()
    assert head.startswith("tfgen bench NAME")
    listed = dict(line.strip().split(maxsplit=1) for line in lines)
    assert {*SCRIPTS, "alignment", "search_cost"} <= set(listed)
    assert not {"harness", "workers", "trials", "methods"} & set(listed)
    for name, question in listed.items():
        source = Path(find_spec(f"benchmarks.{name}").origin).read_text()
        assert question in source.splitlines()[0]


def test_the_list_comes_without_torch() -> None:
    code = "import sys, tfgen_cli; tfgen_cli.main(['bench']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_a_benchmark_has_its_own_options(capsys: pytest.CaptureFixture) -> None:
    code, out, _ = bench(capsys, "alignment", "--help")
    assert code == 0
    assert out.startswith("usage: tfgen bench alignment")
    assert all(option in out for option in ("--split", "--prompt-file", "--beam", "--full"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("alignments",), "There is no benchmark 'alignments'; did you mean 'alignment'?"),
        (("alignment", "--split", "train"), "invalid choice: 'train'"),
        (("alignment", "--beams", "3"), "nrecognized arguments: --beams 3"),
        (("gallery", "-o", "x.png", "--prompts", "nowhere.txt"), "no prompt file 'nowhere.txt'"),
    ],
)
def test_what_a_benchmark_refuses_is_one_sentence(
    capsys: pytest.CaptureFixture, words: tuple[str, ...], complaint: str
) -> None:
    before = list(sys.argv)
    code, out, err = bench(capsys, *words)
    assert (code, out) == (2, "")
    assert is_one_sentence(err) and complaint in err
    assert sys.argv == before


# The scripts


@pytest.mark.usefixtures("toy_weights")
@pytest.mark.parametrize("method", ["default", "best-of-n", "random"])
def test_the_gallery_is_a_sheet_of_the_prompts_and_a_row_for_each(
    run: Callable, tmp_path: Path, method: str
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox in snow\n\na cat\n")
    sheet = tmp_path / "sheet.png"
    options = ("--prompts", prompts, "--size", 24, "--columns", 2, "--device", "cpu")
    *rows, total = run("gallery", "-o", sheet, "--method", method, *options)
    assert [row["prompt"] for row in rows] == ["a red fox in snow", "a cat"]
    assert total["prompts"] == 2
    assert total["decodes"] == sum(row["decodes"] for row in rows)
    # The toy's defaults are a beam of 2 and 3 candidates: the baselines spend as much, and 1.
    most = {"default": 2 * 3 * TOKENS, "best-of-n": 2 * 3 * TOKENS, "random": 1}[method]
    assert all(0 < row["decodes"] <= most for row in rows)
    if method != "default":
        assert all(row["decodes"] == most for row in rows)
    with Image.open(sheet) as image:
        assert image.width == 2 * 24 + 3 * 8


@pytest.mark.usefixtures("toy_weights")
def test_best_of_n_gets_what_all_of_the_default_search_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gallery = import_module("benchmarks.gallery")
    usual = {"beam": 2, "candidates": 3, "tokens": 4, "schedule": "geometric"}
    # Three steps and five rounds of six, and two prefixes that are encoded again.
    usual |= {"crossover": 5, "reencode": 2, "neighbours": 7}
    pipeline = replace(Pipeline.load(device="cpu"), defaults=usual)
    settings = gallery.method_settings(pipeline, "best-of-n")
    assert settings["samples"] == 3 * 6 + 5 * 6 + 2 * 2  # the uniform prior has no neighbours
    monkeypatch.setattr(Atlas, "find", lambda *_: object())
    assert gallery.method_settings(pipeline, "best-of-n")["samples"] == settings["samples"] - 6
    assert gallery.method_settings(pipeline, "random")["samples"] == 1


def test_the_gallery_of_best_of_n_has_the_decodes_that_the_readme_tells() -> None:
    most = import_module("benchmarks.gallery").most_decodes(Pipeline.load(device="cpu"))
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{most} decodes each" in readme


@pytest.mark.usefixtures("toy_weights")
def test_the_gallery_searches_with_given_settings(run: Callable, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    options = ("--prompts", prompts, "--device", "cpu", "--set", "budget=3", 'schedule="1,2"')
    rows = run("gallery", "-o", tmp_path / "sheet.png", *options)
    assert rows[0]["decodes"] == 3


def test_prefixes_are_measured_length_by_length(run: Callable, tmp_path: Path) -> None:
    model = write_tokenizer(tmp_path / "model")
    picture = tmp_path / "prefixes.png"
    options = ("--model", model, "--scenes", 5, "--columns", 3, "--picture", picture)
    (row,) = run("prefixes", *options, "-o", tmp_path / "out")
    assert row["scenes"] == 5
    lengths = ["1", "2", "3", "4", "6", "8"]
    true, *prefixes = row["prefixes"].values()
    assert list(row["prefixes"]) == ["true", *lengths]
    assert "psnr" not in true
    assert all(0 < found["psnr"] < 60 for found in prefixes)
    written = json.loads((tmp_path / "out" / "prefixes-model.json").read_text())
    assert written["prefixes"] == row["prefixes"]
    assert "| 8 |" in (tmp_path / "out" / "prefixes-model.md").read_text()
    assert len(row["codes_used"]) == 8 and max(row["codes_used"]) <= 5
    with Image.open(picture) as image:
        assert image.width > 3 * 96 and image.height > 7 * 96  # true scenes and six lengths


def test_the_main_object_and_all_kinds_are_looked_for() -> None:
    script, world = import_module("benchmarks.prefixes"), make_world(24)
    scenes = world.sample(3, torch.Generator().manual_seed(0))
    scenes.objects = torch.tensor([[0, 1, -1, -1], [1, 1, -1, -1], [2, 0, -1, -1]])
    names = [spec.name for spec in world.specs]
    told = [[0, 1], [0], [2]]  # both of the first scene, another, the first of the last one

    class Told:
        def look(self, images: torch.Tensor) -> list[Seen]:
            assert len(images) == 3
            box = (0.0, 0.0, 1.0, 1.0)
            return [Seen([Detection(names[m], "", box, 1.0) for m in row], "", 1.0) for row in told]

    found = script.named(Told(), world, scenes, torch.zeros(3, 3, 8, 8))
    assert (found["main"], found["all"]) == (0.6667, 0.3333)
    assert found["low"] < 0.6667 < found["high"]


def test_the_verifier_is_judged_by_factor_and_against_noise(run: Callable, tmp_path: Path) -> None:
    model = write_tokenizer(tmp_path / "model", image_size=64)
    verifier = write_verifier(tmp_path / "verifier", make_world(64))
    options = ("--scenes", 4, "--prompts", 3, "--noise", 6)
    *rows, contest = run("verifier", "--model", model, "--verifier", verifier, *options)
    assert [row.pop("pictures") for row in rows] == ["clean", "full", "k=8", "k=4"]
    for row in rows:
        assert row.pop("scenes") == 4
        assert {"object", "background", "count"} <= set(row)
        assert all(0 <= share <= 1 for share in row.values())
    assert contest.pop("true scene beats noise") in (0, 1 / 3, 2 / 3, 1)
    assert contest == {"prompts": 3, "of": 6}
