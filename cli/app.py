"""The typer app: one file a command, one line here. Nothing in this file imports torch."""

from __future__ import annotations

import errno
import functools
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

import typer

import tfgen
from tfgen.errors import TfgenError

from .ablate import ablate
from .atlas import atlas
from .bank import bank
from .bench import PASS_ON, bench
from .generate import INTERRUPTED, generate
from .judge import judge
from .models import models
from .prior import prior
from .replay import replay
from .streams import careful
from .tree import tree
from .words import words

COMMANDS = {
    "generate": generate,
    "replay": replay,
    "tree": tree,
    "judge": judge,
    "words": words,
    "ablate": ablate,
    "bench": bench,
}
GROUPS = {"models": models, "atlas": atlas, "bank": bank, "prior": prior}
ROOT_OPTIONS = {"-h", "--help", "--version"}

ABOUT = """Text to image by searching over the tokens of an ordered tokenizer.

Try: tfgen "a red fox in snow" --beam 16

tfgen PROMPT is short for tfgen generate PROMPT, whose options tfgen generate --help lists. With
--debug any command shows the traceback of an error.
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Interrupted(TfgenError):
    """Ctrl-C, where there is nothing to keep."""

    exit_code = INTERRUPTED


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose Ctrl-C is a sentence too (typer, left to itself, would exit without one)."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise Interrupted("Stopped by Ctrl-C before there was anything to keep.") from error

    return run


for name, command in COMMANDS.items():
    app.command(name, **(PASS_ON if command is bench else {}))(interruptible(command))
for name, group in GROUPS.items():
    for registered in group.registered_commands:
        registered.callback = interruptible(registered.callback)
    app.add_typer(group, name=name)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"tfgen {tfgen.__version__}")
        raise typer.Exit()


@app.callback(help=ABOUT)
def root(
    version: bool = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failure, 2 bad input, 130 Ctrl-C.

    Every error is one sentence on stderr; its traceback is shown only with --debug.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with careful():
        code = run(arguments)
    if argv is None and code == INTERRUPTED:  # another Ctrl-C has nothing left to stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def run(arguments: Sequence[str]) -> int:
    """As `main`, where standard output and error are there."""
    debug = "--debug" in arguments
    arguments = with_command([argument for argument in arguments if argument != "--debug"])
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="tfgen", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # whoever read our output has seen enough, as in `tfgen models | head`
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        with suppress(TfgenError, BrokenPipeError):  # what is left of it, before Python ends
            sys.stdout.flush()
        message, code = explain(error, arguments)
        print(f"Error: {message}", file=sys.stderr)
        return code


def with_command(arguments: list[str]) -> list[str]:
    """`tfgen PROMPT ...` and `tfgen --option ... PROMPT` are `tfgen generate ...`."""
    if not arguments:
        return ["--help"]
    if arguments[0] in {*COMMANDS, *GROUPS, *ROOT_OPTIONS}:
        return arguments
    return ["generate", *arguments]


def explain(error: Exception, arguments: Sequence[str]) -> tuple[str, int]:
    """The sentence and the exit code for what ended a command."""
    usage_error = typer.BadParameter.__base__  # click's UsageError, which new typers carry inside
    if isinstance(error, TfgenError):
        return str(error), error.exit_code
    if isinstance(error, usage_error):
        path = getattr(getattr(error, "ctx", None), "command_path", "tfgen generate")
        said = error.format_message().rstrip(".") or "Name one of its commands"
        hint = f"see {path} --help"
        if len(arguments) == 1 and arguments[0] != "generate":  # who types tfgen tree may want one
            hint += f", or, for a picture of one, tfgen generate {arguments[0]}"
        return f"{said}: {hint}.", 2
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"The name {str(error.filename)!r} is longer than that of a file can be.", 2
    detail = str(error).strip().partition("\n")[0]
    return f"Unexpected {type(error).__name__}: {detail} (run with --debug for the traceback).", 1
