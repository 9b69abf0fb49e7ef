"""The tree of a search: what is read from a trace, where it is put, how it is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from tests.conftest import write_toy_model
from tests.toy_search import run
from tests.toys import EvenTokenizer, ToyTokenizer, ToyVerifier
from tfgen.errors import InputError
from tfgen.search_tree import BEST, THUMBNAIL, draw, lay_out, page, read_tree, thumbnails
from tfgen_cli import main

RED = (255, 0, 0)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Of a search that keeps 3 of 6 candidates in each of three steps."""
    path = tmp_path / "trace.jsonl"
    run(tokenizer=ToyTokenizer(6, 3), beam=3, candidates=2, trace=path)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(path: Path, told: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in told))


# reading


def test_it_has_the_kept_candidates_and_the_best_others_of_each_step(trace: Path) -> None:
    tree = read_tree(trace, pruned=2)
    for step, line in zip(tree.steps, lines(trace)[1:], strict=False):
        pool = line["pool"]
        kept = {row for row, node in step.nodes.items() if node.kept}
        assert kept == set(pool["kept"])
        assert sorted(set(step.nodes) - kept) == [3, 4]  # a pool is in order, best first
        assert step.pool == len(pool["tokens"]) == 6
        for row, node in step.nodes.items():
            assert (list(node.tokens), node.parent) == (pool["tokens"][row], pool["parents"][row])
            assert node.score == pool["scores"][row]
    assert [step.length for step in tree.steps] == [1, 2, 3]


def test_children_begin_with_their_parents_tokens(trace: Path) -> None:
    steps = read_tree(trace, pruned=99).steps
    for before, step in zip(steps, steps[1:], strict=False):
        for node in step.nodes.values():
            assert before.nodes[node.parent].tokens == node.tokens[: before.length]
            assert before.nodes[node.parent].kept


def test_the_way_to_the_best_picture_of_all_is_marked(trace: Path) -> None:
    told = lines(trace)
    result = told[-1]["tokens"]
    ways = [
        [node.tokens for node in step.nodes.values() if node.best]
        for step in read_tree(trace, pruned=0).steps
    ]
    expected = [[tuple(result[:k])] for k in range(1, len(result) + 1)]
    assert ways == expected + [[]] * (3 - len(result))


def test_a_step_worse_than_an_earlier_one_is_not_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run(lambda tokens: -len(tokens), tokenizer=ToyTokenizer(6, 3), beam=2, candidates=2, trace=path)
    marked = [sum(node.best for node in step.nodes.values()) for step in read_tree(path).steps]
    assert marked == [1, 0, 0]


def test_the_way_goes_to_what_was_encoded_again_where_that_is_the_result(tmp_path: Path) -> None:
    for loss, marked in ((0.0, [1, 1, 1, 0]), (9.0, [1, 1, 1, 1])):
        path = tmp_path / f"{loss}.jsonl"
        tokenizer = EvenTokenizer(6, 3)
        verifier = ToyVerifier(ToyTokenizer(6, 3), lambda tokens: float(sum(tokens)))
        options = {"beam": 2, "candidates": 18, "reencode": 2, "reencode_loss": loss}
        run(tokenizer=tokenizer, verifier=verifier, trace=path, **options)
        ways = [[n.tokens for n in step.nodes.values() if n.best] for step in read_tree(path).steps]
        assert [len(way) for way in ways] == marked
        assert ways[-1] == ([(4, 4, 4)] if loss else []) and ways[-2] == [(5, 5, 5)]


def test_rollouts_and_completions_are_part_of_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run(tokenizer=ToyTokenizer(6, 4), beam=2, candidates=3, tokens=2, search="lookahead",
        complete="sample", trace=path)  # fmt: skip
    tree = read_tree(path)
    assert [step.phase for step in tree.steps] == ["search", "search", "complete"]
    assert len(thumbnails(tree, ToyTokenizer(6, 4))) == 3


def test_a_score_that_is_no_number_is_none(trace: Path) -> None:
    told = lines(trace)
    told[1]["pool"]["scores"][-1] = None
    rewrite(trace, told)
    assert read_tree(trace, pruned=99).steps[0].nodes[5].score is None


def test_the_trace_of_a_killed_search_is_read_as_far_as_it_goes(trace: Path) -> None:
    whole = trace.read_text().splitlines(keepends=True)
    trace.write_text("".join(whole[:3]) + whole[3][:50])
    assert len(read_tree(trace).steps) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file"),
        ("", "is no trace that this version"),
        ("no json\n", "Line 1 of .* is no JSON"),
        ("[1]\n", "its lines are no JSON objects"),
        ('{"kind": "header", "format": 99}\n', "is no trace that this version"),
        ('{"kind": "header", "format": 1}\n', "has no step yet"),
        ('{"kind": "header", "format": 1}\n{"kind": "step"}\n', "is a damaged trace"),
        ('{"kind": "header", "format": 1}\nno json\n', "Line 2 of .* is no JSON"),
        ('{"kind": ' + "[" * 9**5 + "\n", "Line 1 of .* is no JSON"),
    ],
)
def test_what_is_no_trace_is_one_sentence(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_tree(path)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda header, step, pool: pool.update(scores=["high"] * 6),
        lambda header, step, pool: pool.update(verifier_scores=[[]] * 6),
        lambda header, step, pool: pool.update(scores=pool["scores"][:2]),
        lambda header, step, pool: pool.update(kept=[]),
        lambda header, step, pool: pool.update(kept=[99]),
        lambda header, step, pool: pool.update(parents=["-1"] * 6),
        lambda header, step, pool: pool.update(tokens=[[10**30]] * 6),
        lambda header, step, pool: pool.update(tokens=[[0, 0]] * 6),
        lambda header, step, pool: step.update(best_score="high"),
        lambda header, step, pool: step.update(decodes="many"),
        lambda header, step, pool: step.update(pool=None),
        lambda header, step, pool: header.update(seed="0"),
        lambda header, step, pool: header.pop("seed"),
        lambda header, step, pool: header.update(settings=[]),
    ],
)
def test_a_trace_with_other_values_is_one_sentence(trace: Path, damage: Any) -> None:
    told = lines(trace)
    damage(told[0], told[1], told[1]["pool"])
    rewrite(trace, told)
    with pytest.raises(InputError, match="is a damaged trace") as error:
        read_tree(trace)
    assert "\n" not in str(error.value)


def test_reading_and_layout_need_no_torch(trace: Path) -> None:
    program = (
        "import sys; from tfgen.search_tree import lay_out, read_tree; "
        f"lay_out(read_tree({str(trace)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


# layout


def test_pictures_do_not_overlap_and_lie_within_the_sheet(trace: Path) -> None:
    tree = read_tree(trace)
    layout = lay_out(tree, size=20)
    corners = [place for places in layout.places for place in places.values()]
    assert len(corners) == len(set(corners)) == 18
    for left, top in corners:
        assert left + 20 <= layout.width and top + 20 + 14 <= layout.height
        others = set(corners) - {(left, top)}
        assert all(abs(left - x) >= 20 or abs(top - y) >= 20 + 14 for x, y in others)


def test_lines_between_the_kept_do_not_cross(trace: Path) -> None:
    tree, layout = read_tree(trace), lay_out(read_tree(trace))
    for index, step in enumerate(tree.steps[1:], start=1):
        kept = {row: node for row, node in step.nodes.items() if node.kept}
        ends = sorted(layout.link(index, row, node.parent)[::2] for row, node in kept.items())
        assert [x for _, x in ends] == sorted(x for _, x in ends)


def test_the_kept_come_before_the_pruned(trace: Path) -> None:
    tree, layout = read_tree(trace), lay_out(read_tree(trace))
    for step, places in zip(tree.steps, layout.places, strict=True):
        order = sorted(places, key=lambda row: places[row])
        assert [step.nodes[row].kept for row in order] == [True] * 3 + [False] * 3


# pictures


def test_each_picture_is_decoded_from_its_tokens(trace: Path) -> None:
    tree, tokenizer = read_tree(trace), ToyTokenizer(6, 3)
    pictures = thumbnails(tree, tokenizer, size=3)
    node = tree.steps[2].nodes[0]
    row = [pictures[2][0].getpixel((x, 0))[0] for x in range(3)]
    assert row == [round((token + 1) / 7 * 255) for token in node.tokens]


def test_the_drawing_has_every_picture_in_its_place_and_fades_the_pruned(trace: Path) -> None:
    tree = read_tree(trace)
    layout = lay_out(tree)
    red = Image.new("RGB", (THUMBNAIL, THUMBNAIL), RED)
    pictures = [dict.fromkeys(step.nodes, red) for step in tree.steps]
    sheet = draw(tree, pictures, layout)
    assert sheet.size == (layout.width, layout.height)
    for step, places in zip(tree.steps, layout.places, strict=True):
        for row, (left, top) in places.items():
            pixel = sheet.getpixel((left + THUMBNAIL // 2, top + THUMBNAIL // 2))
            kept = step.nodes[row].kept or step.nodes[row].best
            assert (pixel == RED) == kept
            assert pixel[1] < 200  # faded, not gone


def test_the_page_is_whole_in_itself_and_says_what_each_candidate_is(trace: Path) -> None:
    told = lines(trace)
    told[0]["prompt"] = 'a <fox> & "friends"'
    rewrite(trace, told)
    tree = read_tree(trace)
    text = page(tree, thumbnails(tree, ToyTokenizer(6, 3)), lay_out(tree))
    assert "a &lt;fox&gt; &amp;" in text and "<fox>" not in text
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    space = "{http://www.w3.org/2000/svg}"
    links = [image.get("href") for image in svg.iter(f"{space}image")]
    assert len(links) == 18 and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    titles = [title.text for title in svg.iter(f"{space}title")]
    for node in tree.steps[2].nodes.values():
        said = f"tokens {' '.join(map(str, node.tokens))}\nscore {node.score:.2f}, "
        assert sum(title.startswith(said) for title in titles) == 1
    figures = {group.get("id"): group for group in svg.iter(f"{space}g")}
    for index, step in enumerate(tree.steps[1:], start=1):
        for row, node in step.nodes.items():
            parent = figures[f"n{index}-{row}"].get("data-parent")
            assert parent == f"n{index - 1}-{node.parent}" and parent in figures
    assert svg.findall(f"{space}path")[-1].get("stroke") == BEST


# the command


@pytest.fixture
def command_trace(toy_weights: Path, in_tmp: Path) -> Path:
    """Made by `tfgen PROMPT --trace` with the toys in the package's place."""
    assert main(["a fox", "--trace", "fox.jsonl", "--quiet"]) == 0
    return in_tmp / "fox.jsonl"


def test_the_command_draws_a_png_or_writes_a_page(
    command_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tree", str(command_trace)]) == 0
    with Image.open("fox-tree.png") as image:
        assert image.width > 200
    assert "fox-tree.png  4 steps" in capsys.readouterr().err
    assert main(["tree", str(command_trace), "-o", "fox.html", "--pruned", "0", "-q"]) == 0
    assert Path("fox.html").read_text().count("<image") == 2 * 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fox.jsonl", "-o", "fox.gif"], "ends in .png"),
        (["fox.jsonl", "-o", "gone/fox.html"], "there is no folder 'gone'"),
        (["fox.jsonl", "-o", "folder.html"], "it is a folder"),
        (["fox.jsonl", "--pruned", "-1"], "--pruned must be a whole number from 0 up"),
        (["fox.jsonl", "--size", "4"], "--size must be a whole number from 16 to 1024"),
        (["gone.jsonl"], "There is no file"),
        (["fox.jsonl", "--model", "other"], "made with other weights of 'sprites'"),
    ],
)
def test_bad_input_is_one_sentence(
    command_trace: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write_toy_model(Path("other"), brightness=0.5)
    Path("folder.html").mkdir()
    arguments = ["./other" if argument == "other" else argument for argument in arguments]
    assert main(["tree", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("Error: ") and error.count("\n") == 1
