"""Prompts with their truth in GenEval's metadata format, and pictures where its evaluator looks.

Source of the format: GenEval (arXiv 2310.11513; github.com/djghosh13/geneval), its
prompts/evaluation_metadata.jsonl and evaluation/evaluate_images.py. `background` is ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfgen.errors import InputError, TfgenError, unknown, whole_number

FOLDER = Path(__file__).parent
SPLITS = ("dev", "test")
EVERYDAY = ("everyday-dev", "everyday-test")
"""Prompts in people's own words, with words that no model here was trained on."""

SIX_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's, whose mean is the overall score."""

TASKS = (*SIX_TASKS, "background", "free_phrasing")
RELATIONS = ("left of", "right of", "above", "below")

Metadata = dict[str, Any]
"""One prompt and what must be true of its picture.

"tag": the task; "prompt"; "include": what must be there, a list of {"class", "count"}, optionally
with "color", "position", a pair [relation, index] to the entry of `include` with that index, and
"or", a list of other classes that do as well;
optionally "exclude": a list of {"class", "count"} of which fewer must be there; optionally
"background": its name, without which `include` is not empty.
"""


def load(split: str) -> list[Metadata]:
    """The prompts of SpriteEval: "dev", to tune on, or "test", for reported numbers only; and those
    of EVERYDAY, likewise."""
    if split not in SPLITS + EVERYDAY:
        raise unknown("split of SpriteEval", split, SPLITS + EVERYDAY)
    return read(FOLDER / f"{split}.jsonl")


def read(path: str | os.PathLike[str]) -> list[Metadata]:
    """Prompts of a file in GenEval's format, one JSON object a line, in the file's order.

    GenEval's own file is prompts/evaluation_metadata.jsonl of its repository. Raises InputError
    where the file is missing, empty or of another format; it names the line and what is wrong.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows may write a mark first
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(f"The prompt file {str(path)!r} cannot be read: {reason}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            fault = f"is no JSON ({error})"
        else:
            fault = _fault(value)
        if fault:
            raise InputError(
                f"Line {number} of {str(path)!r} {fault}: each line must be a JSON object as in "
                "GenEval's evaluation_metadata.jsonl."
            )
        prompts.append(value)
    if not prompts:
        raise InputError(f"The prompt file {str(path)!r} is empty: give one with a prompt a line.")
    return prompts


def _fault(value: object) -> str | None:
    """What is wrong with a line's value, as the rest of a sentence; None where nothing is."""
    if not isinstance(value, dict):
        return "is no JSON object"
    for key in ("tag", "prompt"):
        if not (isinstance(value.get(key), str) and value[key].strip()):
            return f"lacks {key!r}, a text"
    if not isinstance(value.get("background", ""), str):
        return "has a 'background' that is no text"
    if not (value.get("include") or "background" in value):
        return "lacks 'include', what the picture must show, and a 'background'"
    for key in ("include", "exclude"):
        things = value.get(key, [])
        if not isinstance(things, list):
            return f"has an {key!r} that is no list"
        for index, thing in enumerate(things):
            if fault := _thing_fault(thing, index):
                return f"has in {key!r} {thing!r}, which {fault}"
    return None


def _thing_fault(thing: object, index: int) -> str | None:
    if not isinstance(thing, dict) or not isinstance(thing.get("class"), str):
        return "lacks 'class', a text"
    if type(thing.get("count")) is not int or thing["count"] < 1:
        return "lacks 'count', a whole number from 1 up"
    if not isinstance(thing.get("color", ""), str):
        return "has a 'color' that is no text"
    if "position" in thing:
        place = thing["position"]
        if not (isinstance(place, list) and len(place) == 2 and place[0] in RELATIONS):
            return f"has a 'position' that is none of [RELATION, INDEX], with {RELATIONS}"
        if type(place[1]) is not int or not 0 <= place[1] < index:
            return "has a 'position' to no earlier entry"
    return None


def take(prompts: Sequence[Metadata], count: int | None) -> list[Metadata]:
    """At most `count` of the prompts, as many of each task as can be; None: all of them.

    In the order of the file; the same prompts are taken whenever it is asked for as many, and
    asking for more adds to them.
    """
    if count is None:
        return list(prompts)
    whole_number("The number of prompts", count, 1)
    rank: dict[str, int] = {}  # how many of each task came before
    order = []
    for place, metadata in enumerate(prompts):
        tag = metadata["tag"]
        order.append((rank.setdefault(tag, 0), list(rank).index(tag), place))
        rank[tag] += 1
    return [prompts[place] for place in sorted(place for *_, place in sorted(order)[:count])]


def sample_path(
    folder: str | os.PathLike[str], index: int, metadata: Metadata, sample: int
) -> Path:
    """Where picture number `sample` of prompt number `index` goes: FOLDER/00000/samples/0000.png.

    Makes the folders, and FOLDER/00000/metadata.jsonl with the prompt's metadata, so that
    `python evaluation/evaluate_images.py FOLDER` of GenEval scores what is written there. Raises
    TfgenError when it cannot.
    """
    prompt_folder = Path(folder) / f"{index:05}"
    path, partial = prompt_folder / "metadata.jsonl", prompt_folder / ".metadata.partial"
    try:
        (prompt_folder / "samples").mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(metadata) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise TfgenError(
            f"Could not write {str(path)!r}: {error.strerror or error}: choose another folder."
        ) from error
    return prompt_folder / "samples" / f"{sample:04}.png"
