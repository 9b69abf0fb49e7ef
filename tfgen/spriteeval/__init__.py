"""SpriteEval: GenEval's six tasks and two more, in the words of the sprite world.

`load("dev")` and `load("test")` are its prompts with their truth; `scoring` turns a judge's
verdicts into a table. The prompts are written by `prompts.py`, which says what makes them fair.
"""

from tfgen.spriteeval.files import SIX_TASKS, SPLITS, TASKS, Metadata, load, read

__all__ = ["SIX_TASKS", "SPLITS", "TASKS", "Metadata", "load", "read"]
