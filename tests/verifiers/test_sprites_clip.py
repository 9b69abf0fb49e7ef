"""The network of sprites-clip without open_clip equals open_clip's."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.verifiers.toy_clip import pictures, refused
from tfgen.hub import WEIGHTS, read_json
from tfgen.verifiers.clip import CONFIG_FILE, WEIGHTS_FILE, ClipVerifier, _create, _fill
from tfgen.verifiers.sprites_clip import SpritesClip
from tfgen.verifiers.sprites_tower import tell_timm

PACKAGED = WEIGHTS / "sprites-clip"
CONFIG = read_json(PACKAGED / CONFIG_FILE)
TEXTS = ["a red fox in snow", "two cats", "", "a duck above a bicycle on a pink background"]


def by_open_clip(folder: Path) -> nn.Module:
    tell_timm(read_json(folder / CONFIG_FILE)["model_cfg"]["vision_cfg"]["timm_model_name"])
    model = _create(f"local-dir:{folder}", load_weights=False)
    _fill(model, folder / WEIGHTS_FILE)
    return model.eval()


@torch.inference_mode()
def test_it_computes_what_open_clip_computes_bit_for_bit() -> None:
    mine, theirs = ClipVerifier.load(PACKAGED), by_open_clip(PACKAGED)
    assert isinstance(mine.model, SpritesClip) and not isinstance(theirs, SpritesClip)
    assert mine.model.visual.preprocess_cfg == dict(theirs.visual.preprocess_cfg)
    assert (mine.model.context_length, mine.model.vocab_size) == (
        theirs.context_length,
        theirs.vocab_size,
    )
    tokens = mine.tokenize(TEXTS)
    assert torch.equal(mine.model.encode_text(tokens), theirs.encode_text(tokens))
    shown = pictures(7, 64).to(memory_format=torch.channels_last) * 2 - 1
    assert torch.equal(mine.model.encode_image(shown), theirs.encode_image(shown))


def test_its_weights_have_the_names_that_open_clip_gives_them() -> None:
    mine, theirs = SpritesClip(CONFIG).state_dict(), by_open_clip(PACKAGED).state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_default_run_imports_neither_open_clip_nor_what_it_needs(tmp_path: Path) -> None:
    """They took two seconds of the six in which a picture was made."""
    code = f"""
import sys
import tfgen
found = tfgen.generate("a red fox in snow", beam=2, candidates=2, tokens=2)
found.save({str(tmp_path / "fox.png")!r})
heavy = ["open_clip", "timm", "torchvision", "torch._dynamo", "transformers", "triton"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    change(config)
    return config


@pytest.mark.parametrize(
    "config",
    [
        changed(lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="resnet18")),
        changed(lambda c: c["model_cfg"]["vision_cfg"].update(timm_proj="linear")),
        changed(lambda c: c["model_cfg"]["text_cfg"].update(mlp_ratio=2)),
        changed(lambda c: c["model_cfg"].update(quick_gelu=True)),
        changed(lambda c: c["model_cfg"].pop("text_cfg")),
        changed(lambda c: c["preprocess_cfg"].pop("mean")),
        changed(lambda c: c.pop("preprocess_cfg")),
        {"model_cfg": None},
        {},
    ],
)
def test_any_other_config_is_left_to_open_clip(config: dict[str, Any]) -> None:
    assert SpritesClip.is_of(CONFIG) and not SpritesClip.is_of(config)


def test_a_config_that_says_more_gives_open_clips_model(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PACKAGED, tmp_path / "copy"))
    more = changed(lambda c: c["model_cfg"].update(quick_gelu=False))
    (folder / CONFIG_FILE).write_text(json.dumps(more))
    model = ClipVerifier.load(folder).model
    assert not isinstance(model, SpritesClip)
    assert model.logit_scale == ClipVerifier.load(PACKAGED).model.logit_scale


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PACKAGED, tmp_path / "copy"))
    other = changed(lambda c: c["model_cfg"]["text_cfg"].update(layers=2))
    (folder / CONFIG_FILE).write_text(json.dumps(other))
    assert "holds the weights of another model" in refused(lambda: ClipVerifier.load(folder))


@pytest.mark.parametrize(
    "spoilt", [{"heads": 7}, {"width": "160"}, {"layers": None}, {"width": -1}]
)
def test_a_spoilt_config_is_one_sentence(tmp_path: Path, spoilt: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(PACKAGED, tmp_path / "copy"))
    config = changed(lambda c: c["model_cfg"]["text_cfg"].update(spoilt))
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    assert "its config is damaged" in refused(lambda: ClipVerifier.load(folder))
