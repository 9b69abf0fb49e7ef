"""Configs that are misspelt, incomplete or of the wrong type are refused in a sentence."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from tfgen.errors import InputError
from tfgen.training import (
    apart,
    autoregressive,
    clip,
    commands,
    forecast,
    grid,
    judge,
    prior,
    recipe,
    renderer,
    settings,
    tokenizer,
)
from tfgen.training.stages import STAGES

FOLDERS = {"gpu": recipe.CONFIGS, "cpu": recipe.CONFIGS / "cpu"}
APART = json.loads((recipe.CONFIGS / "apart_full.json").read_text())
CLIP = json.loads((recipe.CONFIGS / "clip_full.json").read_text())


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("tier", ["small", "medium", "full"])
def test_the_packaged_configs_are_right(tier: str, folder: str) -> None:
    if (tier, folder) == ("small", "cpu"):
        return
    for stage in STAGES:
        if stage.config:
            path = FOLDERS[folder] / stage.config.format(tier)
            stage.settings.check(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sede": 1}, "c.json: There is no setting 'sede'; did you mean 'seed'"),
        ({"codes": {"steps": 5, "batch": 5}}, "c.json, codes lacks the setting 'peak_lr'"),
        ({"codes": 5}, "c.json, codes must be a table of settings, not 5"),
        ({"painters": APART["painters"] | {"step": 1}}, "painters: There is no setting 'step'"),
        ({"model": {"widht": 3}}, "model: There is no setting 'widht'; did you mean 'width'"),
        ({"model": {"levels": [8, 0]}}, "levels must be a list of one or more, each a whole"),
        ({"model": {"depth": True}}, "depth must be a whole number from 1 up, not True"),
        ({"seed": "1"}, "seed must be a whole number from 0 up, not '1'"),
        ({"ema": 1.0}, "ema must be a number from 0 to below 1, not 1.0"),
        ({"ema": math.nan}, "ema must be a number"),
        ({"bf16": 1}, "bf16 must be true or false, not 1"),
        ({"save_every": 0}, "save_every must be a whole number from 1 up, not 0"),
        ({"free": 2}, "free must be a number from 0 to 1, not 2"),
        ({"start": ""}, "start must be a text"),
        ({"codes": APART["codes"] | {"peak_lr": 0}}, "peak_lr must be a number above 0, not 0"),
        ({"codes": APART["codes"] | {"steps": 2.5}}, "steps must be a whole number from 1"),
    ],
)
def test_what_is_wrong_is_told(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        settings.APART.check(APART | changed, "c.json")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_what_is_missing_is_told() -> None:
    for key in ("seed", "model", "encoder", "grafts"):
        config = {k: v for k, v in APART.items() if k != key}
        with pytest.raises(InputError, match=f"c.json lacks the setting '{key}'"):
            settings.APART.check(config, "c.json")


def test_later_stages_of_the_verifier_need_more_than_the_first() -> None:
    config = {k: v for k, v in CLIP.items() if k != "negatives"}
    settings.CLIP.check(config, "c.json")
    with pytest.raises(InputError, match="lacks the setting 'negatives'"):
        settings.CLIP_DECODED.check(config, "c.json")
    with pytest.raises(InputError, match="lacks the setting 'found'"):
        settings.CLIP_FOUND.check(CLIP, "c.json")
    with pytest.raises(InputError, match="factors must be a list of 6"):
        settings.CLIP.check(CLIP | {"factors": [1.0]}, "c.json")


def test_overrides_are_checked_as_the_config_is() -> None:
    path = recipe.CONFIGS / "grid_small.json"
    config = commands.load_config(path, ["variants=2", "steps=3"], settings.GRID)
    assert (config["variants"], config["steps"]) == (2, 3)
    for item, told in (
        ("steps=none", "steps must be a whole number"),
        ("steps", "'steps' changes no setting of a config: write key=value"),
        ("stepz=1", "no setting 'stepz'"),
    ):
        with pytest.raises(InputError, match=told):
            commands.load_config(path, [item], settings.GRID)
    with pytest.raises(InputError, match="There is no config"):
        commands.load_config(path.parent / "none.json", [])


@pytest.mark.parametrize(
    "script", [apart, tokenizer, renderer, grid, clip, judge, autoregressive, forecast]
)
def test_bad_input_of_a_script_is_one_sentence(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {renderer: 1, autoregressive: 1, forecast: 2}.get(script, 0)
    options = ["--tokenizer", "x", "--verifier", "x"][: 2 * folders]
    junk = tmp_path / "junk.json"
    junk.write_text("{")
    for config, device, told in (
        (tmp_path / "none.json", "cpu", "There is no config"),
        (junk, "cpu", "is no JSON that can be read"),
        (junk, "meta", "There is no device 'meta'"),
    ):
        argv = ["script", "--config", str(config), "--device", device, *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            script.main()
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_a_missing_model_of_a_script_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prior", "--tokenizer", "/none", "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        prior.main()
    assert end.value.code == 2 and "There is no folder '/none'" in capsys.readouterr().err


@pytest.mark.parametrize("script", [apart, tokenizer])
def test_a_script_draws_from_the_world_that_its_config_names(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Asked(Exception):
        pass

    def world(tier: str, sizes: tuple[int, ...], **shares: Any) -> None:
        assert (shares["free"], shares["variants"]) == (0.25, 2)
        raise Asked

    monkeypatch.setattr(script, "World", world)
    config = APART | {"free": 0.25, "variants": 2}
    with pytest.raises(Asked):
        script.train(config, tmp_path, "cpu")
