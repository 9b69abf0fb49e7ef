"""The tree of a search, from its trace: what was kept and pruned at each step, as a picture or a
page. Reading and layout need no torch; `thumbnails` decodes the pictures."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from tfgen.errors import InputError

if TYPE_CHECKING:
    from tfgen.tokenizers.base import Tokenizer

FORMAT = 1  # of the traces that this reads, see tfgen.search.trace
THUMBNAIL = 64  # pixels
GAP, LABEL, BETWEEN = 8, 14, 36  # between pictures; under each; between the rows
MARGIN = 112  # to the left of the rows, where each is described
BEST, KEPT, PRUNED, FAINT, INK = "#d9480f", "#495057", "#ced4da", "#868e96", "#212529"
FADED = 0.45  # how much of a pruned picture is left


@dataclass(frozen=True)
class Node:
    """A candidate of a step."""

    tokens: tuple[int, ...]
    parent: int  # its row in the previous step's pool; -1: the start
    score: float | None  # None: the verifier gave not-a-number
    verifier_score: float | None
    kept: bool
    best: bool  # on the path to the search's result, or where it has none yet, to the best picture


@dataclass(frozen=True)
class Step:
    phase: str
    length: int
    decodes: int
    nodes: dict[int, Node]  # by row in the pool: those to be shown
    pool: int  # candidates in all


@dataclass(frozen=True)
class Tree:
    header: dict[str, Any]
    steps: list[Step]


def read_tree(path: str | PathLike[str], pruned: int = 8) -> Tree:
    """The tree of a trace: of each step what was kept, and the `pruned` best of the rest.

    A last line that a killed process has left unfinished is passed over. Raises InputError on a
    file that is no trace, or of another version.
    """
    lines = _lines(Path(path))
    header = lines[0] if lines else {}
    if header.get("kind") != "header" or header.get("format") != FORMAT:
        raise InputError(
            f"{str(path)!r} is no trace that this version of tfgen reads: give a file that tfgen "
            "PROMPT --trace FILE wrote."
        )
    told = [line for line in lines if line.get("kind") == "step"]
    if not told:
        raise InputError(f"{str(path)!r} has no step yet: the search had not finished one.")
    try:
        found = [line["tokens"] for line in lines if line.get("kind") == "end"]
        for line in told:
            _check(line)
        if type(header["seed"]) is not int or not isinstance(header["settings"]["search"], str):
            raise TypeError("the seed or the search is of the wrong type")
        best = _best_path(told, found[-1] if found else None)
        return Tree(header, [_step(line, best[i], pruned) for i, line in enumerate(told)])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} is a damaged trace ({type(error).__name__}: {error}): make it again."
        ) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"There is no file {str(path)!r}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is no trace that can be read: {error}.") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number > 1 and not text.endswith("\n") and number == len(text.splitlines()):
                break
            raise InputError(f"Line {number} of {str(path)!r} is no JSON: {error}.") from error
    if not all(isinstance(line, dict) for line in lines):
        raise InputError(f"{str(path)!r} is no trace: its lines are no JSON objects.")
    return lines


def _check(line: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError on a step that no search has written."""
    pool, length = line["pool"], line["length"]
    rows, kept = pool["tokens"], pool["kept"]
    columns = pool["parents"], pool["scores"], pool["verifier_scores"]
    if not kept or any(len(column) != len(rows) for column in columns):
        raise ValueError("a pool has no candidate that was kept, or too few of something")
    scores = [*pool["scores"], *pool["verifier_scores"], line["best_score"]]
    if not all(score is None or type(score) in (int, float) for score in scores):
        raise TypeError("a score is no number")
    tokens = [*line["best_tokens"], *(token for row in rows for token in row)]
    whole = [length, line["decodes"], *pool["parents"], *kept, *tokens]
    if not all(type(number) is int for number in whole):
        raise TypeError("a token, a row or a count is no whole number")
    if any(len(row) != length for row in rows) or not all(0 <= t < 2**31 for t in tokens):
        raise ValueError("a candidate has other tokens than its step")
    if not all(0 <= row < len(rows) for row in kept):
        raise ValueError("what was kept is not in the pool")


def _best_path(steps: Sequence[Mapping[str, Any]], found: Sequence[int] | None) -> list[int | None]:
    """In each step, the row of the pool that led to the result, which has the tokens `found`, or
    where there is none, to the best picture of all; None after it."""
    scores = [step["best_score"] for step in steps]
    known = [score for score in scores if score is not None]
    last = scores.index(max(known)) if known else 0
    tokens = [step["best_tokens"] for step in steps]
    if found in tokens:  # it may score less than the best, see tfgen.search.reencoding
        last = tokens.index(found)
    pool = steps[last]["pool"]
    tokens, length = steps[last]["best_tokens"], steps[last]["length"]
    row = pool["tokens"].index(tokens[:length])
    path: list[int | None] = [None] * len(steps)
    for index in range(last, -1, -1):
        path[index] = row
        row = steps[index]["pool"]["parents"][row]
        if row < 0:
            break
    return path


def _step(line: Mapping[str, Any], best: int | None, pruned: int) -> Step:
    pool = line["pool"]
    count, kept = len(pool["tokens"]), set(pool["kept"])
    others = [row for row in range(count) if row not in kept][:pruned]
    shown = sorted(kept | set(others) | ({best} if best is not None else set()))
    nodes = {
        row: Node(
            tuple(pool["tokens"][row]),
            pool["parents"][row],
            pool["scores"][row],
            pool["verifier_scores"][row],
            row in kept,
            row == best,
        )
        for row in shown
    }
    return Step(line["phase"], line["length"], line["decodes"], nodes, count)


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels. places: of each step, row of the pool -> left and top of its
    picture."""

    width: int
    height: int
    size: int
    places: list[dict[int, tuple[int, int]]]

    def link(self, step: int, row: int, parent: int) -> tuple[int, int, int, int]:
        """From the middle of the parent's label to the top of the picture: x, y, x, y."""
        left, top = self.places[step][row]
        above_left, above_top = self.places[step - 1][parent]
        half = self.size // 2
        return above_left + half, above_top + self.size + LABEL, left + half, top


def lay_out(tree: Tree, size: int = THUMBNAIL) -> Layout:
    """A row of pictures for each step; children in the order of their parents, the kept ones
    first, and among equals the best first (which is the order of the pool)."""
    places: list[dict[int, tuple[int, int]]] = []
    above: dict[int, int] = {}  # the order in the row above, by row of its pool
    top = BETWEEN + LABEL
    for step in tree.steps:
        order = sorted(
            step.nodes,
            key=lambda row: (not step.nodes[row].kept, above.get(_up(step, row), 0), row),
        )
        places.append({row: (MARGIN + i * (size + GAP), top) for i, row in enumerate(order)})
        above = {row: i for i, row in enumerate(order)}
        top += size + LABEL + BETWEEN
    widest = max(len(step.nodes) for step in tree.steps)
    return Layout(MARGIN + widest * (size + GAP), top - BETWEEN + GAP, size, places)


def _up(step: Step, row: int) -> int:
    return step.nodes[row].parent


Pictures = Sequence[Mapping[int, Image.Image]]
"""Of each step, row of the pool -> its picture."""


def thumbnails(tree: Tree, tokenizer: Tokenizer, size: int = THUMBNAIL) -> Pictures:
    """Decode every candidate that is shown, `size` pixels large.

    tokenizer: that of the trace; the one of its seed is made here.
    """
    import torch

    from tfgen.image_io import to_image

    tokenizer = tokenizer.for_seed(tree.header["seed"])
    found = []
    for step in tree.steps:
        tokens = torch.tensor([node.tokens for node in step.nodes.values()], dtype=torch.int64)
        tokenizer.check(tokens)
        with torch.inference_mode():
            parts = tokens.to(tokenizer.device).split(tokenizer.decode_rows)
            images = [image for part in parts for image in tokenizer.decode(part)]
        small = [to_image(image).resize((size, size), Image.Resampling.LANCZOS) for image in images]
        found.append(dict(zip(step.nodes, small, strict=True)))
    return found


def draw(tree: Tree, pictures: Pictures, layout: Layout) -> Image.Image:
    """The tree as one picture."""
    links = Image.new("RGB", (2 * layout.width, 2 * layout.height), "white")  # twice: smooth lines
    pen = ImageDraw.Draw(links)
    for colour, width, link in _links(tree, layout):
        pen.line([2 * value for value in link], fill=colour, width=2 * width)
    sheet = links.resize((layout.width, layout.height), Image.Resampling.LANCZOS)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((GAP, GAP), _title(tree), fill=INK, font=ImageFont.load_default(LABEL))
    for index, (step, places) in enumerate(zip(tree.steps, layout.places, strict=True)):
        top = next(iter(places.values()))[1]
        pen.multiline_text((GAP, top), "\n".join(_about(index, step)), fill=INK, font=font)
        for row, (left, top) in places.items():
            node, picture = step.nodes[row], pictures[index][row]
            if not node.kept and not node.best:
                picture = Image.blend(Image.new("RGB", picture.size, "white"), picture, FADED)
            sheet.paste(picture, (left, top))
            frame = (left - 2, top - 2, left + layout.size + 1, top + layout.size + 1)
            pen.rectangle(frame, outline=_colour(node), width=3 if node.best else 1)
            middle = (left + layout.size / 2, top + layout.size + 2)
            pen.text(middle, _score(node.score), fill=_ink(node), font=font, anchor="ma")
    return sheet


def page(tree: Tree, pictures: Pictures, layout: Layout) -> str:
    """The tree as an HTML page that needs no other file; pointing at a picture shows its tokens
    and scores, and the way to it."""
    parts = [
        f'<path d="M{x1} {y1}C{x1} {y1 + 18} {x2} {y2 - 18} {x2} {y2}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
        for colour, width, (x1, y1, x2, y2) in _links(tree, layout)
    ]
    for index, (step, places) in enumerate(zip(tree.steps, layout.places, strict=True)):
        top = next(iter(places.values()))[1]
        for line, text in enumerate(_about(index, step)):
            parts.append(f'<text x="{GAP}" y="{top + 11 + 15 * line}">{html.escape(text)}</text>')
        for row, (left, top) in places.items():
            parts.append(_figure(step.nodes[row], (index, row), (left, top), pictures, layout.size))
    body = "\n".join(parts)
    title = html.escape(_title(tree))
    size = f'width="{layout.width}" height="{layout.height}"'
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} fill="none">\n{body}\n</svg>\n'
        f"<script>{_SCRIPT}</script>\n</html>\n"
    )


def _figure(
    node: Node, at: tuple[int, int], place: tuple[int, int], pictures: Pictures, size: int
) -> str:
    (step, row), (left, top) = at, place
    file = io.BytesIO()
    pictures[step][row].save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    told = (
        f"tokens {' '.join(map(str, node.tokens))}\nscore {_score(node.score)}, "
        f"of the verifier {_score(node.verifier_score)}\n{'kept' if node.kept else 'pruned'}"
    )
    faded = "" if node.kept or node.best else f' opacity="{FADED}"'
    return (
        f'<g id="n{step}-{row}" data-parent="n{step - 1}-{node.parent}"><title>{told}</title>'
        f'<image x="{left}" y="{top}" width="{size}" height="{size}"{faded} '
        f'href="data:image/jpeg;base64,{data}"/>'
        f'<rect x="{left - 1}" y="{top - 1}" width="{size + 2}" height="{size + 2}" '
        f'stroke="{_colour(node)}" stroke-width="{3 if node.best else 1}"/>'
        f'<text x="{left + size / 2}" y="{top + size + 12}" text-anchor="middle" '
        f'style="fill:{_ink(node)}">{_score(node.score)}</text></g>'
    )


def _links(tree: Tree, layout: Layout) -> list[tuple[str, int, tuple[int, int, int, int]]]:
    """Colour, width and ends of every line; the way to the best last, over the others."""
    found = []
    for index, step in enumerate(tree.steps[1:], start=1):
        for row, node in step.nodes.items():
            if node.parent in layout.places[index - 1]:
                width = 3 if node.best else 1
                found.append((_colour(node), width, layout.link(index, row, node.parent)))
    return sorted(found, key=lambda link: [PRUNED, KEPT, BEST].index(link[0]))


def _title(tree: Tree) -> str:
    header = tree.header
    return f"{header.get('prompt', '')}  (seed {header['seed']}, {header['settings']['search']})"


def _about(index: int, step: Step) -> list[str]:
    """The lines that describe a row."""
    name = f"step {index + 1}" if step.phase == "search" else f"{step.phase} {index + 1}"
    kept = sum(node.kept for node in step.nodes.values())
    tokens = "1 token" if step.length == 1 else f"{step.length} tokens"
    return [name, tokens, f"{kept} kept of {step.pool:,}", f"{step.decodes:,} decodes"]


def _colour(node: Node) -> str:
    return BEST if node.best else KEPT if node.kept else PRUNED


def _ink(node: Node) -> str:
    return INK if node.kept or node.best else FAINT


def _score(score: float | None) -> str:
    return "none" if score is None else f"{score:.2f}"


_STYLE = (
    "body{font:11px system-ui,sans-serif;margin:8px;color:#212529}h1{font-size:16px}"
    "text{fill:#212529}g:hover rect,g.way rect{stroke:#1c7ed6;stroke-width:3}"
)
_SCRIPT = (
    'for(const g of document.querySelectorAll("g")){const way=on=>{for(let n=g;n;'
    'n=document.getElementById(n.dataset.parent))n.classList.toggle("way",on)};'
    "g.onmouseenter=()=>way(true);g.onmouseleave=()=>way(false)}"
)
