"""Train the parts of the tokenizer `sprites` apart, before tokenizer.py trains them together.

    python -m tfgen.training.apart --config tfgen/training/configs/cpu/apart_full.json --export DIR

Together they learn slowly where kinds are many: as long as the code does not say which object there
is, the painter paints the mean of all, and as long as it does, there is little to gain by saying
it. The renderer knows what a scene holds, so each part can learn its work without the others:

1. painters: every kind of object in every colour, and every background, has a *description* in a
   table, learned along with the painters that paint them;
2. codes: a network that reads the scene's ground truth instead of its picture writes the code, from
   whose prefixes the trunk is to give descriptions and boxes. No picture is drawn, so a scene costs
   a twentieth of what it costs in tokenizer.py;
3. encoder: it learns to write the same codes from pictures.

The network of 2 and the tables are dropped. Resumes from its checkpoints in the cache folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.sprites_model import SpritesConfig, SpritesModel
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.common import Training, learning_rate
from tfgen.training.grafts import Grafts, graft
from tfgen.training.tokenizer import (
    HELD_OUT_SEED,
    TokenizerTrainer,
    begin_with,
    command,
    evaluate,
    export,
)
from tfgen.training.world import Scenes, World

PARTS = ("painters", "codes", "encoder")
LENGTHS = (4, 8, 16)
"""Prefix lengths that codes are measured at."""


class Descriptions(nn.Module):
    """What the painters are to be told: of an object by its kind and its colour, each of which has
    an embedding, and of a background by its number and variant."""

    def __init__(self, kinds: int, variants: int, latent: int):
        super().__init__()
        self.variants = variants
        self.kind = nn.Embedding(kinds, 2 * latent)
        self.colour = nn.Embedding(len(COLOURS), 2 * latent)
        self.mix = nn.Sequential(
            nn.Linear(2 * latent, 2 * latent), nn.SiLU(), nn.Linear(2 * latent, latent)
        )
        self.ground = nn.Embedding(len(BACKGROUNDS) * variants, latent)

    def of_objects(self, objects: Tensor, colours: Tensor) -> Tensor:
        """Int64[...] each -> Float[..., latent]."""
        return self.mix(self.kind(objects) + self.colour(colours))

    def of_backgrounds(self, background: Tensor, variant: Tensor) -> Tensor:
        """Int64[N] each -> Float[N, latent]."""
        return self.ground(background * self.variants + variant)


class Scribe(nn.Module):
    """Scenes -> unquantised codes Float[N, T, d], as the encoder would write them."""

    def __init__(self, kinds: int, variants: int, cfg: SpritesConfig, width: int = 1024):
        super().__init__()
        self.variants, self.shape = variants, (cfg.num_tokens, len(cfg.levels))
        self.ground = nn.Embedding(len(BACKGROUNDS) * variants, 64)
        self.kind = nn.Embedding(kinds + 1, 128)  # the last: nothing
        self.colour = nn.Embedding(len(COLOURS), 32)
        self.register_buffer("waves", torch.pi * 2.0 ** torch.arange(5), persistent=False)
        self.enter = nn.Linear(64 + cfg.slots * (128 + 32 + 3 * 11), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(2)
        )
        self.to_codes = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, cfg.num_tokens * len(cfg.levels))
        )

    def forward(self, scenes: Scenes) -> Tensor:
        there = scenes.objects >= 0
        kinds = self.kind(scenes.objects.where(there, self.kind.num_embeddings - 1))
        phases = scenes.boxes[..., None] * self.waves
        places = torch.cat([scenes.boxes[..., None], phases.sin(), phases.cos()], -1).flatten(2)
        slots = torch.cat([kinds, self.colour(scenes.colours), places], -1)
        slots = slots * torch.cat(  # what colour nothing has, and where, says nothing
            [torch.ones_like(kinds), there[..., None].expand(-1, -1, slots.shape[2] - 128)], -1
        )
        ground = self.ground(scenes.background * self.variants + scenes.variant)
        x = self.enter(torch.cat([ground, slots.flatten(1)], 1))
        for block in self.blocks:
            x = x + block(x)
        return self.to_codes(x).unflatten(1, self.shape)


class Apart:
    """The tokenizer's trainer, and what stands in for one part where another learns."""

    def __init__(self, config: dict[str, Any], device: str, world: World | None = None):
        cfg = SpritesConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in config["model"].items()}
        )
        free = config.get("free", 0.0)
        self.config, self.cfg, self.device = config, cfg, device
        self.world = world or World(config["tier"], (cfg.image_size,), device=device, free=free)
        torch.manual_seed(config["seed"])
        kinds, variants = self.world.num_objects, self.world.variants
        trainer = TokenizerTrainer(cfg, kinds, config["attribute_weight"]).to(device)
        self.trainer = trainer.to(memory_format=torch.channels_last)
        if config.get("start"):
            begin_with(self.model, config["start"])
        self.described = Descriptions(kinds, variants, cfg.latent).to(device)
        self.scribe = Scribe(kinds, variants, cfg).to(device)
        self.held_out = self.world.sample(512, torch.Generator().manual_seed(HELD_OUT_SEED))

    @property
    def model(self) -> SpritesModel:
        return self.trainer.model

    # ---- 1. painters

    def painters(self) -> nn.Module:
        return nn.ModuleList([self.described, self.model.object, self.model.background])

    def paint(self, n: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on n random objects and an eighth as many backgrounds."""
        world, device = self.world, self.device
        objects = torch.randint(world.num_objects, (n,), generator=generator).to(device)
        colours = torch.randint(len(COLOURS), (n,), generator=generator).to(device)
        colours = colours * (torch.rand(n, generator=generator) > 0.2).to(device)  # more natural
        true = world.sprite_bank(self.cfg.canvas_size)[objects, colours].float() / 255
        canvases = self.model.canvases(self.described.of_objects(objects, colours))
        few = max(1, n // 8)
        grounds = torch.randint(len(BACKGROUNDS), (few,), generator=generator).to(device)
        variants = torch.randint(world.variants, (few,), generator=generator).to(device)
        painted = self.model.background(self.described.of_backgrounds(grounds, variants))
        truth = world.background_bank(self.cfg.image_size)[grounds, variants].float() / 255
        parts = {
            "canvas": F.l1_loss(canvases, true) + 2 * F.mse_loss(canvases, true),
            "background": F.l1_loss(torch.sigmoid(painted.float()), truth),
        }
        return sum(parts.values()), parts

    @torch.no_grad()
    def painted(self) -> dict[str, float]:
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        _, parts = self.paint(512, generator)
        return {k: round(v.item(), 4) for k, v in parts.items()}

    # ---- 2. codes

    def codes(self) -> nn.Module:
        model, trainer = self.model, self.trainer
        own = [model.trunk, model.to_background, model.to_slots, model.to_places]
        heads = [trainer.read_object, trainer.read_colour]
        heads += [trainer.read_background, trainer.read_layout]
        return nn.ModuleList([self.scribe, *own, *heads])

    def write(self, scenes: Scenes, grafts: Grafts | None = None) -> Tensor:
        """Codes of scenes, Float[N, T, d] on the grid."""
        codes = self.trainer.fsq.quantise(self.scribe(scenes))
        return codes if grafts is None else grafts.codes(codes)

    def tell(self, n: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what prefixes of the codes of n random scenes say."""
        trainer, model = self.trainer, self.model
        scenes = self.world.sample(n, generator)
        shares = trainer.length_weights.cpu()
        lengths = 1 + torch.multinomial(shares, n, True, generator=generator)
        grafts = graft(scenes, self.config["grafts"], generator)
        lengths = grafts.long_enough(lengths).to(self.device)
        codes = self.write(scenes, grafts)
        scenes = grafts.scenes(scenes)
        keep = torch.arange(self.cfg.num_tokens, device=self.device) < lengths[:, None]
        trunk = model.trunk(codes, keep)
        present = scenes.objects >= 0
        with torch.no_grad():
            ground = self.described.of_backgrounds(scenes.background, scenes.variant)
            told = self.described.of_objects(scenes.objects[present], scenes.colours[present])
        places = model.to_places(trunk).float().unflatten(1, (self.cfg.slots, 4))
        slots = model.to_slots(trunk).unflatten(1, (self.cfg.slots, -1))[present].float()
        boxes = torch.sigmoid(places[..., 1:])
        parts = {
            "ground": F.mse_loss(model.to_background(trunk).float(), ground) / ground.var(),
            "told": F.mse_loss(slots, told) / told.var(),
            "box": 10 * (boxes - scenes.boxes).abs()[present].mean(),
            "present": F.binary_cross_entropy_with_logits(places[..., 0], present.float()),
        }
        attributes = {
            "object": F.cross_entropy(trainer.read_object(slots), scenes.objects[present]),
            "colour": F.cross_entropy(trainer.read_colour(slots), scenes.colours[present]),
            "scene": F.cross_entropy(trainer.read_background(trunk).float(), scenes.background),
            "layout": F.cross_entropy(trainer.read_layout(trunk).float(), scenes.layout),
        }
        loss = sum(parts.values()) + trainer.attribute_weight * sum(attributes.values())
        return loss, parts | attributes

    @torch.no_grad()
    def told(self) -> dict[str, float]:
        """How well prefixes of the held-out scenes' codes say kinds, colours and boxes."""
        scenes, out = self.held_out, {}
        codes, present = self.write(scenes), scenes.objects >= 0
        for k in LENGTHS:
            keep = (torch.arange(self.cfg.num_tokens, device=self.device) < k).expand(512, -1)
            trunk = self.model.trunk(codes, keep)
            slots = self.model.to_slots(trunk).unflatten(1, (self.cfg.slots, -1))[present]
            boxes = torch.sigmoid(self.model.to_places(trunk).unflatten(1, (-1, 4))[..., 1:])
            object_ = self.trainer.read_object(slots).argmax(1) == scenes.objects[present]
            colour = self.trainer.read_colour(slots).argmax(1) == scenes.colours[present]
            off = (boxes - scenes.boxes).abs()[present].mean()
            values = (("object", object_.float().mean()), ("colour", colour.float().mean()))
            out |= {f"{name}@{k}": round(v.item(), 4) for name, v in (*values, ("off", off))}
        return out

    # ---- 3. encoder

    def encoder(self) -> nn.Module:
        trainer = self.trainer
        heads = [trainer.see_object, trainer.see_colour, trainer.see_box]
        return nn.ModuleList([self.model.encoder, *heads])

    def look(self, n: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the codes that the encoder writes of n random scenes' pictures."""
        scenes = self.world.sample(n, generator)
        encoder = self.model.encoder
        seen = encoder.describe(self.world.render(scenes, self.cfg.image_size).images)
        codes = torch.tanh(encoder.to_codes(seen).float()).unflatten(1, encoder.shape)
        with torch.no_grad():
            wanted = torch.tanh(self.scribe(scenes).float())
        parts = {"codes": 4 * F.smooth_l1_loss(codes, wanted, beta=0.1)}
        attributes = self.trainer.seen(seen, scenes)
        return parts["codes"] + 0.1 * sum(attributes.values()), parts | attributes

    @torch.no_grad()
    def looked(self) -> dict[str, float]:
        lengths = [1, 2, 3, 4, 6, 8, 12, 16][: self.cfg.num_tokens]
        found = evaluate(self.trainer, self.world, self.held_out, lengths)
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
    work = {
        "painters": (apart.painters(), apart.paint, apart.painted),
        "codes": (apart.codes(), apart.tell, apart.told),
        "encoder": (apart.encoder(), apart.look, apart.looked),
    }
    for number, part in enumerate(PARTS):
        module, loss_of, measure = work[part]
        own = {**config, **config[part]}
        optimiser = torch.optim.AdamW(
            module.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        training = Training(module, optimiser, own, folder / part, until, deadline)
        for step in training:
            seed = (config["seed"] * 10 + number) * 1_000_003 + step
            generator = torch.Generator().manual_seed(seed)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=own["bf16"]):
                loss, parts = loss_of(own["batch"], generator)
            training.learn(loss, parts, learning_rate(step, own["steps"], own["peak_lr"]))
            if training.is_milestone:
                now = {k: v.clone() for k, v in module.state_dict().items()}
                training.finish()  # for a moment, as the other parts are not of the average
                training.log(training.done, part=part, **measure())
                module.load_state_dict(now)
        training.finish()
    return apart.trainer


def main() -> None:
    command(__doc__, "apart_full", train, export)


if __name__ == "__main__":
    main()
