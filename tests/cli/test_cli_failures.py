"""Bad input and failures on the command line: one sentence, the exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.running import FILE, PROMPT, Run, files, is_one_sentence
from tests.conftest import write_toy_model
from tests.toy_models import TOKENS, SavedTokenizer, SavedVerifier
from tfgen import image_io
from tfgen.image_io import load_png

LONG = "f" * 300


# Bad input


def test_a_command_that_could_be_a_prompt_says_so(run: Callable[..., Run]) -> None:
    done = run("tree")
    assert done.code == 2 and is_one_sentence(done.err)
    assert "see tfgen tree --help" in done.err and "tfgen generate tree" in done.err


def test_a_group_without_a_command_is_one_sentence(run: Callable[..., Run]) -> None:
    done = run("bank")
    assert done.code == 2 and is_one_sentence(done.err) and "see tfgen bank --help" in done.err


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
        ([PROMPT, "--trace", ".", "--num-images", "2"], "it is a folder"),
        ([PROMPT, "--trace", ""], "it is a folder"),
        ([PROMPT, "-o", LONG], "File name too long"),
        ([PROMPT, "--trace", LONG], "File name too long"),
        ([PROMPT, "--steps-image", f"{LONG}.png"], "File name too long"),
        ([PROMPT, "--steps-image", f"../work/{FILE}"], "--output and --steps-image are the same"),
        ([PROMPT, "--trace", f"../work/{FILE}"], "--output and --trace are the same file"),
        ([PROMPT, "--seed", str(2**63 - 1), "--num-images", "2"], "--seed must be"),
        ([PROMPT, "--prior", "retrieval:"], "The prior 'retrieval:' names no file"),
        ([PROMPT, "--prior", "uniform+frequency:"], "The prior 'frequency:' names no file"),
        ([PROMPT, "--prior-weight", "1e308"], "prior_weight must be at most 1,000,000"),
        ([PROMPT, "--patience", "3"], "patience ends a crossover"),
        ([PROMPT, "--reencode-loss", "1"], "reencode_loss is what a re-encoding may lose"),
        ([PROMPT, "--forecast", "4", "--forecast-in", "crossover"], "use crossover from 1 up"),
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
        ([PROMPT, "--model", f"./{LONG}"], "is longer than that of a file can be"),
        (["bank", "build", LONG, "-o", "new"], "is longer than that of a file can be"),
        (["replay"], "FILE.png"),
        (["tree", ""], "'.' is a folder"),
        (["tree", "/"], "'/' is a folder"),
        (["tree", LONG], "File name too long"),
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


def test_a_link_to_the_output_is_the_output(run: Callable[..., Run]) -> None:
    for name in ("steps.png", "run.jsonl"):
        Path(name).symlink_to(FILE)
    for option, name in (("--steps-image", "steps.png"), ("--trace", "run.jsonl")):
        done = run(PROMPT, option, name)
        assert done.code == 2 and f"--output and {option} are the same file" in done.err
    assert SavedVerifier.calls == 0


def test_a_foreign_prior_is_counted_anew_by_a_command(run: Callable[..., Run]) -> None:
    save_file({"unigram": torch.zeros(2)}, "foreign.safetensors")
    done = run(PROMPT, "--prior", "frequency:foreign.safetensors")
    assert done.code == 2 and "tfgen prior fit" in done.err and is_one_sentence(done.err)


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


def full_for(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A disk that has no room for files whose name starts so."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name.startswith(names):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(image_io.os, "replace", full)


def test_a_picture_in_the_temporary_folder_does_not_end_the_command(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full_for(monkeypatch, "fox-1")
    monkeypatch.setattr(image_io.tempfile, "tempdir", str(tmp_path))
    done = run(PROMPT, "--num-images", "2", "-o", "fox.png", "--json", "--quiet")
    assert done.code == 1 and is_one_sentence(done.err)
    refuge, second = json.loads(done.out)["paths"]
    assert files() == [second] == ["fox-2.png"]
    assert Path(refuge).parent == tmp_path and load_png(refuge)[1]["seed"] == 0


def test_where_the_temporary_folder_is_full_too_nothing_is_left(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(image_io.tempfile, "tempdir", str(tmp_path / "temporary"))
    full_for(monkeypatch, "fox-2", "tfgen-fox-2")
    done = run(PROMPT, "--num-images", "3", "-o", "fox.png", "--json", "--quiet")
    assert done.code == 1 and is_one_sentence(done.err)
    assert "Nor could it be written to the temporary folder" in done.err
    assert json.loads(done.out)["paths"] == files() == ["fox-1.png"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_strip_that_cannot_be_written_does_not_end_the_command(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_for(monkeypatch, "steps-1")
    options = ("--num-images", "2", "-o", "fox.png", "--steps-image", "steps.png", "--json")
    done = run(PROMPT, *options, "--quiet")
    assert done.code == 1 and is_one_sentence(done.err)
    assert "Could not write 'steps-1.png': No space left on device" in done.err
    assert files() == ["fox-1.png", "fox-2.png", "steps-2.png"]
    told = json.loads(done.out)
    assert told["paths"] == files()[:2] and told["steps_paths"] == ["steps-2.png"]
    assert not told["interrupted"]


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
