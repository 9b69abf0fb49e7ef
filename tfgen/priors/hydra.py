"""Hydra configurations, read and not run.

Each node of the tree names a class of another project (`_target_`) and its options. Classes are
recognised by name and never imported, so a config cannot run code; a class or an option that the
reader does not know is refused by name, since to guess would give a network that runs and is wrong.
Options that matter in training only (initialisation, dropout, keys of the data dictionary) are
passed over, and so are those that are null or say that something is not there. Interpolations of
the form `${a.b.c}` are resolved; others are refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from tfgen.errors import InputError

_TRAINING_ONLY = re.compile(
    r"_(partial|recursive|convert)_|.*_key|keys|.*_style|.*drop.*|.*init.*|.*checkpoint.*|.*mup.*"
    r"|encoder_num_blocks"
)
_NOTHING_IF_FALSE = {"use_batchnorm", "gpt_proj_rescale"}
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_REQUIRED: Any = object()


class Node:
    """A mapping of the tree that knows its place in the file and which of its options were read.

    place: its keys from the root, joined by dots; source: the file, for messages.
    """

    def __init__(self, tree: dict, root: dict, place: str, source: str) -> None:
        self.tree, self.root, self.place, self.source = tree, root, place, source
        self._read = {"_target_"}

    @classmethod
    def load(cls, path: Path) -> Node:
        """The root of a file. Raises InputError where it is no YAML mapping."""
        import yaml

        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{str(path)!r} is no YAML that can be read ({reason}): get the file again."
            ) from error
        if not isinstance(tree, dict):
            raise InputError(f"{str(path)!r} is no mapping of options: get the file again.")
        return cls(tree, tree, "", str(path))

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return self._resolve(self.tree.get(key, default))

    def child(self, key: str) -> Node:
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.refusal(key, "a node with options")
        return Node(value, self.root, self._at(key), self.source)

    def target(self, *known: str) -> str:
        """The node's class, as `package.Class`; the modules between them may differ."""
        value = self._resolve(self.tree.get("_target_"))
        parts = str(value).split(".")
        name = f"{parts[0]}.{parts[-1]}"
        if name not in known:
            raise InputError(
                f"{self.source!r} names the class {value!r} for {self.place}, which tfgen does "
                f"not know: it knows {', '.join(known)}."
            )
        return name

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self._given(key, default)
        if value is not default and (type(value) is not int or value < 1):
            raise self.refusal(key, "a whole number from 1 up")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._given(key, default)
        try:  # YAML 1.1 takes 1e-5, without a point, for a string
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < math.inf:
            raise self.refusal(key, "a number above 0")
        return number

    def flag(self, key: str, default: bool) -> bool:
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._given(key)
        if not isinstance(value, str):
            raise self.refusal(key, "a text")
        return value

    def equal(self, key: str, wanted: int) -> None:
        if self.get(key, wanted) != wanted:
            raise self.refusal(key, f"{wanted}, as elsewhere in the file")

    def finish(self) -> None:
        """Refuse an option that nobody read: it might change the network."""
        for key, value in self.tree.items():
            nothing = value is None or (value is False and key in _NOTHING_IF_FALSE)
            if not nothing and key not in self._read and not _TRAINING_ONLY.fullmatch(str(key)):
                raise InputError(
                    f"{self.source!r} sets {self._at(key)} to {value!r}, an option that tfgen "
                    "does not know: use a published model, or remove the option if it changes "
                    "nothing."
                )

    def refusal(self, key: str, right: str) -> InputError:
        """The error for an option of which tfgen needs something else."""
        value = self._resolve(self.tree.get(key))
        has = f"{value!r} for" if key in self.tree else "no"
        return InputError(
            f"{self.source!r} has {has} {self._at(key)}, where tfgen needs {right}: get the file "
            "again, or use another model."
        )

    def _at(self, key: object) -> str:
        return f"{self.place}.{key}" if self.place else str(key)

    def _given(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value, where it is there and not null, else the default; None if it is required."""
        value = self.get(key)
        if value is None and default is not _REQUIRED:
            return default
        return value

    def _resolve(self, value: Any, depth: int = 0) -> Any:
        """The value that `${a.b.c}` stands for; other interpolations are refused."""
        if not isinstance(value, str) or "${" not in value:
            return value
        found = _REFERENCE.fullmatch(value)
        at: Any = self.root
        for part in found[1].split(".") if found else ():
            at = at.get(part) if isinstance(at, dict) else None
        if not found or at is None or depth > 16:
            raise InputError(
                f"{self.source!r} holds {value!r}, which tfgen cannot resolve: write the value "
                "itself there."
            )
        return self._resolve(at, depth + 1)
