"""Train the large decoder of `sprites` on top of a finished tokenizer.

    python -m tfgen.training.renderer --config tfgen/training/configs/renderer_small.json \\
        --tokenizer FOLDER

The tokenizer is frozen: only the enlargers learn, from true scenes' prefixes, to paint the layers
at 256 pixels. Writes renderer.safetensors into the tokenizer's folder. Resumable.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.packing import pack, write_whole
from tfgen.tokenizers.sprites import RENDERER_FILE, SpritesTokenizer
from tfgen.tokenizers.sprites_render import SCALE, SpritesRenderer
from tfgen.training.commands import arguments, command_line, deadline_in, load_config, parsed
from tfgen.training.common import Training, cache_folder, learning_rate
from tfgen.training.grafts import FIRST
from tfgen.training.settings import RENDERER
from tfgen.training.world import World, shares_in
from tfgen.training.writing import tokens_of

NAMING_WEIGHT = 0.1
DETAIL_WEIGHT = 20.0


@command_line
def main() -> None:
    parser = arguments(__doc__, "renderer_small")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    args = parsed(parser)
    config = load_config(args.config, args.overrides, RENDERER)
    tokenizer = SpritesTokenizer.load(args.tokenizer, args.device)
    world = World(config["tier"], (tokenizer.image_size,), device=args.device, **shares_in(config))
    folder, deadline = cache_folder() / "runs" / args.run, deadline_in(args.minutes)
    renderer = train(config, folder, args.device, tokenizer, world, args.until, deadline)
    export(renderer, args.tokenizer)


def export(renderer: SpritesRenderer, folder: Path) -> None:
    """Write renderer.safetensors, packed, into the tokenizer's folder."""
    write_whole(pack(renderer.state_dict()), folder / RENDERER_FILE)


def train(
    config: dict,
    folder: Path,
    device: str,
    tokenizer: SpritesTokenizer,
    world: World,
    until: int | None = None,
    deadline: float | None = None,
) -> SpritesRenderer:
    """Train as `config` says, checkpointing in `folder`; returns the renderer with EMA weights.

    deadline: see Training; raises TimeUp there.
    """
    torch.manual_seed(config["seed"])
    model, cfg = tokenizer.model, tokenizer.model.cfg
    renderer = SpritesRenderer(cfg).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(renderer.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    training = Training(renderer, optimiser, config, folder, until, deadline)
    objects = world.sprite_bank(SCALE * cfg.canvas_size)  # [kinds, colours, ...]
    grounds = world.background_bank(renderer.size).flatten(0, 1)
    for step in training:
        generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        scenes = world.sample(config["batch"], generator)
        lengths = torch.randint(FIRST, cfg.num_tokens + 1, (len(scenes),), generator=generator)
        few = torch.arange(len(scenes)) < config["backgrounds"]
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"]):
            with torch.no_grad():
                codes = tokenizer.fsq.to_codes(tokens_of(tokenizer, world, scenes))
                keep = torch.arange(cfg.num_tokens) < lengths[:, None]
                trunk = model.trunk(codes, keep.to(device))
                slots = model.slots(trunk)
            described = model.to_background(trunk[few])
            background = renderer.paint_described(model, described)
            said_ground = renderer.background.named(described)
            # One object of each scene: the canvases of a scene are often alike.
            present = scenes.objects >= 0
            first = present & (present.cumsum(1) == 1)
            canvases = renderer.paint_objects(model, slots[first])
            said_kind = renderer.object.named(slots[first])
        true_ground = scenes.grounds(world.variants)[few]
        ground, naming_ground = read(said_ground, true_ground)
        kind, naming_kind = read(said_kind, scenes.objects[first])
        scenery = grounds[ground].float() / 255
        sprites = objects[kind, scenes.colours[first]].float() / 255
        parts = {
            "background": detailed_error(background, scenery),
            "canvas": F.l1_loss(canvases, sprites) + F.mse_loss(canvases, sprites),
            "naming": NAMING_WEIGHT * (naming_ground + naming_kind),
        }
        if renderer.typical is not None:
            parts["typical"] = F.mse_loss(renderer.typical[true_ground], described.float())
        rate = learning_rate(step, config["steps"], config["peak_lr"], warmup=100, flat=0.3)
        training.learn(sum(parts.values()), parts, rate)
    training.finish()
    return renderer


def detailed_error(painted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of pictures Float[N, 3, S, S] in which a pixel counts the more the more
    it differs from those around it: else stars and rain, few pixels in many, are never painted."""
    around = F.avg_pool2d(F.pad(target, (4, 4, 4, 4), mode="reflect"), 9, stride=1)
    weight = 1 + DETAIL_WEIGHT * (target - around).abs().mean(dim=1, keepdim=True)
    return ((painted - target).abs() * weight).mean() / weight.mean()


def read(said: Tensor | None, true: Tensor) -> tuple[Tensor, Tensor]:
    """What is to be painted, Int64[N], and the loss of naming it: a memory paints what it reads in
    a description, and learns to read what is there; without a memory it is what is there.

    said: logits Float[N, kinds]; true: Int64[N].
    """
    if said is None:
        return true, torch.zeros((), device=true.device)
    return said.argmax(dim=1), F.cross_entropy(said.float(), true)


if __name__ == "__main__":
    main()
