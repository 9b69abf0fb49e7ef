"""The documents' tables equal the files under benchmarks/results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.harness import Report, write_report
from benchmarks.readme import rewritten
from tfgen.errors import InputError

COLUMNS = ["arm", "budget", "right"]
ROWS = [["beam, plain", "64", "0.40 [0.30, 0.50]"], ["nearest", "1", ""], ["nearest", "256", "1"]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_report(tmp_path / "toy", "Why?", Report(COLUMNS, ROWS, ["A note."]), [])
    return tmp_path


def block(wanted: str, inside: str = "") -> str:
    return f"Before.\n\n<!-- results: {wanted} -->\n{inside}<!-- end -->\nAfter.\n"


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_documents_are_what_the_results_say(page: str) -> None:
    text = (readme.ROOT / page).read_text()
    assert rewritten(text) == text and readme.BLOCK.search(text)


def test_no_other_document_has_blocks() -> None:
    pages = [*readme.ROOT.glob("*.md"), *readme.ROOT.glob("docs/*.md")]
    found = {page for page in pages if "<!-- results: " in page.read_text()}
    assert found == {readme.ROOT / page for page in readme.PAGES}


@pytest.mark.parametrize(
    ("wanted", "lines"),
    [
        (
            "toy.md",
            [
                "| arm | budget | right |",
                "| --- | --- | --- |",
                "| beam, plain | 64 | 0.40 [0.30, 0.50] |",
                "| nearest | 1 |  |",
                "| nearest | 256 | 1 |",
            ],
        ),
        (
            "toy.md | columns: right, arm | budget: 64; 256",
            [
                "| right | arm |",
                "| --- | --- |",
                "| 0.40 [0.30, 0.50] | beam, plain |",
                "| 1 | nearest |",
            ],
        ),
        (
            "toy.md | arm: nearest | budget: 1",
            ["| arm | budget | right |", "| --- | --- | --- |", "| nearest | 1 |  |"],
        ),
    ],
)
def test_a_block_holds_the_rows_and_columns_that_it_asks_for(
    results: Path, wanted: str, lines: list[str]
) -> None:
    table = "\n".join(lines) + "\n"
    assert rewritten(block(wanted), results) == block(wanted, table)
    assert rewritten(block(wanted, "stale\n"), results) == block(wanted, table)
    twice = block(wanted) * 2
    assert rewritten(twice, results) == block(wanted, table) * 2


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ("gone.md", "gone.md' cannot be read"),
        ("toy.md | columns: rigth", "no column of toy.md 'rigth'; did you mean 'right'"),
        ("toy.md | arms: nearest", "no column of toy.md 'arms'"),
        ("toy.md | arm: beam", "No row of toy.md has 'beam' as its arm"),
        ("toy.md | nearest", "'nearest' of a block of toy.md lacks a colon"),
    ],
)
def test_a_block_that_asks_for_what_is_not_there_is_refused(
    results: Path, wanted: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        rewritten(block(wanted), results)


def test_a_block_without_an_end_is_refused(results: Path) -> None:
    endless = block("toy.md").replace("<!-- end -->\n", "")
    for text in (endless, endless + block("toy.md")):
        with pytest.raises(InputError, match="has no end"):
            rewritten(text, results)


def test_the_tool_writes_the_files_and_leaves_a_right_one_alone(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(readme, "ROOT", results)
    monkeypatch.setattr(readme, "rewritten", lambda text: rewritten(text, results))
    monkeypatch.setattr(readme, "PAGES", ("README.md", "more.md"))
    for page in readme.PAGES:
        (results / page).write_text(block("toy.md"))
    readme.update()
    for page in readme.PAGES:
        assert "| nearest | 256 | 1 |" in (results / page).read_text()
    readme.update()
    assert capsys.readouterr().out.splitlines() == [
        *(f"{page}: 1 blocks; changed." for page in readme.PAGES),
        *(f"{page}: 1 blocks; as they were." for page in readme.PAGES),
    ]
