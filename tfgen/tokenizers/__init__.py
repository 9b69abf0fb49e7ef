"""Tokens <-> pictures. A new tokenizer is one file here and one line in `TOKENIZERS`."""

from tfgen.tokenizers.base import Tokenizer

# "module:class", resolved with pkgutil.resolve_name when a model of that kind is loaded: a
# tokenizer whose own dependencies are not installed must not be in the way of the others.
TOKENIZERS: dict[str, str] = {
    "sprites": "tfgen.tokenizers.sprites:SpritesTokenizer",
    "flextok": "tfgen.tokenizers.flextok:FlexTok",
    "grid": "tfgen.tokenizers.grid:GridTokenizer",
}

__all__ = ["TOKENIZERS", "Tokenizer"]
