"""Prompt files in GenEval's format, and the folders that its evaluator reads."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tfgen.errors import InputError, TfgenError
from tfgen.spriteeval import TASKS, load, read
from tfgen.spriteeval.files import sample_path, take

GENEVAL = [
    {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    },
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [
            {"class": "tv", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a dog right of a tv",
    },
]
FINE = {"tag": "colors", "include": [{"class": "fox", "count": 1}], "prompt": "a fox"}


def test_a_file_of_geneval_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in GENEVAL))
    assert read(path) == GENEVAL


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        (json.dumps(FINE | {"tag": ""}), "lacks 'tag'"),
        (json.dumps({k: v for k, v in FINE.items() if k != "prompt"}), "lacks 'prompt'"),
        (json.dumps(FINE | {"include": []}), "lacks 'include'"),
        (json.dumps(FINE | {"include": ["fox"]}), "lacks 'class'"),
        (json.dumps(FINE | {"include": [{"class": "fox"}]}), "lacks 'count'"),
        (json.dumps(FINE | {"include": [{"class": "fox", "count": True}]}), "lacks 'count'"),
        (json.dumps(FINE | {"exclude": {"class": "fox"}}), "'exclude' that is no list"),
        (json.dumps(FINE | {"exclude": [{"class": "fox", "count": 0}]}), "from 1 up"),
        (json.dumps(FINE | {"background": 3}), "'background' that is no text"),
        (
            json.dumps(FINE | {"include": [{"class": "fox", "count": 1, "color": 3}]}),
            "'color' that is no text",
        ),
        (
            json.dumps(FINE | {"include": [{"class": "a", "count": 1, "position": ["near", 0]}]}),
            "'position'",
        ),
        (
            json.dumps(FINE | {"include": [{"class": "a", "count": 1, "position": ["above", 0]}]}),
            "no earlier entry",
        ),
    ],
)
def test_a_line_that_is_none_of_the_format_is_named(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(FINE)}\n{line}\n")
    with pytest.raises(InputError, match="Line 2 of") as error:
        read(path)
    assert complaint in str(error.value)


def test_a_file_that_is_missing_empty_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'nowhere.jsonl' cannot be read"):
        read("nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "picture.jsonl").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="no UTF-8"):
        read(tmp_path / "picture.jsonl")


def test_the_mark_that_windows_puts_first_is_no_part_of_the_text(tmp_path: Path) -> None:
    line = {"tag": "x", "include": [{"class": "car", "count": 1}], "prompt": "a car"}
    (tmp_path / "marked.jsonl").write_text(json.dumps(line), encoding="utf-8-sig")
    assert read(tmp_path / "marked.jsonl") == [line]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(InputError, match="'train'.*dev, test"):
        load("train")


def test_a_few_prompts_are_spread_over_the_tasks() -> None:
    dev = load("dev")
    for count in (1, 8, 19, 320):
        tags = Counter(entry["tag"] for entry in take(dev, count))
        assert sum(tags.values()) == count
        assert max(tags.values()) - min(tags[task] for task in TASKS) <= 1
    assert take(dev, None) == take(dev, 10_000) == dev


def test_more_prompts_are_those_and_others() -> None:
    dev = load("dev")
    few, more = take(dev, 10), take(dev, 30)
    assert all(entry in more for entry in few)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="number of prompts.*not 0"):
        take(load("dev"), 0)


def as_geneval_reads(folder: Path) -> dict[str, list[str]]:
    """The pictures its evaluator finds for each prompt, by the rules of evaluate_images.py."""
    found: dict[str, list[str]] = {}
    for prompt_folder in sorted(folder.iterdir()):
        if not (prompt_folder.is_dir() and prompt_folder.name.isdigit()):
            continue
        metadata: dict[str, Any] = json.loads((prompt_folder / "metadata.jsonl").read_text())
        names = [path.name for path in (prompt_folder / "samples").iterdir()]
        found[metadata["prompt"]] = sorted(n for n in names if re.match(r"\d+\.png", n))
    return found


def test_pictures_lie_where_geneval_looks_for_them(tmp_path: Path) -> None:
    for index, metadata in enumerate([FINE, FINE | {"prompt": "a cat"}]):
        for sample in range(2):
            path = sample_path(tmp_path / "out", index, metadata, sample)
            path.write_bytes(b"png")
    assert as_geneval_reads(tmp_path / "out") == {
        "a fox": ["0000.png", "0001.png"],
        "a cat": ["0000.png", "0001.png"],
    }
    assert (tmp_path / "out" / "00001" / "samples" / "0000.png").is_file()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TfgenError, match="file.*choose another folder"):
        sample_path(tmp_path / "file", 0, FINE, 0)
