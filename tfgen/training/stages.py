"""The stages of the recipe: what each is trained or computed from, and what it exports.

Each is a call of one of the training scripts' own functions; recipe.py calls them in order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen import hub
from tfgen.atlas import FILE_NAME as ATLAS_FILE
from tfgen.atlas import Atlas
from tfgen.forecaster import FILE_NAME as FORECAST_FILE
from tfgen.judge import WEIGHTS_FILE as JUDGE_FILE
from tfgen.pipeline import Pipeline
from tfgen.priors.autoregressive import FILE_NAME as AUTOREGRESSIVE_FILE
from tfgen.priors.bank import FILE_NAME as BANK_FILE
from tfgen.priors.frequency import FILE_NAME as PRIOR_FILE
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.sprites import CONFIG_FILE, RENDERER_FILE, WEIGHTS_FILE
from tfgen.training import (
    apart,
    autoregressive,
    bank,
    clip,
    forecast,
    found,
    grid,
    judge,
    prior,
    renderer,
    settings,
    tokenizer,
)
from tfgen.training.ahead import workers_beside
from tfgen.training.captions import Captioner
from tfgen.training.judge_scenes import JudgeWorld
from tfgen.training.objects import load_objects
from tfgen.training.settings import Settings
from tfgen.training.stopping import Timer
from tfgen.training.world import World
from tfgen.verifiers.clip import WEIGHTS_FILE as CLIP_FILE
from tfgen.verifiers.clip import ClipVerifier
from tfgen.verifiers.words import WordTokenizer

SPRITES, GRID, CLIP, JUDGE = "sprites", "sprites-grid", "sprites-clip", "sprites-judge"
MODELS = (SPRITES, CLIP, JUDGE, GRID)
FOUND = "stages/found/found.safetensors"
Config = dict[str, Any]


class Materials:
    """What the stages of one call work with.

    sprites: uint8 [N, 4, S, S] of the first N objects of the full table, at least the tier's own;
    out: where the models come out; deadline: on time.monotonic's clock, or None.
    """

    def __init__(
        self, tier: str, out: Path, device: str, deadline: float | None, sprites: Tensor
    ) -> None:
        self.out, self.device, self.deadline = out, device, deadline
        self.sprites, self.specs = sprites, list(load_objects(tier))
        self._worlds: dict[tuple[float, float, int], World] = {}

    def world(self, config: Config, pairs: float = 0.0) -> World:
        """pairs: see World (the verifier's configs mean another share by that name)."""
        key = (config.get("free", 0.0), pairs, config.get("variants", 8))
        if key not in self._worlds:
            self._worlds[key] = self._world(*key, self.device)
        return self._worlds[key]

    def judge_world(self, config: Config) -> JudgeWorld:
        """On the CPU, with the judge's own variants of the backgrounds."""
        world = self._world(config.get("free", 0.0), 0.0, config["variants"], "cpu")
        return JudgeWorld.among(world, self.sprites)

    def _world(self, free: float, pairs: float, variants: int, device: str) -> World:
        own = self.sprites[: len(self.specs)]
        shares = {"free": free, "pairs": pairs}
        return World("", (64,), variants, device, sprites=own, specs=self.specs, **shares)

    def tokenizer(self, name: str = SPRITES, device: str | None = None) -> Tokenizer:
        return hub.load_tokenizer(str(self.out / name), torch.device(device or self.device))

    def verifier(self) -> ClipVerifier:
        return ClipVerifier.load(self.out / CLIP, self.device)

    def exported(self, stage: str) -> Path:
        """Where a stage before the tokenizer's or the verifier's last leaves its model."""
        return self.out / "stages" / stage / "model"


Run = Callable[[Materials, Config, Path], None]
"""Trains a stage as a config says, in a folder for its checkpoint, and exports its files."""


def train_apart(materials: Materials, config: Config, folder: Path) -> None:
    world, limit = materials.world(config), materials.deadline
    trained = apart.train(config, folder, materials.device, world, deadline=limit)
    apart.export(trained, materials.exported(folder.name))


def train_tokenizer(materials: Materials, config: Config, folder: Path) -> None:
    world, limit = materials.world(config), materials.deadline
    begun = config | {"start": str(materials.exported("apart"))}
    trained = tokenizer.train(begun, folder, materials.device, world, deadline=limit)
    begin_config(materials.out, SPRITES, trained.cfg.num_tokens)
    tokenizer.export(trained, materials.out / SPRITES)


def train_renderer(materials: Materials, config: Config, folder: Path) -> None:
    world, limit = materials.world(config), materials.deadline
    ordered = materials.tokenizer()
    trained = renderer.train(config, folder, materials.device, ordered, world, deadline=limit)
    renderer.export(trained, materials.out / SPRITES)


def count_prior(name: str) -> Run:
    def run(materials: Materials, config: Config, folder: Path) -> None:
        prior.count(
            materials.world(config),
            materials.tokenizer(name),
            config["scenes"],
            materials.out / name / PRIOR_FILE,
            config["tier"],
            config["min_count"],
            Timer(materials.deadline),
        )

    return run


def train_clip(before: str | None, last: bool = False) -> Run:
    """before: the stage whose verifier it goes on from, on decodes; None: on clean scenes, from the
    tokenizer's encoder; last: whether it learns from what searches with that one found, too, and
    its verifier is the one that comes out."""

    def run(materials: Materials, config: Config, folder: Path) -> None:
        world, ordered = materials.world(config), materials.out / SPRITES
        begin: dict[str, Any] = {"tower": ordered}
        if before:
            begin = {"model": materials.exported(before), "tokenizer": materials.tokenizer()}
        if last:
            begin["found"] = found.Found.open(materials.out / FOUND)
        trained, words = clip.train(
            config, folder, materials.device, world, deadline=materials.deadline, **begin
        )
        target = materials.out / CLIP if last else materials.exported(folder.name)
        clip.export(trained, words, Captioner(world.specs), config["width"], target)

    return run


def search_for_captions(before: str) -> Run:
    """Search with the verifier of the stage `before` and a bank of its own."""

    def run(materials: Materials, config: Config, folder: Path) -> None:
        verifier, path = materials.exported(before), folder / BANK_FILE
        # A bank of scenes in layouts, whose objects combine: those anywhere hardly do.
        bank.build(
            materials.world(config | {"free": 0.0}, config["pairs"]),
            materials.tokenizer(),
            ClipVerifier.load(verifier, materials.device),
            config["scenes"],
            path,
            config["tier"],
            Timer(materials.deadline),
        )
        pipeline = Pipeline.load(
            str(materials.out / SPRITES),
            verifier=str(verifier),
            prior=f"retrieval:{path}",
            device=materials.device,
        )
        found.search_for(
            materials.world(config),
            pipeline,
            config["captions"],
            config["budget"],
            config["seed"],
            materials.out / FOUND,
            Timer(materials.deadline),
        )

    return run


def train_judge(materials: Materials, config: Config, folder: Path) -> None:
    world, seen = materials.judge_world(config), materials.tokenizer(device="cpu")
    trained = judge.train(
        config,
        folder,
        world,
        seen,
        deadline=materials.deadline,
        device=materials.device,
        workers=workers_beside(materials.device),
    )
    scenes = config.get("threshold_scenes", 1000)
    judge.export(trained, world, seen, materials.out / JUDGE, scenes)


def build_bank(materials: Materials, config: Config, folder: Path) -> None:
    bank.build(
        materials.world(config, config["pairs"]),
        materials.tokenizer(),
        materials.verifier(),
        config["scenes"],
        materials.out / SPRITES / BANK_FILE,
        config["tier"],
        Timer(materials.deadline),
    )


def build_atlas(materials: Materials, config: Config, folder: Path) -> None:
    path = materials.out / SPRITES / ATLAS_FILE
    timer = Timer(materials.deadline)
    Atlas.build(materials.tokenizer(), materials.verifier(), path, progress=timer)


def train_forecaster(materials: Materials, config: Config, folder: Path) -> None:
    models, limit = (materials.tokenizer(), materials.verifier()), materials.deadline
    known = bank.Bank.open(materials.out / SPRITES / BANK_FILE)
    trained = forecast.train(config, folder, *models, known, deadline=limit)
    trained.save(materials.out / SPRITES / FORECAST_FILE)


def train_autoregressive(name: str) -> Run:
    def run(materials: Materials, config: Config, folder: Path) -> None:
        trained = autoregressive.train(
            config,
            folder,
            materials.device,
            materials.tokenizer(name),
            WordTokenizer.load(materials.out / CLIP / "vocabulary.json"),
            materials.world(config, config.get("pairs", 0.0)),
            deadline=materials.deadline,
        )
        trained.save(materials.out / name / AUTOREGRESSIVE_FILE)

    return run


def train_grid(materials: Materials, config: Config, folder: Path) -> None:
    world, limit = materials.world(config), materials.deadline
    trained = grid.train(config, folder, materials.device, world, deadline=limit)
    begin_config(materials.out, GRID, trained.cfg.num_tokens)
    grid.export(trained, materials.out / GRID)


def begin_config(out: Path, name: str, num_tokens: int) -> None:
    """A tokenizer.json with the search defaults of the packaged model of this name, to be filled;
    one that is there stays. num_tokens: how many a search can have at most."""
    path = out / name / CONFIG_FILE
    if not path.exists():
        defaults = hub.read_json(hub.WEIGHTS / name / CONFIG_FILE)["search_defaults"]
        defaults["tokens"] = min(defaults["tokens"], num_tokens)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"search_defaults": defaults})


@dataclass(frozen=True)
class Stage:
    """A part of the recipe that is trained or computed by itself.

    config: the name of its config, where {} stands for the tier, or "" for none; settings: what
    that holds; needs: the stages whose files it reads; files: what it exports, relative to --out.
    """

    name: str
    config: str
    settings: Settings
    needs: tuple[str, ...]
    files: tuple[str, ...]
    run: Run


_MODEL = "stages/{}/model/" + CLIP_FILE
STAGES = (
    Stage(
        "apart",
        "apart_{}.json",
        settings.APART,
        (),
        (f"stages/apart/model/{WEIGHTS_FILE}", f"stages/apart/model/{CONFIG_FILE}"),
        train_apart,
    ),
    Stage(
        "tokenizer",
        "tokenizer_{}.json",
        settings.TOKENIZER,
        ("apart",),
        (f"{SPRITES}/{WEIGHTS_FILE}", f"{SPRITES}/{CONFIG_FILE}"),
        train_tokenizer,
    ),
    Stage(
        "renderer",
        "renderer_{}.json",
        settings.RENDERER,
        ("tokenizer",),
        (f"{SPRITES}/{RENDERER_FILE}",),
        train_renderer,
    ),
    Stage(
        "prior",
        "prior_{}.json",
        settings.PRIOR,
        ("tokenizer",),
        (f"{SPRITES}/{PRIOR_FILE}",),
        count_prior(SPRITES),
    ),
    Stage(
        "clip",
        "clip_{}.json",
        settings.CLIP,
        ("tokenizer",),
        (_MODEL.format("clip"),),
        train_clip(None),
    ),
    Stage(
        "clip_decoded",
        "clip_{}_decoded.json",
        settings.CLIP_DECODED,
        ("tokenizer", "clip"),
        (_MODEL.format("clip_decoded"),),
        train_clip("clip"),
    ),
    Stage(
        "clip_odd",
        "clip_{}_odd.json",
        settings.CLIP_DECODED,
        ("tokenizer", "clip_decoded"),
        (_MODEL.format("clip_odd"),),
        train_clip("clip_decoded"),
    ),
    Stage(
        "clip_pairs",
        "clip_{}_pairs.json",
        settings.CLIP_DECODED,
        ("tokenizer", "clip_odd"),
        (_MODEL.format("clip_pairs"),),
        train_clip("clip_odd"),
    ),
    Stage(
        "found",
        "found_{}.json",
        settings.FOUND,
        ("tokenizer", "prior", "clip_pairs"),
        (FOUND,),
        search_for_captions("clip_pairs"),
    ),
    Stage(
        "clip_found",
        "clip_{}_found.json",
        settings.CLIP_FOUND,
        ("tokenizer", "found"),
        (f"{CLIP}/{CLIP_FILE}", f"{CLIP}/vocabulary.json", f"{CLIP}/contrast.json"),
        train_clip("clip_pairs", last=True),
    ),
    Stage(
        "judge",
        "judge_{}.json",
        settings.JUDGE,
        ("tokenizer",),
        (f"{JUDGE}/{JUDGE_FILE}",),
        train_judge,
    ),
    Stage(
        "bank",
        "bank_{}.json",
        settings.BANK,
        ("tokenizer", "clip_found"),
        (f"{SPRITES}/{BANK_FILE}",),
        build_bank,
    ),
    Stage(
        "atlas",
        "",
        settings.NONE,
        ("tokenizer", "clip_found"),
        (f"{SPRITES}/{ATLAS_FILE}",),
        build_atlas,
    ),
    Stage(
        "forecast",
        "forecast_{}.json",
        settings.FORECAST,
        ("tokenizer", "clip_found", "bank"),
        (f"{SPRITES}/{FORECAST_FILE}",),
        train_forecaster,
    ),
    Stage(
        "autoregressive",
        "autoregressive_{}.json",
        settings.AUTOREGRESSIVE,
        ("tokenizer", "clip_found"),
        (f"{SPRITES}/{AUTOREGRESSIVE_FILE}",),
        train_autoregressive(SPRITES),
    ),
    Stage(
        "grid",
        "grid_{}.json",
        settings.GRID,
        (),
        (f"{GRID}/{WEIGHTS_FILE}", f"{GRID}/{CONFIG_FILE}"),
        train_grid,
    ),
    Stage(
        "grid_prior",
        "prior_{}.json",
        settings.PRIOR,
        ("grid",),
        (f"{GRID}/{PRIOR_FILE}",),
        count_prior(GRID),
    ),
    Stage(
        "grid_autoregressive",  # the same config gives every tokenizer the same scenes and steps
        "autoregressive_{}.json",
        settings.AUTOREGRESSIVE,
        ("grid", "clip_found"),
        (f"{GRID}/{AUTOREGRESSIVE_FILE}",),
        train_autoregressive(GRID),
    ),
)

VERIFIERS = [stage.name for stage in STAGES if stage.name.startswith("clip")]
"""The stages that train a verifier, for which open_clip makes the network."""


def write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
