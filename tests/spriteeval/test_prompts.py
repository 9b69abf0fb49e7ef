"""The prompts of SpriteEval: as generated, fair, true, and in words that the verifier knows."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tfgen import hub
from tfgen.judge_prompt import CONFIG_FILE, WORDS_FILE, metadata_of, unjudged
from tfgen.spriteeval import SIX_TASKS, SPLITS, TASKS, load, read
from tfgen.spriteeval.prompts import a, alike, generate, main, verb
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import Captioner
from tfgen.training.clip import CONTEXT_LENGTH, contrast_words
from tfgen.training.colours import RAMPS
from tfgen.training.objects import PACKAGED_TIER, load_objects
from tfgen.verifiers.words import WordTokenizer

KINDS = {spec.name: spec for spec in load_objects(PACKAGED_TIER)}
BOTH = [*load("dev"), *load("test")]


@cache
def generated() -> dict[str, list[dict[str, Any]]]:
    return generate(tuple(KINDS.values()))


def of(task: str, *splits: str) -> list[dict[str, Any]]:
    return [entry for split in splits or SPLITS for entry in load(split) if entry["tag"] == task]


def content(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What is asked for, whatever the words: things without their order, and the background."""
    things = [
        (t["class"], t["count"], t.get("color"), *t.get("position", ())) for t in entry["include"]
    ]
    return entry["tag"], frozenset(things), entry.get("background")


@pytest.mark.parametrize("split", SPLITS)
def test_the_files_are_what_the_seed_gives(split: str) -> None:
    assert load(split) == generated()[split]


def test_another_seed_gives_other_prompts() -> None:
    assert generate(tuple(KINDS.values()), seed=2)["dev"] != generated()["dev"]


@pytest.mark.parametrize("split", SPLITS)
def test_each_task_has_a_prompt_for_each_object(split: str) -> None:
    assert Counter(entry["tag"] for entry in load(split)) == dict.fromkeys(TASKS, len(KINDS))


def test_no_prompt_comes_twice() -> None:
    assert len({entry["prompt"] for entry in BOTH}) == len(BOTH)


def test_nothing_is_asked_for_in_both_splits_but_single_objects() -> None:
    dev, test = ({content(entry) for entry in load(split)} for split in SPLITS)
    assert {tag for tag, *_ in dev & test} == {"single_object"}
    assert {content(entry) for entry in of("single_object", "dev")} == dev & test


@pytest.mark.parametrize("task", TASKS)
def test_the_verifier_knows_every_word(task: str) -> None:
    tokenizer = WordTokenizer.load(hub.locate("sprites-clip", "verifier") / "vocabulary.json")
    for entry in of(task):
        assert tokenizer.unknown(entry["prompt"]) == [] and tokenizer.fits(entry["prompt"])


@pytest.mark.parametrize("task", TASKS)
def test_the_words_say_the_truth(task: str) -> None:
    """As the judge's own reader finds, which knows nothing of how the prompts were written."""
    for entry in of(task):
        assert metadata_of(entry["prompt"]) | {"tag": task} == entry
        assert unjudged(entry["prompt"]) == []


@pytest.mark.parametrize("task", TASKS)
def test_what_is_asked_for_is_never_a_matter_of_taste(task: str) -> None:
    for entry in of(task):
        specs = [KINDS[thing["class"]] for thing in entry["include"]]
        for spec, thing in zip(specs, entry["include"], strict=True):
            assert thing.get("color") not in spec.natural_colours
            plain = entry.get("background", "").removesuffix(" background")
            assert plain not in (*spec.natural_colours, thing.get("color"))
        assert len(specs) == 1 or not alike(*specs)
        colours = [thing["color"] for thing in entry["include"] if "color" in thing]
        assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("task", TASKS)
def test_numbers_are_exact_and_one_of_a_kind_is_not(task: str) -> None:
    for entry in of(task):
        many = [thing for thing in entry["include"] if thing["count"] > 1]
        excluded = [{"class": thing["class"], "count": thing["count"] + 1} for thing in many]
        assert entry.get("exclude", []) == excluded


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", [task for task in TASKS if task != "free_phrasing"])
def test_objects_come_equally_often(split: str, task: str) -> None:
    counts = Counter(thing["class"] for entry in of(task, split) for thing in entry["include"])
    assert set(counts) == set(KINDS) and len(set(counts.values())) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_attributes_come_equally_often(split: str) -> None:
    def even(counts: Counter[Any], values: int) -> bool:
        return len(counts) == values and max(counts.values()) - min(counts.values()) <= 1

    things = {task: [t for e in of(task, split) for t in e["include"]] for task in TASKS}
    assert even(Counter(t["count"] for t in things["counting"]), 3)
    assert even(Counter(t["color"] for t in things["colors"]), len(RAMPS))
    relations = [t["position"][0] for t in things["position"] if "position" in t]
    assert even(Counter(relations), 4)
    assert even(Counter(e["background"] for e in of("background", split)), len(BACKGROUNDS))
    six = [e["prompt"].startswith("a photo of") for task in SIX_TASKS for e in of(task, split)]
    assert sum(six) * 2 == len(six)


def test_free_phrasing_uses_other_words_than_the_tasks() -> None:
    templates = {entry["prompt"] for task in TASKS[:-1] for entry in of(task)}
    free = [entry["prompt"] for entry in of("free_phrasing")]
    assert not templates & set(free)
    synonyms = {word for spec in KINDS.values() for word in spec.synonyms}
    assert sum(any(word in prompt for word in synonyms) for prompt in free) > len(free) / 3
    for words in (
        "show me",
        "there is",
        "there are",
        "a picture of",
        "on top of",
        "in outer space",
    ):
        assert any(words in prompt for prompt in free), words


@pytest.mark.parametrize("tier", ["medium", "full"])
def test_a_larger_worlds_prompts_are_written_to_a_folder_and_say_the_truth(
    tier: str, tmp_path: Path
) -> None:
    specs = load_objects(tier)
    main(["--tier", tier, "-o", str(tmp_path / "prompts")])
    names = [place.name for place in BACKGROUNDS]
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"backgrounds": names}))
    (tmp_path / WORDS_FILE).write_text(json.dumps(contrast_words(Captioner(specs))))
    words = WordTokenizer(Captioner(specs).vocabulary(), CONTEXT_LENGTH)
    for split in SPLITS:
        written = read(tmp_path / "prompts" / f"{split}.jsonl")
        assert Counter(entry["tag"] for entry in written) == dict.fromkeys(TASKS, len(specs))
        for entry in written:
            prompt = entry["prompt"]
            assert metadata_of(prompt, tmp_path) | {"tag": entry["tag"]} == entry
            assert unjudged(prompt, tmp_path) == [] == words.unknown(prompt)
            assert words.fits(prompt)


def test_what_has_a_plural_for_a_name_has_no_article() -> None:
    assert [a(noun) for noun in ("scissors", "blue scissors", "pair of scissors")] == [
        "scissors",
        "blue scissors",
        "a pair of scissors",
    ]
    assert [a(noun) for noun in ("octopus", "wine glass", "orange bus", "fish")] == [
        "an octopus",
        "a wine glass",
        "an orange bus",
        "a fish",
    ]
    prompts = [e["prompt"] for split in generate(load_objects("medium")).values() for e in split]
    assert not any("chipses" in prompt for prompt in prompts)
    assert [verb(noun) for noun in ("scissors", "pair of scissors", "fish")] == ["are", "is", "is"]
    assert any(" are on top of " in prompt for prompt in prompts)  # chips, on a toilet
    assert not any(f"{word} is " in p for word in ("fries", "chips", "skis") for p in prompts)
