"""The command line, on toy models in this process; at the end, on the packaged ones in another."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tfgen
from tests.conftest import write_toy_model
from tests.toy_models import RENDER_SIZE, TOKENS, SavedTokenizer, SavedVerifier
from tfgen import image_io
from tfgen.image_io import load_png
from tfgen_cli import main
from tfgen_cli.app import with_command
from tfgen_cli.generate import numbered, output_paths, slug

PROMPT = "a red fox in snow"
FILE = "a-red-fox-in-snow.png"


@dataclass
class Run:
    code: int
    out: str
    err: str


@pytest.fixture
def run(toy_weights: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command on toy models in an empty working folder."""

    def run(*arguments: str) -> Run:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return Run(code, *capsys.readouterr())

    return run


def is_one_sentence(text: str) -> bool:
    return text.startswith("Error: ") and text.endswith(".\n") and text.count("\n") == 1


def files() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


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
        "--refine --anneal --no-atlas --time-limit --trace --resume --views"
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
    names = {"decodes", "screened", "gradients", "cached", "cost", "verifier_calls"}
    names |= {"propose_seconds", "decode_seconds", "score_seconds", "peak_memory"}
    for image in told["images"]:
        recipe = load_png(image["path"])[1]
        assert recipe["accounts"] == image["accounts"] and set(image["accounts"]) == names
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


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "prompt is empty"),
        (["   "], "prompt is empty"),
        (["fox " * 50], "too long"),
        (["a", "red", "fox"], 'put it in quotes: "a red fox"'),
        ([PROMPT, "--model", "sprits"], "did you mean 'sprites'"),
        ([PROMPT, "--verifier", "clips"], "no verifier 'clips'"),
        ([PROMPT, "--prior", "unifrm"], "did you mean 'uniform'"),
        ([PROMPT, "--score", "sum"], "no score 'sum'"),
        ([PROMPT, "--device", "tpu"], "no device 'tpu'"),
        ([PROMPT, "--beam", "0"], "beam must be a whole number from 1 up, not 0"),
        ([PROMPT, "--candidates", "-1"], "candidates must be"),
        ([PROMPT, "--tokens", "99"], "tokens must be a whole number from 1 to 4, not 99"),
        ([PROMPT, "--schedule", "4,2"], "must rise"),
        ([PROMPT, "--prior-strength", "-1"], "prior_strength must be"),
        ([PROMPT, "--prior-weight", "nan"], "prior_weight must be"),
        ([PROMPT, "--budget", "0"], "budget must be"),
        ([PROMPT, "--batch-size", "0"], "batch_size must be"),
        ([PROMPT, "--num-images", "0"], "--num-images must be"),
        ([PROMPT, "--seed", "-1"], "seed must be"),
        ([PROMPT, "--beam", "many"], "--beam"),
        ([PROMPT, "--bean", "4"], "No such option: --bean"),
        ([PROMPT, "--negative", ""], "negative prompt is empty"),
        ([PROMPT, "--negative", "a dog", "--score", "cosine"], "need the score contrast"),
        (["--beam", "4"], "PROMPT"),
        ([PROMPT, "-o", "fox.jpg"], "ends in .png"),
        ([PROMPT, "-o", "gone/fox.png"], "no folder 'gone'"),
        ([PROMPT, "--steps-image", "gone/steps.png"], "no folder 'gone'"),
        ([PROMPT, "--steps-image", FILE], "same file"),
        ([PROMPT, "--trace", "gone/run.jsonl"], "no folder 'gone'"),
        ([PROMPT, "--trace", FILE], "--output and --trace are the same file"),
        ([PROMPT, "--trace", "."], "it is a folder"),
        ([PROMPT, "--search", "beem"], "did you mean 'beam'"),
        ([PROMPT, "--samples", "9"], "samples means nothing to the search 'beam'"),
        ([PROMPT, "--lookahead", "4"], "lookahead means nothing to the search 'beam'"),
        ([PROMPT, "--search", "lookahead", "--lookahead", "far"], "or 'end' (-1)"),
        ([PROMPT, "--start", "1;2"], "--start must be tokens with commas between them"),
        ([PROMPT, "--start", "1,99"], "Token 99 is not in the codebook"),
        ([PROMPT, "--shortlist", "2"], "the tokenizer toy has none: use shortlist 0"),
        ([PROMPT, "--shortlist-by", "gradients"], "did you mean 'gradient'"),
        ([PROMPT, "--anneal", "1"], "anneal is the temperature of a refinement: give refine too"),
        ([PROMPT, "--time-limit", "0"], "time_limit must be a number of seconds above 0"),
        (["replay", "gone.png"], "no file 'gone.png'"),
        (["replay"], "FILE.png"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    run: Callable[..., Run], arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert is_one_sentence(done.err)
    assert done.out == "" and files() == []


def test_an_unwritable_output_is_found_out_before_the_search(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_io.tempfile, "NamedTemporaryFile", refuse)
    done = run(PROMPT)
    assert done.code == 2 and "Permission denied" in done.err and is_one_sentence(done.err)
    assert SavedVerifier.calls == 0


def test_cuda_without_a_cuda_device(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run(PROMPT, "--device", "cuda")
    assert done.code == 2 and is_one_sentence(done.err)
    assert "finds no CUDA device" in done.err and "--device cpu" in done.err


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-2])
    elif how == "foreign":
        save_file({"conv.weight": torch.zeros(2)}, path)
    elif how == "pickled":
        torch.save({"brightness": torch.ones(1)}, path)
    elif how == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "is truncated, damaged"),
        ("foreign", "another model"),
        ("pickled", "pickled checkpoint"),
        ("missing", "no weights file"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(
    run: Callable[..., Run], tmp_path: Path, how: str, message: str
) -> None:
    folder = write_toy_model(tmp_path / "mine")
    damage(folder / "tokenizer.safetensors", how)
    done = run(PROMPT, "--model", folder)
    assert done.code == 2 and message in done.err and is_one_sentence(done.err)
    assert str(folder) in done.err


# Failures: nothing found is lost


def test_a_picture_that_cannot_be_saved_goes_to_the_temporary_folder(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == FILE:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(image_io.os, "replace", full)
    monkeypatch.setattr(image_io.tempfile, "tempdir", str(tmp_path))
    done = run(PROMPT, "--quiet")
    assert done.code == 1 and is_one_sentence(done.err)
    assert "No space left on device" in done.err
    refuge = re.search(r"The picture is in '(.+)' instead", done.err).group(1)
    assert load_png(refuge)[1]["prompt"] == PROMPT
    assert files() == []


def test_ctrl_c_in_mid_search_writes_the_best_so_far(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedVerifier, "interrupt_at", 3)
    done = run(PROMPT, "--json")
    assert done.code == 130
    assert done.err.splitlines()[-1].startswith("Stopped by Ctrl-C: kept the best picture so far")
    told = json.loads(done.out)
    assert told["interrupted"] and told["paths"] == files() == [FILE]
    assert load_png(FILE)[1]["interrupted"]
    assert run("replay", FILE).code == 0


def test_ctrl_c_before_the_first_picture_writes_nothing(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedVerifier, "interrupt_at", 1)
    done = run(PROMPT, "--json")
    assert done.code == 130
    assert "Error: Stopped by Ctrl-C before there was anything to keep." in done.err
    assert done.out == "" and files() == []


@pytest.mark.parametrize(("call", "kept"), [(TOKENS + 1, 1), (TOKENS + 2, 2)])
def test_ctrl_c_keeps_the_pictures_finished_before(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, call: int, kept: int
) -> None:
    monkeypatch.setattr(SavedVerifier, "interrupt_at", call)
    done = run(PROMPT, "--num-images", "3", "--json")
    assert done.code == 130
    assert json.loads(done.out)["paths"] == files()
    assert len(files()) == kept


def test_out_of_memory_is_a_sentence_and_exit_code_1(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: SavedTokenizer, tokens: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SavedTokenizer, "decode", decode)
    done = run(PROMPT, "--quiet")
    assert done.code == 1 and is_one_sentence(done.err) and "memory" in done.err


def test_an_unexpected_error_shows_its_traceback_only_with_debug(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: SavedTokenizer, tokens: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("a bug\nwith details")

    monkeypatch.setattr(SavedTokenizer, "decode", decode)
    done = run(PROMPT, "--quiet")
    assert done.code == 1 and is_one_sentence(done.err)
    assert "Unexpected ZeroDivisionError: a bug (run with --debug for the traceback)" in done.err
    debug = run(PROMPT, "--quiet", "--debug")
    assert debug.code == 1 and "Traceback" in debug.err and "in decode" in debug.err


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


# With the packaged weights, in a process of its own


def tfgen_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tfgen_cli", *arguments]


SMALL = ("--device", "cpu", "--beam", "2", "--candidates", "4", "--tokens", "2")


def test_the_packaged_models_from_prompt_to_replay(in_tmp: Path) -> None:
    command = tfgen_command(PROMPT, *SMALL, "--json", "--steps-image", "steps.png")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decodes"] > 0
    assert files() == [FILE, "steps.png"]
    command = tfgen_command("replay", FILE, "--device", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "identical" in done.stdout, done.stderr


def test_a_real_ctrl_c_writes_the_best_so_far(in_tmp: Path) -> None:
    """The bar, on a terminal, tells when the search is under way."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # or it has no room
    command = tfgen_command(PROMPT, "--device", "cpu", "--candidates", "512", "--budget", "5000")
    process = subprocess.Popen(command, stderr=writer, start_new_session=True)
    os.close(writer)
    try:
        seen = read_until(reader, b"step 2/")  # the first is the atlas's, and takes no time
        process.send_signal(signal.SIGINT)
        seen += read_until(reader, b"Stopped by Ctrl-C")
        assert process.wait(timeout=60) == 130, seen.decode()
    finally:
        process.kill()
        os.close(reader)
    assert load_png(FILE)[1]["interrupted"]


def read_until(terminal: int, text: bytes) -> bytes:
    """What the terminal shows until `text` appears, or until the process has ended."""
    seen = b""
    while text not in seen:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
    return seen
