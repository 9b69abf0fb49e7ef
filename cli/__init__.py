"""The command line of tfgen (the folder `cli/`, installed as `tfgen_cli`)."""

from .app import main

__all__ = ["main"]
