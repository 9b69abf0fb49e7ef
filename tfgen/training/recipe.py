"""Train all models of a tier of the sprite world, in the right order, in calls of limited time.

    python -m tfgen.training.recipe --tier medium --minutes 9 --device cuda \\
        --sprites FILE --out runs/medium

Repeat the same command until it exits with 0. Exit codes: 0 all is done; 3 the time is up, and what
was done is saved (it prints what is left); 2 bad input, such as a config that was changed since its
stage began; 1 another failure. A call takes a little longer than its minutes: the step it is in, or
the export of the stage it has just finished (a minute at most for the judge's thresholds). Ctrl-C
(exit code 130) and SIGTERM (3) end it in the same way; a second one ends it at once.

The models come out in the layout of tfgen/weights: the folders sprites, sprites-clip, sprites-judge
and sprites-grid under --out, for `--model FOLDER` and `--verifier FOLDER`. Beside them the folder
stages/NAME holds a stage's state.json, its log and, until it is finished, its checkpoint. Stages
hand over by their exported files alone, so that another machine goes on from these; only a stage
in the middle needs its checkpoint. Where a machine is given back after each call, `--snapshot DIR`
leaves all that in a few small files, and `--start DIR` goes on from them. On a CPU, `--stages
clip,judge` lets calls for different stages run side by side, one a core, and `--configs
tfgen/training/configs/cpu` holds smaller ones for the tiers medium and full, which begin with the
packaged models where their sizes are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfgen import hub
from tfgen.errors import InputError, TfgenError, unknown
from tfgen.training import snapshot, stopping
from tfgen.training.commands import check_device, deadline_in, exit_code, told_errors
from tfgen.training.objects import TIERS, load_objects
from tfgen.training.settings import Settings
from tfgen.training.sprites import HOW_TO_BRING_SPRITES, load_sprites, read_sprites
from tfgen.training.stages import MODELS, STAGES, VERIFIERS, Config, Materials, Stage, write_json
from tfgen.training.stopping import OUT_OF_TIME, TimeUp

CONFIGS = Path(__file__).parent / "configs"


class Book:
    """What has become of each stage: a state.json each, which is replaced atomically.

    config: what the stage is made with; sources: the digests of the files of the stages it needs;
    digests: of the weights that it exported, once it is done; minutes: spent on it.
    """

    def __init__(self, out: Path, tier: str, configs: Path):
        self.out = out
        self.configs = {
            s.name: read_config(configs / s.config.format(tier), tier, s.settings) for s in STAGES
        }
        self.states = {s.name: self._read(s) for s in STAGES}

    def folder(self, stage: Stage) -> Path:
        return self.out / "stages" / stage.name

    def _read(self, stage: Stage) -> dict[str, Any]:
        """Its state, {} where it has not begun. Raises InputError where it began with another
        config, or its files are not those that it exported."""
        path, config = self.folder(stage) / "state.json", self.configs[stage.name]
        if not path.exists():
            return {}
        state = hub.read_json(path)
        was = state.get("config", {})
        changed = [k for k in {**was, **config} if was.get(k) != config.get(k)]
        if changed:
            raise InputError(
                f"The config of the stage {stage.name} was changed since the stage began (in "
                f"{', '.join(changed)}): restore it, or delete {str(self.folder(stage))!r} to make "
                "the stage anew."
            )
        if "digests" in state and state["digests"] != self._digests(stage):
            raise InputError(
                f"The files of the finished stage {stage.name} are missing or are others "
                f"({', '.join(stage.files)}): bring them back, or delete "
                f"{str(self.folder(stage))!r} to make the stage anew."
            )
        return state

    def is_done(self, stage: Stage) -> bool:
        """Raises InputError where it was made of other files than are there now."""
        state = self.states[stage.name]
        if state and state["sources"] != self._sources(stage):
            raise InputError(
                f"The stage {stage.name} began with other files of {', '.join(stage.needs)} than "
                f"are there now: delete {str(self.folder(stage))!r} to make the stage anew."
            )
        return "digests" in state

    def has(self, name: str) -> bool:
        """Whether the stage of this name is done."""
        return "digests" in self.states[name]

    def begin(self, stage: Stage) -> None:
        """Note what the stage is made with, unless it has begun already."""
        if self.states[stage.name]:
            return
        for file in stage.files:
            if file.endswith(".safetensors"):  # a JSON file may hold what a user has set
                (self.out / file).unlink(missing_ok=True)
        config, sources = self.configs[stage.name], self._sources(stage)
        self._write(stage, {"config": config, "sources": sources, "minutes": 0.0})

    def spend(self, stage: Stage, seconds: float) -> None:
        state = self.states[stage.name]
        self._write(stage, state | {"minutes": round(state["minutes"] + seconds / 60, 2)})

    def finish(self, stage: Stage) -> None:
        """Note what the stage has exported; its checkpoint is of no more use."""
        digests = self._digests(stage)
        if None in digests.values():
            raise TfgenError(f"The stage {stage.name} exported no {', '.join(stage.files)}.")
        self._write(stage, self.states[stage.name] | {"digests": digests})
        for checkpoint in self.folder(stage).rglob(snapshot.CHECKPOINT):
            checkpoint.unlink()
        for parts in self.folder(stage).glob("*.parts"):
            shutil.rmtree(parts)

    def _write(self, stage: Stage, state: dict[str, Any]) -> None:
        self.folder(stage).mkdir(parents=True, exist_ok=True)
        write_json(self.folder(stage) / "state.json", state)
        self.states[stage.name] = state

    def _sources(self, stage: Stage) -> dict[str, Any]:
        return {need: self.states[need].get("digests") for need in stage.needs}

    def _digests(self, stage: Stage) -> dict[str, str | None]:
        """SHA-256 of its files of weights, None for those that are not there."""
        digests: dict[str, str | None] = {}
        for file in stage.files:
            path = self.out / file
            if not path.is_file():
                digests[file] = None
            elif path.suffix == ".safetensors":
                digests[file] = hashlib.sha256(path.read_bytes()).hexdigest()
        return digests

    def left(self, current: Stage, up: TimeUp | None) -> list[str]:
        """A line for every stage: what is done and what is left of it. up: where the time was up in
        the current stage; None: before it."""
        lines = []
        for stage in STAGES:
            state, config = self.states[stage.name], self.configs[stage.name]
            if up and stage is current:
                minutes = up.pace * (up.total - up.done) / 60
                told = f"{up.done:,} of {up.total:,} done, about {minutes:.1f} minutes left"
            elif "digests" in state:
                told = f"done, in {state['minutes']:.1f} minutes"
            else:
                amount = [f"{config[k]:,} {k}" for k in ("steps", "scenes") if k in config]
                told = " ".join(["begun" if state else "not begun", *(f"({a})" for a in amount)])
            lines.append(f"  {stage.name:20} {told}")
        return lines


def read_config(path: Path, tier: str, settings: Settings) -> Config:
    """A stage's config, of this tier. Raises InputError where there is none, or its settings are
    not right."""
    if path.suffix != ".json":  # a stage without one
        return {"tier": tier}
    if not path.is_file():
        raise InputError(f"There is no config {str(path)!r}, which the tier {tier} needs.")
    config = hub.read_json(path)
    if config.get("tier") != tier:
        raise InputError(f"{str(path)!r} is a config of the tier {config.get('tier')}, not {tier}.")
    settings.check(config, str(path))
    return config


def gather_sprites(tier: str, file: Path | None, out: Path) -> Tensor:
    """The sprites, uint8 [N, 4, S, S] of the first N objects of the full table: those in the file,
    or else all, from the cache folder or npm. Those that the recipe began with stay those it goes
    on with. Raises InputError where there are none, too few, or others than before."""
    if file is not None:
        sprites = read_sprites(file)
    else:
        try:
            sprites, _ = load_sprites("full", 192)
        except TfgenError as error:
            raise InputError(
                f"The sprites are not on this machine ({str(error).rstrip('.')}); for "
                f"--sprites FILE, {HOW_TO_BRING_SPRITES}"
            ) from error
    own, known = len(load_objects(tier)), len(sprites)
    if known < own:
        raise InputError(
            f"{str(file)!r} holds {known} sprites, fewer than the {own} of the tier {tier}: "
            f"{HOW_TO_BRING_SPRITES}"
        )
    if known == own and tier != TIERS[-1]:
        print("note: without sprites of the larger tiers the judge sees fewer sorts of strangers")
    # Not by their bytes: where they are built anew, these may differ in the last bit.
    used = {"tier": tier, "sprites": known, "size": sprites.shape[-1]}
    path = out / "stages" / "recipe.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, used)
    elif hub.read_json(path) != used:
        raise InputError(
            f"The recipe in {str(out)!r} began with another tier or other sprites: give those, or "
            "another folder as --out."
        )
    return sprites


def choose(names: str | None) -> list[Stage]:
    """The stages of these names, separated by commas, in the recipe's order; None: all. Raises
    InputError for an unknown name."""
    known = {stage.name: stage for stage in STAGES}
    chosen = list(known) if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise unknown("stage", name, known)
    return [stage for stage in STAGES if stage.name in chosen]


def cook(materials: Materials, book: Book, stages: Sequence[Stage] = STAGES) -> bool:
    """Work on these stages in order; returns whether they are done, and tells what is left, if not.

    Raises InputError where one of them needs another that is not done.
    """
    begun = False  # every call gets on with something, however late it is
    for stage in stages:
        if book.is_done(stage):
            continue
        if lacking := [need for need in stage.needs if not book.has(need)]:
            raise InputError(
                f"The stage {stage.name} needs {', '.join(lacking)}, not done yet: finish that "
                "first, or name it in --stages, too."
            )
        number = STAGES.index(stage) + 1
        start, up = time.monotonic(), None
        stopped = bool(stopping.signalled())
        if not stopped and not (begun and stopping.is_over(materials.deadline)):
            begun = True
            book.begin(stage)
            print(f"stage {number} of {len(STAGES)}: {stage.name}", flush=True)
            try:
                stage.run(materials, book.configs[stage.name], book.folder(stage))
            except TimeUp as reached:
                up = reached
            book.spend(stage, time.monotonic() - start)
            if not up:
                book.finish(stage)
                continue
        told = book.left(stage, up)
        why = "Stopped" if stopping.signalled() else "The time is up"
        print(f"{why}: give the same command again.", *told, sep="\n", flush=True)
        return False
    return True


def check_verifier(stages: Sequence[Stage]) -> None:
    """Raises InputError where one of these stages needs open_clip, and it is not installed."""
    needing = [stage.name for stage in stages if stage.name in VERIFIERS]
    lacking = [name for name in ("open_clip", "timm", "ftfy", "wcwidth") if not find_spec(name)]
    if needing and lacking:
        raise InputError(
            f"The stages {', '.join(needing)} need {', '.join(lacking)}, which Python does not "
            "find here: install open_clip_torch and ftfy, or name other stages in --stages."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tfgen.training.recipe",
        description=__doc__.split("\n")[0],
        epilog=f"Exit codes: 0 all is done, {OUT_OF_TIME} the time is up: give the same command "
        "again, 2 bad input, 1 another failure.",
    )
    parser.add_argument("--tier", choices=TIERS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument(
        "--stages", help="only these, separated by commas; calls for others may run beside it"
    )
    parser.add_argument("--minutes", type=float, help="stop after so many; default: never")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sprites", type=Path, help="file of sprites, where there is no network")
    parser.add_argument(
        "--configs", type=Path, default=CONFIGS, help="folder of configs; default: the package's"
    )
    parser.add_argument(
        "--snapshot",
        type=Path,
        metavar="DIR",
        help="at the end of the call leave here, in files of at most 15 MiB, what another machine "
        "needs to go on",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="go on from a snapshot, unless --out holds a recipe already",
    )
    args = parser.parse_args(argv)
    try:
        with told_errors():
            return train_all(args)
    except SystemExit as end:
        return int(end.code)


def train_all(args: argparse.Namespace) -> int:
    """What the command does; returns the exit code. Raises TfgenError."""
    deadline = deadline_in(args.minutes)
    check_device(args.device)
    stages = choose(args.stages)
    check_verifier(stages)
    torch.set_float32_matmul_precision("high")
    if args.start and not (args.out / "stages").exists():
        snapshot.restore(args.start, args.out)
    book = Book(args.out, args.tier, args.configs)
    sprites = gather_sprites(args.tier, args.sprites, args.out)
    materials = Materials(args.tier, args.out, args.device, deadline, sprites)
    try:
        done = cook(materials, book, stages)
    finally:  # what was done before a stage that failed, too
        if args.snapshot:
            size = snapshot.save(args.out, args.snapshot)
            print(f"A snapshot of {size / 1e6:.1f} MB is in {str(args.snapshot)!r}.", flush=True)
    if not done:
        return exit_code()
    if len(stages) < len(STAGES):
        print(f"The stages {', '.join(stage.name for stage in stages)} are done.")
        return 0
    size = sum(file.stat().st_size for name in MODELS for file in (args.out / name).iterdir())
    print(f"All is done: {size / 1e6:.1f} MB in {', '.join(MODELS)} of {str(args.out)!r}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
