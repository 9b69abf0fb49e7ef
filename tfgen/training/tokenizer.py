"""Train the ordered 1D tokenizer `sprites` on the sprite world.

    python -m tfgen.training.tokenizer --config tfgen/training/configs/tokenizer_small.json

Resumes from its checkpoint in the cache folder. Nested dropout keeps a random prefix of the tokens;
the loss compares the picture and its layers (which the renderer knows) with the decoder's, and asks
small heads, dropped after training, to read the scene's attributes from the kept prefix: that makes
the first tokens mean something. Grafts (tfgen/training/grafts.py) make what one token says hold
whatever the others say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen import hub
from tfgen.errors import InputError
from tfgen.packing import pack, write_whole
from tfgen.tokenizers.fsq import FSQ
from tfgen.tokenizers.grid_model import GridModel
from tfgen.tokenizers.sprites import CONFIG_FILE, WEIGHTS_FILE
from tfgen.tokenizers.sprites_model import SpritesConfig, SpritesModel, compose, paint, place
from tfgen.tokenizers.sprites_reading import Reading, Sight
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.commands import arguments, command_line, deadline_in, load_config, parsed
from tfgen.training.common import HEADS_ALONE, Training, cache_folder, learning_rate
from tfgen.training.grafts import Grafts, graft
from tfgen.training.settings import TOKENIZER, Settings
from tfgen.training.world import LAYOUTS, Scenes, World, shares_in

S = TypeVar("S")
T = TypeVar("T", bound=nn.Module)
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Prefix lengths that a tokenizer is measured at, those that it has."""
HELD_OUT_SEED = 10_000_019
"""Of scenes that are never trained on: a step's seed is its config's times 1,000,003, plus the
step, and runs have fewer than 900,000 steps."""


class TokenizerTrainer(nn.Module):
    """The tokenizer's networks, the attribute heads, and the loss."""

    def __init__(self, cfg: SpritesConfig, num_objects: int, attribute_weight: float):
        super().__init__()
        self.cfg, self.fsq, self.attribute_weight = cfg, FSQ(cfg.levels), attribute_weight
        self.heads_alone = False  # see HEADS_ALONE
        self.model = SpritesModel(cfg)
        self.read_object = nn.Linear(cfg.latent, num_objects)
        self.read_colour = nn.Linear(cfg.latent, len(COLOURS))
        self.read_background = nn.Linear(cfg.width, len(BACKGROUNDS))
        self.read_layout = nn.Linear(cfg.width, len(LAYOUTS))
        features, slots = self.model.encoder.features, cfg.slots
        if not cfg.scribe:  # an encoder with one reads them anyway
            self.see_object = nn.Linear(features, slots * num_objects)
            self.see_colour = nn.Linear(features, slots * len(COLOURS))
            self.see_box = nn.Linear(features, slots * 3)
        lengths = torch.arange(1, cfg.num_tokens + 1)
        # Half of the scenes keep at most the first half of the tokens, a fifth keep all of them.
        weights = torch.where(lengths <= cfg.num_tokens // 2, 1.0, 0.3)
        weights[-1] = 0.25 * weights.sum()
        self.register_buffer("length_weights", weights, persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        return self.fsq.quantise(self.model.encoder(images))

    def decode(self, codes: Tensor, length: int) -> Tensor:
        """Pictures Float[N, 3, H, W] of prefixes of one length (for evaluation)."""
        keep = torch.arange(self.cfg.num_tokens, device=codes.device) < length
        layered, _ = self.model.layers(codes, keep.expand(len(codes), -1))
        return paint(self.model, layered)

    def forward(
        self, world: World, scenes: Scenes, lengths: Tensor, grafts: Grafts | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on scenes whose prefixes of `lengths` Int64[N] are kept, and its parts.

        grafts: between their codes; what is decoded is then compared with the grafted scenes.
        """
        cfg = self.cfg
        encoded, target = scenes, world.render(scenes, cfg.image_size)
        seen = self.model.encoder.describe(target.images)
        codes = self.fsq.quantise(self.model.encoder.write(seen))
        if grafts is not None:
            codes, scenes = grafts.codes(codes), grafts.scenes(scenes)
            target = world.render(scenes, cfg.image_size)
        present, sprites = world.sprite_targets(scenes, cfg.canvas_size)
        keep = torch.arange(cfg.num_tokens, device=lengths.device) < lengths[:, None]
        layered, trunk = self.model.layers(codes, keep)
        rows, slots = present.nonzero(as_tuple=True)
        described = layered.slots[rows, slots]
        canvases = self.model.canvases(described)
        opacity = torch.sigmoid(layered.present[rows, slots])[:, None, None, None]
        painted = place(canvases * opacity, layered.boxes[rows, slots], cfg.image_size)
        image = compose(layered.background, painted, rows, slots)
        inside = 1 + 2 * target.alpha
        error = (image - target.images).abs()
        coarse = F.avg_pool2d(image, 4) - F.avg_pool2d(target.images, 4)
        parts = {
            "image": (error * inside).mean() + coarse.abs().mean(),
            "background": F.l1_loss(layered.background, target.backgrounds),
            "canvas": canvas_loss(canvases, sprites),
            "box": 2 * (layered.boxes - scenes.boxes).abs()[present].mean(),
            "present": 0.1 * F.binary_cross_entropy_with_logits(layered.present, present.float()),
        }
        if self.heads_alone:
            seen, trunk, described = seen.detach(), trunk.detach(), described.detach()
        attributes = self.said(trunk, described, scenes) | self.seen(seen, encoded)
        loss = sum(parts.values()) + self.attribute_weight * sum(attributes.values())
        return loss, parts | attributes

    def said(self, trunk: Tensor, described: Tensor, scenes: Scenes) -> dict[str, Tensor]:
        """What the heads read in the decoder's account of the scenes, the trunk's Float[N, width]
        and the descriptions Float[P, latent] of all P objects: the parts of a loss."""
        present = scenes.objects >= 0
        trunk, described = trunk.float(), described.float()
        return {
            "object": F.cross_entropy(self.read_object(described), scenes.objects[present]),
            "colour": F.cross_entropy(self.read_colour(described), scenes.colours[present]),
            "scene": F.cross_entropy(self.read_background(trunk), scenes.background),
            "layout": F.cross_entropy(self.read_layout(trunk), scenes.layout),
        }

    def seen(self, sight: Sight, scenes: Scenes) -> dict[str, Tensor]:
        """How wrong it is what is seen in pictures of the scenes, before the bottleneck,
        so that it learns to see at once: the parts of a loss."""
        if self.cfg.scribe:
            read = self.model.encoder.reader(sight)
            return misread(read, scenes, self.cfg.grounds // len(BACKGROUNDS))
        there = scenes.objects >= 0

        def per_slot(head: nn.Linear) -> Tensor:
            return head(sight.whole).float().unflatten(1, (self.cfg.slots, -1))[there]

        return {
            "seen_object": F.cross_entropy(per_slot(self.see_object), scenes.objects[there]),
            "seen_colour": F.cross_entropy(per_slot(self.see_colour), scenes.colours[there]),
            "seen_box": 10 * F.l1_loss(per_slot(self.see_box), scenes.boxes[there]),
        }


def misread(
    read: Reading, scenes: Scenes, variants: int, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """How far what was read in pictures of N scenes is from what they hold: the parts of a loss.

    variants: of each background; weights: of the pictures, Float[N], by default all the same.
    """
    there = scenes.objects >= 0
    kinds = scenes.objects.where(there, read.kinds.shape[-1] - 1)
    each = torch.ones(len(kinds), device=kinds.device) if weights is None else weights
    slots = each[:, None].expand_as(there)

    def mean(losses: Tensor, share: Tensor) -> Tensor:
        return (losses * share).sum() / share.sum()

    def unlike(logits: Tensor, true: Tensor) -> Tensor:
        return F.cross_entropy(logits, true, reduction="none")

    off = (read.tries - scenes.boxes).abs().mean((0, -1))
    return {
        "seen_object": mean(unlike(read.kinds.flatten(0, 1), kinds.flatten()), slots.flatten()),
        "seen_colour": mean(unlike(read.colours[there], scenes.colours[there]), slots[there]),
        "seen_box": 10 * mean(off[there], slots[there]),
        "seen_ground": mean(unlike(read.ground, scenes.grounds(variants)), each),
    }


def canvas_loss(canvases: Tensor, true: Tensor) -> Tensor:
    """How far painted objects are from the true ones, Float[P, 4, s, s] each."""
    return F.l1_loss(canvases, true) + 2 * F.mse_loss(canvases, true)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB: Float[N]."""
    return -10 * torch.log10((a - b).pow(2).flatten(1).mean(1).clamp(min=1e-8))


@torch.no_grad()
def evaluate(trainer: TokenizerTrainer, world: World, scenes: Scenes) -> dict[str, float]:
    """Mean PSNR at several prefix lengths on given scenes, and of grafts between them after half of
    the tokens; and how much of the codebook they use."""
    size = trainer.cfg.image_size
    lengths = [k for k in LENGTHS if k <= trainer.cfg.num_tokens]
    images = world.render(scenes, size).images
    codes = trainer.encode(images)
    result = {f"psnr@{k}": psnr(trainer.decode(codes, k), images).mean().item() for k in lengths}
    grafts = graft(scenes, 1.0, torch.Generator().manual_seed(0))
    for cut in grafts.cuts_made():
        rows = grafts.cut == cut
        half = trainer.decode(grafts.codes(codes)[rows], trainer.cfg.num_tokens // 2)
        wanted = world.render(grafts.scenes(scenes)[rows], size).images
        result[f"graft@{cut}"] = psnr(half, wanted).mean().item()
    tokens = trainer.fsq.to_tokens(codes)
    usage = [len(tokens[:, t].unique()) for t in range(tokens.shape[1])]
    return {k: round(v, 2) for k, v in result.items()} | {"codes": usage}


def main() -> None:
    command(__doc__, "tokenizer_small", TOKENIZER, train, export)


@command_line
def command(
    text: str,
    name: str,
    settings: Settings,
    train: Callable[..., T],
    export: Callable[[T, Path], None],
) -> None:
    """What the command of a tokenizer's training does; name: of its run; settings: its config's."""
    parser = arguments(text, name)
    parser.add_argument(
        "--export", type=Path, help="write the tokenizer's files to this folder at the end"
    )
    parser.add_argument("--start", help="a tokenizer to go on from: a packaged one, or a folder")
    args = parsed(parser)
    config = load_config(args.config, args.overrides, settings)
    if args.start:
        config["start"] = args.start
    folder, deadline = cache_folder() / "runs" / args.run, deadline_in(args.minutes)
    trainer = train(config, folder, args.device, until=args.until, deadline=deadline)
    if args.export:
        export(trainer, args.export)


def export(trainer: TokenizerTrainer, folder: Path) -> None:
    """Write it without the attribute heads."""
    export_networks("sprites", trainer.model, trainer.cfg, folder)


EXACT = ("encoder.scribe.kind.weight", "encoder.scribe.to_codes.1.weight")
"""Weights that are not rounded to int8: one token in six would be another, 1.2 dB lost."""


def export_networks(kind: str, model: nn.Module, cfg: Any, folder: Path) -> None:
    """Write a tokenizer's tokenizer.safetensors (packed) and tokenizer.json; the search defaults of
    an existing tokenizer.json stay."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(pack(model.state_dict(), keep=EXACT), folder / WEIGHTS_FILE)
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text()) if path.exists() else {"search_defaults": {}}
    config |= {"kind": kind, "model": asdict(cfg)}
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def begin_with(model: SpritesModel | GridModel, name: str) -> None:
    """Give the networks the weights of another tokenizer of the same kind and sizes, which may know
    fewer objects: a packaged one's name, or a folder. Raises InputError where kind or sizes
    differ."""
    known = getattr(hub.load_tokenizer(name, torch.device("cpu")), "model", None)
    if not isinstance(known, type(model)) or known.cfg != model.cfg:
        raise InputError(
            f"The tokenizer {name!r} has other networks than the config asks for: give the config "
            'its sizes, or take out the config\'s "start".'
        )
    model.load_state_dict(known.state_dict())


def sizes_in(config: dict[str, Any], sizes: Callable[..., S]) -> S:
    """The sizes of the networks that a config asks for."""
    return sizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in config["model"].items()})


def begin_run(
    make: Callable[[Any, int, float], T],
    sizes: type,
    config: dict,
    folder: Path,
    device: str,
    world: World | None,
    until: int | None,
    deadline: float | None,
) -> tuple[World, T, Training]:
    """What the training of any tokenizer begins with, as its config says or where its checkpoint
    is: the world, if none is given, the trainer, and the run.

    make: the trainer of networks of given `sizes`, a number of objects, and a weight of the heads.
    """
    torch.manual_seed(config["seed"])
    cfg = sizes_in(config, sizes)
    if world is None:
        world = World(config["tier"], (cfg.image_size,), device=device, **shares_in(config))
    trainer = make(cfg, world.num_objects, config["attribute_weight"]).to(device)
    trainer = trainer.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        trainer.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    training = Training(trainer, optimiser, config, folder, until, deadline)
    if training.start == 0 and config.get("start"):
        begin_with(trainer.model, config["start"])
        training.forget_average()
    return world, trainer, training


def train(
    config: dict,
    folder: Path,
    device: str,
    world: World | None = None,
    until: int | None = None,
    deadline: float | None = None,
) -> TokenizerTrainer:
    """Train as `config` says, checkpointing in `folder`; returns the trainer with EMA weights.

    deadline: see Training; raises TimeUp there.
    """
    world, trainer, training = begin_run(
        TokenizerTrainer, SpritesConfig, config, folder, device, world, until, deadline
    )
    cfg = trainer.cfg
    held_out = world.sample(256, torch.Generator().manual_seed(HELD_OUT_SEED))
    shares = trainer.length_weights.cpu()
    for step in training:
        generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        scenes = world.sample(config["batch"], generator)
        lengths = 1 + torch.multinomial(shares, config["batch"], True, generator=generator)
        trainer.heads_alone = bool(config.get("start")) and step < HEADS_ALONE
        grafts = None
        if config.get("grafts"):
            grafts = graft(scenes, config["grafts"], generator)
            lengths = grafts.long_enough(lengths)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"]):
            loss, parts = trainer(world, scenes, lengths.to(device), grafts)
        training.learn(loss, parts, learning_rate(step, config["steps"], config["peak_lr"]))
        if training.is_milestone:
            averaged = TokenizerTrainer(cfg, world.num_objects, 0.0).to(device)
            averaged = training.averaged(averaged)
            training.log(training.done, **evaluate(averaged, world, held_out))
    training.finish()
    return trainer


if __name__ == "__main__":
    main()
