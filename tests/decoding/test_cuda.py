"""The kernels and their engine on a GPU: what no interpreter can show. Skipped where there is none.

Convolutions and products are in full float32 here, so that results can be compared.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tokenizers.flextok_checks import FOLDER, VECTORS, prefixes
from tests.toy_world import make_world, tokenizer_model, write_verifier
from tfgen.decoding import kernels
from tfgen.decoding.engine import engine_maker
from tfgen.decoding.flextok_step import FusedFlexTok
from tfgen.decoding.float8 import (
    Float8Weight,
    float8_linear,
    quantise_rows_reference,
    scaled_product_reference,
)
from tfgen.decoding.group_norm import group_norm
from tfgen.decoding.kernel_engine import KernelEngine, KernelEngines
from tfgen.decoding.triton_support import triton, why_no_float8, why_no_kernels
from tfgen.pipeline import Pipeline
from tfgen.search import PlainEngine
from tfgen.tokenizers.base import Tokenizer
from tfgen.tokenizers.flextok import FlexTok
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.verifiers.clip import ClipVerifier

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or triton is None, reason="needs a GPU and Triton"
)
CUDA = torch.device("cuda")
TOKENS = torch.tensor([[3, 1], [0, 7], [11, 2]])
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> ClipVerifier:
    folder = tmp_path_factory.mktemp("verifier") / "clip"
    write_verifier(folder, make_world())
    return ClipVerifier.load(folder, CUDA)


def flextok(dtype: torch.dtype = torch.float32) -> FlexTok:
    return FlexTok.from_pretrained(FOLDER, CUDA, dtype)


def tokenizer_named(name: str) -> Tokenizer:
    if name == "sprites":
        return SpritesTokenizer(tokenizer_model().to(CUDA))
    return flextok().with_sampling(steps=2, guidance=3.0).for_seed(1)


def test_kernels_run_here() -> None:
    assert why_no_kernels(CUDA) is None
    assert isinstance(engine_maker("auto", CUDA), KernelEngines)


@pytest.mark.parametrize("collapse", [True, False])
def test_latents_are_those_of_the_cpu(collapse: bool) -> None:
    tokens, lengths = prefixes([0, 1, 2, 3, 4])
    found = []
    for tokenizer in (FlexTok.from_pretrained(FOLDER), FusedFlexTok.of(flextok())):
        tokenizer.collapse = collapse
        noise = VECTORS["noise"][:1].to(tokenizer.device)
        found.append(tokenizer.decode_latents(tokens, noise, steps=3, lengths=lengths).cpu())
    torch.testing.assert_close(found[1], found[0], **CLOSE)


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_half_precision_stays_near_full_precision(residual: torch.dtype) -> None:
    tokens = torch.tensor([[11, 63_999, 0]])
    exact = flextok().decode_latents(tokens, steps=2)
    eager = flextok(torch.bfloat16)
    usual = (eager.decode_latents(tokens, steps=2) - exact).abs().mean()
    found = FusedFlexTok.of(eager, residual).decode_latents(tokens, steps=2)
    assert (found - exact).abs().mean() < 4 * usual


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_graphs_are_recorded_and_give_the_plain_engines_embeddings(
    name: str, verifier: ClipVerifier
) -> None:
    tokenizer = tokenizer_named(name)
    plain, engine = PlainEngine(tokenizer, verifier), KernelEngine(tokenizer, verifier)
    assert engine.rows == tokenizer.decode_rows
    tokens = TOKENS.to(CUDA)  # where a search has them
    passes = [tokens, tokens.flip(0), tokens.flip(1), tokens]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "A pass runs without")  # as it could not be recorded
        for _ in range(2):
            for length in (2, 1):
                given = [part[:, :length] for part in passes]
                for a, b in zip(engine.embed(given), plain.embed(given), strict=True):
                    torch.testing.assert_close(a, b, **CLOSE)
                    assert a.std(dim=0).max() > 1e-4  # the pictures differ
            engine.graphs.clear()  # as when memory runs out; then all are recorded again
            engine.embed(passes)
    assert all(slot.replay and not slot.fails for slot in engine.graphs.slots.values())


@pytest.mark.parametrize("name", ["flextok", "sprites"])
def test_prefixes_of_mixed_lengths_and_of_too_many_rows(
    name: str, verifier: ClipVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_named(name)
    engine = KernelEngine(tokenizer, verifier, rows=4)
    run = engine._run

    def short(tokens: Tensor, lengths: Tensor) -> Tensor:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no memory for more than two rows")
        return run(tokens, lengths)

    monkeypatch.setattr(engine.graphs, "run", short)
    tokens = torch.randint(12, (5, 8), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1, 8, 3, 5, 1])
    found = engine.embed_prefixes(tokens, lengths)
    assert engine.rows == 2
    again = engine.embed_prefixes(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        one = tokens[row : row + 1, :length].to(CUDA)
        alone = verifier.embed(tokenizer.decode(one))[0]
        torch.testing.assert_close(found[row], alone, **CLOSE)
        torch.testing.assert_close(again[row], alone, **CLOSE)


def test_products_in_float8() -> None:
    if why_no_float8(CUDA):
        pytest.skip("this GPU has no FP8")
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=noise)
    packed = Float8Weight.of(weight.to(CUDA))
    for rows in (1, 5, 17, 261):
        x = torch.randn(rows, 64, generator=noise)
        found = float8_linear(x.to(CUDA), packed).cpu()
        values, scale = quantise_rows_reference(x)
        expected = scaled_product_reference(values, scale, Float8Weight.of(weight))
        torch.testing.assert_close(found, expected, atol=0.1, rtol=2e-2)
        assert (found - expected).abs().mean() < 0.03


def test_drafts_in_float8_rank_about_as_exact_ones(verifier: ClipVerifier) -> None:
    if why_no_float8(CUDA):
        pytest.skip("this GPU has no FP8")
    tokens = torch.randint(64_000, (8, 3), generator=torch.Generator().manual_seed(3))
    tokenizer = flextok(torch.bfloat16)
    engine = KernelEngines(True)(tokenizer, verifier)
    assert engine.name == "kernels-fp8"
    difference = (engine.draft(tokens) - tokenizer.draft(tokens)).abs()
    assert 0 < difference.mean() < 0.05


def test_more_elements_than_an_int32_counts() -> None:
    rows, hidden = 2**20 + 3, 1024  # 2^31 elements and some, in bfloat16
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("too little free memory")
    u = torch.zeros(1, rows, 2 * hidden, dtype=torch.bfloat16, device=CUDA)
    u[:, -2:] = 1
    out = kernels.swiglu(u)
    assert (out[0, :-2].amax().item(), out[0, -2:].float().amin().item()) == (0, 0.73046875)
    table = torch.ones(2, 2 * hidden, device=CUDA)
    del out
    y, h = kernels.gate_residual_norm(u, u, table, table, table, 0, torch.bfloat16)
    assert (y[0, :-2].amax().item(), y[0, -2:].float().amin().item()) == (0, 2)
    assert (h[0, -2:] == 1).all()


def test_norms_of_more_elements_than_an_int32_counts() -> None:
    side = 4100  # 2^31 elements and some, in bfloat16
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("too little free memory")
    x = torch.zeros(1, side, side, 128, dtype=torch.bfloat16, device=CUDA).movedim(-1, 1)
    x[:, :, -1] = 1
    found = group_norm(x, 32, eps=1e-6)
    share = 1 / side  # of ones
    spread = (share * (1 - share) + 1e-6) ** 0.5
    for row, value in ((0, -share), (side // 2, -share), (-1, 1 - share)):
        expected = torch.full((128, side), value / spread, device=CUDA)
        torch.testing.assert_close(found[0, :, row].float(), expected, atol=0, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_a_vaes_size_are_pytorchs(dtype: torch.dtype) -> None:
    for n, channels, side in ((8, 128, 256), (8, 512, 64), (1, 256, 128)):
        x = torch.randn(n, side, side, channels, device=CUDA).to(dtype).movedim(-1, 1)
        affine = torch.randn(2, channels, device=CUDA).to(dtype).unbind()
        found = group_norm(x, 32, affine, eps=1e-6, silu=True)
        assert found.is_contiguous(memory_format=torch.channels_last)
        right = F.silu(F.group_norm(x.float(), 32, *(t.float() for t in affine), 1e-6))
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.float(), right, atol=tolerance, rtol=tolerance)


def test_a_search_on_a_gpu() -> None:
    settings = {"beam": 2, "candidates": 4, "schedule": "1,2", "seed": 0}
    scores = []
    for engine in ("kernels", "eager"):
        pipeline = Pipeline.load(device="cuda", engine=engine)
        result = pipeline.generate("a red fox in snow", **settings)
        assert result.recipe["engine"] == engine
        scores.append(result.score)
    assert scores[0] == pytest.approx(scores[1], abs=0.5)
