"""Dataclasses of tensors, which move together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

F = TypeVar("F", bound="Fields")
R = TypeVar("R", bound="Rows")


class Fields:
    """What a dataclass whose fields all are tensors can do with them."""

    def to(self: F, device: torch.device | str) -> F:
        return type(self)(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))

    def arrays(self) -> list[np.ndarray]:
        """The fields, which are on the CPU, as arrays: those can be sent between processes."""
        return [getattr(self, f).numpy() for f in self.__dataclass_fields__]

    @classmethod
    def of_arrays(cls: type[F], arrays: Sequence[np.ndarray]) -> F:
        return cls(*map(torch.from_numpy, arrays))


class Rows(Fields):
    """What it can do with its rows, where all fields describe the same N things, a row each."""

    def __getitem__(self: R, rows: Tensor | slice) -> R:
        return type(self)(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))

    @classmethod
    def cat(cls: type[R], parts: Sequence[R]) -> R:
        fields = cls.__dataclass_fields__
        return cls(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))
