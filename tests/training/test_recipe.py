"""The whole recipe at toy size: interrupted anywhere, it gives what a single call gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy_world import shapes
from tests.training.kitchen import CONFIGS, Kitchen, write_sprites
from tfgen import hub
from tfgen.atlas import Atlas
from tfgen.errors import TfgenError
from tfgen.judge import Judge
from tfgen.tables import models_of
from tfgen.training import (
    apart,
    clip,
    common,
    grid,
    judge,
    recipe,
    snapshot,
    stages,
    tokenizer,
)
from tfgen.training.recipe import main
from tfgen.training.stages import STAGES, Stage
from tfgen.training.stopping import OUT_OF_TIME
from tfgen.training.world import World
from tfgen.verifiers.clip import ClipVerifier


@pytest.fixture(scope="module", autouse=True)
def unjudged() -> Iterator[None]:
    """Leaves out the measuring on held-out scenes, which costs more than a toy training."""
    with pytest.MonkeyPatch.context() as patch:
        for script in (tokenizer, grid, clip, judge):
            patch.setattr(script, "evaluate", lambda *_: {})
        for measure in ("painted", "told", "looked"):
            patch.setattr(apart.Apart, measure, lambda _: {})
        yield


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    """The recipe, cooked at one go."""
    kitchen = Kitchen(tmp_path_factory.mktemp("whole"))
    assert kitchen.cook() == 0
    return kitchen


@pytest.fixture
def kitchen(cooked: Kitchen, tmp_path: Path) -> Kitchen:
    """A copy of what is cooked, to be spoilt."""
    copy = Kitchen(tmp_path)
    shutil.copytree(cooked.out, copy.out)
    return copy


def test_what_comes_out_is_loaded_as_the_packaged_models_are(cooked: Kitchen) -> None:
    ordered = hub.load_tokenizer(str(cooked.out / "sprites"), torch.device("cpu"))
    assert ordered.num_tokens == 8 and ordered.render_size == 256
    verifier = ClipVerifier.load(cooked.out / "sprites-clip")
    assert len(Judge.load(cooked.out / "sprites-judge").objects) == 40
    atlas = Atlas.open(cooked.out / "sprites" / "atlas.safetensors", ordered, verifier)
    assert len(atlas.embeddings) == 8 * 3 * 4
    for model in ("sprites", "sprites-grid"):
        folder = cooked.out / model
        loaded = hub.load_tokenizer(str(folder), torch.device("cpu"))
        priors = ["frequency", "autoregressive", *(["retrieval"] if model == "sprites" else [])]
        for name in priors:
            prior = hub.load_prior(name, str(folder), loaded)
            if name == "retrieval":
                prior.bank.check(
                    folder, **{k: v for k, v in models_of(loaded, verifier).items() if k != "seed"}
                )
            else:
                assert prior.log_probs(torch.zeros(1, 2, dtype=torch.long)).shape == (
                    1,
                    loaded.vocab_size,
                )
        packaged = hub.search_defaults(model)
        most = min(packaged["tokens"], loaded.num_tokens)
        assert hub.search_defaults(str(folder)) == packaged | {"tokens": most}


def differing(kitchen: Kitchen, other: Kitchen) -> list[str]:
    """The files of weights that only one of them has, or that are not the same."""
    these, those = kitchen.weights(), other.weights()
    return sorted(k for k in these | those if these.get(k) != those.get(k))


def test_a_recipe_stopped_after_every_step_gives_the_same_models(
    cooked: Kitchen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen = Kitchen(tmp_path)
    codes = [kitchen.cook("--minutes", "0")]
    told = capsys.readouterr().out
    assert "apart                1 of 8 done, about" in told
    assert "renderer             not begun (2 steps)" in told
    while codes[-1] == OUT_OF_TIME and len(codes) < 40:
        codes.append(kitchen.cook("--minutes", "0"))
    assert codes[-1] == 0
    # Twice for each stage that is trained; the tables are done in the call that begins them.
    assert len(codes) > 2 * 10
    assert differing(kitchen, cooked) == []


def test_a_recipe_killed_after_every_stage_goes_on(
    cooked: Kitchen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the stage has exported its files, but not noted that."""
    kitchen, finish = Kitchen(tmp_path), recipe.Book.finish
    killed: list[str] = []

    def kill_once(book: recipe.Book, stage: Stage) -> None:
        if stage.name not in killed:
            killed.append(stage.name)
            raise KeyboardInterrupt
        finish(book, stage)

    monkeypatch.setattr(recipe.Book, "finish", kill_once)
    for _ in STAGES:
        assert kitchen.cook() == 130
    assert kitchen.cook() == 0
    assert killed == [stage.name for stage in STAGES]
    assert differing(kitchen, cooked) == []


def test_stages_by_name_give_the_same_models_as_all_at_once(
    cooked: Kitchen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen = Kitchen(tmp_path)
    assert kitchen.cook("--stages", "judge,grid_prior") == 2
    assert "The stage judge needs tokenizer, not done yet" in capsys.readouterr().err
    assert kitchen.cook("--stages", "grid_prior, grid") == 0
    assert "The stages grid, grid_prior are done." in capsys.readouterr().out
    assert kitchen.cook("--stages", "apart,tokenizer") == 0
    assert kitchen.cook("--stages", "judge", "--minutes", "0") == OUT_OF_TIME
    for _ in range(2):
        assert kitchen.cook("--stages", "judge") == 0
    assert kitchen.cook() == 0
    assert differing(kitchen, cooked) == []
    assert kitchen.cook("--stages", "gird") == 2
    assert "no stage 'gird'; did you mean 'grid'?" in capsys.readouterr().err


def test_what_is_done_is_not_done_again(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not list(kitchen.out.rglob("checkpoint.safetensors"))
    assert not list(kitchen.out.rglob("*.parts"))
    times = {path: path.stat().st_mtime_ns for path in kitchen.out.rglob("*.safetensors")}
    assert kitchen.cook() == 0
    told = capsys.readouterr().out
    assert "stage" not in told and "All is done" in told
    assert {path: path.stat().st_mtime_ns for path in times} == times


def refused(kitchen: Kitchen, capsys: pytest.CaptureFixture[str], **changed: Path) -> str:
    """The one sentence that is said, without a stage being begun."""
    capsys.readouterr()
    assert kitchen.cook(**changed) == 2
    told = capsys.readouterr()
    assert "stage " not in told.out
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    return told.err


def test_a_changed_config_is_refused(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS["clip_small_odd"] | {"steps": 3}
    (kitchen.configs / "clip_small_odd.json").write_text(json.dumps(config))
    told = refused(kitchen, capsys)
    assert "clip_odd was changed" in told and "(in steps)" in told
    (kitchen.configs / "clip_small_odd.json").write_text(json.dumps(CONFIGS["clip_small_odd"]))
    assert kitchen.cook() == 0


def test_a_config_of_another_tier_and_a_missing_one_are_refused(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kitchen.configs / "grid_small.json"
    path.write_text(json.dumps(CONFIGS["grid_small"] | {"tier": "full"}))
    assert "is a config of the tier full, not small" in refused(kitchen, capsys)
    path.unlink()
    assert "There is no config" in refused(kitchen, capsys)


def test_lost_and_changed_files_are_refused(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = kitchen.out / "sprites" / "bank.safetensors"
    kept = bank.read_bytes()
    bank.unlink()
    assert "stage bank are missing" in refused(kitchen, capsys)
    bank.write_bytes(kept[:-1] + b"x")
    assert "stage bank are missing or are others" in refused(kitchen, capsys)


def test_a_stage_made_anew_makes_those_after_it_stale(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(kitchen.out / "stages" / "clip_pairs")
    config = CONFIGS["clip_small_pairs"] | {"seed": 2}
    (kitchen.configs / "clip_small_pairs.json").write_text(json.dumps(config))
    assert kitchen.cook() == 2
    told = "stage found began with other files of tokenizer, prior, clip_pairs"
    assert told in capsys.readouterr().err
    assert "digests" in kitchen.state("clip_pairs")


def test_search_defaults_that_a_user_has_set_stay(kitchen: Kitchen) -> None:
    path = kitchen.out / "sprites" / "tokenizer.json"
    config = json.loads(path.read_text()) | {"search_defaults": {"beam": 3}}
    path.write_text(json.dumps(config))
    assert kitchen.cook() == 0
    assert json.loads(path.read_text())["search_defaults"] == {"beam": 3}


def test_sprites_that_are_missing_too_few_or_others_are_refused(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "There is no sprites file" in refused(kitchen, capsys, sprites=kitchen.out / "none")
    few = write_sprites(kitchen.out / "few", 39)
    assert "fewer than the 40" in refused(kitchen, capsys, sprites=few)
    more = write_sprites(kitchen.out / "more", 41)
    assert "began with another tier or other sprites" in refused(kitchen, capsys, sprites=more)
    (kitchen.out / "junk").write_bytes(b"junk")
    assert "is no sprites file" in refused(kitchen, capsys, sprites=kitchen.out / "junk")

    def offline(*_: Any) -> None:
        raise TfgenError("npm could not fetch them: check the network connection.")

    monkeypatch.setattr(recipe, "load_sprites", offline)
    assert main(["--tier", "small", "--device", "cpu", "--out", str(kitchen.out / "new")]) == 2
    told = capsys.readouterr().err
    assert "npm could not fetch them" in told and "--sprites FILE" in told


@pytest.mark.parametrize(
    ("stage", "changed", "told"),
    [
        ("grid_small", {"sede": 1}, "grid_small.json: There is no setting 'sede'; did you mean"),
        ("judge_small", {"steps": True}, "judge_small.json: steps must be a whole number"),
        ("clip_small_found", {"found": None}, "found must be a whole number from 1 up, not None"),
        ("apart_small", {"decoder": {"steps": 2}}, "decoder lacks the setting 'batch'"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_begun(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    changed: dict[str, Any],
    told: str,
) -> None:
    kitchen = Kitchen(tmp_path)
    (kitchen.configs / f"{stage}.json").write_text(json.dumps(CONFIGS[stage] | changed))
    assert told in refused(kitchen, capsys)
    assert not kitchen.out.exists()


def test_without_open_clip_no_verifier_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = recipe.find_spec
    monkeypatch.setattr(recipe, "find_spec", lambda name: name != "open_clip" and find(name))
    kitchen = Kitchen(tmp_path)
    assert "clip_found need open_clip, which Python does not" in refused(kitchen, capsys)
    assert kitchen.cook("--stages", "grid", "--minutes", "0") == OUT_OF_TIME


def test_minutes_that_are_no_time_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for minutes in ("nan", "-3"):
        assert Kitchen(tmp_path / minutes).cook(f"--minutes={minutes}") == 2
        assert "--minutes must be a finite number from 0 up" in capsys.readouterr().err


def test_a_stage_that_fails_leaves_a_snapshot_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, snap = Kitchen(tmp_path), tmp_path / "snap"

    def diverge(*_: object) -> bool:
        raise TfgenError("The loss is not finite.")

    monkeypatch.setattr(recipe, "cook", diverge)
    (here.out / "stages" / "apart").mkdir(parents=True)
    (here.out / "stages" / "apart" / "log").write_text("done")
    assert here.cook(snapshot=snap) == 1
    snapshot.restore(snap, tmp_path / "there")
    assert (tmp_path / "there" / "stages" / "apart" / "log").read_text() == "done"


def test_another_machine_goes_on_from_a_snapshot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second of four parts, with what the first has learned."""
    here, snap = Kitchen(tmp_path / "here"), tmp_path / "snap"
    options = ("--stages", "apart", "--minutes", "0")
    for _ in range(2):
        assert here.cook(*options, snapshot=snap) == OUT_OF_TIME
    assert "3 of 8 done" in capsys.readouterr().out
    assert [path.name for path in snap.iterdir()] == ["snapshot.tgz.00"]
    there = Kitchen(tmp_path / "there")
    assert there.cook(*options, start=snap) == OUT_OF_TIME
    assert "5 of 8 done" in capsys.readouterr().out  # that part's second step, and one more
    for _ in range(2):  # from here on from its own --out
        code = there.cook(*options, start=snap)
    assert code == 0
    assert there.cook(start=tmp_path / "none", out=tmp_path / "new") == 2
    assert "There is no snapshot in" in capsys.readouterr().err


def test_a_recipe_that_is_asked_to_stop_ends_its_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen, learn = Kitchen(tmp_path), common.Training.learn
    signals = [signal.SIGTERM, signal.SIGINT]

    def stopped(training: common.Training, *args: Any, **options: Any) -> None:
        if signals:
            os.kill(os.getpid(), signals.pop())
        learn(training, *args, **options)

    monkeypatch.setattr(common.Training, "learn", stopped)
    assert kitchen.cook("--stages", "judge") == 2  # needs the tokenizer
    assert kitchen.cook("--stages", "apart") == 130
    told = capsys.readouterr().out
    assert "Stopped: give the same command again." in told and "1 of 8 done" in told
    assert kitchen.cook("--stages", "apart") == OUT_OF_TIME
    # The last step of a part is a part's end, not a call's: that comes with the next one.
    assert "3 of 8 done" in capsys.readouterr().out


def test_searches_for_captions_have_a_bank_of_scenes_in_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenes that stand anywhere hardly combine, so pairs are not found with a bank of them."""
    asked: dict[str, Any] = {}

    class Built(Exception):
        pass

    def build(world: World, *_: Any) -> None:
        asked["bank"] = (world.free, world.pairs, world.variants)

    def search(world: World, *_: Any) -> None:
        asked["captions"] = (world.free, world.pairs, world.variants)
        raise Built

    monkeypatch.setattr(stages.bank, "build", build)
    monkeypatch.setattr(stages.found, "search_for", search)
    for name in ("Pipeline", "ClipVerifier"):
        monkeypatch.setattr(getattr(stages, name), "load", lambda *_, **__: None)
    monkeypatch.setattr(stages.Materials, "tokenizer", lambda _: None)
    sprites = shapes(16)[torch.arange(40) % 5]
    materials = stages.Materials("small", tmp_path, "cpu", None, sprites)
    config = CONFIGS["found_small"] | {"free": 0.5}
    with pytest.raises(Built):
        stages.search_for_captions("clip_pairs")(materials, config, tmp_path)
    assert asked == {"bank": (0.0, 0.5, 1), "captions": (0.5, 0.0, 1)}


def test_a_device_that_is_not_here_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, told in (
        ("cuda", "There is no CUDA device here"),
        ("abacus", "no device 'abacus'"),
        ("meta", "no device 'meta'"),
    ):
        assert main(["--tier", "small", "--device", device, "--out", str(tmp_path)]) == 2
        assert told in capsys.readouterr().err
