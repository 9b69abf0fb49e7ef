"""Models of the hub: fetched, found where the user put them, and their licence told once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tests.cli.running import Run, is_one_sentence
from tests.tokenizers.flextok_checks import FOLDER, model
from tfgen import TfgenError, hub
from tfgen.errors import InputError
from tfgen.tokenizers.flextok import FlexTok
from tfgen_cli import main

NAME, HUB_ID = "flextok-d12-in1k", "EPFL-VILAB/flextok_d12_d12_in1k"
FILES = ("model.safetensors", "config.json", "vae_config.json")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, of tfgen and of the hub, empty."""
    monkeypatch.setenv("TFGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return Run(code, *capsys.readouterr())

    return run


class Hub:
    """Stands in for the Hugging Face hub: one repository, with the tiny checkpoint."""

    def __init__(self, files: tuple[str, ...] = FILES) -> None:
        self.files, self.asked = files, []

    def __call__(self, repository: str, file: str) -> str:
        self.asked.append((repository, file))
        if repository != HUB_ID or file not in self.files:
            raise EntryNotFoundError("404")
        return str(FOLDER / file)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Hub:
    there = Hub()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", there)
    return there


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)


def put(folder: Path) -> None:
    """The tiny checkpoint, as a user puts files somewhere."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes((FOLDER / name).read_bytes())


# Fetching


def test_fetch_downloads_weights_and_config(run: Callable[..., Run], online: Hub) -> None:
    done = run("models", "fetch", NAME)
    assert done.code == 0
    assert online.asked == [(HUB_ID, "model.safetensors"), (HUB_ID, "config.json")]
    assert f"{NAME} is in {str(FOLDER)!r}" in done.err


def test_a_repository_without_a_config_is_complete(online: Hub) -> None:
    online.files = ("model.safetensors",)
    assert hub.locate(NAME) == FOLDER


@pytest.mark.parametrize("name", [NAME, HUB_ID])
def test_a_model_loads_by_its_name_or_its_hub_id(online: Hub, name: str) -> None:
    tokenizer = FlexTok.from_pretrained(name)
    assert tokenizer.fingerprint() == model().fingerprint()


def test_fetch_without_a_network_says_which_files_to_put_where(
    run: Callable[..., Run], offline: None, cache: Path
) -> None:
    done = run("models", "fetch", NAME)
    assert done.code == 1 and is_one_sentence(done.err)
    for part in ("model.safetensors", "config.json", HUB_ID, str(cache / "models" / NAME)):
        assert part in done.err
    assert f"tfgen models fetch {NAME}" in done.err


def test_generating_without_a_network_says_the_same(run: Callable[..., Run], offline: None) -> None:
    done = run("a red fox", "--model", NAME)
    assert done.code == 1 and is_one_sentence(done.err)
    assert "cannot be downloaded" in done.err and "model.safetensors" in done.err


def test_really_offline_it_says_the_same() -> None:
    """Through huggingface_hub itself, which the tests keep from the network."""
    with pytest.raises(TfgenError, match="cannot be downloaded now.*config.json"):
        hub.locate("flextok-d18-d28-dfn")


def test_files_are_found_where_the_sentence_says(
    offline: None, cache: Path, run: Callable[..., Run]
) -> None:
    put(cache / "models" / NAME)
    assert hub.locate(NAME) == cache / "models" / NAME
    assert hub.load_tokenizer(NAME, model().device).fingerprint() == model().fingerprint()
    rows = {row["name"]: row for row in hub.list_models()}
    assert rows[NAME]["where"] == "cached"
    assert rows[NAME]["bytes"] == sum((FOLDER / name).stat().st_size for name in FILES)
    assert run("models", "fetch", NAME).code == 0


def in_the_hubs_cache(folder: Path, *, config: bool | None) -> Path:
    """The tiny checkpoint as huggingface_hub keeps it. config: False: the hub has none, and this is
    known; None: nobody has asked."""
    repository = folder / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    put(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    if not config:
        (snapshot / "config.json").unlink()
    if config is False:
        (repository / ".no_exist" / ("0" * 40)).mkdir(parents=True)
        (repository / ".no_exist" / ("0" * 40) / "config.json").touch()
    return snapshot


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("name", [NAME, HUB_ID])
def test_a_cached_model_loads_without_asking_the_hub(
    online: Hub, tmp_path: Path, name: str, config: bool
) -> None:
    snapshot = in_the_hubs_cache(tmp_path / "hub", config=config)
    assert hub.locate(name) == snapshot
    assert hub.load_tokenizer(name, model().device).fingerprint() == model().fingerprint()
    assert online.asked == []


def test_where_the_cache_lacks_a_file_both_are_asked_for_so_that_they_are_of_one_revision(
    online: Hub, tmp_path: Path
) -> None:
    in_the_hubs_cache(tmp_path / "hub", config=None)
    assert hub.locate(NAME) == FOLDER
    assert online.asked == [(HUB_ID, "model.safetensors"), (HUB_ID, "config.json")]


def test_what_is_in_the_package_needs_no_fetching(run: Callable[..., Run], offline: None) -> None:
    done = run("models", "fetch", "sprites")
    assert done.code == 0 and "sprites is in " in done.err


def test_an_unknown_name_is_refused(run: Callable[..., Run], online: Hub) -> None:
    done = run("models", "fetch", "flextok-d13")
    assert done.code == 2 and "did you mean" in done.err and is_one_sentence(done.err)
    with pytest.raises(InputError, match="EPFL-VILAB/flextok_d13 on the hub has no model"):
        hub.locate("EPFL-VILAB/flextok_d13")


def test_help_of_models_tells_of_fetch(run: Callable[..., Run]) -> None:
    assert "fetch" in run("models", "--help").out
    assert run("models").out.startswith("name")


# The licence


def test_the_licence_is_told_at_the_first_use_and_only_then(
    run: Callable[..., Run], online: Hub, cache: Path
) -> None:
    first, second = (run("models", "fetch", NAME) for _ in range(2))
    assert "apple-amlr (research only)" in first.err and HUB_ID in first.err
    assert "apple-amlr" not in second.err
    assert (cache / "licences" / NAME).exists()


def test_the_licence_is_told_to_who_asks_for_the_hub_id(
    online: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.locate(HUB_ID)
    assert "research only" in capsys.readouterr().err


def test_a_licence_that_cannot_be_remembered_is_told_again(
    online: Hub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file in the way")
    for _ in range(2):
        hub.locate(NAME)
        assert "research only" in capsys.readouterr().err


def test_no_licence_is_told_of_what_is_not_there(
    offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TfgenError):
        hub.locate(NAME)
    assert "research only" not in capsys.readouterr().err
