"""Train the judge `sprites-judge`: the detector that says what a picture of the sprite world shows.

    python -m tfgen.training.judge --config tfgen/training/configs/judge_small.json

Resumes from its checkpoint in the cache folder. The judge is the referee of what a search makes, so
it has nothing in common with what is searched: another architecture than the verifier's or the
tokenizer's, random initial weights, its own seed and its own stream of scenes (judge_scenes.py). It
never sees the result of a search, nor a prefix of a scene's tokens. A share of its pictures
(`decoded_share`) are true scenes that a tokenizer has encoded and decoded at full length, so that
it knows how a decoder paints; one that does not look like its scene any more is left out.

Every object teaches the cells around its centre what it is, its colour and its box; every cell
learns whether it is a centre.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen import hub
from tfgen.errors import InputError
from tfgen.judge import MIXED as MIXED_WORD
from tfgen.judge import OTHER, WEIGHTS_FILE, Judge, Seen, Thresholds, shared
from tfgen.judge_model import Answers, JudgeConfig, JudgeModel, cell_centres
from tfgen.judge_prompt import CONFIG_FILE, WORDS_FILE
from tfgen.packing import write_whole
from tfgen.tokenizers.base import Tokenizer
from tfgen.training.ahead import ahead
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import Captioner
from tfgen.training.clip import contrast_words
from tfgen.training.colours import COLOURS
from tfgen.training.commands import arguments, command_line, deadline_in, load_config, parsed
from tfgen.training.common import Training, cache_folder, learning_rate
from tfgen.training.judge_scenes import MIXED, JudgeWorld, Pictures
from tfgen.training.settings import JUDGE
from tfgen.training.spoil import soften
from tfgen.training.tokenizer import HELD_OUT_SEED, psnr
from tfgen.verifiers.contrast import ContrastWords

VISIBLE = 0.6  # an object of which less can be seen is neither asked for nor held against
FAITHFUL = 24.0  # dB: a decoded scene that is further from its original may show something else
WEIGHTS = {"centre": 1.0, "object": 1.0, "colour": 0.7, "reach": 5.0, "background": 0.3}


def focal(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The penalty-reduced focal loss of CenterNet (arXiv 1904.07850, eq. 1), per centre."""
    p = torch.sigmoid(logits).clamp(1e-5, 1 - 1e-5)
    at_centre = (target == 1).float()
    positive = at_centre * (1 - p) ** 2 * p.log()
    negative = (1 - target) ** 4 * p**2 * (1 - p).log() * (1 - at_centre)
    return -((positive + negative) * weight).sum() / at_centre.sum().clamp(min=1)


def centre_map(pictures: Pictures, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where centres are: (cells Int64[P, 2] row and column of each object's centre; target
    Float[N, side, side], 1 at centres with a soft slope around; weight Float[N, side, side], 0
    around objects that are mostly hidden)."""
    boxes, n = pictures.boxes, len(pictures.images)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = (middle * side).long().clamp(0, side - 1).flip(1)
    extent = (boxes[:, 2:] - boxes[:, :2]).amin(1) * side
    sigma = (0.12 * extent).clamp(0.5, 1.2)[:, None, None]
    axis = torch.arange(side, device=boxes.device)
    far = (axis[None, :, None] - cells[:, :1, None]) ** 2
    far = far + (axis[None, None] - cells[:, 1:, None]) ** 2  # [P, side, side]
    slope = torch.exp(-far / (2 * sigma**2))
    seen = (pictures.visible >= VISIBLE)[:, None, None]
    rows = pictures.rows[:, None, None].expand_as(slope)
    nothing = boxes.new_zeros(n, side, side)
    target = nothing.scatter_reduce(0, rows, slope * seen, "amax")
    hidden = nothing.scatter_reduce(0, rows, ((far <= 4) & ~seen).float(), "amax")
    return cells, target, torch.maximum(1 - hidden, (target == 1).float())


def judge_loss(answers: Answers, pictures: Pictures, other: int) -> dict[str, Tensor]:
    """What the answers are off by, part by part. `other`: the class that has no colour."""
    side = answers.centre.shape[1]
    cells, target, weight = centre_map(pictures, side)
    # The nine cells around each centre learn its object: Int64[P, 9] rows and columns.
    around = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    near = cells[:, None] + around.to(cells.device)
    valid = ((near >= 0) & (near < side)).all(2) & (pictures.visible >= VISIBLE)[:, None]
    p, k = valid.nonzero(as_tuple=True)
    row, y, x = pictures.rows[p], *near[p, k].unbind(1)
    objects, colours, boxes = pictures.objects[p], pictures.colours[p], pictures.boxes[p]
    centre = cell_centres(side, side).to(boxes.device)[y, x]
    reach = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], 1)
    asked = (objects < other) & (colours >= 0)
    return {
        "centre": focal(answers.centre, target, weight),
        "object": F.cross_entropy(answers.objects[row, y, x], objects),
        "colour": F.cross_entropy(answers.colours[row, y, x][asked], colours[asked]),
        "reach": (answers.reach[row, y, x] - reach).abs().mean(),
        "background": F.cross_entropy(answers.background, pictures.background),
    }


def draw_pictures(
    world: JudgeWorld,
    config: dict,
    tokenizer: Tokenizer | None,
    generator: torch.Generator,
) -> Pictures:
    """`batch` training pictures, with shares of objects that are `other` and `mixed`; with a
    tokenizer, `decoded_share` of the pictures are true scenes as it decodes them at full length."""
    decoded = round(config["batch"] * config["decoded_share"]) if tokenizer else 0
    n = config["batch"] - decoded
    placed = world.sample(n, generator, config["other"], config["mixed"])
    parts = [world.paint(placed, generator, spoilt=True)]
    if tokenizer and decoded:
        scenes = world.world.sample(decoded, generator)
        part = world.paint(world.true(scenes), generator)
        shown = tokenizer.decode(tokenizer.encode(part.images))
        faithful = psnr(shown, part.images) >= FAITHFUL
        part.images = torch.where(faithful[:, None, None, None], shown, part.images)
        part.rows = part.rows + n
        parts.append(part)
    fields = Pictures.__dataclass_fields__
    joined = Pictures(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))
    joined.images = soften(joined.images, generator)
    return joined


def held_out(world: JudgeWorld) -> Pictures:
    """True scenes that no training step draws."""
    scenes = world.world.sample(256, torch.Generator().manual_seed(HELD_OUT_SEED))
    return world.paint(world.true(scenes), torch.Generator().manual_seed(HELD_OUT_SEED))


@torch.no_grad()
def evaluate(model: JudgeModel, pictures: Pictures, other: int) -> dict[str, float]:
    """Shares of answers that are right where the objects are known to be (colour: of objects in a
    given colour, since a natural coat may look the same), and of pictures with as many centres as
    objects."""
    answers = Answers(
        *map(torch.cat, zip(*(model(i) for i in pictures.images.split(64)), strict=True))
    )
    side = answers.centre.shape[1]
    cells, _, _ = centre_map(pictures, side)
    at = (pictures.rows, cells[:, 0], cells[:, 1])
    tinted = (pictures.colours > 0) & (pictures.colours < MIXED)
    right = {
        "object": answers.objects[at].argmax(1) == pictures.objects,
        "colour": (answers.colours[at].argmax(1) == pictures.colours)[tinted],
        "background": answers.background.argmax(1) == pictures.background,
    }
    heat = torch.sigmoid(answers.centre)
    peaks = (heat > 0.4) & (heat == F.max_pool2d(heat, 3, 1, 1))
    right["count"] = peaks.sum((1, 2)) == torch.bincount(pictures.rows, minlength=len(heat))
    return {k: round(v.float().mean().item(), 4) for k, v in right.items()}


def begin_with(model: JudgeModel, name: str) -> None:
    """Give the network the weights of a judge of the same sizes that knows the first of its
    objects: a packaged one's name, or a folder. Raises InputError where the sizes differ."""
    packaged = hub.WEIGHTS / name
    known = Judge.load(packaged if packaged.is_dir() else name).model
    few, many = known.cfg.objects, model.cfg.objects
    if replace(known.cfg, objects=many) != model.cfg or few > many:
        raise InputError(
            f"The judge {name!r} has another network than the config asks for: give the config its "
            'sizes, or take out the config\'s "start".'
        )
    for (key, own), theirs in zip(
        model.state_dict().items(), known.state_dict().values(), strict=True
    ):
        if key in ("cells.weight", "cells.bias"):
            # Centre, objects, other, colours, reach: those objects that only this judge knows lie
            # before "other", which is number `few` of the known one.
            own[:few], own[many:] = theirs[:few], theirs[few:]
        else:
            own.copy_(theirs)


def train(
    config: dict,
    folder: Path,
    world: JudgeWorld,
    tokenizer: Tokenizer | None = None,
    until: int | None = None,
    deadline: float | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> JudgeModel:
    """Train as `config` says, checkpointing in `folder`; returns the model with EMA weights.

    tokenizer: on the CPU, as the world is; deadline: see Training; raises TimeUp there; device: of
    the model; workers: processes that draw the pictures, for a device that is faster than one.
    """
    torch.manual_seed(config["seed"])
    cfg = JudgeConfig(
        image_size=world.image_size,
        widths=tuple(config["widths"]),
        neck=config["neck"],
        objects=world.other + 1,
        colours=MIXED + 1,
        backgrounds=len(BACKGROUNDS),
    )
    model = JudgeModel(cfg).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    training = Training(model, optimiser, config, folder, until, deadline)
    if training.start == 0 and config.get("start"):
        begin_with(model, config["start"])
        training.forget_average()

    def draw(step: int) -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        return draw_pictures(world, config, tokenizer, generator).arrays()

    bf16 = config.get("bf16", False)
    for step, drawn in ahead(draw, training, training.last, workers):
        pictures = Pictures.of_arrays(drawn).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            answers = model(pictures.images)
        parts = judge_loss(answers, pictures, world.other)
        loss = sum(WEIGHTS[k] * v for k, v in parts.items())
        rate = learning_rate(step, config["steps"], config["peak_lr"], flat=config["flat"])
        training.learn(loss, parts, rate, largest_norm=5.0)
        if training.is_milestone:
            averaged = training.averaged(JudgeModel(cfg).to(device))
            pictures = held_out(world).to(device)
            training.log(training.done, **evaluate(averaged, pictures, world.other))
    training.finish()
    return model


@torch.no_grad()
def choose_thresholds(judge: Judge, pictures: Pictures) -> Thresholds:
    """The strictest of the thresholds with which the judge is right about as often as it can be.

    First those of objects: right is a picture whose objects are named each as often as it is there,
    and no more (pictures with an object that is mostly hidden do not count). Then that of colours:
    right is an object whose colour is told, or that it is mixed.
    """
    clear = set(range(len(pictures.images))) - set(
        pictures.rows[pictures.visible < VISIBLE].tolist()
    )
    names = [*judge.objects, OTHER]
    true: list[list[tuple[str, int, list[float]]]] = [[] for _ in pictures.images]
    columns = (pictures.rows, pictures.objects, pictures.colours, pictures.boxes)
    for row, thing, colour, box in zip(*(c.tolist() for c in columns), strict=True):
        true[row].append((names[thing], colour, box))
    words = [*COLOURS, MIXED_WORD]
    answers = [judge.model(part) for part in pictures.images.split(64)]

    def read(thresholds: Thresholds) -> list[Seen]:
        reader = Judge(judge.model, judge.words, judge.backgrounds, thresholds)
        return [seen for part in answers for seen in reader.read(part)]

    def named_right(thresholds: Thresholds) -> int:
        seen = read(thresholds)
        return sum(
            Counter(d.object for d in seen[i].objects if d.object != OTHER)
            == Counter(name for name, _, _ in true[i] if name != OTHER)
            for i in clear
        )

    def coloured_right(thresholds: Thresholds) -> int:
        return sum(
            d.object == name and shared(d.box, box) > 0.5 and d.has_colour(words[colour])
            for i, view in enumerate(read(thresholds))
            for d in view.objects
            for name, colour, box in true[i]
            if colour > 0
        )

    grid = itertools.product((0.8, 0.7, 0.6, 0.5, 0.4), (0.6, 0.5, 0.4, 0.3), (0.45, 0.6))
    best = strictest([Thresholds(c, name, o) for name, c, o in grid], named_right, 0.98)
    colours = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    return strictest([replace(best, colour=c) for c in colours], coloured_right, 0.99)


def strictest(
    options: Sequence[Thresholds], right: Callable[[Thresholds], int], share: float
) -> Thresholds:
    """The first of the options, the strictest of which come first, that is right `share` as often
    as the best is: a referee may rather miss than be fooled."""
    scores = [right(option) for option in options]
    return next(o for o, n in zip(options, scores, strict=True) if n >= share * max(scores))


def export(
    model: JudgeModel,
    world: JudgeWorld,
    tokenizer: Tokenizer | None,
    folder: Path,
    scenes: int = 1000,
) -> None:
    """Write the judge's files to a folder: weights in float16, sizes, names, words, and thresholds
    that are chosen on held-out scenes, half of them true ones as the tokenizer decodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model.cpu()
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    write_whole(state, folder / WEIGHTS_FILE)
    words = contrast_words(Captioner(world.world.specs))
    names = [b.name for b in BACKGROUNDS]
    judge = Judge(model, ContrastWords(**words), names, Thresholds())
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + 1)
    mix = {"batch": scenes, "decoded_share": 0.5, "other": 0.2, "mixed": 0.1}
    pictures = draw_pictures(world, mix, tokenizer, generator)
    thresholds = choose_thresholds(judge, pictures)
    config = {"model": asdict(model.cfg), "thresholds": asdict(thresholds), "backgrounds": names}
    for file, content in ((CONFIG_FILE, config), (WORDS_FILE, words)):
        (folder / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@command_line
def main() -> None:
    parser = arguments(__doc__, "judge_small")
    parser.add_argument("--model", default=hub.DEFAULT_MODEL, help="tokenizer: a name or a folder")
    parser.add_argument("--export", type=Path, help="write the judge's files here at the end")
    args = parsed(parser)
    config = load_config(args.config, args.overrides, JUDGE)
    tokenizer = hub.load_tokenizer(args.model, torch.device("cpu"))
    world = JudgeWorld.load(config["tier"], config["variants"], free=config.get("free", 0.0))
    folder, deadline = cache_folder() / "runs" / args.run, deadline_in(args.minutes)
    model = train(config, folder, world, tokenizer, args.until, deadline, args.device)
    if args.export:
        export(model, world, tokenizer, args.export)


if __name__ == "__main__":
    main()
