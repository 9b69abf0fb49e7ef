"""How good is this picture. A new verifier is one file here and one line in `VERIFIERS`."""

from tfgen.verifiers.base import Target, Verifier

# "module:class", resolved with pkgutil.resolve_name when one is loaded: open_clip takes seconds to
# import.
VERIFIERS: dict[str, str] = {
    "clip": "tfgen.verifiers.clip:ClipVerifier",
}

__all__ = ["VERIFIERS", "Target", "Verifier"]
