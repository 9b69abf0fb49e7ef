"""The judge: what it makes of the network's answers, its verdicts, metadata of prompts, command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import judge as benchmark
from tests.pin_weights import PINNED, WEIGHTS, judged
from tests.toy_judge import SIZE, make_judge_world, write_judge
from tests.toy_world import SPECS, write_tokenizer
from tfgen.errors import InputError
from tfgen.judge import (
    Detection,
    Judge,
    Seen,
    Thresholds,
    distinct,
    metadata_of,
    relations,
    shared,
    verdict,
)
from tfgen.judge_model import Answers, JudgeConfig, cell_centres
from tfgen.judge_prompt import reword, unjudged
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import Captioner
from tfgen.training.clip import contrast_words
from tfgen.training.colours import COLOURS
from tfgen.training.objects import PACKAGED_TIER, load_objects
from tfgen.verifiers.contrast import ContrastWords
from tfgen_cli import main

WORDS = ContrastWords(**contrast_words(Captioner(SPECS)))
NATURAL, RED, ORANGE, BLUE = 0, *(COLOURS.index(c) for c in ("red", "orange", "blue"))
MIXED_CLASS, OTHER_CLASS = len(COLOURS), len(SPECS)
FOX, ELEPHANT = 0, 2
CELLS = 8


class Told(nn.Module):
    """In place of the network: nine in ten for what it is told of the cells of one picture."""

    cfg = JudgeConfig(image_size=SIZE)

    def __init__(self, *things: tuple[tuple[int, int], float, int, int]):
        """Things: cell (row, column), probability of a centre, object, colour; boxes are a quarter
        of the picture wide and high."""
        super().__init__()
        self.some = nn.Parameter(torch.zeros(1))
        self.things, self.shown = things, torch.empty(0)

    def forward(self, images: Tensor) -> Answers:
        self.shown = images
        n = len(images)
        centre = torch.full((n, CELLS, CELLS), -9.0)
        objects = torch.zeros(n, CELLS, CELLS, OTHER_CLASS + 1)
        colours = torch.zeros(n, CELLS, CELLS, MIXED_CLASS + 1)
        for (y, x), probability, thing, colour in self.things:
            centre[:, y, x] = torch.logit(torch.tensor(probability))
            objects[:, y, x, thing] = torch.tensor(9.0 * OTHER_CLASS).log()
            colours[:, y, x, colour] = torch.tensor(9.0 * MIXED_CLASS).log()
        reach = torch.full((n, CELLS, CELLS, 4), 0.125)
        background = torch.zeros(n, 3)
        background[:, 1] = 9.0
        return Answers(centre, objects, colours, reach, background)


def judge_of(*things: tuple[tuple[int, int], float, int, int], **thresholds: float) -> Judge:
    return Judge(Told(*things), WORDS, ["snow", "grass", "sea"], Thresholds(**thresholds))


def look(*things: tuple[tuple[int, int], float, int, int], **thresholds: float) -> Seen:
    return judge_of(*things, **thresholds).look(torch.zeros(1, 3, SIZE, SIZE))[0]


# ---- what it sees


def test_an_object_has_name_colour_box_and_confidence() -> None:
    seen = look(((2, 4), 0.8, FOX, BLUE))
    assert seen.background == "grass" and seen.background_confidence > 0.99
    (found,) = seen.objects
    assert (found.object, found.colour, found.also) == ("fox", "blue", ())
    x, y = cell_centres(CELLS, CELLS)[2, 4].tolist()
    assert found.box == pytest.approx((x - 0.125, y - 0.125, x + 0.125, y + 0.125), abs=1e-4)
    assert found.confidence == pytest.approx(0.8 * 0.9, abs=1e-4)


def test_a_natural_coat_goes_by_all_colours_that_a_person_would_say() -> None:
    (fox,) = look(((2, 2), 0.9, FOX, NATURAL)).objects
    assert fox.has_colour("red") and fox.has_colour("orange") and not fox.has_colour("blue")
    (painted,) = look(((2, 2), 0.9, FOX, RED)).objects
    assert painted.has_colour("red") and not painted.has_colour("orange")
    (elephant,) = look(((2, 2), 0.9, ELEPHANT, NATURAL)).objects
    assert (elephant.colour, elephant.also) == ("gray", ())


def test_two_colours_on_one_object_are_no_colour_that_a_prompt_can_say() -> None:
    (fox,) = look(((2, 2), 0.9, FOX, MIXED_CLASS)).objects
    assert (fox.object, fox.colour, fox.also) == ("fox", "mixed", ())
    (unsure,) = look(((2, 2), 0.9, FOX, RED), colour=0.95).objects
    assert (unsure.object, unsure.colour, unsure.also) == ("fox", "mixed", ())


def test_what_it_cannot_name_is_other() -> None:
    (blob,) = look(((2, 2), 0.9, OTHER_CLASS, NATURAL)).objects
    assert (blob.object, blob.colour) == ("other", "")
    (unsure,) = look(((2, 2), 0.9, FOX, RED), object=0.95).objects
    assert unsure.object == "other"


def test_centres_below_the_threshold_are_not_seen() -> None:
    things = (((1, 1), 0.55, FOX, RED), ((6, 6), 0.45, FOX, RED))
    assert len(look(*things, centre=0.4).objects) == 2
    assert len(look(*things, centre=0.5).objects) == 1
    assert look(*things, centre=0.6).objects == []


def test_objects_come_by_falling_confidence_and_each_once() -> None:
    # Two cells apart, boxes of a quarter overlap by a third; one cell apart they are no two peaks.
    things = (((4, 2), 0.6, FOX, RED), ((4, 3), 0.9, FOX, RED), ((4, 5), 0.7, ELEPHANT, RED))
    assert [d.object for d in look(*things, overlap=0.5).objects] == ["fox", "elephant"]
    apart = (((4, 2), 0.6, FOX, RED), ((4, 4), 0.9, FOX, BLUE))
    assert [d.colour for d in look(*apart, overlap=0.1).objects] == ["blue", "red"]
    near = (((4, 2), 0.6, FOX, RED), ((4, 4), 0.9, FOX, BLUE), ((6, 3), 0.8, FOX, RED))
    assert len(look(*near, overlap=-0.1).objects) == 1


def test_boxes_that_overlap_too_much_are_one_object() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.6, 0.9, 0.9]])
    assert shared(boxes[0].tolist(), boxes[1].tolist()) == pytest.approx(0.6)
    assert shared(boxes[0].tolist(), boxes[2].tolist()) == 0.0
    confidence = torch.tensor([0.5, 0.9, 0.7])
    assert distinct(boxes, confidence, 0.5) == [1, 2]
    assert distinct(boxes, confidence, 0.7) == [1, 2, 0]


@pytest.mark.parametrize("size", [(96, 96), (32, 48), (20, 20)])
def test_pictures_of_any_size_are_seen(size: tuple[int, int]) -> None:
    judge = judge_of()
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert len(judge.look(image)) == 2
    shown = judge.model.shown
    assert shown.shape == (2, 3, SIZE, SIZE)
    assert torch.allclose(shown.mean((2, 3)), image.mean((2, 3)), atol=0.02)


def test_what_is_no_batch_of_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 8, 8\]"):
        judge_of().look(torch.zeros(3, 8, 8))


# ---- verdicts


def at(name: str, x: float, y: float, colour: str = "red", also: tuple[str, ...] = ()) -> Detection:
    return Detection(name, colour, (x - 0.1, y - 0.1, x + 0.1, y + 0.1), 0.9, also)


def seen(*objects: Detection, background: str = "snow") -> Seen:
    return Seen(list(objects), background, 1.0)


def asked(*include: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tag": "", "prompt": "", "include": list(include), **more}


def a(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


ONE, TWO, THREE = (at("fox", x, 0.5) for x in (0.2, 0.5, 0.8))


def test_an_object_must_be_there_and_others_do_no_harm() -> None:
    assert verdict(seen(ONE, at("cat", 0.5, 0.5), at("other", 0.8, 0.5)), asked(a("fox"))).correct
    missing = verdict(seen(at("other", 0.5, 0.5)), asked(a("fox")))
    assert not missing.correct and missing.reason == "expected 1 fox, found 0"


def test_a_number_is_exact_where_more_are_excluded() -> None:
    exactly_two = asked(a("fox", 2), exclude=[a("fox", 3)])
    assert verdict(seen(ONE, TWO), exactly_two).correct
    assert verdict(seen(ONE), exactly_two).reason == "expected 2 fox, found 1"
    assert verdict(seen(ONE, TWO, THREE), exactly_two).reason == "expected at most 2 fox, found 3"
    assert verdict(seen(ONE, TWO, THREE), asked(a("fox", 2))).correct


def test_a_colour_is_that_of_the_object_and_of_no_other() -> None:
    blue_fox, red_cat = at("fox", 0.3, 0.5, "blue"), at("cat", 0.7, 0.5, "red")
    assert verdict(seen(blue_fox), asked(a("fox", color="blue"))).correct
    assert not verdict(seen(blue_fox, red_cat), asked(a("fox", color="red"))).correct
    both = asked(a("fox", color="blue"), a("cat", color="red"))
    assert verdict(seen(blue_fox, red_cat), both).correct
    swapped = asked(a("fox", color="red"), a("cat", color="blue"))
    assert verdict(seen(blue_fox, red_cat), swapped).reason == "expected 1 red fox, found blue"
    assert not verdict(seen(at("fox", 0.5, 0.5, "mixed")), asked(a("fox", color="red"))).correct


def test_all_counted_objects_have_the_colour() -> None:
    two_red = asked(a("fox", 2, color="red"))
    assert verdict(seen(ONE, TWO), two_red).correct
    assert not verdict(seen(ONE, at("fox", 0.8, 0.5, "blue")), two_red).correct
    stray = verdict(seen(ONE, TWO, at("fox", 0.8, 0.5, "blue")), two_red)
    assert not stray.correct and "blue" in stray.reason


def test_two_of_a_kind_in_two_colours_are_two_objects() -> None:
    pair = asked(a("fox", color="red"), a("fox", color="orange"))
    natural = at("fox", 0.2, 0.5, "red", also=("orange",))
    assert not verdict(seen(natural), pair).correct
    assert verdict(seen(natural, at("fox", 0.7, 0.5, "red")), pair).correct
    assert verdict(seen(natural, at("fox", 0.7, 0.5, "orange")), pair).correct
    assert not verdict(seen(ONE, TWO), pair).correct
    one_any = asked(a("fox"), a("fox", color="blue"))
    assert verdict(seen(ONE, at("fox", 0.7, 0.5, "blue")), one_any).correct


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.2, 0.5, {"left of"}),
        (0.8, 0.5, {"right of"}),
        (0.5, 0.1, {"above"}),
        (0.5, 0.9, {"below"}),
        (0.1, 0.1, {"left of", "above"}),
        (0.53, 0.5, set()),  # within a tenth of the boxes' summed widths
        (0.5, 0.5, set()),
        (0.9, 0.65, {"right of"}),  # a little lower, but much more to the right
    ],
)
def test_relations_are_those_of_the_centres_with_a_margin(
    x: float, y: float, expected: set[str]
) -> None:
    assert relations(at("fox", x, y).box, at("cat", 0.5, 0.5).box) == expected


def test_a_relation_is_of_the_object_to_its_target() -> None:
    left = asked(a("cat"), a("fox", position=["left of", 0]))
    assert verdict(seen(at("cat", 0.7, 0.5), at("fox", 0.2, 0.5)), left).correct
    wrong = verdict(seen(at("cat", 0.2, 0.5), at("fox", 0.7, 0.5)), left)
    assert wrong.reason == "expected fox left of cat, which it is not"
    both_sides = seen(at("cat", 0.5, 0.5), at("fox", 0.1, 0.5), at("fox", 0.9, 0.5))
    assert not verdict(both_sides, left).correct


def test_an_unknown_relation_is_an_error() -> None:
    inside = asked(a("cat"), a("fox", position=["inside", 0]))
    with pytest.raises(InputError, match="left of, right of, above, below"):
        verdict(seen(at("cat", 0.2, 0.5), at("fox", 0.7, 0.5)), inside)


def test_the_background_must_be_the_one_asked_for() -> None:
    assert verdict(seen(ONE), asked(a("fox"), background="snow")).correct
    wrong = verdict(seen(ONE, background="sea"), asked(a("fox"), background="snow"))
    assert wrong.reason == "expected background snow, found sea"


# ---- prompts


@pytest.mark.parametrize(
    ("prompt", "tag", "expected"),
    [
        ("a photo of a fox", "single_object", {"include": [a("fox")]}),
        ("foxes", "single_object", {"include": [a("fox", 2)]}),
        ("one fox", "counting", {"include": [a("fox")], "exclude": [a("fox", 2)]}),
        ("three small cats", "counting", {"include": [a("cat", 3)], "exclude": [a("cat", 4)]}),
        ("a fox and a car", "two_object", {"include": [a("fox"), a("car")]}),
        ("an orange kitty", "colors", {"include": [a("cat", color="orange")]}),
        ("the fox is blue", "colors", {"include": [a("fox", color="blue")]}),
        (
            "two red foxes and a blue car in the snow",
            "color_attr",
            {
                "include": [a("fox", 2, color="red"), a("car", color="blue")],
                "exclude": [a("fox", 3)],
                "background": "snow",
            },
        ),
        (
            "a fox to the left of a white cat on grass",
            "position",
            {
                "include": [a("cat", color="white"), a("fox", position=["left of", 0])],
                "background": "grass",
            },
        ),
        (
            "above a car there is a fox",
            "position",
            {"include": [a("car"), a("fox", position=["above", 0])]},
        ),
        (
            "a cat below a fox above a car",
            "position",
            {
                "include": [
                    a("car"),
                    a("fox", position=["above", 0]),
                    a("cat", position=["below", 1]),
                ]
            },
        ),
    ],
)
def test_a_prompt_becomes_genevals_metadata(
    toy: Path, prompt: str, tag: str, expected: dict[str, Any]
) -> None:
    assert metadata_of(prompt, toy) == {"tag": tag, "prompt": prompt, **expected}


def test_a_prompt_without_an_object_is_refused(toy: Path) -> None:
    with pytest.raises(InputError, match="a zebra in snow"):
        metadata_of("a zebra in snow", toy)


def test_words_that_are_not_judged_are_told(toy: Path) -> None:
    assert unjudged("a photo of a red fox in the snow", toy) == []
    assert unjudged("a large fluffy fox and a zebra", toy) == ["large"]
    assert reword("a large fluffy fox and a zebra", toy).left_out == ("fluffy", "zebra")


# ---- files and the command


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"))


def test_what_is_no_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"judge\.json"):
        Judge.load(tmp_path)
    (tmp_path / "judge.json").write_text('{"model": {"widths": [8]}, "thresholds": {}}')
    with pytest.raises(InputError, match="describes no judge"):
        Judge.load(tmp_path)


def test_what_a_picture_shows_does_not_depend_on_its_batch(toy: Path) -> None:
    judge = Judge.load(toy)
    world = make_judge_world()
    generator = torch.Generator().manual_seed(0)
    images = world.paint(world.sample(5, generator), generator).images
    together = judge.look(images)
    alone = [judge.look(image[None])[0] for image in images]
    assert [len(s.objects) for s in together] == [len(s.objects) for s in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.background_confidence == pytest.approx(other.background_confidence, abs=1e-5)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`tfgen judge` with a judge that sees a red fox on the left and a blue elephant, on grass."""
    told = judge_of(((4, 1), 0.9, FOX, NATURAL), ((4, 6), 0.8, ELEPHANT, BLUE))
    monkeypatch.setattr(Judge, "load", lambda *_: told)

    def judge(*arguments: object) -> tuple[int, str, str]:
        code = main(["judge", *map(str, arguments)])
        return code, *capsys.readouterr()

    return judge


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "green").save(path)
    return path


def test_the_command_prints_what_it_sees(run: Callable, picture: Path) -> None:
    code, out, err = run(picture)
    assert code == 0 and err == ""
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][-2:] == ["2", "objects"]
    assert lines[1] == ["object", "colour", "left", "top", "right", "bottom", "confidence"]
    assert lines[2] == ["fox", "red/orange", "6%", "44%", "31%", "69%", "0.81"]
    assert lines[3][:2] == ["elephant", "blue"]
    assert lines[4][:2] == ["background:", "grass"] and len(lines) == 5


@pytest.mark.parametrize(
    ("prompt", "last"),
    [
        ("a red fox left of an elephant", "right"),
        ("two foxes", "wrong: expected 2 fox, found 1"),
        ("a fox in snow", "wrong: expected background snow, found grass"),
    ],
)
def test_the_command_says_whether_a_prompt_fits(
    run: Callable, picture: Path, toy: Path, prompt: str, last: str
) -> None:
    code, out, err = run(picture, "--prompt", prompt, "--model", toy)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].strip() == last


def test_json_is_all_that_it_prints(run: Callable, picture: Path, toy: Path) -> None:
    options = ("--json", "--prompt", "two shiny foxes", "--model", toy)
    code, out, err = run(picture, picture, *options)
    rows = json.loads(out)
    assert code == 0 and len(rows) == 2 and rows[0] == rows[1]
    assert rows[0]["path"] == str(picture) and rows[0]["background"] == "grass"
    assert rows[0]["objects"][0]["object"] == "fox" and len(rows[0]["objects"][0]["box"]) == 4
    assert rows[0]["correct"] is False and rows[0]["reason"] == "expected 2 fox, found 1"
    assert "'shiny'" in err and err.count("\n") == 1


def test_a_picture_that_cannot_be_read_is_one_sentence(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "nothing.png"):
        code, out, err = run(path)
        assert (code, out) == (2, "") and err.startswith("Error: ") and err.count("\n") == 1
        assert str(path) in err


# ---- the packaged judge, and its benchmark


def test_the_packaged_judge_gives_the_pinned_answers() -> None:
    pinned = json.loads(PINNED.read_text())
    tokens = torch.tensor(pinned["tokens"])[:, :8]
    now = judged(SpritesTokenizer.load(WEIGHTS / "sprites").decode(tokens))
    assert max(pinned["centres"]) > 0.5
    for key in ("centres", "backgrounds"):
        assert (torch.tensor(now[key]) - torch.tensor(pinned[key])).abs().max() < 0.03, key


def test_the_packaged_judge_is_small_and_knows_the_packaged_tier() -> None:
    judge = Judge.load()
    assert judge.objects == [spec.name for spec in load_objects(PACKAGED_TIER)]
    assert judge.backgrounds == [spec.name for spec in BACKGROUNDS]
    assert sum(f.stat().st_size for f in (WEIGHTS / "sprites-judge").iterdir()) <= 3_000_000


def test_the_packaged_words_have_genevals_relations_in_order() -> None:
    for i, relation in enumerate(("left of", "right of", "above", "below")):
        (one, two) = metadata_of(f"a cat {relation} a red fox in the rain")["include"]
        assert two == a("cat", position=[relation, 0]) and one == a("fox", color="red"), i


def test_true_claims_and_false_ones_differ_in_what_they_measure() -> None:
    world = make_judge_world().world
    scenes = world.sample(300, torch.Generator().manual_seed(0))
    right, wrong = benchmark.cases(world, scenes, random.Random(0))
    assert {c.measure for c in right} == {
        *("object", "count", "colour", "relation", "binding", "background")
    }
    for true, false in zip(right, wrong, strict=True):
        assert (true.measure, true.row) == (false.measure, false.row)
        view = truth(world, scenes, true.row)
        assert verdict(view, true.metadata).correct, true
        assert not verdict(view, false.metadata).correct, false


def truth(world: Any, scenes: Any, row: int) -> Seen:
    """What a judge would see that knows the scene."""
    objects = []
    for m, c, (x, y, size) in zip(
        *(t[row].tolist() for t in (scenes.objects, scenes.colours, scenes.boxes)), strict=True
    ):
        if m >= 0:
            box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
            objects.append(Detection(world.specs[m].name, COLOURS[c], box, 1.0))
    return Seen(objects, BACKGROUNDS[scenes.background[row]].name, 1.0)


def test_the_benchmark_writes_its_tables(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        benchmark.JudgeWorld, "load", classmethod(lambda *_, **__: make_judge_world())
    )
    model = write_tokenizer(tmp_path / "model", SIZE)
    options = ["--judge", toy, "--model", model, "--scenes", 30, "--strangers", 3, "-o", tmp_path]
    monkeypatch.setattr("sys.argv", ["judge.py", *map(str, options)])
    benchmark.main()
    result = json.loads((tmp_path / "judge.json").read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert list(result["right"]) == ["rendered", "k = 8"]
    for table in (*result["right"].values(), *result["wrong"].values(), result["strange"]):
        assert all(0 <= s["low"] <= s["share"] <= s["high"] <= 1 for s in table.values())
    assert "| object | 97 |" in (tmp_path / "judge.md").read_text()
