"""Which engine decodes, how many rows a pass has, and what all engines do alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.toys import GridTokenizer, GridVerifier, ToyTokenizer
from tfgen import hub
from tfgen.cache import rounding
from tfgen.decoding import engine as engines
from tfgen.decoding import triton_support
from tfgen.decoding.engine import EngineWarning, engine_maker, fitting_rows
from tfgen.decoding.kernel_engine import KernelEngine, KernelEngines
from tfgen.decoding.threads import ThreadedEngine
from tfgen.errors import InputError, TfgenError
from tfgen.pipeline import Pipeline
from tfgen.search import PlainEngine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Forgetful(GridTokenizer):
    """A grid that has memory for so many rows."""

    def __init__(self, memory: int) -> None:
        super().__init__(4)
        self.memory = memory

    def decode(self, tokens: Tensor) -> Tensor:
        if len(tokens) > self.memory:
            raise torch.OutOfMemoryError("too many rows")
        return super().decode(tokens)


def grid() -> GridVerifier:
    return GridVerifier(lambda points: points.sum((1, 2)))


# Which


def test_a_cpu_runs_passes_side_by_side_unless_told_otherwise() -> None:
    assert engine_maker("auto", CPU) is ThreadedEngine
    assert engine_maker("eager", CPU) is PlainEngine
    with pytest.raises(InputError, match="^The engine kernels cannot run: they need a CUDA"):
        engine_maker("kernels", CPU)
    with pytest.raises(InputError, match="engine"):
        engine_maker("kernel", CPU)


def works(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    monkeypatch.setattr(triton_support, "why_no_kernels", lambda device: reason)


def test_a_gpu_runs_kernels_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    works(monkeypatch, None)
    assert isinstance(engine_maker("auto", CUDA), KernelEngines)
    assert isinstance(engine_maker("kernels", CUDA), KernelEngines)
    assert engine_maker("eager", CUDA) is PlainEngine


def test_a_gpu_without_kernels_decodes_all_the_same_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works(monkeypatch, "there is no C compiler")
    with pytest.warns(EngineWarning, match="there is no C compiler"):
        assert engine_maker("auto", CUDA) is PlainEngine
    with pytest.raises(InputError, match="cannot run: there is no C compiler. Use --engine"):
        engine_maker("kernels", CUDA)


def test_why_kernels_do_not_run_is_said_in_a_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("a long story\nFailed to find C compiler.")

    find = triton_support.why_no_kernels.__wrapped__  # not what an earlier call remembers
    monkeypatch.setattr(triton_support, "triton", None)
    assert find(CUDA).startswith("they need Triton")
    monkeypatch.setattr(triton_support, "triton", object())
    monkeypatch.setattr(triton_support, "_fill_kernel", Broken())
    monkeypatch.setattr(triton_support.torch, "empty", lambda *shape, device: None)
    assert find(CUDA) == "Triton fails with RuntimeError: Failed to find C compiler"


def test_fp8_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    works(monkeypatch, None)
    have = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: have[0])
    maker = engine_maker("kernels-fp8", CUDA)
    assert isinstance(maker, KernelEngines) and maker.float8_drafts
    assert not engine_maker("kernels", CUDA).float8_drafts
    have[0] = (8, 6)
    with pytest.raises(InputError, match="kernels-fp8 cannot run: .* and this GPU has 8.6. Use"):
        engine_maker("kernels-fp8", CUDA)


# How many rows


@pytest.mark.parametrize(
    ("free", "rows"),
    [(10**9, 64), (7300, 64), (7100, 32), (1200, 8), (700, 4), (200, 1), (0, 1)],
)
def test_rows_are_halved_until_they_fit(free: int, rows: int) -> None:
    assert fitting_rows(64, free, lambda n: 100 + 100 * n) == rows


def test_few_rows_are_not_tried_out() -> None:
    assert fitting_rows(8, 0, lambda n: 1 // 0) == 8


@pytest.mark.parametrize(
    ("memory", "free", "rows"), [(700, 10**9, 4), (700, 500, 2), (450, 10**9, 1)]
)
def test_a_trial_that_runs_out_of_memory_says_how_many_fit(
    memory: int, free: int, rows: int
) -> None:
    tried = []

    def peak(n: int) -> int:
        tried.append(n)
        if 100 + 100 * n > memory:
            raise torch.OutOfMemoryError
        return 100 + 100 * n

    assert fitting_rows(64, free, peak) == rows
    assert tried == ([4] if rows == 1 else [4, 8])


# What all engines do alike


@pytest.mark.parametrize("kind", [ThreadedEngine, KernelEngine])
def test_prefixes_of_mixed_lengths(kind: type[engines.DecodeEngine]) -> None:
    tokenizer = GridTokenizer(4)
    engine = kind(tokenizer, grid())
    engine.rows = 2
    tokens = torch.randint(16, (7, 3), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([3, 1, 2, 3, 3, 1, 3])
    found = engine.embed_prefixes(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = engine.verifier.embed(tokenizer.decode(tokens[row : row + 1, :length]))
        assert torch.equal(found[row], alone[0])
    whole = engine.embed_prefixes(tokens)
    assert torch.equal(whole, engine.verifier.embed(tokenizer.decode(tokens)))
    tokenizer.batches.clear()
    engine.embed_prefixes(tokens, lengths)
    assert {len(batch) for batch in tokenizer.batches} == {2}  # all passes have the same shape


@pytest.mark.parametrize("kind", [ThreadedEngine, KernelEngine])
def test_rows_are_halved_when_memory_runs_out(kind: type[engines.DecodeEngine]) -> None:
    engine = kind(Forgetful(3), grid())
    tokens = torch.arange(10)[:, None]
    assert torch.equal(
        engine.embed_prefixes(tokens), kind(Forgetful(99), grid()).embed([tokens])[0]
    )
    assert engine.rows == 2  # 16, 8, 4, 2
    with pytest.raises(TfgenError, match="too little free memory for one picture"):
        kind(Forgetful(0), grid()).embed_prefixes(tokens)


def test_prefixes_that_are_none_are_refused() -> None:
    engine = ThreadedEngine(ToyTokenizer(5, 3), grid())
    with pytest.raises(InputError, match="Token 7"):
        engine.embed_prefixes(torch.tensor([[7]]))
    with pytest.raises(InputError, match="lengths must be 1 whole numbers from 1 to 1"):
        engine.embed_prefixes(torch.tensor([[1]]), torch.tensor([2]))


# In a pipeline


@pytest.mark.parametrize(("name", "told"), [("auto", "threads"), ("eager", "eager")])
def test_the_recipe_tells_what_decoded(name: str, told: str) -> None:
    pipeline = Pipeline.load(device="cpu", prior="uniform", engine=name)
    result = pipeline.generate("a red fox", beam=1, candidates=2, schedule="1", atlas=False)
    assert result.recipe["engine"] == told


def test_an_engine_that_is_none_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "load_tokenizer", None)
    with pytest.raises(InputError, match="engine kernels cannot run"):
        Pipeline.load(device="cpu", engine="kernels")


def test_what_is_cached_of_torchs_own_threads_is_kept_apart() -> None:
    models = ToyTokenizer(5, 3), grid()
    before = torch.get_num_threads()
    kinds = (PlainEngine, ThreadedEngine)
    try:
        keys = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            keys.append([rounding(kind(*models), CPU) for kind in kinds])
    finally:
        torch.set_num_threads(before)
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]
