"""tfgen bench mistakes: kinds of mistakes, and pairs that the bank has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mistakes
from benchmarks.mistakes import KINDS, coloured_pairs, kind_of, report
from tfgen.errors import InputError
from tfgen.judge import Detection, Seen, verdict
from tfgen.priors.bank import Bank
from tfgen.training.bank import BATCH, SEED


def detection(name: str, colour: str, x: float = 0.2) -> Detection:
    return Detection(name, colour, (x, 0.4, x + 0.2, 0.6), 0.9)


def asked(colour: str, other: str, **more: Any) -> dict[str, Any]:
    include = [
        {"class": "fox", "count": 1, "color": colour},
        {"class": "cat", "count": 1, "color": other},
    ]
    return {"tag": "color_attr", "include": include, **more}


RED_FOX, BLUE_CAT = detection("fox", "red"), detection("cat", "blue", 0.7)


@pytest.mark.parametrize(
    ("seen", "metadata", "kind"),
    [
        ([RED_FOX], asked("red", "blue"), "missing"),
        ([RED_FOX, BLUE_CAT], asked("green", "blue"), "in another colour"),
        ([RED_FOX, detection("cat", "mixed")], asked("red", "blue"), "in no one colour"),
        (
            [RED_FOX, BLUE_CAT, detection("cat", "black", 0.4)],
            asked("red", "blue"),
            "in another colour",
        ),
        ([RED_FOX, BLUE_CAT], asked("red", "blue", background="snow"), "background"),
        (
            [RED_FOX, BLUE_CAT],
            asked("red", "blue", exclude=[{"class": "cat", "count": 1}]),
            "too many",
        ),
        (
            [RED_FOX, BLUE_CAT],
            {
                "include": [
                    {"class": "fox", "count": 1},
                    {"class": "cat", "count": 1, "position": ["left of", 0]},
                ]
            },
            "elsewhere",
        ),
    ],
)
def test_every_reason_that_the_judge_gives_has_a_kind(
    seen: list[Detection], metadata: dict[str, Any], kind: str
) -> None:
    said = verdict(Seen(seen, "sea", 0.9), metadata)
    assert not said.correct and kind_of(said.reason) == kind and kind in KINDS


def test_what_is_no_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        kind_of("nonsense")


def row(prompt: str, metadata: dict[str, Any], reason: str, seed: int = 0) -> dict[str, Any]:
    return {
        "method": "m", "split": "test", "prompt": prompt, "seed": seed, "tag": metadata["tag"],
        "metadata": metadata, "settings": {}, "correct": not reason, "reason": reason,
        "verifier_score": 1.0 if reason else 3.0,
    }  # fmt: skip


def test_mistakes_are_counted_and_pairs_told_apart_by_the_bank() -> None:
    rows = [
        row("known", asked("red", "blue"), ""),
        row("known", asked("red", "blue"), "expected 1 cat, found 0", seed=1),
        row("new", asked("red", "green"), "expected 1 green cat, found mixed"),
        row("one", {"tag": "single_object", "include": []}, ""),
    ]
    banked = {frozenset({("cat", "blue"), ("fox", "red")})}
    made = report(rows, banked)
    (line,) = made.table
    cells = dict(zip(made.columns, line, strict=True))
    assert (cells["pictures"], cells["wrong"], cells["missing"]) == ("4", "2", "1")
    assert (cells["in no one colour"], cells["elsewhere"]) == ("1", "0")
    assert (cells["score of the right"], cells["of the wrong"]) == ("3.00", "1.00")
    assert cells["pairs in the bank"].startswith("1 of 2: 0.50 [")
    assert cells["other pairs"].startswith("0 of 1: 0.00 [")


def make_bank(path: Path, monkeypatch: pytest.MonkeyPatch, **source: Any) -> Path:
    """A bank file that says what it was made of."""

    class Stub:
        header = {"source": source}

    monkeypatch.setattr(Bank, "open", lambda _: Stub())
    return path


def test_pairs_of_the_bank_are_those_of_the_scenes_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bank(tmp_path, monkeypatch, world="small", seed=SEED, scenes=2 * BATCH, pairs=0.5)
    pairs = coloured_pairs(path)
    # Half of the scenes surely have one, and few share it, of 40 * 39 / 2 * 100.
    assert BATCH * 0.9 < len(pairs) <= 2 * BATCH
    for pair in pairs:
        (one, colour), (other, its) = pair
        assert one != other and "natural" not in (colour, its)
    assert coloured_pairs(path) == pairs


def test_a_bank_of_other_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bank(tmp_path, monkeypatch, pictures=3)
    with pytest.raises(InputError, match="other pictures"):
        coloured_pairs(path)


def test_the_packaged_bank_says_what_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The whole command, on one row, with the bank that is packaged."""
    (tmp_path / "alignment.jsonl").write_text(
        json.dumps(row("new", asked("red", "green"), "expected 1 cat, found 0")) + "\n"
    )
    monkeypatch.setattr(sys, "argv", ["mistakes.py", "-o", str(tmp_path)])
    mistakes.main()
    out = capsys.readouterr().out
    assert "| m | test | 1 | 1 | 1 |" in out
    assert "| m | test | 1 | 1 | 1 |" in (tmp_path / "mistakes.md").read_text()


def test_without_judged_pictures_it_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mistakes.py", "-o", str(tmp_path)])
    with pytest.raises(InputError, match="run tfgen bench alignment first"):
        mistakes.main()
    assert not list(tmp_path.iterdir())
