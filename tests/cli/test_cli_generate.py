"""A prompt on the command line: which command it is, where the picture goes, what is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import tfgen
from tests.cli.running import FILE, PROMPT, Run, files, is_one_sentence
from tests.toy_models import RENDER_SIZE, TOKENS, SavedVerifier
from tfgen.image_io import load_png
from tfgen_cli.app import with_command
from tfgen_cli.generate import numbered, output_paths, slug

MEASURED = ("seconds", "memory")


# Which command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([PROMPT], ["generate", PROMPT]),
        ([PROMPT, "--beam", "4"], ["generate", PROMPT, "--beam", "4"]),
        (["--beam", "4", PROMPT], ["generate", "--beam", "4", PROMPT]),
        (["--", "models"], ["generate", "--", "models"]),
        (["generate", "models"], ["generate", "models"]),
        (["replay", "fox.png"], ["replay", "fox.png"]),
        (["models"], ["models"]),
        (["--help"], ["--help"]),
        (["--version"], ["--version"]),
        ([], ["--help"]),
    ],
)
def test_a_prompt_needs_no_command(arguments: list[str], expected: list[str]) -> None:
    assert with_command(arguments) == expected


@pytest.mark.parametrize("command", ["--help", "generate --help", "replay --help", "--version"])
def test_help_comes_without_torch(command: str) -> None:
    code = (
        f"import sys, tfgen_cli; tfgen_cli.main({command.split()}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_models_are_listed_without_torch() -> None:
    code = "import sys, tfgen_cli; tfgen_cli.main(['models']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_help_lists_the_commands_and_generates_options(run: Callable[..., Run]) -> None:
    top, generate = run("--help"), run("generate", "--help")
    assert (top.code, generate.code) == (0, 0)
    assert all(command in top.out for command in ("generate", "replay", "models"))
    options = (
        "--output --model --verifier --prior --prior-strength --prior-weight --beam --candidates "
        "--tokens --schedule --seed --device --num-images --steps-image --negative --score "
        "--budget --batch-size --json --quiet --search --samples --lookahead --rollouts "
        "--rollout --rollout-score --lookahead-steps --start --branch --first-step --repeats "
        "--max-children --keep --complete --shortlist --shortlist-by --screen --neighbours "
        "--crossover --refine --anneal --reencode --reencode-loss --no-atlas --time-limit --trace "
        "--resume --views"
    )
    assert all(option in generate.out for option in options.split())
    for told in ("beam|lookahead|best-of-n", "FILE.jsonl"):
        assert told in generate.out


def test_version(run: Callable[..., Run]) -> None:
    assert run("--version").out == f"tfgen {tfgen.__version__}\n"


# Where the picture goes


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (PROMPT, "a-red-fox-in-snow"),
        ("  A Fox, & 2 dogs!  ", "a-fox-2-dogs"),
        ("ein Bär", "ein-bär"),
        ("../../etc/passwd", "etc-passwd"),
        ("?!", "picture"),
        ("word " * 40, "-".join(["word"] * 12)),
        ("f" * 100, "f" * 60),
    ],
)
def test_a_prompt_becomes_a_file_name(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_output_may_be_a_file_a_name_without_suffix_or_a_folder(in_tmp: Path) -> None:
    assert output_paths(PROMPT, None, 1) == [Path(FILE)]
    assert output_paths(PROMPT, Path("fox"), 1) == [Path("fox.png")]
    assert output_paths(PROMPT, in_tmp, 1) == [in_tmp / FILE]


def test_a_folder_that_is_not_there_is_no_name_of_a_file(run: Callable[..., Run]) -> None:
    for option in ("-o", "--trace"):
        done = run(PROMPT, option, "new/")
        assert done.code == 2 and is_one_sentence(done.err) and files() == []
        assert "There is no folder 'new/': create it first" in done.err
    Path("new").mkdir()
    assert run(PROMPT, "-o", "new/").code == 0 and Path("new", FILE).is_file()


def test_several_pictures_are_numbered_from_one() -> None:
    assert numbered(Path("a/fox.png"), 2) == [Path("a/fox-1.png"), Path("a/fox-2.png")]
    assert numbered(Path("fox.png"), 1) == [Path("fox.png")]


# Generating


def test_a_prompt_makes_a_picture_with_its_recipe(run: Callable[..., Run]) -> None:
    done = run(PROMPT)
    assert done.code == 0 and done.out == ""
    assert files() == [FILE]
    image, recipe = load_png(FILE)
    assert image.size == (RENDER_SIZE, RENDER_SIZE)
    assert recipe["prompt"] == PROMPT
    assert len(recipe["tokens"]) <= TOKENS


def test_the_last_line_tells_path_score_decodes_and_rate(run: Callable[..., Run]) -> None:
    last = run(PROMPT).err.splitlines()[-1]
    pattern = rf"{FILE}  score -?\d+\.\d+  \d+ decodes in \d+\.\d s \([\d,]+ decodes/s\)"
    assert re.fullmatch(pattern, last)


def test_the_bar_tells_step_decodes_and_best_score(run: Callable[..., Run]) -> None:
    done = run(PROMPT, "--beam", "2", "--candidates", "4")
    bar = done.err.replace("\r", "\n").splitlines()[-2]
    best = load_png(FILE)[1]["verifier_score"]
    decodes = load_png(FILE)[1]["decodes"]
    assert f"step {TOKENS}/{TOKENS}" in bar
    assert f"{decodes}/{decodes}" in bar
    assert f"best score {best:.3f}" in bar


def test_options_reach_the_search(run: Callable[..., Run]) -> None:
    options = {
        "--beam": "3",
        "--candidates": "2",
        "--tokens": "3",
        "--schedule": "1,3",
        "--prior": "uniform",
        "--prior-strength": "0.5",
        "--prior-weight": "0.25",
        "--budget": "11",
        "--batch-size": "5",
        "--seed": "7",
        "--score": "contrast",
        "--views": "2",
        "--device": "cpu",
        "--negative": "a dog",
    }
    flat = [word for option in options.items() for word in option]
    assert run(*flat, PROMPT, "--negative", "a cat", "--likelihood").code == 0
    recipe = load_png(FILE)[1]
    settings = recipe["settings"]
    assert (settings["beam"], settings["candidates"], settings["tokens"]) == (3, 2, 3)
    assert (settings["schedule"], settings["budget"], settings["batch_size"]) == ("1,3", 11, 5)
    assert (settings["prior_strength"], settings["prior_weight"]) == (0.5, 0.25)
    assert settings["typicality"] is False
    assert recipe["seed"] == 7 and recipe["decodes"] == 11
    assert recipe["negative"] == ["a dog", "a cat"]
    assert recipe["verifier"]["fingerprint"].endswith("-2-views")


def test_the_searches_by_name_with_their_options(run: Callable[..., Run]) -> None:
    options = (
        "--search lookahead --lookahead 2 --rollouts 2 --rollout-score max --lookahead-steps 2 "
        "--first-step candidates --max-children 1 --keep last --complete sample --repeats "
        "--no-atlas --time-limit 60"
    )
    assert run(PROMPT, *options.split()).code == 0
    settings = load_png(FILE)[1]["settings"]
    assert (settings["search"], settings["lookahead"], settings["rollouts"]) == ("lookahead", 2, 2)
    assert (settings["rollout_score"], settings["lookahead_steps"]) == ("max", 2)
    assert (settings["first_step"], settings["max_children"]) == ("candidates", 1)
    assert (settings["keep"], settings["complete"]) == ("last", "sample")
    assert (settings["distinct"], settings["atlas"]) == (False, False)
    assert settings["time_limit"] == 60

    assert run(PROMPT, "--refine", "2", "--anneal", "0.5", "--budget", "40").code == 0
    settings = load_png(FILE)[1]["settings"]
    assert (settings["refine"], settings["anneal"]) == (2, 0.5)

    assert run(PROMPT, "--search", "best-of-n", "-n", "5").code == 0
    recipe = load_png(FILE)[1]
    assert recipe["decodes"] == 5 and len(recipe["tokens"]) == TOKENS

    assert run(PROMPT, "--search", "lookahead", "--lookahead", "-1", "--start", "3,1").code == 0
    recipe = load_png(FILE)[1]
    assert recipe["settings"]["start"] == [3, 1] == recipe["tokens"][:2]
    run(PROMPT, "--search", "lookahead", "--lookahead", "end", "--start", "3,1", "-o", "end.png")
    assert load_png("end.png")[1]["tokens"] == recipe["tokens"]


def test_what_a_search_cost_is_in_recipe_json_and_summary(run: Callable[..., Run]) -> None:
    done = run(PROMPT, "--num-images", "2", "--json", "--budget", "3")
    told = json.loads(done.out)
    names = {
        "decodes",
        "screened",
        "foretold",
        "encoded",
        "gradients",
        "cached",
        "cost",
        "verifier_calls",
    }
    names |= {"propose_seconds", "decode_seconds", "score_seconds", "peak_memory"}
    for image in told["images"]:
        recipe = load_png(image["path"])[1]
        assert set(image["accounts"]) == names
        counts = {n: c for n, c in image["accounts"].items() if not n.endswith(MEASURED)}
        assert recipe["accounts"] == counts  # and nothing that another run would not find again
        assert image["stopped"] == recipe["stopped"] == "budget"
        assert image["accounts"]["decodes"] == image["accounts"]["verifier_calls"] == 3
    assert told["accounts"]["decodes"] == 6
    assert told["accounts"]["peak_memory"] >= told["images"][0]["accounts"]["peak_memory"] > 10**6
    assert done.err.splitlines()[-1].endswith("decodes/s), stopped by --budget")


def test_the_trace_is_a_file_a_picture(run: Callable[..., Run]) -> None:
    told = json.loads(run(PROMPT, "--num-images", "2", "--trace", "run.jsonl", "--json").out)
    assert told["trace_paths"] == ["run-1.jsonl", "run-2.jsonl"]
    for path, image in zip(told["trace_paths"], told["images"], strict=True):
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
        assert [line["kind"] for line in lines] == ["header", *["step"] * TOKENS, "end"]
        assert lines[0]["prompt"] == PROMPT and lines[0]["seed"] == image["seed"]
        assert lines[0]["model"]["fingerprint"] == "toy1"
        assert lines[-1]["tokens"] == image["tokens"]


def test_after_ctrl_c_the_same_command_goes_on(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(run(PROMPT, "--json", "-o", "whole.png").out)
    monkeypatch.setattr(SavedVerifier, "interrupt_at", SavedVerifier.calls + 3)
    done = run(PROMPT, "--resume", "kept", "--json")
    assert done.code == 130
    assert "The same command goes on from 'kept'." in done.err
    before = SavedVerifier.calls
    told = json.loads(run(PROMPT, "--resume", "kept", "--json").out)
    assert SavedVerifier.calls == before + TOKENS - 2  # two steps were done
    assert told["tokens"] == whole["tokens"] and told["decodes"] == whole["decodes"]
    assert json.loads(run(PROMPT, "--resume", "kept", "--json").out)["tokens"] == whole["tokens"]
    assert SavedVerifier.calls == before + TOKENS - 2

    refused = run(PROMPT, "--resume", "kept", "--beam", "7")
    assert refused.code == 2 and is_one_sentence(refused.err)
    assert "its beam is 2, not 7" in refused.err


def test_json_is_one_object_and_all_there_is_on_stdout(run: Callable[..., Run]) -> None:
    done = run(PROMPT, "--json", "--seed", "5")
    told = json.loads(done.out)
    recipe = load_png(FILE)[1]
    assert told["paths"] == [FILE]
    assert told["tokens"] == recipe["tokens"]
    assert told["score"] == recipe["score"]
    assert told["decodes"] == recipe["decodes"] > 0
    assert told["seconds"] > 0
    assert told["settings"] == recipe["settings"]
    assert told["seed"] == 5
    steps = told["images"][0]["steps"]
    assert [step["length"] for step in steps] == [1, 2, 3, 4]
    assert max(step["best_score"] for step in steps) == told["score"]


def test_quiet_is_silent(run: Callable[..., Run]) -> None:
    done = run(PROMPT, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert files() == [FILE]


def test_num_images_makes_as_many_with_successive_seeds(run: Callable[..., Run]) -> None:
    told = json.loads(run(PROMPT, "--num-images", "3", "--seed", "4", "--json").out)
    names = [f"a-red-fox-in-snow-{i}.png" for i in (1, 2, 3)]
    assert told["paths"] == files() == names
    assert [load_png(name)[1]["seed"] for name in names] == [4, 5, 6]
    assert told["score"] == max(image["score"] for image in told["images"])
    assert told["decodes"] == sum(image["decodes"] for image in told["images"])
    run(PROMPT, "--seed", "5", "-o", "alone.png")
    (alone, recipe), (among, told) = load_png("alone.png"), load_png(names[1])
    assert alone.tobytes() == among.tobytes()
    assert recipe["tokens"] == told["tokens"] and recipe["seed"] == told["seed"]


def test_the_steps_image_shows_every_step_side_by_side(run: Callable[..., Run]) -> None:
    told = json.loads(run(PROMPT, "--steps-image", "steps.png", "--json").out)
    assert told["steps_paths"] == ["steps.png"]
    with Image.open("steps.png") as strip:
        assert strip.width >= TOKENS * RENDER_SIZE
        assert RENDER_SIZE < strip.height < 4 * RENDER_SIZE


def test_a_word_the_verifier_does_not_know_is_said_on_stderr(run: Callable[..., Run]) -> None:
    done = run("a fizz fox", "--json")
    assert "Warning: It does not know the word 'fizz'.\n" in done.err
    assert json.loads(done.out)["warnings"] == ["It does not know the word 'fizz'."]
    assert run("a fizz fox", "--quiet").err == ""
