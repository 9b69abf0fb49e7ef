"""Train the 2D-grid tokenizer `sprites-grid`, the control of the ordered one, on the sprite world.

    python -m tfgen.training.grid --config tfgen/training/configs/grid_small.json --export FOLDER

Resumes from its checkpoint in the cache folder. A random prefix of the cells is kept, and only
their part of the picture counts. Small heads, dropped after training, read from every cell what
stands there, as those of the ordered tokenizer do from its prefixes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.tokenizers.fsq import FSQ
from tfgen.tokenizers.grid_model import GridConfig, GridModel, finished, given
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.colours import COLOURS
from tfgen.training.common import HEADS_ALONE, learning_rate
from tfgen.training.settings import GRID
from tfgen.training.tokenizer import HELD_OUT_SEED, begin_run, command, export_networks, psnr
from tfgen.training.world import Scenes, World

WHOLE = 0.5  # the share of the training scenes that keep all cells


def contents(scenes: Scenes, grid: int) -> Tensor:
    """Which object stands in each cell: Int64[N, grid ** 2], its slot, or -1 for none.

    The object whose box holds the middle of the cell.
    """
    middle = (torch.arange(grid, device=scenes.boxes.device) + 0.5) / grid
    x, y = middle.repeat(grid), middle.repeat_interleave(grid)  # [T], in raster order
    centre_x, centre_y, size = scenes.boxes[..., None].unbind(2)  # each [N, 4, 1]
    inside = ((x - centre_x).abs() < size / 2) & ((y - centre_y).abs() < size / 2)
    inside &= (scenes.objects >= 0)[..., None]  # [N, 4, T]
    slot = inside.int().argmax(dim=1)
    return slot.where(inside.any(dim=1), -1)


class CellHeads(nn.Module):
    """Read object, colour and background from the descriptions of cells."""

    def __init__(self, width: int, num_objects: int):
        super().__init__()
        self.object = nn.Linear(width, num_objects + 1)  # the last class: none
        self.colour = nn.Linear(width, len(COLOURS))
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def forward(self, cells: Tensor, scenes: Scenes, slots: Tensor) -> dict[str, Tensor]:
        """Losses of P cells: Float[P, width], the scene of each, and its slot Int64[P] or -1."""
        occupied = slots >= 0
        slot = slots.clamp(min=0)[:, None]
        objects = scenes.objects.gather(1, slot)[:, 0]
        colours = scenes.colours.gather(1, slot)[:, 0]
        objects = objects.where(occupied, self.object.out_features - 1)
        wrong = F.cross_entropy(self.colour(cells), colours, reduction="none")
        return {
            "object": F.cross_entropy(self.object(cells), objects),
            "colour": (wrong * occupied).sum() / occupied.sum().clamp(min=1),
            "background": F.cross_entropy(self.background(cells), scenes.background),
        }


class GridTrainer(nn.Module):
    """The tokenizer's networks, the heads, and the loss."""

    def __init__(self, cfg: GridConfig, num_objects: int, attribute_weight: float):
        super().__init__()
        self.cfg, self.fsq, self.attribute_weight = cfg, FSQ(cfg.levels), attribute_weight
        self.heads_alone = False  # see HEADS_ALONE
        self.model = GridModel(cfg)
        self.see = CellHeads(cfg.width, num_objects)
        self.read = CellHeads(cfg.width, num_objects)

    def keep(self, lengths: Tensor) -> Tensor:
        """Int64[N] -> Bool[N, T]."""
        return torch.arange(self.cfg.num_tokens, device=lengths.device) < lengths[:, None]

    def encode(self, images: Tensor) -> Tensor:
        return self.fsq.quantise(self.model.encoder(images))

    def decode(self, codes: Tensor, length: int) -> Tensor:
        """Pictures Float[N, 3, H, W] of prefixes of one length, unfinished cells included."""
        keep = self.keep(torch.full((len(codes),), length, device=codes.device))
        return self.model.decoder.paint(self.model.decoder.describe(codes, keep))

    def forward(
        self, world: World, scenes: Scenes, lengths: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on scenes whose prefixes of `lengths` Int64[N] are kept, and its parts."""
        cfg, model = self.cfg, self.model
        target = world.render(scenes, cfg.image_size)
        keep = self.keep(lengths)
        seen = model.encoder.describe(target.images)
        cells = model.decoder.describe(self.fsq.quantise(model.encoder.to_codes(seen)), keep)
        image = model.decoder.paint(cells)
        part = given(keep, cfg.grid, cfg.image_size).float()
        share = part.mean()
        difference = (image - target.images) * part
        inside = 1 + 2 * target.alpha
        parts = {
            "image": (difference.abs() * inside).mean() / share,
            "coarse": F.avg_pool2d(difference, 4).abs().mean() / share,
        }
        if self.heads_alone:
            seen, cells = seen.detach(), cells.detach()
        slots = contents(scenes, cfg.grid)
        rows, columns = torch.ones_like(keep).nonzero(as_tuple=True)
        attributes = {
            f"seen_{name}": loss
            for name, loss in self.see(seen.flatten(0, 1), scenes[rows], slots.flatten()).items()
        }
        rows, columns = keep.nonzero(as_tuple=True)
        attributes |= self.read(cells[rows, columns], scenes[rows], slots[rows, columns])
        loss = sum(parts.values()) + self.attribute_weight * sum(attributes.values())
        return loss, parts | attributes


@torch.no_grad()
def evaluate(
    trainer: GridTrainer, world: World, scenes: Scenes, lengths: list[int]
) -> dict[str, float | list[int]]:
    """On given scenes, at each prefix length: mean PSNR of the whole picture, unfinished cells
    filled (`psnr@k`), and of the finished part alone (`finished@k`); the codes used by cell."""
    grid = trainer.cfg.grid
    target = world.render(scenes, trainer.cfg.image_size).images
    codes = trainer.encode(target)
    result: dict[str, float | list[int]] = {}
    for k in lengths:
        keep = trainer.keep(torch.full((len(scenes),), k, device=target.device))
        image = finished(trainer.decode(codes, k), keep, grid)
        result[f"psnr@{k}"] = round(psnr(image, target).mean().item(), 2)
        # The part's mean squared error is the whole's, where the rest is right, times T / k.
        filled = image.where(given(keep, grid, image.shape[-1]), target)
        part = psnr(filled, target) - 10 * torch.log10(torch.tensor(grid**2 / k))
        result[f"finished@{k}"] = round(part.mean().item(), 2)
    tokens = trainer.fsq.to_tokens(codes)
    return result | {"codes": [len(tokens[:, t].unique()) for t in range(tokens.shape[1])]}


def main() -> None:
    command(__doc__, "grid_small", GRID, train, export)


def export(trainer: GridTrainer, folder: Path) -> None:
    """Write it without the heads."""
    export_networks("grid", trainer.model, trainer.cfg, folder)


def train(
    config: dict,
    folder: Path,
    device: str,
    world: World | None = None,
    until: int | None = None,
    deadline: float | None = None,
) -> GridTrainer:
    """Train as `config` says, checkpointing in `folder`; returns the trainer with EMA weights.

    deadline: see Training; raises TimeUp there.
    """
    world, trainer, training = begin_run(
        GridTrainer, GridConfig, config, folder, device, world, until, deadline
    )
    cfg = trainer.cfg
    held_out = world.sample(256, torch.Generator().manual_seed(HELD_OUT_SEED))
    judged = [1, 4, 8, 12, 16][: cfg.num_tokens]
    for step in training:
        trainer.heads_alone = bool(config.get("start")) and step < HEADS_ALONE
        generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        scenes = world.sample(config["batch"], generator)
        lengths = torch.randint(1, cfg.num_tokens, (config["batch"],), generator=generator)
        lengths[: round(WHOLE * config["batch"])] = cfg.num_tokens
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"]):
            loss, parts = trainer(world, scenes, lengths.to(device))
        training.learn(loss, parts, learning_rate(step, config["steps"], config["peak_lr"]))
        if training.is_milestone:
            averaged = GridTrainer(cfg, world.num_objects, 0.0).to(device)
            averaged = training.averaged(averaged)
            training.log(training.done, **evaluate(averaged, world, held_out, judged))
    training.finish()
    return trainer


if __name__ == "__main__":
    main()
