"""Tables that were computed with models, in files: an atlas, a bank of pictures.

A table is one safetensors file with a JSON header, which says what it is and which models it was
made with. It is written whole or not at all, memory-mapped when it is read, and refused, with a
sentence, where the models are others by now. `Parts` keeps what a long computation has so far.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tfgen.errors import InputError, TfgenError
from tfgen.packing import write_tensors

if TYPE_CHECKING:
    from tfgen.tokenizers.base import Tokenizer
    from tfgen.verifiers.base import Verifier

_HEADER = "tfgen"


def save_table(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one file, which appears whole or not at all.

    Raises TfgenError where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # One JSON string, not one entry a value: safetensors writes entries in no fixed order.
    metadata = {_HEADER: json.dumps(dict(header), sort_keys=True)}
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(stored, partial, metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TfgenError(f"Could not write {str(path)!r}: {reason}.") from error
    finally:
        partial.unlink(missing_ok=True)


def open_table(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_table` wrote: tensors, memory-mapped on the CPU, and the header.

    kind: what the header's "kind" must be, such as "atlas". Raises InputError on a file that is
    missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            if not isinstance(header, dict) or header.get("kind") != kind:
                raise ValueError(f"it is no {kind}")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"There is no {kind} {str(path)!r}.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} is not a usable {kind} ({error}): build it again."
        ) from error


def models_of(tokenizer: Tokenizer, verifier: Verifier, seed: int = 0) -> dict[str, Any]:
    """What the embeddings of decoded prefixes depend on, as JSON: the models' fingerprints and, for
    a tokenizer that decodes from noise (one that `for_seed` changes), the seed of a search."""
    noisy = tokenizer.for_seed(seed) is not tokenizer
    return {
        "tokenizer": tokenizer.fingerprint(),
        "verifier": verifier.fingerprint(),
        "seed": seed if noisy else None,
    }


def check_models(
    header: Mapping[str, Any], models: Mapping[str, Any], path: Path, kind: str, remedy: str
) -> None:
    """Raises InputError where a table was made with other models than those in use.

    models: of `models_of`; `remedy` ends the sentence: what the user can do.
    """
    for part, here in models.items():
        there = header.get("models", {}).get(part)
        if there != here:
            what = "noise of seed" if part == "seed" else f"{part} of fingerprint"
            raise InputError(
                f"The {kind} {str(path)!r} is stale: it was made with the {what} {there}, and "
                f"here it is {here}: {remedy}."
            )


class Parts:
    """The parts of a table that is being computed, each saved as soon as it is done.

    They lie in the folder FILE.parts beside the FILE to be, one safetensors file a part; each is
    whole or not there, so that a run that was killed at any moment goes on after its last part.
    Parts of another computation (another `identity`: models, inputs, sizes) are never used.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.folder = path.with_name(f"{path.name}.parts")
        told = json.dumps(dict(identity), sort_keys=True).encode()
        self.header = {"kind": "part", "of": hashlib.sha256(told).hexdigest()}

    def load(self, index: int) -> dict[str, Tensor] | None:
        """The tensors of a part, or None where it has not been computed yet."""
        try:
            tensors, header = open_table(self._path(index), "part")
        except InputError:
            return None
        return tensors if header == self.header else None

    def save(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        save_table(self._path(index), tensors, self.header)

    def remove(self) -> None:
        """Once the table itself is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"
