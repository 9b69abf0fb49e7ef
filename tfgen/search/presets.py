"""Settings by which others search, as data: give them to a search with `**`."""

from __future__ import annotations

from typing import Any

SOTO: dict[str, Any] = {
    "search": "beam",
    "first_step": "candidates",  # there is one parent, the empty prefix
    "keep": "last",  # the best step is not remembered
    "distinct": False,  # draws with replacement; equal prefixes may take several places of a beam
    "branch": "all",
    "prior_strength": 0.0,  # its uniform prior
    "prior_weight": 0.0,
    "neighbours": 0,
    "crossover": 0,
    "patience": 0,
    "reencode": 0,
    "max_children": None,  # one parent may take all places
    "atlas": False,
}
"""Beam search as SoTo does it without a trained prior (search-over-tokens e7564c5). It decodes what
comes up twice; here that costs nothing, so that at equal decodes it is given a little more."""

PUBLISHED: dict[str, Any] = {
    **SOTO,
    "beam": 5,
    "candidates": 640,  # 1 % of the codebook
    "schedule": "linear:1",
    "tokens": 32,
}
"""Its published training-free setting (geneval_flextok_ar_3b_beam_uniform_ir.yaml): 99,840 decodes
a prompt, and one more for the picture."""
