"""What the commands atlas and bank build, on a small random model, and its use in searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.toy_world import make_world, write_tokenizer, write_verifier
from tfgen.atlas import Atlas
from tfgen.image_io import load_png, to_image
from tfgen.pipeline import Pipeline
from tfgen.priors.bank import Bank
from tfgen_cli import main

PROMPT = "a red fox"
CODES = 12  # FSQ levels 4 and 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tokenizer and a verifier."""
    folder = tmp_path_factory.mktemp("models")
    write_tokenizer(folder / "tokenizer")
    (folder / "verifier").mkdir()
    write_verifier(folder / "verifier", make_world())
    return ["--model", str(folder / "tokenizer"), "--verifier", str(folder / "verifier")]


@pytest.fixture(autouse=True)
def own_cache(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which is empty."""
    monkeypatch.setenv("TFGEN_CACHE", str(in_tmp / "cache"))
    return in_tmp / "cache"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def load(models: list[str], **options: Any) -> Pipeline:
    return Pipeline.load(models[1], verifier=models[3], device="cpu", **options)


def search(models: list[str], **options: Any) -> Any:
    settings = {"beam": 4, "candidates": 2, "tokens": 3}
    return load(models, cache=options.pop("cache", None)).generate(PROMPT, **settings, **options)


def found(result: Any) -> list[Any]:
    return [(step.pool.tokens.tolist(), step.pool.scores.tolist()) for step in result.steps]


# atlas


def test_an_atlas_is_built_where_searches_find_it(models: list[str], run: Any) -> None:
    before = search(models)
    assert (before.settings.atlas, before.accounts.cached) == (False, 0)
    code, out, err = run("atlas", "build", *models)
    assert (code, out) == (0, "") and f"{CODES} codes" in err
    after = search(models)
    assert (after.settings.atlas, after.accounts.cached) == (True, CODES)
    assert after.steps[0].decodes == 0 and len(after.steps[0].pool.tokens) == CODES
    assert search(models, atlas=False).settings.atlas is False
    assert found(search(models, atlas=False)) == found(before)


def test_the_atlas_ranks_one_token_prefixes_as_decoding_them_does(
    models: list[str], run: Any
) -> None:
    decoded = load(models).generate(PROMPT, beam=1, candidates=CODES, tokens=1)
    run("atlas", "build", *models, "-q")
    known = load(models).generate(PROMPT, beam=1, candidates=CODES, tokens=1)
    assert (decoded.decodes, known.decodes) == (CODES, 0)
    one, other = decoded.steps[0].pool, known.steps[0].pool
    scores = dict(zip(one.tokens[:, 0].tolist(), one.scores.tolist(), strict=True))
    rounded = dict(zip(other.tokens[:, 0].tolist(), other.scores.tolist(), strict=True))
    spread = max(scores.values()) - min(scores.values())
    assert max(abs(scores[code] - rounded[code]) for code in scores) < 0.02 * spread


def test_info_tells_what_is_in_it_and_whether_it_fits(models: list[str], run: Any) -> None:
    code, _, err = run("atlas", "info", *models)
    assert code == 2 and "There is no atlas of these models" in err
    run("atlas", "build", *models, "-q", "-o", "mine.safetensors")
    code, out, err = run("atlas", "info", "mine.safetensors", *models)
    assert (code, err) == (0, "") and f"codes       {CODES}" in out
    code, _, err = run("atlas", "info", "mine.safetensors")  # of the packaged models it is not
    assert code == 2 and "is stale" in err and err.count("\n") == 1


def test_a_fresh_atlas_is_left_and_a_stale_one_is_built_again(
    models: list[str], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("mine.safetensors")
    run("atlas", "build", *models, "-q", "-o", path)
    first = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Atlas, "build", None)
        assert run("atlas", "build", *models, "-q", "-o", path)[0] == 0
    path.write_bytes(first.replace(b"verifier", b"verifiex"))
    assert run("atlas", "build", *models, "-q", "-o", path)[0] == 0
    assert path.read_bytes() == first


def test_ctrl_c_says_that_it_can_go_on(
    models: list[str], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, progress: Any, **options: Any) -> None:
        progress(7, CODES)
        raise KeyboardInterrupt

    monkeypatch.setattr(Atlas, "build", interrupted)
    code, _, err = run("atlas", "build", *models)
    assert code == 130
    assert err.rstrip().endswith(
        "Stopped by Ctrl-C at 7 of 12 codes: the same command goes on there."
    )


# bank


def pictures(folder: Path, count: int = 6) -> Path:
    world = make_world()
    scenes = world.sample(count, torch.Generator().manual_seed(0))
    folder.mkdir()
    for index, image in enumerate(world.render(scenes, 32).images):
        to_image(image).save(folder / f"{index}.png")
    return folder


def test_a_bank_of_ones_own_pictures_is_a_prior(models: list[str], run: Any) -> None:
    (pictures(Path("images")) / "bad.png").write_bytes(b"not a picture")
    code, out, err = run("bank", "build", "images", "-o", "b.safetensors", *models)
    assert (code, out) == (0, "") and "6 pictures" in err
    assert err.count("'images/bad.png' is no picture that can be read") == 1
    tokens = Bank.open("b.safetensors").tokens(torch.arange(6))
    image = torch.from_numpy(np.array(Image.open("images/0.png")))
    expected = load(models).tokenizer.encode(image.permute(2, 0, 1)[None].float() / 255)
    assert torch.equal(tokens[:1], expected)

    prior = ["--prior", "retrieval:b.safetensors", "--prior-strength", "1", "--prior-weight", "1"]
    code, *_ = run(PROMPT, *models, *prior, "--beam", "2", "--candidates", "2", "-o", "fox.png")
    assert code == 0
    recipe = load_png("fox.png")[1]["prior"]
    assert (recipe["name"], recipe["behind"]) == ("retrieval", {"name": "uniform"})
    assert recipe["bank"]["pictures"] == 7


def test_priors_are_joined_by_plus(models: list[str], run: Any) -> None:
    pictures(Path("images"))
    run("bank", "build", "images", "-o", "b.safetensors", *models, "-q")
    both = ["--prior", "uniform+retrieval:b.safetensors", "--prior-strength", "1"]
    code, *_ = run(PROMPT, *models, *both, "--beam", "2", "--candidates", "2", "-o", "fox.png")
    assert code == 0 and load_png("fox.png")[1]["prior"]["name"] == "uniform+retrieval"
    code, _, err = run(PROMPT, *models, "--prior", "uniform+retreival")
    assert code == 2 and "There is no prior 'retreival'; did you mean 'retrieval'?" in err


def test_a_model_without_a_bank_has_no_retrieval(models: list[str], run: Any) -> None:
    code, _, err = run(PROMPT, *models, "--prior", "retrieval")
    assert code == 2 and "tfgen bank build" in err and err.count("\n") == 1
    assert run("bank", "info", *models)[0] == 2


def test_a_bank_made_with_another_verifier_is_refused(
    models: list[str], run: Any, tmp_path: Path
) -> None:
    pictures(Path("images"))
    run("bank", "build", "images", "-o", "b.safetensors", *models, "-q")
    code, out, err = run("bank", "info", "b.safetensors", *models)
    assert (code, err) == (0, "") and "pictures    6" in out
    other = tmp_path / "other"
    other.mkdir()
    write_verifier(other, make_world())
    weights = other / "open_clip_model.safetensors"
    save_file({name: 1.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    others = [*models[:2], "--verifier", str(other)]
    code, _, err = run("bank", "info", "b.safetensors", *others)
    assert code == 2 and "is stale: it was made with the verifier" in err
    code, _, err = run(PROMPT, *others, "--prior", "retrieval:b.safetensors")
    assert code == 2 and "is stale: it was made with the verifier" in err


@pytest.mark.parametrize("folder", ["empty", "gone"])
def test_a_folder_without_pictures_is_one_sentence(run: Any, folder: str) -> None:
    Path("empty").mkdir()
    code, _, err = run("bank", "build", folder, "-o", "b.safetensors")
    assert code == 2 and err.startswith("Error: ") and err.count("\n") == 1
    assert not Path("b.safetensors").exists()


@pytest.mark.parametrize(
    "command", [("bank", "build", "pictures"), ("prior", "fit", "pictures"), ("atlas", "build")]
)
def test_that_it_cannot_be_written_is_known_before_the_work(
    models: list[str], run: Any, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    pictures(Path("pictures"))
    Path("folder").mkdir()

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("this is the work")

    monkeypatch.setattr(Bank, "build", work)
    monkeypatch.setattr(Atlas, "build", work)
    options = models[:2] if command[0] == "prior" else models
    for output in ("folder", "new/", "gone/file", "f" * 300):
        code, out, err = run(*command, *options, "-o", output)
        assert (code, out) == (2, "") and err.startswith("Error: ") and err.count("\n") == 1
    assert not Path("new").exists() and list(Path("folder").iterdir()) == []


# cache


def test_a_cache_changes_no_result_and_saves_all_decodes_of_a_repetition(
    models: list[str], run: Any
) -> None:
    without = search(models)
    first, second = (search(models, cache="embeddings") for _ in range(2))
    assert found(without) == found(first) == found(second)
    assert (first.decodes, second.decodes) == (without.decodes, 0)
    assert second.accounts.cached == without.decodes


def test_the_cache_on_the_command_line(models: list[str], run: Any) -> None:
    search = [PROMPT, *models, "--beam", "2", "--candidates", "2", "--json"]
    decodes = []
    for option in (["--cache", "c"], ["--cache", "c"], ["--cache", "off"]):
        code, out, _ = run(*search, *option)
        assert code == 0
        decodes.append(json.loads(out)["decodes"])
    assert decodes[0] == decodes[2] > decodes[1] == 0
    assert Path("c").is_dir() and not Path("off").exists()
    Path("file").write_text("")
    code, _, err = run(*search, "--cache", "file")
    assert code == 2 and "give another folder as --cache" in err and err.count("\n") == 1


def test_a_damaged_cache_is_said_in_one_sentence_and_does_no_harm(
    models: list[str], run: Any
) -> None:
    Path("c").mkdir()
    (Path("c") / "embeddings.sqlite").write_bytes(b"no database" * 1000)
    arguments = [PROMPT, *models, "--beam", "2", "--candidates", "2", "--cache", "c"]
    code, _, err = run(*arguments)
    assert code == 0
    assert err.count("Warning: The cache 'c/embeddings.sqlite' is damaged") == 1
