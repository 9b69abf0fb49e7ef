"""tfgen: text to image by searching over the tokens of an ordered tokenizer.

    import tfgen
    result = tfgen.generate("a red fox in snow", beam=16, seed=0)
    result.save("fox.png")

Importing this module costs no torch: everything below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfgen.errors import InputError, TfgenError

if TYPE_CHECKING:
    from tfgen.pipeline import Pipeline, Result, generate
    from tfgen.replaying import Replay, replay

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "Pipeline",
    "Replay",
    "Result",
    "TfgenError",
    "generate",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "tfgen.replaying" if name in ("Replay", "replay") else "tfgen.pipeline"
        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
