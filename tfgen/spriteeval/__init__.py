"""SpriteEval: GenEval's six tasks and two more, in the words of the sprite world, and prompts in
people's own.

`load("dev")` and `load("test")` are its prompts with their truth; `scoring` turns a judge's
verdicts into a table. The prompts are written by `prompts.py`, which says what makes them fair;
those in everyday words by writers who knew what the world can show, but not what reads them.
"""

from tfgen.spriteeval.files import EVERYDAY, SIX_TASKS, SPLITS, TASKS, Metadata, load, read

__all__ = ["EVERYDAY", "SIX_TASKS", "SPLITS", "TASKS", "Metadata", "load", "read"]
