"""A prompt's text, before its phrases are read: what is no words is said in words or taken out, and
clauses are parted."""

from __future__ import annotations

import re

# What people write to other image generators: "--ar 16:9", "--style raw". "--no hat" has a meaning.
PARAMETER = re.compile(
    r"(?:^|\s)--(?:ar|aspect|c|chaos|cref|cw|fast|hd|iw|niji|p|q|quality|r|raw|relax|repeat|s|seed|"
    r"sref|stop|style|stylize|sv|sw|test|tile|turbo|upbeta|uplight|v|version|video|w|weird|zoom)\b"
    r"(?:\s+(?!-)[\w.:]+(?=\s))?"
)
# What is written in a picture is not what it shows: 'a mug that says "I love cats"'.
LETTERING = re.compile(
    r"\b(?:says?|saying|reads?|reading|titled|words?|text|letters?|label?led|called|named|written|"
    r"sign|logo|caption(?:ed)?)\s*[:,]?\s*"
    r"""(?:"[^"]*"|\u201c[^\u201d]*\u201d|(?<!\w)'[^']*'(?!\w))"""
)
REWRITES = (
    (LETTERING, " lettering "),
    (PARAMETER, " , "),
    (re.compile(r"(?:^|\s)--no\s"), " , negative prompt "),
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""),
    (re.compile(r"\b(?:zero|(?<![.,])0)\s(?=[^\W\d_])"), "no "),
    (re.compile(r"\b(\d+) ?x (?=[^\W\d_])"), r"\1 "),  # "3x strawberry"
    (re.compile(r"\sx ?(\d+)\b"), r", \1 of them"),
    (re.compile(r"\b(?:\w+ )?(?:hundred|thousand|million)s? (?:and \w+ )?(?:of )?"), "many "),
    (re.compile(r"(?:^|(?<=[,;\n]))\s*(left|right)\s*:"), r" on the \1 "),
    (re.compile(r"\((left|right)\)"), r" on the \1 "),
    (re.compile(r"\bw/o\b"), "without"),
    (re.compile(r"\bw/(?=\s)"), "with"),
    (re.compile(r"(?<=\w)\s*[&+]\s*(?=\w)"), " and "),
    (re.compile(r"(?<!\w)([1-9])(?=[^\W\d_]{3})"), r"\1 "),  # "2cats"
    # Whose side or back it is: "to the cat's left", "on an elephant's back", "the car's colour".
    (re.compile(r"\b(?:to|on|at) ((?:\w+ ){1,3}\w+)'s (left|right)\b"), r"to the \2 of \1"),
    (re.compile(r"\b(on|upon|atop) ((?:\w+ ){1,3}\w+)'s (?:back|head|shoulders?)\b"), r"\1 \2"),
    (re.compile(r"\b(\w+)'s (?:colou?r|fur|coat) is\b"), r"\1 is"),
)
# A sign between two digits, as in "16:9" and "1,000", parts nothing.
CLAUSE_END = re.compile(
    r"[,.;:!?()\[\]{}]+\s"
    r"|(?<!\d)[,;|/\n\u2026]+|[,;|/\n\u2026]+(?!\d)"
    r"|\s*[\u2013\u2014]+\s*|\s-+\s"
    r'|["\u201c\u201d]'
)


def clauses(prompt: str) -> list[str]:
    """The parts of a prompt between the signs that part it, lower-case; perhaps with empty ones."""
    text = prompt.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") + " "
    for pattern, said in REWRITES:
        text = pattern.sub(said, text)
    return CLAUSE_END.split(text)
