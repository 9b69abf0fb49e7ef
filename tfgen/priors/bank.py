"""A bank: token sequences of many pictures, each with what the verifier sees in the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from tfgen.errors import InputError
from tfgen.tables import Parts, check_models, open_table, save_table
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier

FILE_NAME = "bank.safetensors"
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_KIND = "bank"
_PART = 64  # pictures encoded and saved at a time
_VARIANCE = 0.95  # of the embeddings, what the stored components hold at least
_SLICE = 65_536  # pictures whose embeddings are restored at a time
_KEPT = 100_000_000  # bytes of restored embeddings that are kept for the next time, at most


class Bank:
    """Token sequences and embeddings of N pictures, memory-mapped.

    Embeddings are stored as principal components, 8 bits each, as many as hold 95 % of the
    variance: what a nearest-neighbour search among them needs, in an eighth of the space or less.
    """

    def __init__(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        self._tokens = tensors["tokens"]  # Int16 or Int32 [N, num_tokens]
        self._components = tensors["components"]  # Int8[N, c]
        self._basis, self._mean = tensors["basis"], tensors["mean"]  # Float32 [c, d], [d]
        self.header = dict(header)
        self._whole: Tensor | None = None

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def num_tokens(self) -> int:
        return self._tokens.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.header["vocab_size"]

    @property
    def dimensions(self) -> int:
        """Of the verifier's embeddings."""
        return len(self._mean)

    @property
    def components(self) -> int:
        """What is stored of each embedding."""
        return len(self._basis)

    def tokens(self, rows: Tensor) -> Tensor:
        """Int64[n] -> Int64[n, num_tokens]."""
        return self._tokens[rows].long()

    def embeddings(self, rows: slice) -> Tensor:
        """Float32[n, d], of length 1, of these pictures."""
        return F.normalize(self._components[rows].float() @ self._basis + self._mean, dim=1)

    def map_embeddings(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function`, Float32[n, d] -> [n], of all pictures: [N] on the CPU."""
        slices = (slice(i, i + _SLICE) for i in range(0, len(self), _SLICE))
        return torch.cat([function(self._restored(rows)).cpu() for rows in slices])

    def _restored(self, rows: slice) -> Tensor:
        """`embeddings`, kept where all of them fit: a search asks twice, and so does the next."""
        if len(self) * self.dimensions * 4 > _KEPT:
            return self.embeddings(rows)
        if self._whole is None:
            self._whole = self.embeddings(slice(None))
        return self._whole[rows]

    @classmethod
    def open(cls, path: str | Path) -> Bank:
        """Raises InputError on a bank that is missing, damaged or foreign."""
        path = Path(path).expanduser()
        tensors, header = open_table(path, _KIND)
        try:
            bank = cls(tensors, header)
            (n, c), (c2, d) = bank._components.shape, bank._basis.shape
            sound = len(bank) == n > 0 and c == c2 and bank._mean.shape == (d,)
            if not (sound and 0 <= bank._tokens.min() and bank._tokens.max() < bank.vocab_size):
                raise ValueError("its tables do not fit each other")
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{str(path)!r} is not a usable bank ({error}): build it again."
            ) from None
        return bank

    def check(self, path: Path, **models: str) -> None:
        """Raises InputError where it was made with other models.

        models: fingerprints, as tokenizer="...", verifier="..."; what is left out is not checked.
        """
        remedy = "build it again with tfgen bank build"
        check_models(self.header, models, path, _KIND, remedy)

    @classmethod
    def build(
        cls,
        pictures: Callable[[int], Tensor],
        parts: int,
        tokenizer: Tokenizer,
        verifier: Verifier,
        path: str | Path,
        *,
        source: Mapping[str, Any],
        tokens: Callable[[int], Tensor] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Bank:
        """Encode and embed pictures, and write the bank to `path`.

        pictures: the number of a part, from 0, to its pictures, Float[n, 3, H, W] in [0, 1], n from
        0. source: what they are, as JSON; it goes into the file. tokens: the number of a part to
        its pictures' tokens, Int64[n, T], if they are known without encoding the pictures.
        progress: called with the parts done and all parts. May be stopped at any moment and called
        again with the same source: it goes on where it was.

        Raises InputError where there are fewer than two pictures in all.
        """
        path = Path(path).expanduser()
        models = {"tokenizer": tokenizer.fingerprint(), "verifier": verifier.fingerprint()}
        saved = Parts(path, {"kind": _KIND, "models": models, "source": source, "parts": parts})
        tables = []
        for index in range(parts):
            table = saved.load(index)
            if table is None:
                known = tokens(index) if tokens else None
                table = _encode(pictures(index), known, tokenizer, verifier)
                saved.save(index, table)
            tables.append(table)
            if progress:
                progress(index + 1, parts)
        tables = [table for table in tables if len(table["tokens"])]
        count = sum(len(table["tokens"]) for table in tables)
        if count < 2:
            raise InputError(f"A bank needs two pictures or more, not {count}.")
        tokens = torch.cat([table["tokens"] for table in tables])
        tensors = {"tokens": tokens, **_compress([table["embeddings"] for table in tables])}
        header = {
            "kind": _KIND,
            "models": models,
            "names": {"tokenizer": tokenizer.name, "verifier": verifier.name},
            "vocab_size": tokenizer.vocab_size,
            "source": dict(source),
        }
        save_table(path, tensors, header)
        saved.remove()
        return cls.open(path)


@torch.inference_mode()
def _encode(
    images: Tensor, tokens: Tensor | None, tokenizer: Tokenizer, verifier: Verifier
) -> dict[str, Tensor]:
    if not len(images):
        return {"tokens": torch.zeros(0, 0, dtype=torch.int16), "embeddings": torch.zeros(0, 0)}
    images = images.to(tokenizer.device)
    kind = torch.int16 if tokenizer.vocab_size <= 2**15 else torch.int32
    if tokens is None:
        tokens = tokenizer.encode(images)
    return {
        "tokens": tokens.to("cpu", kind),
        "embeddings": verifier.embed(images).half().cpu(),
    }


def _compress(tables: Sequence[Tensor]) -> dict[str, Tensor]:
    """Embeddings Float16 of shape [n, d] each -> principal components of all of them."""
    count = sum(map(len, tables))
    mean = sum(table.double().sum(dim=0) for table in tables) / count
    square = sum(table.double().T @ table.double() for table in tables) / count
    variances, vectors = torch.linalg.eigh(square - mean[:, None] * mean)  # smallest first
    shares = variances.clamp(min=0).flip(0).cumsum(0)
    kept = int((shares < _VARIANCE * shares[-1]).sum()) + 1
    basis = vectors.T.flip(0)[:kept].float()  # [c, d]
    components = torch.cat([(table.float() - mean.float()) @ basis.T for table in tables])
    scale = components.abs().amax(dim=0).clamp(min=1e-12) / 127
    return {
        "components": (components / scale).round().to(torch.int8),
        "basis": scale[:, None] * basis,
        "mean": mean.float(),
    }


class Pictures:
    """The pictures in a folder, at any depth, as parts for `Bank.build`.

    What cannot be read as a picture is left out, and told to `skipped`, once for each file.
    Transparent pictures are laid on white, and all are cropped to the square in their middle.
    """

    def __init__(self, folder: str | Path, size: int, skipped: Callable[[str], None]) -> None:
        """size: of the pictures to come, in pixels. Raises InputError where there is no picture."""
        self.folder, self.size, self.skipped = Path(folder).expanduser(), size, skipped
        if not self.folder.is_dir():
            raise InputError(f"There is no folder {str(folder)!r} to take pictures from.")
        self.files = sorted(
            path
            for path in self.folder.rglob("*")
            if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
        )
        if not self.files:
            kinds = ", ".join(sorted(suffix[1:] for suffix in PICTURE_SUFFIXES))
            raise InputError(f"There are no pictures in {str(folder)!r}: tfgen reads {kinds}.")

    @property
    def parts(self) -> int:
        return -(-len(self.files) // _PART)

    @property
    def source(self) -> dict[str, Any]:
        """Tells this folder, with these files, from others and from what it was before."""
        digest = hashlib.sha256()
        for path in self.files:
            stat = path.stat()
            told = (str(path.relative_to(self.folder)), stat.st_size, stat.st_mtime_ns)
            digest.update(repr(told).encode())
        return {"pictures": len(self.files), "files_sha256": digest.hexdigest()}

    def __call__(self, part: int) -> Tensor:
        """Float32[n, 3, size, size] in [0, 1]."""
        images = [self._load(path) for path in self.files[part * _PART : (part + 1) * _PART]]
        images = [image for image in images if image is not None]
        return torch.stack(images) if images else torch.zeros(0, 3, self.size, self.size)

    def _load(self, path: Path) -> Tensor | None:
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            self.skipped(f"{str(path)!r} is no picture that can be read ({error}): left out.")
            return None
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture).convert("RGB")
        square = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        return pixels.view(self.size, self.size, 3).permute(2, 0, 1).float() / 255
