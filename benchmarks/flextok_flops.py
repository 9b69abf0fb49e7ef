"""How many FLOPs is one decoded candidate of a FlexTok, and how many of them are redundant?

    python -m benchmarks.flextok_flops                  # the published sizes, 20 guided steps
    python -m benchmarks.flextok_flops --tokens 1 4 32 256 --steps 10

Counted by torch on the meta device, where nothing is computed: a multiply-add is two FLOPs. What is
the same for all candidates of a prompt, such as the shared first unconditional evaluation and the
embedding of the times, is not counted: a row is the cost of one candidate more.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch.utils.flop_counter import FlopCounterMode

from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.flextok_config import SIZES, published
from tfgen.tokenizers.flextok_loading import Networks

PATHS = {  # name: collapse, share_first
    "plain": (False, False),
    "shared": (False, True),
    "collapsed": (True, True),
}


def skeleton(size: str) -> FlexTok:
    """A published size without numbers, on the meta device."""
    with torch.device("meta"):
        return FlexTok(Networks(published(size)).eval().requires_grad_(False))


def count(tokenizer: FlexTok, tokens: int) -> tuple[int, int]:
    """FLOPs of one candidate with a prefix of `tokens` tokens: of a decode in one step, and of each
    step more, as steps after the first are alike."""
    tokenizer = tokenizer.for_seed(0)
    prefix = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    totals = []
    for steps in (1, 2):
        tokenizer.prepare(steps)
        with FlopCounterMode(display=False) as counter:
            tokenizer.decode(prefix, steps=steps)
        totals.append(counter.get_total_flops())
    return totals[0], totals[1] - totals[0]


def decode_flops(tokenizer: FlexTok, tokens: int, steps: int = 20) -> int:
    """FLOPs of one candidate more among many of one prompt, decoded with guidance."""
    first, each = count(tokenizer, tokens)
    return first + (steps - 1) * each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 32], help="prefix lengths")
    parser.add_argument("--steps", type=int, default=20, help="Euler steps, with guidance")
    args = parser.parse_args()
    for size in args.sizes:
        tokenizer = skeleton(size)
        for path, (tokenizer.collapse, tokenizer.share_first) in PATHS.items():
            for tokens in args.tokens if path == "collapsed" else args.tokens[:1]:
                flops = decode_flops(tokenizer, tokens, args.steps)
                row = {"size": size, "path": path, "steps": args.steps, "tflop": flops / 1e12}
                if path == "collapsed":  # what is not depends on no length
                    row["tokens"] = tokens
                print(json.dumps(row))


if __name__ == "__main__":
    main()
