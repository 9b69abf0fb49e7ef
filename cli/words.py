"""tfgen words: what prompts can say to the sprite world, and how one is read."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from tfgen.errors import InputError

if TYPE_CHECKING:
    pass

WIDTH = 100


def words(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]", help="Say how this is read.")
    ] = None,
    verifier: Annotated[
        str, typer.Option(metavar="NAME", help="A packaged verifier, or the folder of one.")
    ] = "sprites-clip",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, and only that.")
    ] = False,
) -> None:
    """List what the verifier knows by name, or say how PROMPT is read, without a search.

    Of other words it makes the nearest that it knows: "a ship in a storm" is read as "a sailboat in
    the rain".
    """
    if prompt and not prompt[0].strip():
        raise InputError('The prompt is empty: say what to show, as in "a red fox in snow".')
    if len(prompt or ()) > 1:
        raise InputError(f'The prompt is one argument, so put it in quotes: "{" ".join(prompt)}".')
    from tfgen.hub import DEFAULT_VERIFIER, locate
    from tfgen.verifiers.contrast import ContrastWords
    from tfgen.verifiers.rewording import Rewording
    from tfgen.verifiers.words import WordTokenizer

    if "/" in verifier and not verifier.startswith((".", "/", "~")):
        raise InputError(f"{verifier!r} reads whatever is said: try {DEFAULT_VERIFIER!r}.")
    folder = locate(verifier, "verifier")
    if not (folder / "vocabulary.json").is_file():
        raise InputError(f"{verifier!r} reads whatever is said: it has no vocabulary.json.")
    known = ContrastWords.load(folder / "contrast.json")
    if prompt:
        said = Rewording(known)(prompt[0])
        vocabulary = WordTokenizer.load(folder / "vocabulary.json")
        vocabulary.check(said.text, folder.name, "prompt", known.examples())
        unknown = vocabulary.unknown(said.text)
        if as_json:
            told = {"prompt": prompt[0], "read_as": said.text, "left_out": said.left_out}
            print(json.dumps(told | {"added": said.added, "unknown": unknown}, indent=2))
        else:
            print("\n".join(said.sentences() or [f"The prompt is read as it is: {said.text!r}."]))
            if unknown:
                print(f"The verifier does not know: {', '.join(map(repr, unknown))}.")
        return
    lists = {
        "objects": [spec["name"] for spec in known.objects],
        "colours": known.colours,
        "places": [phrases[0] for phrases in known.backgrounds],
        "numbers": [phrases[0] for phrases in known.counts],
        "relations": [phrases[0] for phrases in known.relations],
        "sizes": [phrases[0] for phrases in known.sizes],
        "sides": [phrases[0] for phrases in known.places],
    }
    if as_json:
        print(json.dumps(lists, indent=2))
        return
    for name, entries in lists.items():
        print(f"{name} ({len(entries)})")
        print(textwrap.fill(", ".join(entries), WIDTH, initial_indent="  ", subsequent_indent="  "))
