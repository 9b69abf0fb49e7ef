"""Train the parts of the tokenizer `sprites` apart, before tokenizer.py trains them together.

    python -m tfgen.training.apart --config tfgen/training/configs/cpu/apart_full.json --export DIR

Together they learn slowly where kinds are many: as long as the code does not say which object there
is, the painter paints the mean of all; and as long as it paints that, little is gained by saying
it. The renderer knows what a scene holds, so each part can learn its work without the others:

1. painters: every kind of object in every colour, and every background, has a *description* in a
   table, learned along with the painters that paint them;
2. codes: the encoder's scribe writes the code of the scene's ground truth, from whose prefixes the
   trunk is to give descriptions and boxes. The first token is given: it tells the background and
   how many objects there are. No picture is drawn, so a scene costs a thirtieth of what it costs
   in tokenizer.py;
3. decoder: trunk and painters go on together, with these codes;
4. encoder: it learns to read in pictures what the scribe was told.

The tables are dropped. Resumes from its checkpoints in the cache folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen import hub
from tfgen.errors import InputError
from tfgen.tokenizers.fsq import FSQ
from tfgen.tokenizers.sprites_model import Painter, SpritesConfig, SpritesModel
from tfgen.training.ahead import ahead, workers_beside
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.common import Training, learning_rate
from tfgen.training.grafts import Grafts, graft
from tfgen.training.settings import APART
from tfgen.training.stopping import TimeUp
from tfgen.training.tokenizer import (
    HELD_OUT_SEED,
    TokenizerTrainer,
    canvas_loss,
    command,
    evaluate,
    export,
    sizes_in,
)
from tfgen.training.world import MAX_OBJECTS, Scenes, World, shares_in
from tfgen.training.writing import dictated

PARTS = ("painters", "codes", "decoder", "encoder")
Drawn = list[np.ndarray]
"""What a step's random numbers give, on the CPU: see `ahead`."""
Draw = Callable[[int, torch.Generator], Drawn]
Loss = Callable[[Drawn], tuple[Tensor, dict[str, Tensor]]]
Measure = Callable[[], dict[str, Any]]
CODE_LENGTHS = (4, 8, 16)
"""Prefix lengths that codes are measured at."""


class Descriptions(nn.Module):
    """What the painters are to be told: of an object by its kind and its colour, each of which has
    an embedding, and of a background by its number and variant."""

    def __init__(self, kinds: int, variants: int, latent: int):
        super().__init__()
        self.kind = nn.Embedding(kinds, 2 * latent)
        self.colour = nn.Embedding(len(COLOURS), 2 * latent)
        self.mix = nn.Sequential(
            nn.Linear(2 * latent, 2 * latent), nn.SiLU(), nn.Linear(2 * latent, latent)
        )
        self.ground = nn.Embedding(len(BACKGROUNDS) * variants, latent)

    def of_objects(self, objects: Tensor, colours: Tensor) -> Tensor:
        """Int64[...] each -> Float[..., latent]."""
        return self.mix(self.kind(objects) + self.colour(colours))


def unlike(painter: Painter, told: Tensor, true: Tensor) -> Tensor:
    """How differently a painter reads descriptions Float[P, latent] and the true ones: 0 if alike,
    1 if they are all the mean one. Descriptions come with much that no painter heeds."""
    told, true = told.float(), true.float()
    metric = told.new_zeros(told.shape[1], told.shape[1])
    spread = true - true.mean(0)
    with torch.no_grad(), torch.autocast(told.device.type, enabled=False):
        for layer in (painter.seed, painter.styles):
            read = layer.weight.T @ layer.weight
            metric += read / (2 * (spread @ read * spread).sum(1).mean().clamp(min=1e-8))
    with torch.autocast(told.device.type, enabled=False):
        off = told - true
        return (off @ metric * off).sum(1).mean()


def first_token(scenes: Scenes, fsq: FSQ, variants: int) -> Tensor:
    """What the first token of scenes is to be, Int64[N]: which variant of which background it has
    and how many objects, the digits of the number of objects being its own.

    Raises InputError where the codebook is too small for that.
    """
    strides = [math.prod(fsq.levels[: i + 1]) for i in range(fsq.dim)]
    stride = next((s for s in strides if s >= len(BACKGROUNDS) * variants), fsq.vocab_size)
    if stride * MAX_OBJECTS > fsq.vocab_size:
        raise InputError(
            f"A codebook of {fsq.vocab_size} is too small for a first token that tells "
            f"{len(BACKGROUNDS) * variants} backgrounds and {MAX_OBJECTS} numbers of objects: "
            'give the config\'s "model" more "levels".'
        )
    return scenes.grounds(variants) + stride * (scenes.counts - 1)


class Apart:
    """The tokenizer's trainer, and what stands in for one part where another learns."""

    def __init__(self, config: dict[str, Any], device: str, world: World | None = None):
        cfg = sizes_in(config, SpritesConfig)
        self.config, self.cfg, self.device = config, cfg, device
        if world is None:
            world = World(config["tier"], (cfg.image_size,), device=device, **shares_in(config))
        self.world = world
        torch.manual_seed(config["seed"])
        kinds, variants = self.world.num_objects, self.world.variants
        holds = {"kinds": kinds, "colours": len(COLOURS), "grounds": len(BACKGROUNDS) * variants}
        if not cfg.scribe or any(getattr(cfg, name) != n for name, n in holds.items()):
            wanted = ", ".join(f'"{name}": {n}' for name, n in holds.items())
            raise InputError(
                f'The config\'s "model" does not fit its world: it needs {wanted}, and "scribe", '
                "the width of the network that writes the codes."
            )
        trainer = TokenizerTrainer(cfg, kinds, config["attribute_weight"])
        self._length_shares = trainer.length_weights.clone()  # on the CPU, where scenes are drawn
        self.trainer = trainer.to(device).to(memory_format=torch.channels_last)
        if config.get("start"):
            self._begin_with(config["start"])
        self.described = Descriptions(kinds, variants, cfg.latent).to(device)
        self.scribe = self.model.encoder.scribe
        self.read_ground = nn.Linear(cfg.width, len(BACKGROUNDS) * variants).to(device)
        self.held_out = self.world.sample(512, torch.Generator().manual_seed(HELD_OUT_SEED))
        first_token(self.held_out, trainer.fsq, variants)  # or it says that the codebook is small

    @property
    def model(self) -> SpritesModel:
        return self.trainer.model

    def _begin_with(self, name: str) -> None:
        """Give encoder and painters the weights of another tokenizer's: a packaged one's name, or a
        folder. Raises InputError where theirs have other sizes."""
        known = getattr(hub.load_tokenizer(name, torch.device("cpu")), "model", None)
        if not isinstance(known, SpritesModel):
            raise InputError(f"{name!r} is no tokenizer of the kind sprites, to begin with.")
        pairs = [(self.model.encoder, known.encoder, part) for part in ("convs", "head")]
        pairs += [(self.model, known, part) for part in ("object", "background")]
        for ours, theirs, part in pairs:
            try:
                getattr(ours, part).load_state_dict(getattr(theirs, part).state_dict())
            except RuntimeError:
                raise InputError(
                    f"The tokenizer {name!r} has networks of other sizes than the config asks for "
                    f'({part}): give the config its sizes, or take out the config\'s "start".'
                ) from None

    def work(self) -> dict[str, tuple[nn.Module, Draw, Loss, Measure]]:
        """By part, in order: what learns, what draws a batch of given size, its loss, and its
        measures."""
        return {
            "painters": (self.painters(), self.pick, self.paint, self.painted),
            "codes": (self.codes(), self.draw_told, self.tell, self.told),
            "decoder": (self.decoder(), self.draw_told, self.tell_and_paint, self.told),
            "encoder": (self.encoder(), self.draw_scenes, self.look, self.looked),
        }

    def draw_scenes(self, n: int, generator: torch.Generator) -> Drawn:
        """n random scenes."""
        return self.world.on_cpu().sample(n, generator).arrays()

    def draw_told(self, n: int, generator: torch.Generator) -> Drawn:
        """n random scenes, the lengths of their prefixes Int64[n], grafts between them, and which
        of their objects are to be painted, Int64[n / 8]."""
        scenes = self.world.on_cpu().sample(n, generator)
        lengths = 1 + torch.multinomial(self._length_shares, n, True, generator=generator)
        grafts = graft(scenes, self.config["grafts"], generator)
        lengths = grafts.long_enough(lengths)
        objects = int(scenes.counts.sum())
        some = torch.randperm(objects, generator=generator)[: -(-n // 8)]
        return [*scenes.arrays(), *(t.numpy() for t in (lengths, grafts.donor, grafts.cut, some))]

    # ---- 1. painters

    def painters(self) -> nn.Module:
        """Tables and painters."""
        return nn.ModuleList([self.described, self.model.object, self.model.background])

    def pick(self, n: int, generator: torch.Generator) -> Drawn:
        """n random objects, their colours, and an eighth as many backgrounds."""
        objects = torch.randint(self.world.num_objects, (n,), generator=generator)
        colours = torch.randint(len(COLOURS), (n,), generator=generator)
        colours = colours * (torch.rand(n, generator=generator) > 0.2)  # more natural
        grounds = torch.randint(self.cfg.grounds, (max(1, n // 8),), generator=generator)
        return [objects.numpy(), colours.numpy(), grounds.numpy()]

    def paint(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on what was picked."""
        objects, colours, grounds = (torch.from_numpy(a).to(self.device) for a in drawn)
        true = self._canvases(objects, colours)
        canvases = self.model.canvases(self.described.of_objects(objects, colours))
        painted = self.model.background(self.described.ground(grounds))
        bank = self.world.background_bank(self.cfg.image_size).flatten(0, 1)
        truth = bank[grounds].float() / 255
        parts = {
            "canvas": canvas_loss(canvases, true),
            "background": F.l1_loss(torch.sigmoid(painted.float()), truth),
        }
        return sum(parts.values()), parts

    def _canvases(self, objects: Tensor, colours: Tensor) -> Tensor:
        """What the painter of objects is to paint."""
        return self.world.sprite_bank(self.cfg.canvas_size)[objects, colours].float() / 255

    @torch.no_grad()
    def painted(self) -> dict[str, float]:
        """The loss on the same objects and backgrounds each time; the painters know all of them."""
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        _, parts = self.paint(self.pick(512, generator))
        return {k: round(v.item(), 4) for k, v in parts.items()}

    # ---- 2. codes

    def codes(self) -> nn.Module:
        """The scribe, first, and what reads its codes, but for the painters."""
        model, trainer = self.model, self.trainer
        own = [model.trunk, model.to_background, model.to_slots, model.to_places]
        heads = [trainer.read_object, trainer.read_colour, self.read_ground]
        heads += [trainer.read_background, trainer.read_layout]
        return nn.ModuleList([self.scribe, *own, model.slot_blocks, *heads])

    def said(self, scenes: Scenes) -> Tensor:
        """The scribe's codes of scenes before they are quantised, Float[N, T, d]."""
        said = dictated(self.scribe, scenes, self.world.variants)
        return said.unflatten(1, self.model.encoder.shape)

    def write(self, scenes: Scenes) -> Tensor:
        """Codes of scenes, Float[N, T, d] on the grid."""
        return self.trainer.fsq.quantise(self.said(scenes))

    def off(self, said: Tensor, tokens: Tensor) -> Tensor:
        """How far unquantised codes Float[N, d] are from those of tokens Int64[N]: the mean square
        of the distance to the middle of the digit's bin, in bins."""
        fsq = self.trainer.fsq
        levels = torch.tensor(fsq.levels, device=said.device)
        middle = (fsq.to_codes(tokens) + 1) / 2 * (levels - 1) + 0.5
        return ((torch.tanh(said.float()) + 1) / 2 * levels - middle).square().mean()

    def tell(self, drawn: Drawn, paint: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what prefixes of the codes of scenes say, and with `paint`, of what some of
        them show."""
        trainer, model = self.trainer, self.model
        scenes = Scenes.of_arrays(drawn[:-4]).to(self.device)
        lengths, donor, cut, some = (torch.from_numpy(a).to(self.device) for a in drawn[-4:])
        grafts = Grafts(donor, cut)
        said = self.said(scenes)
        codes = grafts.codes(trainer.fsq.quantise(said))
        first = self.off(said[:, 0], first_token(scenes, trainer.fsq, self.world.variants))
        scenes = grafts.scenes(scenes)
        keep = torch.arange(self.cfg.num_tokens, device=self.device) < lengths[:, None]
        trunk = model.trunk(codes, keep)
        present, grounds = scenes.objects >= 0, scenes.grounds(self.world.variants)
        with torch.no_grad():
            ground = self.described.ground(grounds)
            told = self.described.of_objects(scenes.objects[present], scenes.colours[present])
        places = model.to_places(trunk).float().unflatten(1, (self.cfg.slots, 4))
        slots = model.slots(trunk)[present].float()
        boxes = torch.sigmoid(places[..., 1:])
        parts = {
            "ground": 3 * unlike(model.background, model.to_background(trunk), ground),
            "told": 3 * unlike(model.object, slots, told),
            "box": 20 * (boxes - scenes.boxes).abs()[present].mean(),
            "present": F.binary_cross_entropy_with_logits(places[..., 0], present.float()),
            "first": 2 * first,
        }
        attributes = trainer.said(trunk, slots, scenes)
        attributes["variant"] = F.cross_entropy(self.read_ground(trunk).float(), grounds)
        if paint:  # a few of them
            canvases = model.canvases(slots[some])
            true = self._canvases(scenes.objects[present][some], scenes.colours[present][some])
            few = slice(-(-len(scenes) // 24))
            painted = torch.sigmoid(model.background(model.to_background(trunk[few])).float())
            shown = self.world.backgrounds(scenes[few], self.cfg.image_size)
            parts["canvas"] = 4 * canvas_loss(canvases, true)
            parts["background"] = 8 * F.l1_loss(painted, shown)
        loss = sum(parts.values()) + trainer.attribute_weight * sum(attributes.values())
        return loss, parts | attributes

    def tell_and_paint(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """The same with codes that stay as they are, and with the loss of what the painters make of
        it: what they cannot tell apart need not be told, and they learn to read what they are told.
        """
        return self.tell(drawn, paint=True)

    @torch.no_grad()
    def told(self) -> dict[str, float]:
        """How well prefixes of the held-out scenes' codes say kinds, colours and boxes."""
        scenes, out = self.held_out, {}
        codes, present = self.write(scenes), scenes.objects >= 0
        for k in CODE_LENGTHS:
            keep = (torch.arange(self.cfg.num_tokens, device=self.device) < k).expand(
                len(codes), -1
            )
            trunk = self.model.trunk(codes, keep)
            slots = self.model.slots(trunk)[present]
            boxes = torch.sigmoid(self.model.to_places(trunk).unflatten(1, (-1, 4))[..., 1:])
            object_ = self.trainer.read_object(slots).argmax(1) == scenes.objects[present]
            colour = self.trainer.read_colour(slots).argmax(1) == scenes.colours[present]
            off = (boxes - scenes.boxes).abs()[present].mean()
            true = self._canvases(scenes.objects[present], scenes.colours[present])
            values = {
                "object": object_.float().mean(),
                "colour": colour.float().mean(),
                "off": off,
                "canvas": (self.model.canvases(slots) - true).abs().mean(),
            }
            out |= {f"{name}@{k}": round(v.item(), 4) for name, v in values.items()}
        return out

    # ---- 3. decoder

    def decoder(self) -> nn.Module:
        """All that reads the codes."""
        return nn.ModuleList([*self.codes()[1:], self.model.object, self.model.background])

    # ---- 4. encoder

    def encoder(self) -> nn.Module:
        """All of it but the scribe."""
        encoder = self.model.encoder
        return nn.ModuleList([encoder.convs, encoder.head, encoder.reader])

    def look(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the encoder reads in pictures of scenes."""
        scenes = Scenes.of_arrays(drawn).to(self.device)
        images = self.world.render(scenes, self.cfg.image_size).images
        parts = self.trainer.seen(self.model.encoder.describe(images), scenes)
        return sum(parts.values()), parts

    @torch.no_grad()
    def looked(self) -> dict[str, float]:
        """What tokenizer.py measures, and the share of the codes' digits that are those of the
        ground truth."""
        found = evaluate(self.trainer, self.world, self.held_out)
        images = self.world.render(self.held_out, self.cfg.image_size).images
        same = (self.trainer.encode(images) - self.write(self.held_out)).abs() < 1e-3
        return found | {"digits": round(same.float().mean().item(), 4)}


def train(
    config: dict[str, Any],
    folder: Path,
    device: str,
    world: World | None = None,
    until: int | None = None,
    deadline: float | None = None,
) -> TokenizerTrainer:
    """Train part after part as `config` says, checkpointing in `folder`; returns the tokenizer's
    trainer with EMA weights. until: of each part; deadline: see Training; raises TimeUp there."""
    apart = Apart(config, device, world)
    before, total = 0, sum(config[part]["steps"] for part in PARTS)
    for number, part in enumerate(PARTS):
        own = {**config, **config[part]}
        try:
            _learn(apart, part, number, own, folder / part, until, deadline)
        except TimeUp as up:
            raise TimeUp(before + up.done, total, up.pace) from None
        before += own["steps"]
    return apart.trainer


def _learn(
    apart: Apart,
    part: str,
    number: int,
    config: dict[str, Any],
    folder: Path,
    until: int | None,
    deadline: float | None,
) -> None:
    module, draw, loss_of, measure = apart.work()[part]
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    training = Training(module, optimiser, config, folder, until, deadline)
    device = torch.device(apart.device).type

    def drawn_for(step: int) -> Drawn:
        seed = (config["seed"] * 10 + number) * 1_000_003 + step
        return draw(config["batch"], torch.Generator().manual_seed(seed))

    for step, drawn in ahead(drawn_for, training, training.last, workers_beside(device)):
        with torch.autocast(device, torch.bfloat16, enabled=config["bf16"]):
            loss, parts = loss_of(drawn)
        training.learn(loss, parts, learning_rate(step, config["steps"], config["peak_lr"]))
        if training.is_milestone:
            now = {k: v.clone() for k, v in module.state_dict().items()}
            training.finish()  # for a moment, as the other parts are not of the average
            training.log(training.done, part=part, **measure())
            module.load_state_dict(now)
    training.finish()


def main() -> None:
    command(__doc__, "apart_full", APART, train, export)


if __name__ == "__main__":
    main()
