"""tfgen ablate: a sheet of pictures by prior and strength, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.cli.conftest import run  # noqa: F401
from tests.cli.running import Run, files, is_one_sentence
from tests.toy_judge import write_judge
from tests.toy_models import VOCAB, SavedVerifier
from tests.toys import ToyPrior, ToyTokenizer, ToyVerifier, rugged
from tfgen import ablation, hub
from tfgen.ablation import Cell
from tfgen.judge import Judge, Verdict
from tfgen.pipeline import Pipeline
from tfgen.priors import FrequencyPrior
from tfgen.search import SearchSettings
from tfgen.search.evaluator import PlainEngine

PROMPT = "a fox"
GRID = ("--priors", "uniform,frequency", "--strengths", "0,2", "--weights", "0,0.5")
SMALL = ("--budget", "12", "--size", "32", "--device", "cpu")
CELLS = [
    Cell(prior, strength, weight)
    for prior in ("uniform", "frequency")
    for weight in (0.0, 0.5)
    for strength in (0.0, 2.0)
]


@pytest.fixture
def ablate(run: Callable[..., Run], toy_weights: Path) -> Callable[..., Run]:  # noqa: F811
    """Runs the command on a toy model that has counts, in an empty folder."""
    scenes = torch.randint(VOCAB, (200, 4), generator=torch.Generator().manual_seed(0))
    FrequencyPrior.fit([scenes], VOCAB, 4).save(toy_weights / "sprites" / "prior.safetensors")
    return lambda *options: run("ablate", *options, *SMALL)


def pictures(path: str = "a-fox.json") -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text())["pictures"]


def cells_of(found: list[dict[str, Any]]) -> list[Cell]:
    return [Cell(one["prior"], one["strength"], one["weight"]) for one in found]


def test_a_prompt_becomes_a_sheet_and_its_numbers(ablate: Callable[..., Run]) -> None:
    done = ablate(PROMPT, *GRID)
    assert done.code == 0 and files() == ["a-fox.json", "a-fox.png"]
    assert cells_of(pictures()) == CELLS
    assert all(1 <= picture["cost"] <= 12 for picture in pictures())
    assert all(picture["verdict"] is None for picture in pictures())  # no picture of sprites
    with Image.open("a-fox.png") as sheet:  # four rows of two
        assert sheet.width == 2 * (32 + 8) + 8
        assert sheet.height > 4 * (32 + 8) + 8
    head, *lines = done.out.splitlines()
    assert head.split() == ["prior", "λ", "w", "verifier", "score", "right", "decodes"]
    assert len(lines) == len(CELLS)
    for line, picture in zip(lines, pictures(), strict=True):
        prior, _, _, score, right, decodes = line.split()
        assert (prior, score) == (picture["prior"], f"{picture['verifier_score']:.3f}")
        assert (right, decodes) == ("-", f"{picture['cost']:.0f}")


def test_what_is_varied_reaches_the_search_and_the_rest_is_alike(
    ablate: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Cell] = []
    others: set[tuple[Any, ...]] = set()
    generate = Pipeline.generate

    def watch(self: Pipeline, prompt: str, **options: Any) -> Any:
        result = generate(self, prompt, **options)
        own: SearchSettings = result.settings
        searched.append(Cell(self.prior.name, own.prior_strength, own.prior_weight))
        others.add((own.budget, own.beam, own.tokens, own.atlas, options["seed"], self.engine))
        return result

    monkeypatch.setattr(Pipeline, "generate", watch)
    given = ("--beam", "3", "--tokens", "2", "--seed", "5", "--engine", "eager")
    assert ablate(PROMPT, *GRID, *given).code == 0
    assert searched == CELLS and others == {(12, 3, 2, False, 5, PlainEngine)}


def test_a_picture_is_what_the_pipeline_finds(ablate: Callable[..., Run]) -> None:
    ablate(PROMPT, *GRID)
    for picture in pictures():
        pipeline = Pipeline.load(prior=picture["prior"], device="cpu")
        result = pipeline.generate(
            PROMPT,
            prior_strength=picture["strength"],
            prior_weight=picture["weight"],
            budget=12,
            beam=1,
            candidates=3,
        )
        assert result.tokens == picture["tokens"]
        assert result.verifier_score == picture["verifier_score"]


def test_files_of_prompts_and_seeds_have_a_sheet_each(ablate: Callable[..., Run]) -> None:
    Path("prompts.txt").write_text("a fox\n\na cat\n")
    done = ablate(
        *("--prompts", "prompts.txt", "--seeds", "2", "--seed", "3", "--strengths", "1"),
        *("--priors", "uniform", "-o", "out"),
    )
    assert done.code == 0
    assert files() == ["out-1.png", "out-2.png", "out-3.png", "out-4.png", "out.json",
                       "prompts.txt"]  # fmt: skip
    found = [(one["prompt"], one["seed"]) for one in pictures("out.json")]
    assert found == [("a fox", 3), ("a fox", 4), ("a cat", 3), ("a cat", 4)]


def test_the_priors_are_those_that_the_model_has(ablate: Callable[..., Run]) -> None:
    done = ablate(PROMPT, "--strengths", "1")
    assert [one["prior"] for one in pictures()] == ["unigram", "frequency"]
    assert "Warning: retrieval is left out. " in done.err
    assert "Warning: autoregressive is left out. " in done.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "PRIORS", ("retrieval",))
        lacking = ablate(PROMPT)
    assert lacking.code == 2 and "has none of the usual priors" in lacking.err


def test_ctrl_c_keeps_the_pictures_that_are_finished(
    ablate: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, count = Pipeline.generate, 0

    def stop(self: Pipeline, prompt: str, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            monkeypatch.setattr(SavedVerifier, "interrupt_at", SavedVerifier.calls + 2)
        return generate(self, prompt, **options)

    monkeypatch.setattr(Pipeline, "generate", stop)
    done = ablate(PROMPT, *GRID)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Stopped by Ctrl-C: kept 3 of 8 pictures in 'a-fox.json'."
    assert cells_of(pictures()) == CELLS[:3]
    assert json.loads(Path("a-fox.json").read_text())["interrupted"] is True
    with Image.open("a-fox.png") as sheet:
        assert sheet.width == 2 * (32 + 8) + 8


def test_ctrl_c_before_the_first_picture_leaves_nothing(
    ablate: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedVerifier, "interrupt_at", 1)
    done = ablate(PROMPT, *GRID)
    assert done.code == 130 and is_one_sentence(done.err.splitlines()[-1] + "\n")
    assert files() == []


def test_json_is_all_that_it_prints(ablate: Callable[..., Run]) -> None:
    done = ablate(PROMPT, *GRID, "--json", "--quiet")
    assert done.err == ""
    assert json.loads(done.out) == json.loads(Path("a-fox.json").read_text())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "Give one PROMPT, in quotes, or a file of them as --prompts FILE."),
        ((PROMPT, "--prompts", "x.txt"), "Give one PROMPT, in quotes, or a file"),
        (("a", "fox"), 'put it in quotes: "a fox"'),
        (("--prompts", "x.txt"), "The prompt file 'x.txt' cannot be read: No such file"),
        ((PROMPT, "--strengths", "0;1"), "--strengths must be numbers with commas between them"),
        ((PROMPT, "--strengths", "0,-1"), "--strengths must be a finite number from 0 up"),
        ((PROMPT, "--weights", "x"), "--weights must be numbers with commas"),
        ((PROMPT, "--priors", "uniform,bigram"), "There is no prior 'bigram'"),
        ((PROMPT, "--seeds", "0"), "--seeds must be a whole number from 1 up"),
        ((PROMPT, "--beam", "0"), "beam must be a whole number from 1 up"),
        ((PROMPT, "--priors", "frequency", "--guidance", "2"), "takes no guidance"),
        ((PROMPT, "-o", "nowhere/fox.png"), "there is no folder 'nowhere'"),
    ],
)
def test_what_it_cannot_use_is_one_sentence(
    ablate: Callable[..., Run], options: tuple[str, ...], complaint: str
) -> None:
    done = ablate(*options)
    assert (done.code, done.out) == (2, "")
    assert is_one_sentence(done.err) and complaint in done.err
    assert not list(Path.cwd().glob("*.png")) and not list(Path.cwd().glob("*.json"))


def test_an_empty_file_of_prompts_is_refused(ablate: Callable[..., Run]) -> None:
    Path("none.txt").write_text("\n \n")
    assert "'none.txt' is empty" in ablate("--prompts", "none.txt").err


def test_the_mark_that_windows_puts_first_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\n", encoding="utf-8-sig")
    assert ablation.read_prompts(tmp_path / "p.txt") == [("a fox", None)]


def test_that_the_numbers_cannot_be_written_is_known_before_the_search(
    ablate: Callable[..., Run],
) -> None:
    Path("a-fox.json").mkdir()
    done = ablate(PROMPT, *GRID)
    assert done.code == 2 and is_one_sentence(done.err) and "'a-fox.json': it is a fold" in done.err
    Path("p.json").write_text("a fox\n")
    done = ablate("--prompts", "p.json", *GRID, "-o", "p.png")
    assert done.code == 2 and "The numbers would replace 'p.json'" in done.err
    assert SavedVerifier.calls == 0 and Path("p.json").read_text() == "a fox\n"


def test_the_beam_suits_the_budget_unless_it_is_said() -> None:
    pipeline = toy_pipeline()
    assert ablation.fitting(pipeline, {"budget": 256}) == {
        "budget": 256,
        "beam": 4,
        "candidates": 8,
    }
    assert ablation.fitting(pipeline, {"budget": 256, "schedule": "8"})["candidates"] == 23
    for said in ({"beam": 2}, {"candidates": 3}, {"search": "best-of-n"}):
        assert ablation.fitting(pipeline, {"budget": 256, **said}) == {"budget": 256, **said}


def toy_pipeline() -> Pipeline:
    """Of 8 tokens."""
    tokenizer = ToyTokenizer(VOCAB, 8)
    return Pipeline(tokenizer, ToyPrior(VOCAB, 8), ToyVerifier(tokenizer, rugged))


# The judge


@pytest.fixture
def judged(ablate: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    folder = write_judge(tmp_path / "judge")
    return lambda *options: ablate(
        *options, "--judge", str(folder), "--priors", "uniform", "--strengths", "1"
    )


def test_the_judge_says_whether_the_prompt_is_shown(
    judged: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = judged(PROMPT)
    (picture,) = pictures()
    assert picture["verdict"]["correct"] is False  # of an untrained judge
    assert " 0 of 1 " in done.out
    monkeypatch.setattr(
        ablation, "judge_picture", lambda judge, image, asked: Verdict(True, str(asked))
    )
    assert " 1 of 1 " in judged(PROMPT).out
    assert "'fox'" in pictures()[0]["verdict"]["reason"]  # what it was asked about


def test_a_prompt_that_the_judge_cannot_read_has_no_verdict(judged: Callable[..., Run]) -> None:
    done = judged("a zebra")
    assert pictures("a-zebra.json")[0]["verdict"] is None
    assert "Warning: 'a zebra' is not judged. The judge knows no object in" in done.err


@pytest.mark.parametrize(
    ("asked", "unknown"),
    [
        ({"include": [{"class": "car", "count": 1, "color": "teal"}]}, "'teal'"),
        ({"include": [{"class": "car", "count": 1}], "background": "a kitchen"}, "'a kitchen'"),
        ({"include": [{"class": "car", "count": 1, "or": ["bench"]}]}, "'bench'"),
        ({"background": "a kitchen"}, "'a kitchen'"),
        ({"include": [{"class": "car", "count": 1, "color": "red"}]}, None),
    ],
)
def test_what_the_judge_cannot_name_is_not_judged_as_wrong(
    judged: Callable[..., Run], asked: dict[str, Any], unknown: str | None
) -> None:
    Path("p.jsonl").write_text(json.dumps({"tag": "x", "prompt": "a car", **asked}) + "\n")
    done = judged("--prompts", "p.jsonl", "-o", "out", "--seeds", "2")
    verdicts = [one["verdict"] for one in pictures("out.json")]
    said = f"Warning: 'a car' is not judged. The judge does not know {unknown}."
    assert done.err.count(said) == (unknown is not None)
    assert all((verdict is None) == (unknown is not None) for verdict in verdicts)


def test_prompts_in_genevals_format_say_themselves_what_they_ask_for(
    judged: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def note(judge: Judge, image: Image.Image, metadata: dict[str, Any]) -> Verdict:
        asked.append(metadata)
        return Verdict(True, "")

    monkeypatch.setattr(ablation, "judge_picture", note)
    known = {"tag": "x", "include": [{"class": "car", "count": 1}], "prompt": "something red"}
    other = known | {"include": [{"class": "bench", "count": 1}], "prompt": "to sit on"}
    Path("p.jsonl").write_text(json.dumps(known) + "\n" + json.dumps(other) + "\n")
    judged("--prompts", "p.jsonl", "-o", "out")
    assert asked == [known]
    assert [one["verdict"] is None for one in pictures("out.json")] == [False, True]


def test_without_a_judge_there_are_scores_only(judged: Callable[..., Run]) -> None:
    judged(PROMPT, "--no-judge")
    assert pictures()[0]["verdict"] is None


def test_the_packaged_judge_reads_the_sprite_world_only(toy_weights: Path) -> None:
    assert ablation.find_judge("sprites", None) is None  # here a toy
    assert hub.kind_of(toy_weights / "sprites") == "toy"


def test_a_label_tells_the_cell_the_score_and_the_verdict(ablate: Callable[..., Run]) -> None:
    pipeline = Pipeline.load(device="cpu")
    grid = ablation.Ablation(pipeline, ["uniform"], [0.5], [0.3])
    (picture,) = grid.search(PROMPT, None, 0, budget=8)
    score = f"{picture.result.verifier_score:.2f}"
    assert picture.label == f"uniform^0.5 w=0.3: {score}"
    said = replace(picture, verdict=Verdict(True, ""))
    assert said.label == f"uniform^0.5 w=0.3: {score} right"
