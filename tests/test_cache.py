"""The cache on disk: exact, shared, limited, and harmless when it is damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tfgen.cache import FILE_NAME, CacheWarning, EmbeddingCache
from tfgen.errors import InputError, TfgenError

MODELS = {"tokenizer": "t", "verifier": "v", "seed": None}
FORK = multiprocessing.get_context("fork")  # no second import of torch


def some(count: int, length: int = 3, dimensions: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Distinct prefixes and embeddings for them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.arange(count)[:, None] * 7 + torch.arange(length) + 1000 * seed
    return tokens, torch.randn(count, dimensions, generator=generator)


def test_what_was_put_comes_back_bit_for_bit_in_another_process(tmp_path: Path) -> None:
    tokens, embeddings = some(20)
    embeddings[0, 0], embeddings[1, 1] = 1e-42, -0.0  # a denormal, a signed zero
    with EmbeddingCache(tmp_path, MODELS) as cache:
        cache.put(tokens[::2], embeddings[::2])
    with EmbeddingCache(tmp_path, MODELS) as cache:
        known, found = cache.get(tokens)
    assert known.tolist() == [True, False] * 10
    assert found[::2].numpy().tobytes() == embeddings[::2].numpy().tobytes()
    assert not found[1::2].any()


def test_an_empty_cache_knows_nothing(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path, MODELS) as cache:
        known, found = cache.get(some(4)[0])
    assert not known.any() and found.shape == (4, 0)


def test_a_prefix_is_not_its_own_continuation(tmp_path: Path) -> None:
    tokens, embeddings = some(1, length=3)
    with EmbeddingCache(tmp_path, MODELS) as cache:
        cache.put(tokens, embeddings)
        assert not cache.get(tokens[:, :2])[0].any()


@pytest.mark.parametrize("part", ["tokenizer", "verifier", "seed"])
def test_other_models_share_the_file_but_not_the_entries(tmp_path: Path, part: str) -> None:
    tokens, embeddings = some(5)
    with (
        EmbeddingCache(tmp_path, MODELS) as ours,
        EmbeddingCache(tmp_path, {**MODELS, part: 1}) as theirs,
    ):
        ours.put(tokens, embeddings)
        assert not theirs.get(tokens)[0].any()
        theirs.put(tokens, -embeddings)
        assert torch.equal(ours.get(tokens)[1], embeddings)
        assert len(ours) == len(theirs) == 5
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_half_precision_is_refused(tmp_path: Path) -> None:
    tokens, embeddings = some(1)
    with EmbeddingCache(tmp_path, MODELS) as cache, pytest.raises(TfgenError, match="float16"):
        cache.put(tokens, embeddings.half())


def test_a_full_cache_drops_its_oldest_entries_and_stays_within_its_limit(tmp_path: Path) -> None:
    limit = 200_000
    with EmbeddingCache(tmp_path, MODELS, limit=limit) as cache:
        for seed in range(40):
            cache.put(*some(50, dimensions=64, seed=seed))
        newest, oldest = (some(50, dimensions=64, seed=seed)[0] for seed in (39, 0))
        assert cache.get(newest)[0].all()
        assert not cache.get(oldest)[0].any()
        assert 100 < len(cache) < 40 * 50
    assert limit / 2 < (tmp_path / FILE_NAME).stat().st_size < 1.2 * limit


def fill(folder: Path, seeds: int, put: Any = None) -> None:
    """What another process does; warnings are errors there. `put`: a semaphore to count with."""
    warnings.simplefilter("error")
    with EmbeddingCache(folder, MODELS) as cache:
        for seed in range(seeds):
            tokens, embeddings = some(20, seed=seed)
            cache.put(tokens, embeddings)
            known, found = cache.get(tokens)
            assert known.all() and torch.equal(found, embeddings)
            if put is not None:
                put.release()


def test_processes_write_and_read_at_once(tmp_path: Path) -> None:
    runs = [FORK.Process(target=fill, args=(tmp_path, 30)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    with EmbeddingCache(tmp_path, MODELS) as cache:
        assert len(cache) == 30 * 20


def test_a_killed_writer_leaves_whole_writes_only(tmp_path: Path) -> None:
    put = FORK.Semaphore(0)
    run = FORK.Process(target=fill, args=(tmp_path, 10**6, put))
    run.start()
    for _ in range(20):
        assert put.acquire(timeout=60)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    with warnings.catch_warnings(), EmbeddingCache(tmp_path, MODELS) as cache:
        warnings.simplefilter("error")
        assert len(cache) >= 20 * 20 and len(cache) % 20 == 0
        for seed in range(len(cache) // 20):
            tokens, embeddings = some(20, seed=seed)
            known, found = cache.get(tokens)
            assert known.all() and torch.equal(found, embeddings)


@pytest.mark.parametrize("damage", ["foreign", "another layout"])
def test_a_file_that_is_no_cache_is_started_anew_with_a_sentence(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / FILE_NAME
    if damage == "foreign":
        path.write_bytes(b"no database at all" * 1000)
    else:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE embeddings (prefix TEXT)")
        other.close()
    tokens, embeddings = some(5)
    with pytest.warns(CacheWarning, match="is damaged .* and is started anew.$"):
        cache = EmbeddingCache(tmp_path, MODELS)
    with cache:
        cache.put(tokens, embeddings)
        assert torch.equal(cache.get(tokens)[1], embeddings)


def test_a_damaged_entry_is_unknown_and_can_be_put_again(tmp_path: Path) -> None:
    tokens, embeddings = some(5)
    with EmbeddingCache(tmp_path, MODELS) as cache:
        cache.put(tokens, embeddings)
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        (value,) = file.execute("SELECT embedding FROM embeddings WHERE id = 3").fetchone()
        damaged = bytes([value[0] ^ 1]) + value[1:]
        file.execute("UPDATE embeddings SET embedding = ? WHERE id = 3", (damaged,))
    file.close()
    with EmbeddingCache(tmp_path, MODELS) as cache:
        assert cache.get(tokens)[0].tolist() == [True, True, False, True, True]
        cache.put(tokens, embeddings)
        known, found = cache.get(tokens)
        assert known.all() and torch.equal(found, embeddings)


def damaged(folder: Path, tokens: Tensor, embeddings: Tensor) -> None:
    """A cache of these, whose pages are overwritten but for those that opening needs."""
    with EmbeddingCache(folder, MODELS) as cache:
        cache.put(tokens, embeddings)
    path = folder / FILE_NAME
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * (size - 5 * 4096))


@pytest.mark.parametrize("first", ["get", "put"])
def test_a_damage_that_shows_in_use_starts_the_file_anew(tmp_path: Path, first: str) -> None:
    tokens, embeddings = some(2000, dimensions=64)
    damaged(tmp_path, tokens, embeddings)
    with EmbeddingCache(tmp_path, MODELS) as cache:
        with pytest.warns(CacheWarning, match="is damaged .* and is started anew.$"):
            if first == "get":
                assert not cache.get(tokens)[0].any()
            else:
                cache.put(tokens, embeddings)
        cache.put(tokens, embeddings)
    with warnings.catch_warnings(), EmbeddingCache(tmp_path, MODELS) as cache:
        warnings.simplefilter("error")
        assert torch.equal(cache.get(tokens)[1], embeddings)


def test_a_failure_that_is_not_the_files_ends_the_cache_and_not_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    tokens, embeddings = some(20)
    with EmbeddingCache(tmp_path, MODELS) as cache:
        cache.put(tokens, embeddings)
        monkeypatch.setattr(cache, "_read", fail)
        with pytest.warns(CacheWarning, match="is of no use from here on .* without it.$"):
            known, _ = cache.get(tokens)
        assert not known.any()
        cache.put(tokens, embeddings)  # in vain, and quietly
        assert not cache.get(tokens)[0].any()
    with EmbeddingCache(tmp_path, MODELS) as cache:
        assert len(cache) == 20


def test_a_damaged_file_that_cannot_be_started_anew_ends_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("the folder is gone")

    tokens, embeddings = some(2000, dimensions=64)
    damaged(tmp_path, tokens, embeddings)
    with EmbeddingCache(tmp_path, MODELS) as cache:
        monkeypatch.setattr(cache, "_remove", fail)
        with pytest.warns(CacheWarning, match="is of no use from here on .the folder is gone"):
            cache.put(tokens, embeddings)
        assert not cache.get(tokens)[0].any()


def test_damage_that_sqlite_quotes_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quote(*_: object) -> None:
        b"malformed database schema (\xff)".decode()

    tokens, embeddings = some(20)
    with EmbeddingCache(tmp_path, MODELS) as cache:
        monkeypatch.setattr(cache, "_read", quote)
        with pytest.warns(CacheWarning, match="is started anew"):
            cache.get(tokens)
        monkeypatch.undo()
        cache.put(tokens, embeddings)
        assert torch.equal(cache.get(tokens)[1], embeddings)


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another folder as --cache, or --cache off.$"):
        EmbeddingCache(tmp_path / "file" / "cache", MODELS)
