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
from safetensors.torch import save_file
from torch import nn

from tfgen.tokenizers.sprites import RENDERER_FILE, SpritesTokenizer
from tfgen.tokenizers.sprites_render import SCALE, SpritesRenderer
from tfgen.training.common import (
    EMA,
    Log,
    arguments,
    cache_folder,
    learning_rate,
    load_checkpoint,
    load_config,
    save_checkpoint,
)
from tfgen.training.world import World


def main() -> None:
    parser = arguments(__doc__, "renderer_small")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    tokenizer = SpritesTokenizer.load(args.tokenizer, args.device)
    world = World(config["tier"], (tokenizer.image_size,), device=args.device)
    folder = cache_folder() / "runs" / args.run
    renderer = train(config, folder, args.device, tokenizer, world, args.until)
    state = {k: v.half().contiguous() for k, v in renderer.state_dict().items()}
    save_file(state, args.tokenizer / RENDERER_FILE)


def train(
    config: dict,
    folder: Path,
    device: str,
    tokenizer: SpritesTokenizer,
    world: World,
    until: int | None = None,
) -> SpritesRenderer:
    """Train as `config` says, checkpointing in `folder`; returns the renderer with EMA weights."""
    torch.manual_seed(config["seed"])
    model, cfg = tokenizer.model, tokenizer.model.cfg
    renderer = SpritesRenderer(cfg).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(renderer.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    ema = EMA(renderer, config["ema"])
    log = Log(folder / "log.jsonl")
    checkpoint = folder / "checkpoint.safetensors"
    steps = config["steps"]
    last = min(steps, until or steps)
    for step in range(load_checkpoint(checkpoint, renderer, optimiser, ema), last):
        generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        scenes = world.sample(config["batch"], generator)
        lengths = torch.randint(3, cfg.num_tokens + 1, (len(scenes),), generator=generator)
        few = torch.arange(len(scenes)) < config["backgrounds"]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, config["peak_lr"], warmup=100, flat=0.3)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"]):
            with torch.no_grad():
                codes = tokenizer.fsq.to_codes(tokenizer.encode(world.render(scenes).images))
                keep = torch.arange(cfg.num_tokens) < lengths[:, None]
                layered, trunk = model.layers(codes, keep.to(device))
            background = renderer.paint_background(model, trunk[few])
            present, sprites = world.sprite_targets(scenes, SCALE * cfg.canvas_size)
            # One object of each scene: the canvases of a scene are often alike.
            first = present & (present.cumsum(1) == 1)
            canvases = renderer.paint_objects(model, layered.slots[first])
        target = sprites[first[present]]
        parts = {
            "background": F.l1_loss(background, world.backgrounds(scenes[few], renderer.size)),
            "canvas": F.l1_loss(canvases, target) + F.mse_loss(canvases, target),
        }
        loss = sum(parts.values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(renderer.parameters(), 1.0)
        optimiser.step()
        ema.update(renderer)
        done = step + 1
        if done % config["log_every"] == 0:
            log(done, loss=loss.item(), **{k: v.item() for k, v in parts.items()})
        if done % config["save_every"] == 0 or done == last:
            save_checkpoint(checkpoint, renderer, optimiser, ema, done)
    renderer.load_state_dict(ema.state_dict(renderer))
    return renderer


if __name__ == "__main__":
    main()
