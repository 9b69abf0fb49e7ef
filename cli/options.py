"""The options of tfgen generate, as the types of its parameters: name, help, and kind of value."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tfgen.errors import InputError, finite_number

OUTPUT, MODELS, SEARCH = "Output", "Models", "Search"
METHOD, LIMITS = "Which search, and what it varies", "Limits and records"


def option(
    panel: str,
    text: str,
    *names: str,
    metavar: str | None = None,
    parser: Callable[[str], Any] | None = None,
) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, parser=parser, rich_help_panel=panel)


def new_file(text: str) -> Path:
    """The path of a file to be written. Raises InputError on a folder that is not there, which a
    path by itself could not be told from a file."""
    if text.endswith(os.sep) and not os.path.isdir(text):
        raise InputError(
            f"There is no folder {text!r}: create it first, or give the name of a file."
        )
    return Path(text)


Prompt = Annotated[
    list[str], typer.Argument(metavar="PROMPT", help="What the picture shows, in quotes.")
]

Output = Annotated[
    Path | None,
    option(
        OUTPUT,
        "Where to write the picture (default: the prompt as a file name).",
        "--output",
        "-o",
        metavar="FILE.png",
        parser=new_file,
    ),
]
NumImages = Annotated[
    int,
    option(
        OUTPUT,
        "Pictures: as many searches, with seeds SEED, SEED + 1, ..., "
        "written as FILE-1.png, FILE-2.png, ...",
    ),
]
StepsImage = Annotated[
    Path | None,
    option(
        OUTPUT,
        "Also write the best picture after each step, side by side.",
        metavar="FILE.png",
        parser=new_file,
    ),
]
AsJson = Annotated[
    bool, option(OUTPUT, "Print one JSON object on stdout, and only that.", "--json")
]
Quiet = Annotated[bool, option(OUTPUT, "Print only errors.", "--quiet", "-q")]

Model = Annotated[str, option(MODELS, "The tokenizer: a name (see: tfgen models) or a folder.")]
Verifier = Annotated[
    str | None,
    option(
        MODELS,
        "The verifier: a name, a folder, or an open_clip name like ViT-B-32/laion2b_s34b_b79k "
        "(default: the model's).",
    ),
]
Prior = Annotated[
    str | None,
    option(
        MODELS,
        "What proposes tokens: uniform, unigram, frequency, retrieval, autoregressive, or several "
        "joined by + (default: the model's).",
    ),
]
Guidance = Annotated[
    float | None,
    option(MODELS, "How closely an autoregressive prior follows the prompt: 1 is as trained."),
]
Device = Annotated[
    str,
    option(MODELS, "Where to compute; auto is CUDA where there is one.", metavar="auto|cpu|cuda"),
]
Engine = Annotated[
    str,
    option(
        MODELS,
        "What decodes: auto is threads on a CPU, and kernels on a GPU where they run; "
        "eager is plain PyTorch. Changes results by rounding only, but kernels-fp8 makes the "
        "drafts of --screen in FP8, and bf16 (a CPU with AVX512-BF16 or AMX) ranks by scores that "
        "are off by about 0.01; the score of the result is exact.",
        metavar="auto|eager|kernels|kernels-fp8|bf16",
    ),
]

Search = Annotated[str | None, option(SEARCH, "The algorithm.", metavar="beam|lookahead|best-of-n")]
Beam = Annotated[int | None, option(SEARCH, "Beam width: prefixes kept after each step.")]
Candidates = Annotated[int | None, option(SEARCH, "Candidates per beam and step.")]
Samples = Annotated[
    int | None,
    option(
        SEARCH,
        "best-of-n: sequences drawn (default: as many candidates as a beam search has).",
        "--samples",
        "-n",
    ),
]
Tokens = Annotated[int | None, option(SEARCH, "Tokens of the longest prefix.")]
Schedule = Annotated[
    str | None,
    option(
        SEARCH, "Prefix length after each step: one, geometric, linear:STEP, or a list as 1,2,4,8."
    ),
]
PriorStrength = Annotated[
    float | None,
    option(SEARCH, "λ: proposals are drawn from prior^λ; 0 is uniform, 1 is the prior."),
]
PriorWeight = Annotated[
    float | None, option(SEARCH, "w: rank by verifier score + w x typicality under the prior.")
]
Verbatim = Annotated[
    bool,
    option(
        MODELS,
        "Search for the prompt as it is: do not say it in the verifier's own words first.",
        "--verbatim",
    ),
]
Likelihood = Annotated[
    bool,
    option(
        SEARCH,
        "With --prior-weight: the mean log p itself in place of typicality.",
        "--likelihood",
    ),
]
Score = Annotated[
    str,
    option(
        SEARCH,
        "Rank against contrast captions (one-word swaps of the prompt), or by the bare cosine.",
        metavar="contrast|cosine",
    ),
]
Views = Annotated[
    int,
    option(
        SEARCH,
        "The verifier looks at each picture so many times, a little moved and lightened (1 to 5).",
    ),
]
Negative = Annotated[
    list[str] | None,
    option(SEARCH, "A caption the picture must not fit; may be repeated.", metavar="TEXT"),
]
Seed = Annotated[int, option(SEARCH, "Same seed, same picture.")]

Lookahead = Annotated[
    str | None,
    option(
        METHOD,
        "lookahead: tokens of a rollout; end or -1 is to the last (default: end).",
        metavar="L|end",
    ),
]
Rollouts = Annotated[int | None, option(METHOD, "lookahead: rollouts of each candidate.")]
Rollout = Annotated[
    str | None,
    option(METHOD, "lookahead: draw its tokens, or take the likeliest.", metavar="sample|greedy"),
]
RolloutScore = Annotated[
    str | None,
    option(METHOD, "lookahead: what a candidate's rollouts come to.", metavar="mean|max"),
]
LookaheadSteps = Annotated[
    int | None, option(METHOD, "lookahead: only in so many first steps (default: in all).")
]
Start = Annotated[
    str | None,
    option(METHOD, "Tokens that the picture shall begin with, as 12,7.", metavar="TOKENS"),
]
Branch = Annotated[
    str | None,
    option(
        METHOD,
        "In a step of several tokens, a beam's candidates differ in all of them or in the last.",
        metavar="all|last",
    ),
]
FirstStep = Annotated[
    str | None,
    option(
        METHOD,
        "The first step draws beam x candidates proposals, or, as in SoTo, only candidates.",
        metavar="beam|candidates",
    ),
]
Repeats = Annotated[
    bool, option(METHOD, "Draw candidates with replacement, as SoTo does.", "--repeats")
]
MaxChildren = Annotated[
    int | None, option(METHOD, "At most so many prefixes of a beam have one parent.")
]
Keep = Annotated[
    str | None,
    option(
        METHOD,
        "The result is the best prefix ever seen, or, as in SoTo, that of the last step.",
        metavar="best|last",
    ),
]
Complete = Annotated[
    str | None,
    option(
        METHOD,
        "After the search, complete the best prefixes to all tokens, and keep what is better.",
        metavar="greedy|sample",
    ),
]
Shortlist = Annotated[
    int | None,
    option(
        METHOD, "Of a beam's candidates, so many are chosen from the whole codebook, not drawn."
    ),
]
ShortlistBy = Annotated[
    str | None,
    option(
        METHOD,
        "What they are chosen by: a fit to the pictures seen, or gradients of the score.",
        metavar="surrogate|gradient",
    ),
]
Screen = Annotated[
    bool, option(METHOD, "Decode candidates cheaply first, and only the best in full.", "--screen")
]
Forecast = Annotated[
    int | None,
    option(
        METHOD,
        "Draw N times as many candidates, and decode those that a small network expects to fit.",
        metavar="N",
    ),
]
ForecastIn = Annotated[
    str | None,
    option(METHOD, "Where forecasts choose: in all steps, or in the rounds of crossover alone.",
           metavar="all|crossover"),
]  # fmt: skip
Neighbours = Annotated[
    int | None,
    option(METHOD, "After the search let N pictures of the prior's bank compete.", metavar="N"),
]
Crossover = Annotated[
    int | None,
    option(
        METHOD,
        "After the search let the best prefixes take runs of tokens from other pictures.",
        metavar="ROUNDS",
    ),
]
Patience = Annotated[
    int | None,
    option(
        METHOD,
        "Crossover: end it after so many rounds in a row that found nothing better (0: never).",
        metavar="ROUNDS",
    ),
]
Reencode = Annotated[
    int | None,
    option(
        METHOD,
        "At the end let the tokenizer encode the N best pictures; what comes of it is the result.",
        metavar="N",
    ),
]
ReencodeLoss = Annotated[
    float | None,
    option(METHOD, "reencode: how much lower that may score, in units of the score.", metavar="L"),
]
Refine = Annotated[
    int | None,
    option(
        METHOD,
        "After the search choose each token of the best prefixes again, in so many sweeps.",
        metavar="SWEEPS",
    ),
]
Anneal = Annotated[
    float | None,
    option(METHOD, "refine: start at this temperature, in units of the score.", metavar="T"),
]
NoAtlas = Annotated[
    bool,
    option(METHOD, "Draw the first step, even where all its pictures are known.", "--no-atlas"),
]

Budget = Annotated[
    int | None, option(LIMITS, "At most so many decodes; all steps are made to fit.")
]
TimeLimit = Annotated[
    float | None,
    option(LIMITS, "At most so many seconds of search; all steps are made to fit.", metavar="S"),
]
BatchSize = Annotated[
    int | None,
    option(LIMITS, "Pictures a batch (default: what suits the device); changes no result."),
]
Cache = Annotated[
    Path | None,
    option(
        LIMITS,
        "Keep in this folder what prefixes look like, for later searches; changes no result.",
        metavar="DIR|off",
    ),
]
TraceFile = Annotated[
    Path | None,
    option(
        LIMITS,
        "Write every candidate of every step as JSON.",
        "--trace",
        metavar="FILE.jsonl",
        parser=new_file,
    ),
]
Resume = Annotated[
    Path | None,
    option(
        LIMITS,
        "Keep the search in this folder after each step, and go on with the one that is there.",
        metavar="DIR",
    ),
]


SAME = (  # options that are called as the setting is
    "search beam candidates samples tokens schedule prior_strength prior_weight rollouts rollout "
    "rollout_score lookahead_steps branch first_step max_children keep complete shortlist "
    "shortlist_by forecast forecast_in neighbours crossover patience refine anneal reencode "
    "reencode_loss budget time_limit batch_size"
).split()


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The search settings that a command's options say, by the names of its parameters; None where
    nothing is said."""
    return {name: given.get(name) for name in SAME} | {
        "typicality": False if given.get("likelihood") else None,
        "lookahead": parse_lookahead(given.get("lookahead")),
        "start": parse_tokens(given.get("start")),
        "distinct": False if given.get("repeats") else None,
        "screen": True if given.get("screen") else None,
        "atlas": False if given.get("no_atlas") else None,
    }


def check_prior(name: str | None) -> None:
    """Raises InputError where a prior is said to have a file of its own, but not which."""
    for part in (name or "").split("+"):
        if part.endswith(":"):
            raise InputError(
                f"The prior {part!r} names no file: give one, as in {part}FILE, or leave the colon "
                "out for the model's own."
            )


def parse_lookahead(text: str | None) -> int | str | None:
    """The tokens of a rollout; what is no number is left for the settings to judge."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def parse_tokens(text: str | None) -> list[int] | None:
    """Tokens as on the command line, 12,7. Raises InputError where they are none."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--start must be tokens with commas between them, as 12,7, not {text!r}."
        ) from None


def parse_numbers(name: str, text: str) -> list[float]:
    """Numbers from 0 up as on the command line, 0,0.5,1; each once, in the order given. Raises
    InputError where they are none."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{name} must be numbers with commas between them, as 0,0.5,1, not {text!r}."
        ) from None
    return list(dict.fromkeys(finite_number(name, number, 0) for number in numbers))
