"""Dataclasses of tensors that describe the same N things, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R", bound="Rows")


class Rows:
    """What a dataclass whose fields all are tensors of N rows can do with its rows."""

    def __getitem__(self: R, rows: Tensor | slice) -> R:
        return type(self)(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))

    @classmethod
    def cat(cls: type[R], parts: Sequence[R]) -> R:
        fields = cls.__dataclass_fields__
        return cls(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))

    def to(self: R, device: torch.device | str) -> R:
        return type(self)(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))
