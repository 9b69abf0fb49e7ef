"""How much faster does the engine decode and score on a CPU than a straightforward PyTorch loop?

    python -m benchmarks.cpu_engine -o benchmarks/results      # on an idle machine
    python -m benchmarks.cpu_engine --cores 1 --runs 0

The same candidates of the packaged sprites model, decoded and embedded by the packaged verifier:

- `one at a time`: a loop over candidates, with the convolutions as they are trained: the picture
  enlarged by repeating pixels, then convolved; torch splits each operation between the cores.
- `one at a time, one thread`, `batched`: the same on one core; and in batches, on all.
- `eager`: `--engine eager`, batches with the convolutions of tfgen.tokenizers.subpixel.
- `engine`: what a search uses, `--engine auto`.
- `bf16`: `--engine bf16`, on a processor that has AVX512-BF16 or AMX; it differs by more than
  rounding, and by how much is told.

Repeats are interleaved, so that whatever else the machine does hits all alike; a ratio is the
median of the ratios within a repeat. But torch's threads wait for each other in every operation,
and stand still while another process has a core: on a busy machine the first rows say little, and
the load is told with the result. Then the whole default run, as a user types it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen import hub
from tfgen.decoding.bfloat16 import why_no_bfloat16
from tfgen.decoding.engine import engine_maker
from tfgen.errors import TfgenError, whole_number
from tfgen.search import Engine
from tfgen.tokenizers import sprites_model
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier

from . import harness
from .workers import cores

QUESTION = __doc__.splitlines()[0]
PROMPT = "a red fox in snow"
COMMAND = (PROMPT, "--beam", "16")  # the default run of the README
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of an embedding's components
COARSE = 0.01  # of those of bf16


def enlarge_then_convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """What `conv_enlarged` computes, as one would write it first."""
    return conv(F.interpolate(x, scale_factor=2, mode="nearest"))


@contextmanager
def straightforward(threads: int) -> Iterator[None]:
    torch.set_num_threads(threads)
    with patch.object(sprites_model, "conv_enlarged", enlarge_then_convolve):
        yield


def ways(
    tokenizer: Tokenizer, verifier: Verifier, tokens: Tensor, threads: int
) -> dict[str, Callable[[int], Tensor]]:
    """By name: how many of the tokens Int64[N, k] -> their embeddings Float32[n, d]."""
    rows = tokenizer.decode_rows
    torch.set_num_threads(threads)  # the engine takes as many
    eager, engine = (engine_maker(name, CPU)(tokenizer, verifier) for name in ("eager", "auto"))
    narrow = {} if why_no_bfloat16(CPU) else {"bf16": engine_maker("bf16", CPU)}

    def loop(batch: int, threads: int = threads) -> Callable[[int], Tensor]:
        def work(n: int) -> Tensor:
            with straightforward(threads):
                parts = tokens[:n].split(batch)
                return torch.cat([verifier.embed(tokenizer.decode(part)) for part in parts])

        return work

    def batches(n: int) -> Tensor:
        torch.set_num_threads(threads)
        return torch.cat([eager.embed([part])[0] for part in tokens[:n].split(rows)])

    def searched(engine: Engine) -> Callable[[int], Tensor]:
        def work(n: int) -> Tensor:  # as many passes at a time as an `Evaluator` gives it
            groups = tokens[:n].split(engine.passes * engine.rows)
            parts = [e for group in groups for e in engine.embed(group.split(engine.rows))]
            return torch.cat(parts)

        return work

    return {
        "one at a time": loop(1),
        "one at a time, one thread": loop(1, threads=1),
        "batched": loop(rows),
        "eager": batches,
        "engine": searched(engine),
        **{name: searched(make(tokenizer, verifier)) for name, make in narrow.items()},
    }


@torch.inference_mode()
def measure(
    work: dict[str, Callable[[int], Tensor]], candidates: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Candidates a second of each way, in every repeat, and how far its embeddings are from those
    of the first. Raises TfgenError where they differ by more than they may."""
    first = next(iter(work))
    few = max(1, candidates // 4)  # for what is slow, and no faster with more of them
    counts = {name: few if name.startswith(first) else candidates for name in work}
    expected = work[first](counts[first])  # which also warms up, as it does below
    found: dict[str, dict[str, Any]] = {}
    for name, way in work.items():
        error = (way(counts[name])[: len(expected)] - expected).abs().max().item()
        if not error < (COARSE if name == "bf16" else TOLERANCE):
            raise TfgenError(f"{name} and {first} differ by {error:.1e}: they must be the same.")
        found[name] = {"error": error, "rates": []}
    for _ in range(repeats):
        for name, way in work.items():
            start = time.perf_counter()
            way(counts[name])
            found[name]["rates"].append(counts[name] / (time.perf_counter() - start))
    base = found[first]["rates"]
    for row in found.values():
        ratios = [rate / other for rate, other in zip(row["rates"], base, strict=True)]
        row["ratio"] = statistics.median(ratios)
        row["ratios"] = [min(ratios), max(ratios)]
    return found


def whole_run(engine: str, threads: int) -> dict[str, float]:
    """Seconds of the default run in a process of its own, and of the search in it."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tfgen_cli", *COMMAND, "--json", "--quiet"]
        command += ["--device", "cpu", "--engine", engine, "-o", str(Path(folder) / "fox.png")]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise TfgenError(f"The default run failed: {done.stderr.strip()}")
    picture = json.loads(done.stdout)["images"][0]
    return {"whole": seconds, "search": picture["seconds"], "decodes": picture["decodes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION, allow_abbrev=False)
    add = parser.add_argument
    add("--candidates", type=int, default=256, metavar="N", help="decoded in a repeat (256)")
    add("--tokens", type=int, default=4, metavar="K", help="length of the prefixes (4)")
    add("--repeats", type=int, default=7, metavar="N", help="interleaved (7)")
    add("--runs", type=int, default=3, metavar="N", help="of the whole default run (3)")
    add("--cores", type=int, metavar="N", help="to use (default: 2, or all if fewer)")
    add("-o", "--output", type=Path, metavar="DIR", help="write cpu_engine.json and .md there")
    args = parser.parse_args()
    whole_number("--candidates", args.candidates, 1)
    whole_number("--repeats", args.repeats, 1)
    whole_number("--runs", args.runs, 0)
    threads = args.cores if args.cores is not None else min(2, cores())
    whole_number("--cores", threads, 1, cores())
    tokenizer = hub.load_tokenizer(hub.DEFAULT_MODEL, CPU)
    verifier = hub.load_verifier(hub.DEFAULT_VERIFIER, CPU, "contrast")
    whole_number("--tokens", args.tokens, 1, tokenizer.num_tokens)
    noise = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.vocab_size, (args.candidates, args.tokens), generator=noise)
    before = torch.get_num_threads()
    try:
        rows = measure(ways(tokenizer, verifier, tokens, threads), args.candidates, args.repeats)
    finally:
        torch.set_num_threads(before)
    engines = ("eager", "auto", *(["bf16"] if "bf16" in rows else []))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for _ in range(args.runs):
        for engine in engines:
            runs[engine].append(whole_run(engine, threads))
    text = report(rows, runs, threads, load, args)
    print(text)
    if args.output:
        settings = {
            "candidates": args.candidates,
            "tokens": args.tokens,
            "repeats": args.repeats,
            "cores": threads,
            "load": load,
        }
        write(args.output, {"settings": settings, "engines": rows, "runs": runs}, text)


def report(
    rows: dict[str, dict[str, Any]],
    runs: dict[str, list[dict[str, float]]],
    threads: int,
    load: float | None,
    args: argparse.Namespace,
) -> str:
    """The tables of the page."""
    table = [
        [
            name,
            f"{statistics.median(row['rates']):,.1f}",
            f"{row['ratio']:.2f}x [{row['ratios'][0]:.2f}, {row['ratios'][1]:.2f}]",
            f"{row['error']:.0e}",
        ]
        for name, row in rows.items()
    ]
    busy = "unknown" if load is None else f"{load:.1f} processes in the last minute"
    head = (
        f"Decode and verifier, {args.candidates} candidates of {args.tokens} tokens on {threads} "
        f"cores, {args.repeats} interleaved repeats. The ratio is the median of the repeats' [the "
        "least, the most]. Error: of the embeddings, from those of the first row. "
        f"Load of the machine: {busy}; from this benchmark alone it is at most {threads}."
    )
    parts = [head, harness.markdown(["way", "candidates/s", "ratio", "error"], table)]
    if args.runs:
        quoted = f'`tfgen "{COMMAND[0]}" {" ".join(COMMAND[1:])}`'
        parts.append(
            f"{quoted}, the whole command in a new process and the search in it; the median of "
            f"{args.runs}, interleaved."
        )
        table = [
            [
                f"--engine {engine}",
                *(
                    f"{statistics.median(run[part] for run in made):,.1f}"
                    for part in ("whole", "search")
                ),
                f"{made[0]['decodes']:,}",
            ]
            for engine, made in runs.items()
        ]
        parts.append(harness.markdown(["", "seconds", "of them search", "decodes"], table))
    return "\n\n".join(parts)


def write(folder: Path, found: dict[str, Any], text: str) -> None:
    """JSON and page, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    made = harness.record(argparse.Namespace(jobs=1))
    data = json.dumps({"made": made, **found}, indent=1)
    harness.write_whole(folder / "cpu_engine.json", data.encode() + b"\n")
    versions = ", ".join(f"{name} {value}" for name, value in made["versions"].items() if value)
    page = (
        f"# {QUESTION}\n\n{text}\n\nMade by `{made['command']}`, {made['date']}, "
        f"{made['machine']['cpu']}, {made['machine']['cores']} cores; {versions}\n"
    )
    harness.write_whole(folder / "cpu_engine.md", page.encode())


if __name__ == "__main__":
    raise SystemExit(harness.command(main))
