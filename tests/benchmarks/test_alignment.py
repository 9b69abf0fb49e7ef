"""tfgen bench alignment: the table of SpriteEval, at toy size."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import alignment, trials
from tests.benchmarks.conftest import PROMPTS
from tfgen import hub
from tfgen.errors import InputError
from tfgen.image_io import pixel_hash
from tfgen.pipeline import Pipeline

OPTIONS = "beam=2 candidates=2 tokens=2"
SEARCH = ("--beam", "2", "--candidates", "2", "--tokens", "2")


@pytest.fixture
def run(
    options: list[str], toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., str]:  # fmt: skip
    """Runs the benchmark on the toys' prompts; returns what it prints."""

    def run(*more: object) -> str:
        source = () if "--split" in more else ("--prompt-file", toys["prompts"])
        words = [*options, "-o", tmp_path / "out", *SEARCH, *source, *more]
        monkeypatch.setattr(sys, "argv", ["alignment.py", *map(str, words)])
        alignment.main()
        return capsys.readouterr().out

    return run


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "out" / "alignment.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "run" not in row]


def cells(table: str) -> list[dict[str, str]]:
    """The table's lines, each by column."""
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_the_table_has_a_column_for_each_task(run: Callable, tmp_path: Path) -> None:
    (line,) = cells(run("--seeds", 2))
    assert list(line)[:6] == [
        *("configuration", "prompts", "overall", "single_object", "counting", "colors"),
    ]
    assert line["configuration"] == f"{OPTIONS} model=model verifier=verifier"
    assert re.fullmatch(r"prompts.jsonl [0-9a-f]{6}", line["prompts"])
    assert line["overall"] == ""  # of six tasks, of which these are three
    assert line["pictures"] == "8" == str(len(rows(tmp_path)))
    found = [row["correct"] for row in rows(tmp_path) if row["tag"] == "single_object"]
    assert line["single_object"].startswith(f"{sum(found) / 4:.2f} [")
    assert line["decodes"] == f"{sum(row['cost'] for row in rows(tmp_path)) / 8:,.0f}"
    with Image.open(tmp_path / "out" / "alignment.png") as image:
        assert image.width > 500


def test_configurations_are_compared(run: Callable) -> None:
    run("--prompts", 1)
    lines = cells(run("--prompts", 1, "--prior-weight", 0.5, "--name", "heavy"))
    assert [line["configuration"] for line in lines] == [
        f"{OPTIONS} model=model verifier=verifier",
        "heavy",
    ]


def test_other_configurations_tell_their_options(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "as options" not in run("--prompts", 1, "--name", "default")
    monkeypatch.setattr(sys.modules[__name__], "SEARCH", ("--beam", "3", "--tokens", "2"))
    out = run("--prompts", 1, "--name", "wide", "--prior-weight", 0.5)
    assert re.search(
        r"- wide \(prompts.jsonl \w+\): `--beam 3 --candidates 32 --prior-weight 0.5`", out
    )


def test_prompt_files_of_one_name_do_not_mix(
    run: Callable, toys: dict[str, Path], tmp_path: Path
) -> None:
    for number, line in enumerate(toys["prompts"].read_text().splitlines()[:2]):
        path = tmp_path / str(number) / "prompts.jsonl"
        path.parent.mkdir()
        path.write_text(line + "\n")
        out = run("--prompt-file", path)
    assert [line["pictures"] for line in cells(out)] == ["1", "1"]


def test_prompts_that_were_read_in_other_words_are_counted() -> None:
    def row(prompt: str, **more: str) -> dict[str, Any]:
        values = {"split": "s", "method": "m", "tag": "t", "settings": {}, "prompt": prompt}
        return values | {"seed": 0, "cost": 1.0, "seconds": 1.0, "verifier_score": 1.0} | more

    plain = alignment.report([row("a"), row("b")]).notes
    told = alignment.report([row("a"), row("b", read_as="a bee")]).notes
    assert set(told) - set(plain) == {
        "Prompts that were searched for in the verifier's own words: m (s) 1 of 2."
    }


def test_more_prompts_and_seeds_add_to_what_is_there(run: Callable, tmp_path: Path) -> None:
    run("--prompts", 2)
    before = rows(tmp_path)
    run("--seeds", 2)
    assert rows(tmp_path)[:2] == before and len(rows(tmp_path)) == 8


def test_spriteeval_is_the_default_and_full_is_all_of_it(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(split: str) -> list[dict[str, Any]]:
        asked.append(split)
        return PROMPTS

    monkeypatch.setattr(alignment, "load", load)
    run("--split", "test", "--full", "--tokens", 1)
    assert asked == ["test"]
    found = {(row["split"], row["seed"]) for row in rows(tmp_path)}
    assert found == {("test", 0), ("test", 1), ("test", 2)}


def test_pictures_lie_as_geneval_reads_them(
    run: Callable, tmp_path: Path, toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pictures"
    run("--seeds", 2)
    monkeypatch.setattr(Pipeline, "generate", None)  # they come from the rows, without a search
    run("--seeds", 2, "--pictures", out)
    for index, metadata in enumerate(PROMPTS):
        folder = out / f"{index:05}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == metadata
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert names == ["0000.png", "0001.png"]
    row = next(row for row in rows(tmp_path) if (row["prompt"], row["seed"]) == ("a car", 1))
    made = trials.Trials(trials.Setup(str(toys["model"]), str(toys["verifier"]), "cpu", judge=None))
    with Image.open(out / "00001" / "samples" / "0001.png") as image:
        assert pixel_hash(image) == pixel_hash(made.picture(row["tokens"], 1))


def test_without_a_judge_there_are_scores_only(run: Callable, tmp_path: Path) -> None:
    out = run("--prompts", 1, "--no-judge")
    (line,) = cells(out)
    assert line["single_object"] == "" and line["verifier score"] and "judge" not in out
    assert not (tmp_path / "out" / "alignment.png").exists()


def test_the_judges_own_accuracy_stands_beside(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "judge.json"
    monkeypatch.setattr(trials, "JUDGE_RESULTS", path)
    assert "--judge FOLDER measures it" in run("--prompts", 1)
    judge = rows(tmp_path)[0]["judge"]
    right = {"rendered": {"object": {"share": 0.98, "low": 0.97, "high": 0.99, "of": 400}}}
    path.write_text(json.dumps({"judge": judge, "right": right}))
    assert "(rendered) the judge finds right: object 0.980" in run("--prompts", 1)
    path.write_text(json.dumps({"judge": "another", "right": right}))
    out = run("--prompts", 1)
    assert "finds right" not in out and f"the judge {judge} is not known here" in out


def test_a_prompt_file_with_unknown_objects_is_refused(
    run: Callable, tmp_path: Path, toys: dict[str, Path]
) -> None:
    path = tmp_path / "geneval.jsonl"
    bench = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    path.write_text(json.dumps(bench | {"prompt": "a photo of a bench"}) + "\n")
    with pytest.raises(InputError, match="does not know 'bench'"):
        run("--prompt-file", path)
    fox = {"tag": "colors", "include": [{"class": "fox", "count": 1, "color": "crimson"}]}
    path.write_text(json.dumps(fox | {"background": "moon", "prompt": "a crimson fox"}) + "\n")
    with pytest.raises(InputError, match="does not know 'crimson', 'moon'"):
        run("--prompt-file", path)


def test_a_split_and_a_file_are_one_too_many(run: Callable) -> None:
    with pytest.raises(InputError, match="not allowed with"):
        run("--split", "test", "--prompt-file", "x.jsonl")


def test_the_packaged_judges_own_accuracy_is_known() -> None:
    measured = json.loads(trials.JUDGE_RESULTS.read_text())
    assert measured["judge"] == trials.folder_print(hub.WEIGHTS / "sprites-judge")
    assert len(trials.judge_notes([measured])) == len(measured["right"])
