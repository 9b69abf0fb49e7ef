"""Train the text-conditioned autoregressive prior of a tokenizer on the sprite world.

    python -m tfgen.training.autoregressive \\
        --config tfgen/training/configs/autoregressive_small.json --tokenizer FOLDER

Scenes are drawn, captioned, rendered and encoded as training goes; the tokenizer stays as it is.
Writes autoregressive.safetensors into the tokenizer's folder. Resumable. The same config gives
every tokenizer the same scenes, captions, network and steps.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.hub import DEFAULT_VERIFIER, WEIGHTS, load_tokenizer
from tfgen.priors.autoregressive import FILE_NAME, AutoregressivePrior
from tfgen.priors.autoregressive_model import AutoregressiveConfig, AutoregressiveModel, inputs
from tfgen.tokenizers.base import Tokenizer
from tfgen.training.captions import Captioner
from tfgen.training.commands import arguments, command_line, deadline_in, load_config, parsed
from tfgen.training.common import Training, cache_folder, learning_rate
from tfgen.training.settings import AUTOREGRESSIVE
from tfgen.training.tokenizer import HELD_OUT_SEED
from tfgen.training.world import World, shares_in
from tfgen.training.writing import tokens_of
from tfgen.verifiers.words import PAD, START, UNKNOWN, WordTokenizer

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Guidance scales at which the log-probabilities of true scenes are measured."""


def batch(
    world: World,
    tokenizer: Tokenizer,
    captioner: Captioner,
    words: WordTokenizer,
    n: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """n scenes of a seed: words Int64[n, S], padded to the longest caption; tokens Int64[n, T]."""
    scenes = world.sample(n, torch.Generator().manual_seed(seed))
    captions, _ = captioner.write(scenes, random.Random(seed))
    text = words(captions)
    tokens = tokens_of(tokenizer, world, scenes)
    return text[:, : int((text != PAD).sum(1).max())].to(tokens.device), tokens


def dropped(
    text: Tensor, empty: Tensor, texts: float, words: float, generator: torch.Generator
) -> Tensor:
    """Texts Int64[N, S], some of them (a share `texts`) emptied, some words (`words`) unknown.

    empty: Int64[2], the start and the end of a text.
    """
    text = text.clone()
    special = (text <= START) | (text == empty[-1])
    lost = torch.rand(text.shape, generator=generator).to(text.device) < words
    text[lost & ~special] = UNKNOWN
    nothing = F.pad(empty, (0, text.shape[1] - len(empty)), value=PAD)
    gone = torch.rand(len(text), generator=generator).to(text.device) < texts
    return torch.where(gone[:, None], nothing, text)


def loss_of(model: AutoregressiveModel, text: Tensor, tokens: Tensor) -> Tensor:
    """Minus log p of every token given its text and those before it: Float[N, T]."""
    logits, _ = model(inputs(tokens), *model.read(text))
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


@torch.no_grad()
def measure(model: AutoregressiveModel, empty: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
    """The mean log p per token of these scenes' prefixes: Float[len(SCALES), T], by guidance."""
    total = torch.zeros(len(SCALES), tokens.shape[1], device=tokens.device)
    for some, these in zip(text.split(64), tokens.split(64), strict=True):
        fed = inputs(these)
        conditional = model(fed, *model.read(some))[0]
        free = model(fed, model.read(empty[None])[0])[0]
        for i, scale in enumerate(SCALES):
            guided = free + scale * (conditional - free)
            total[i] -= F.cross_entropy(guided.transpose(1, 2), these, reduction="none").sum(0)
    lengths = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return (total / len(tokens)).cumsum(1) / lengths


def train(
    config: dict,
    folder: Path,
    device: str,
    tokenizer: Tokenizer,
    words: WordTokenizer,
    world: World,
    until: int | None = None,
    deadline: float | None = None,
) -> AutoregressivePrior:
    """Train as `config` says, checkpointing in `folder`; returns the prior with EMA weights.

    deadline: see Training; raises TimeUp there.
    """
    torch.manual_seed(config["seed"])
    cfg = AutoregressiveConfig(
        levels=tuple(tokenizer.fsq.levels),
        num_tokens=tokenizer.num_tokens,
        words=words.vocab_size,
        context_length=words.context_length,
        **config["model"],
    )
    model = AutoregressiveModel(cfg).to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    training = Training(model, optimiser, config, folder, until, deadline)
    captioner = Captioner(world.specs)
    empty = words("")[0, :2].to(device)
    held_out = batch(world, tokenizer, captioner, words, config["held_out"], HELD_OUT_SEED)
    for step in training:
        seed = config["seed"] * 1_000_003 + step
        text, tokens = batch(world, tokenizer, captioner, words, config["batch"], seed)
        generator = torch.Generator().manual_seed(seed)
        text = dropped(text, empty, config["drop_texts"], config["drop_words"], generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"]):
            loss = loss_of(model, text, tokens).mean()
        rate = learning_rate(step, config["steps"], config["peak_lr"], flat=config["flat"])
        training.learn(loss, {}, rate)
        if training.is_milestone:
            averaged = training.averaged(AutoregressiveModel(cfg).to(device))
            means = measure(averaged, empty, *held_out)[:, -1]
            bits = (-means / torch.tensor(2.0).log()).tolist()
            told = {f"bits@{s:g}": round(b, 3) for s, b in zip(SCALES, bits, strict=True)}
            training.log(training.done, **told)
    training.finish()
    expected = measure(model, empty, *held_out)
    metadata = {
        "tier": config["tier"],
        "scenes": training.last * config["batch"],
        "held_out": config["held_out"],
        "tokenizer": tokenizer.fingerprint(),
    }
    return AutoregressivePrior(model, words, (SCALES, expected), config["guidance"], metadata)


@command_line
def main() -> None:
    parser = arguments(__doc__, "")  # no one name: each tokenizer's prior is a run of its own
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        default=WEIGHTS / DEFAULT_VERIFIER / "vocabulary.json",
        help="the words to read (default: those of the packaged verifier)",
    )
    args = parsed(parser)
    config = load_config(args.config, args.overrides, AUTOREGRESSIVE)
    tokenizer = load_tokenizer(str(args.tokenizer), torch.device(args.device))
    words = WordTokenizer.load(args.vocabulary)
    shares = shares_in(config) | {"pairs": config.get("pairs", 0.0)}
    world = World(config["tier"], (tokenizer.image_size,), device=args.device, **shares)
    run = args.run or f"autoregressive_{args.tokenizer.resolve().name}"
    folder, deadline = cache_folder() / "runs" / run, deadline_in(args.minutes)
    prior = train(config, folder, args.device, tokenizer, words, world, args.until, deadline)
    prior.save(args.tokenizer / FILE_NAME)


if __name__ == "__main__":
    main()
