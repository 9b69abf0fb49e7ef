"""Embeddings of decoded prefixes, kept on disk, so that searches share work across runs.

What a prefix looks like to the verifier does not depend on the prompt. A cache remembers it by the
prefix, the fingerprints of both models, the seed of a noisy decoder, and whatever else moves the
last bits of an embedding (device, shape of a forward pass, version of torch), so that a search
finds the same tokens and the same scores with a cache as without, bit for bit.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import tfgen
from tfgen.errors import InputError, TfgenError

if TYPE_CHECKING:
    from tfgen.search.evaluator import Engine

FILE_NAME = "embeddings.sqlite"
LIMIT = 2**30  # bytes
_VERSION = 1  # of the file's layout; SQLite keeps it in the file's user_version
_WAIT = 10.0  # seconds for another process's write to end
_EVICTED = 0.1  # the share of the entries that goes when the file is full
_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS models (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS embeddings (
    id INTEGER PRIMARY KEY, models INTEGER NOT NULL, prefix BLOB NOT NULL, embedding BLOB NOT NULL,
    UNIQUE (models, prefix)
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


# Of SQLite; where it quotes damaged bytes in its complaint, Python fails to decode that.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)


class CacheWarning(UserWarning):
    """The cache on disk is of no use, and why; the search is as good without it."""


class EmbeddingCache:
    """A folder's cache of prefix -> embedding, for one pair of models: an `EmbeddingSource`.

    It is a SQLite file in WAL mode: writes are transactions, so a killed process leaves no half of
    one, and any number of processes may read and write at once. Each entry carries a checksum, as
    SQLite has none: a damaged entry counts as unknown. A file that SQLite cannot read is started
    anew, whenever that shows. When the file grows beyond `limit` bytes, its oldest entries are
    dropped.

    Nothing that goes wrong once it is open ends a search: it warns (CacheWarning), and from then on
    knows nothing, or only what is put after that.
    """

    def __init__(
        self, folder: str | Path, models: Mapping[str, Any], *, limit: int = LIMIT
    ) -> None:
        """models: what embeddings depend on, as JSON; entries of other models stay unseen.

        Raises InputError where the folder cannot be made or written to.
        """
        self.path, self.limit = Path(folder).expanduser() / FILE_NAME, limit
        self._key = json.dumps(dict(models), sort_keys=True)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except _FAILURES as error:
                if not _is_damage(error):
                    raise
                self._start_anew(error)
        except (OSError, *_FAILURES) as error:
            raise InputError(
                f"The cache {str(self.path)!r} cannot be opened ({error}): give another folder as "
                "--cache, or --cache off."
            ) from error

    def get(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Int64[N, k] -> known Bool[N]; embeddings Float32[N, d] on the CPU, exactly as they were
        put, and zero where unknown (d is 0 where nothing is known)."""
        prefixes = _blobs(tokens)
        found: list[np.ndarray | None] = [None] * len(prefixes)
        with self._lock:
            try:
                if self._connection is not None:
                    found = [self._read(self._connection, prefix) for prefix in prefixes]
            except _FAILURES as error:
                self._recover(error)
        known = torch.tensor([row is not None for row in found], dtype=torch.bool)
        if not known.any():
            return known, torch.zeros(len(found), 0)
        rows = [row for row in found if row is not None]
        embeddings = torch.zeros(len(found), len(rows[0]))
        embeddings[known] = torch.from_numpy(np.stack(rows))
        return known, embeddings

    def put(self, tokens: Tensor, embeddings: Tensor) -> None:
        """Remember embeddings Float32[N, d] of the prefixes Int64[N, k]; those known stay."""
        if embeddings.dtype != torch.float32:
            raise TfgenError(f"A cache keeps float32 embeddings, not {embeddings.dtype}.")
        values = [row.tobytes() for row in embeddings.cpu().numpy()]
        rows = [
            (self._models, prefix, value + _checksum(prefix, value))
            for prefix, value in zip(_blobs(tokens), values, strict=True)
        ]
        with self._lock:
            if self._connection is None:
                return
            try:
                self._write(self._connection, rows)
            except _FAILURES as error:
                self._recover(error, rows)

    def __len__(self) -> int:
        """Entries of these models."""
        with self._lock:
            if self._connection is None:
                return 0
            count = "SELECT count(*) FROM embeddings WHERE models = ?"
            return self._connection.execute(count, (self._models,)).fetchone()[0]

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection:
        # Statements are transactions of their own but where `_write` opens one.
        connection = sqlite3.connect(
            self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            # in this order: another process may be making the tables, version and all, right now
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if tables and version != _VERSION:
                raise sqlite3.DatabaseError(f"its layout is version {version}, not {_VERSION}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # no wait for the disk at each write
            connection.executescript(_TABLES)
            connection.execute("INSERT OR IGNORE INTO models (key) VALUES (?)", (self._key,))
            models = connection.execute("SELECT id FROM models WHERE key = ?", (self._key,))
            self._models = models.fetchone()[0]
        except BaseException:
            connection.close()
            raise
        return connection

    def _read(self, connection: sqlite3.Connection, prefix: bytes) -> np.ndarray | None:
        row = connection.execute(
            "SELECT embedding FROM embeddings WHERE models = ? AND prefix = ?",
            (self._models, prefix),
        ).fetchone()
        if row is None or not isinstance(row[0], bytes):
            return None
        value, checksum = row[0][:-4], row[0][-4:]
        return np.frombuffer(value, np.float32) if checksum == _checksum(prefix, value) else None

    def _write(self, connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes, bytes]]):
        # A damaged entry was read as unknown, and is put again.
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(
                "INSERT INTO embeddings (models, prefix, embedding) VALUES (?, ?, ?) "
                "ON CONFLICT (models, prefix) DO UPDATE SET embedding = excluded.embedding",
                rows,
            )
            while self._bytes(connection) > self.limit and self._drop_oldest(connection):
                pass
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # where the file is damaged, there may be none any more
                connection.execute("ROLLBACK")
            raise

    def _bytes(self, connection: sqlite3.Connection) -> int:
        """Of the pages in use; those that a drop freed are used again before the file grows."""
        size, pages, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        return size * (pages - free)

    def _drop_oldest(self, connection: sqlite3.Connection) -> bool:
        """Whether there was anything to drop."""
        count = connection.execute("SELECT count(*) FROM embeddings").fetchone()[0]
        dropped = connection.execute(
            "DELETE FROM embeddings WHERE id IN (SELECT id FROM embeddings ORDER BY id LIMIT ?)",
            (max(1, round(_EVICTED * count)),),
        )
        return dropped.rowcount > 0

    def _recover(self, error: Exception, rows: Sequence[tuple[int, bytes, bytes]] = ()) -> None:
        """Start a damaged file anew, with these rows; give the cache up where that is of no use."""
        try:
            if not _is_damage(error):
                raise error
            self._start_anew(error)
            if rows:
                self._write(self._connection, [(self._models, *row[1:]) for row in rows])
        except (OSError, *_FAILURES) as failure:
            self._warn(f"is of no use from here on ({failure}); the search goes on without it")
            self._drop_connection()

    def _start_anew(self, error: Exception) -> None:
        self._drop_connection()
        self._remove()
        self._connection = self._open()
        self._warn(f"is damaged ({error}) and is started anew")

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _warn(self, what: str) -> None:
        warnings.warn(f"The cache {str(self.path)!r} {what}.", CacheWarning, stacklevel=4)


def rounding(engine: Engine, device: torch.device) -> dict[str, Any]:
    """What moves the last bits of embeddings, beside the models and the seed, as JSON."""
    alone = engine.name != "eager" or device.type != "cpu"  # of how many threads torch uses
    return {
        "device": str(device),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "tfgen": tfgen.__version__,
        "engine": type(engine).__name__,
        "rows": engine.rows,
        **({} if alone else {"threads": torch.get_num_threads()}),
    }


def _is_damage(error: Exception) -> bool:
    """Of the file, and not the disk's fault, nor that of another process."""
    if isinstance(error, UnicodeDecodeError):
        return True
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError
    )


def _blobs(tokens: Tensor) -> list[bytes]:
    return [row.tobytes() for row in tokens.to("cpu", torch.int32).contiguous().numpy()]


def _checksum(prefix: bytes, embedding: bytes) -> bytes:
    return zlib.crc32(embedding, zlib.crc32(prefix)).to_bytes(4, "little")
