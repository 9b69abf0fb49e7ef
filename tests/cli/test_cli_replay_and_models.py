"""`tfgen replay` and `tfgen models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.cli.running import FILE, PROMPT, Run, is_one_sentence
from tests.conftest import write_toy_model
from tfgen import image_io
from tfgen.image_io import load_png

# Replay


def test_replay_says_identical(run: Callable[..., Run]) -> None:
    run(PROMPT)
    done = run("replay", FILE, "-o", "again.png")
    assert done.code == 0 and done.out.startswith("identical: ")
    assert load_png("again.png")[0].tobytes() == load_png(FILE)[0].tobytes()
    assert run("replay", "again.png").code == 0


def test_replay_says_how_far_an_edited_picture_is_off(run: Callable[..., Run]) -> None:
    run(PROMPT)
    image, recipe = load_png(FILE)
    red, green, blue = image.getpixel((9, 9))
    image.putpixel((9, 9), (red, green ^ 16, blue))
    image_io.save_png(image, FILE, recipe)

    done = run("replay", FILE)
    assert done.code == 1
    assert "not identical" in done.out and "differ by up to 16 of 255" in done.out
    assert "changed after tfgen wrote it" in done.out
    told = json.loads(run("replay", FILE, "--json").out)
    assert (told["identical"], told["max_difference"], told["edited"]) == (False, 16, True)


def test_replay_refuses_a_foreign_png(run: Callable[..., Run]) -> None:
    Image.new("RGB", (8, 8)).save("foreign.png")
    done = run("replay", "foreign.png")
    assert done.code == 2 and "carries no recipe" in done.err and is_one_sentence(done.err)


def test_replay_refuses_other_weights(run: Callable[..., Run], tmp_path: Path) -> None:
    folder = write_toy_model(tmp_path / "mine", brightness=0.5)
    run(PROMPT, "--model", folder, "-o", "mine.png")
    done = run("replay", "mine.png", "--model", "sprites")
    assert done.code == 2 and is_one_sentence(done.err)
    assert "other weights" in done.err and "toy0.5" in done.err and "toy1" in done.err
    assert run("replay", "mine.png").code == 0


# Models


def test_models_lists_names_sizes_and_licences(run: Callable[..., Run]) -> None:
    done = run("models")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert "packaged" in lines["sprites"] and "MB" in lines["sprites"]
    assert "Apache-2.0" in lines["sprites-clip"]
    assert "research only" in lines["flextok-d18-d28-dfn"]
    assert "apple-amlr (research only)" in lines["flextok-d18-d28-dfn"]


def test_models_as_json(run: Callable[..., Run]) -> None:
    rows = json.loads(run("models", "--json").out)
    assert rows[0]["name"] == "sprites"
    assert {"name", "role", "where", "bytes", "licence", "hub_id"} <= set(rows[0])
