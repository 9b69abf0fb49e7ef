"""Train the forecaster of `sprites`: prefix -> the verifier's embedding of its picture.

    python -m tfgen.training.forecast --config tfgen/training/configs/forecast_small.json \\
        --tokenizer FOLDER --verifier FOLDER

It learns from what tokenizer and verifier make of prefixes such as a search meets: those of the
bank, and mixtures of them. No text is involved. Writes forecast.safetensors into the tokenizer's
folder. Resumable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen.decoding.engine import DecodeEngine, engine_maker
from tfgen.forecaster import FILE_NAME, Forecaster, ForecastNetwork
from tfgen.priors.bank import FILE_NAME as BANK_FILE
from tfgen.priors.bank import Bank
from tfgen.search.evaluator import Engine
from tfgen.tables import Parts, models_of
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.training.commands import arguments, command_line, deadline_in, load_config, parsed
from tfgen.training.common import Training, cache_folder, learning_rate
from tfgen.training.settings import FORECAST
from tfgen.training.stopping import Timer
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.clip import ClipVerifier

PART = 1024  # pictures of a part
ALIKE = 64  # pictures of a part that have one length, so that passes are full
CROSSED, AGAIN = 0.9, 0.5
"""Shares of the prefixes that take a run of tokens from another picture, and of all a second."""
CHANGED, TOKEN = 0.3, 0.1
"""Share of the prefixes of which single tokens come from another picture; share of these."""
HELD_OUT = 2  # parts


@command_line
def main() -> None:
    parser = arguments(__doc__, "forecast_small")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--verifier", type=Path, required=True, help="folder of the verifier")
    args = parsed(parser)
    config = load_config(args.config, args.overrides, FORECAST)
    tokenizer = SpritesTokenizer.load(args.tokenizer, args.device)
    verifier = ClipVerifier.load(args.verifier, args.device)
    folder, deadline = cache_folder() / "runs" / args.run, deadline_in(args.minutes)
    bank = Bank.open(args.tokenizer / BANK_FILE)
    trained = train(config, folder, tokenizer, verifier, bank, args.until, deadline)
    trained.save(args.tokenizer / FILE_NAME)
    Parts(folder / "pictures", {}).remove()


def train(
    config: dict[str, Any],
    folder: Path,
    tokenizer: Tokenizer,
    verifier: Verifier,
    bank: Bank,
    until: int | None = None,
    deadline: float | None = None,
) -> Forecaster:
    """Train as `config` says, on `pictures` prefixes that are decoded first; all is kept in
    `folder`. Returns the forecaster with EMA weights. deadline: see Training and Timer."""
    torch.manual_seed(config["seed"])
    timer = Timer(deadline)
    tokens, lengths, seen = pictures(config, folder, tokenizer, verifier, bank, timer)
    codes = tokenizer.code_embeddings().float()
    sizes = (tokenizer.num_tokens, codes.shape[1], seen.shape[1])
    network = ForecastNetwork(*sizes, config["width"], config["depth"]).to(codes.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    training = Training(network, optimiser, config, folder, until, deadline)
    places = torch.arange(tokenizer.num_tokens, device=codes.device)
    held = HELD_OUT * PART

    def foretold(network: ForecastNetwork, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        prefixes, short = tokens[rows].to(codes.device), lengths[rows, None].to(codes.device)
        made = network(codes[prefixes], places < short)
        return made, seen[rows].to(codes.device).float()

    for step in training:
        generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        rows = held + torch.randint(len(tokens) - held, (config["batch"],), generator=generator)
        made, true = foretold(network, rows)
        loss = (made - true).square().sum(dim=1).mean()
        rate = learning_rate(step, config["steps"], config["peak_lr"], warmup=200, flat=0.2)
        training.learn(loss, {}, rate)
        if training.is_milestone:
            fresh = ForecastNetwork(**network.sizes).to(codes.device)
            with torch.no_grad():
                made, true = foretold(training.averaged(fresh), slice(0, held))
                error = (made - true).square().sum(dim=1).mean()
                spread = true.var(dim=0, correction=0).sum()
            training.log(training.done, held_out=error.item(), unexplained=(error / spread).item())
    training.finish()
    return Forecaster(network, codes, models_of(tokenizer, verifier), None)


def pictures(
    config: dict[str, Any],
    folder: Path,
    tokenizer: Tokenizer,
    verifier: Verifier,
    bank: Bank,
    progress: Timer,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefixes Int64[N, num_tokens], their lengths Int64[N], and the embeddings of their pictures,
    Float16[N, d], unit vectors; N is config["pictures"], in whole parts, each kept when it is done.
    """
    models = models_of(tokenizer, verifier)
    identity = {"models": models, "seed": config["seed"], "tokens": config["tokens"]}
    parts, count = Parts(folder / "pictures", identity), -(-config["pictures"] // PART)
    engine = for_prefixes(engine_maker("auto", tokenizer.device)(tokenizer, verifier))
    scenes, done = bank.tokens(torch.arange(len(bank))).cpu(), []
    for index in range(count):
        part = parts.load(index)
        if part is None:
            generator = torch.Generator().manual_seed(config["seed"] * 1_000_003 + index)
            tokens, lengths = draw(scenes, config["tokens"], generator)
            seen = engine.embed_prefixes(tokens.to(tokenizer.device), lengths)
            seen = F.normalize(seen.float(), dim=1).half().cpu()
            part = {"tokens": tokens, "lengths": lengths, "embeddings": seen}
            parts.save(index, part)
        progress(index + 1, count)
        done.append(part)
    return tuple(torch.cat([part[k] for part in done]) for k in ("tokens", "lengths", "embeddings"))


class PlainPasses(DecodeEngine):
    """One pass after the other, as `PlainEngine` makes them, of prefixes of mixed lengths: for a
    GPU on which kernels do not run."""

    name, passes = "eager", 8

    def embed(self, passes: Sequence[Tensor]) -> list[Tensor]:
        return [self.verifier.embed(self.tokenizer.decode(tokens)) for tokens in passes]


def for_prefixes(engine: Engine) -> DecodeEngine:
    """This engine, or where it embeds no prefixes of mixed lengths, one of its models that does."""
    if isinstance(engine, DecodeEngine):
        return engine
    return PlainPasses(engine.tokenizer, engine.verifier)


def draw(scenes: Tensor, usual: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """PART prefixes of mixtures of scenes Int64[M, T], and their lengths: Int64[PART, T] and
    Int64[PART]. usual: the length of half of them; the others have any."""
    length = scenes.shape[1]

    def some() -> Tensor:
        return scenes[torch.randint(len(scenes), (PART,), generator=generator)]

    def chosen(share: float, *shape: int) -> Tensor:
        return torch.rand(PART, *shape, generator=generator) < share

    mixed, at = some(), torch.arange(length)
    for share in (CROSSED, AGAIN):
        cuts = torch.rand(PART, length + 1, generator=generator).topk(2).indices.sort().values
        run = (at >= cuts[:, :1]) & (at < cuts[:, 1:])
        mixed = torch.where(run & chosen(share, 1), some(), mixed)
    mixed = torch.where(chosen(TOKEN, length) & chosen(CHANGED, 1), some(), mixed)
    runs = PART // ALIKE
    any_length = torch.randint(1, length + 1, (runs,), generator=generator)
    usual_ones = torch.rand(runs, generator=generator) < 0.5
    lengths = torch.where(usual_ones, usual, any_length).repeat_interleave(ALIKE)
    return torch.where(at < lengths[:, None], mixed, 0), lengths


if __name__ == "__main__":
    main()
