"""A tokenizer, a prior, a verifier and a search, wired together: only this file knows all four."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import tfgen
from tfgen import hub
from tfgen.atlas import Atlas
from tfgen.cache import EmbeddingCache, rounding
from tfgen.decoding.engine import EngineMaker, engine_maker
from tfgen.decoding.threads import one_thread
from tfgen.errors import InputError, TfgenError, unknown, whole_number
from tfgen.forecaster import Forecaster
from tfgen.image_io import pixel_hash, save_png, to_image
from tfgen.interrupts import ctrl_c_once
from tfgen.priors.base import Prior
from tfgen.search import (
    Accounts,
    EmbeddingSource,
    Engine,
    PlainEngine,
    Progress,
    SearchResult,
    SearchSettings,
    Step,
    Stopped,
    search,
)
from tfgen.search.settings import ONLY_FOR
from tfgen.tokenizers.base import Tokenizer
from tfgen.verifiers.base import Verifier
from tfgen.verifiers.rewording import Reworded
from tfgen.verifiers.views import Views

DEVICES = ("auto", "cpu", "cuda")
SCORES = ("contrast", "cosine")
RECIPE_FORMAT = 1
MEASURED = ("propose_seconds", "decode_seconds", "score_seconds", "peak_memory")
"""Accounts that differ between two runs of one search, so that no recipe has them. (So do counts
of decodes, but only where a cache knew some.)"""


class PromptWarning(UserWarning):
    """What the verifier says of a prompt: how it reads it, and words it does not know."""


@dataclass(frozen=True)
class Result:
    """What one generation found."""

    image: Image.Image
    """The picture, at the tokenizer's render size."""

    tokens: list[int]
    score: float
    """What the search ranks by: the verifier's score and, with a prior weight, the prior's term."""

    verifier_score: float
    steps: list[Step]
    decodes: int
    accounts: Accounts
    seconds: float
    """Of the search: without loading, and without rendering the final picture."""

    stopped: Stopped
    """"done", or what ended the search early: "budget", "time", "interrupt" (Ctrl-C)."""

    settings: SearchSettings
    recipe: dict[str, Any]
    """All that is needed to make the picture again; `save` puts it into the PNG."""

    _tokenizer: Tokenizer = field(repr=False)

    @property
    def interrupted(self) -> bool:
        """Ctrl-C ended the search early; this is the best it had found."""
        return self.stopped == "interrupt"

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture with its recipe as a PNG. Raises TfgenError if it cannot be written."""
        return save_png(self.image, path, self.recipe)

    def step_images(self) -> list[Image.Image]:
        """The best picture of each step, at render size."""
        return [render(self._tokenizer, step.best_tokens) for step in self.steps]


@dataclass(frozen=True)
class Pipeline:
    """The models of a generation, loaded once for many prompts."""

    tokenizer: Tokenizer
    prior: Prior
    verifier: Verifier
    model_name: str = ""
    """The names go into the recipe: those by which `load` finds the models again."""

    verifier_name: str = ""
    score: str = "contrast"
    defaults: dict[str, Any] = field(default_factory=dict)
    """Fields of SearchSettings that a search uses where the user says nothing."""

    engine: EngineMaker = PlainEngine
    """Makes what decodes, for each search."""

    cache: EmbeddingSource | None = None
    """Knows what some prefixes look like, so that they need not be decoded."""

    cache_folder: Path | None = None
    """Where there is no `cache`: a folder in which to keep what prefixes look like, across runs."""

    folder: Path | None = None
    """Where the model's files are: its atlas may be among them."""

    verbatim: bool = False
    """Search for prompts as they are, not as the verifier rewords them."""

    prior_named: bool = False
    """The prior, or its guidance, was asked for: a search that makes no use of it says so."""

    @classmethod
    def load(
        cls,
        model: str = hub.DEFAULT_MODEL,
        *,
        verifier: str | None = None,
        prior: str | None = None,
        guidance: float | None = None,
        device: str = "auto",
        score: str = "contrast",
        views: int = 1,
        cache: str | PathLike[str] | None = None,
        engine: str = "auto",
        verbatim: bool = False,
    ) -> Pipeline:
        """Load models by name or local folder.

        verifier, prior: None means those that go with the model; a prior that is named proposes at
        strength 1 where the model's defaults have none. verifier may also be an open_clip
        name such as "ViT-B-32/laion2b_s34b_b79k". guidance: how closely a prior of the text follows
        it, from 0; None is the prior's own. device: "auto" (CUDA where there is one), "cpu",
        "cuda". score: "contrast" ranks by the log-softmax of the similarity to the prompt against
        contrast captions, "cosine" by the bare similarity. views: the verifier looks at each
        picture so many times, a little moved and lightened, see `Views`. cache: a folder in which
        to keep, across runs, what prefixes look like; it changes no result. engine: what decodes,
        "auto" (passes side by side on a CPU, kernels and CUDA graphs on a GPU where they run),
        "eager" (plain PyTorch), "kernels" (or an error); it changes results by rounding only.
        "kernels-fp8" also makes the drafts of a screening in FP8, which changes what is promoted.
        verbatim: search for prompts as they are; else a verifier with a closed vocabulary says them
        in its own words first, see `tfgen.verifiers.rewording`.
        Raises InputError on an unknown or unusable model or engine.
        """
        place = find_device(device)
        decoding = engine_maker(engine, place)
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        defaults = hub.search_defaults(model)
        usual_prior = defaults.pop("prior", "uniform")
        usual_verifier = defaults.pop("verifier", hub.DEFAULT_VERIFIER)
        named = guidance is not None or prior not in (None, "uniform")
        if named and not defaults.get("prior_strength"):
            defaults["prior_strength"] = 1.0  # with 0 it would not even be asked
        tokenizer = hub.load_tokenizer(model, place)
        proposer = hub.load_prior(prior or usual_prior, model, tokenizer)
        scorer = hub.load_verifier(verifier or usual_verifier, place, score)
        proposer = proposer.for_verifier(scorer.fingerprint, wanted=prior is not None)
        if views != 1:
            scorer = Views(scorer, views)
        return cls(
            tokenizer,
            proposer if guidance is None else proposer.with_guidance(guidance),
            scorer,
            model,
            verifier or usual_verifier,
            score,
            defaults,
            decoding,
            cache_folder=None if cache is None else Path(cache),
            folder=hub.locate(model),
            verbatim=verbatim,
            prior_named=named,
        )

    def settings(self, **options: Any) -> SearchSettings:
        """The settings of a search: what is given and not None, else the model's defaults.

        Raises InputError on a value outside its range or a setting that does not exist.
        """
        known = [field.name for field in fields(SearchSettings)]
        for name in (*self.defaults, *options):
            if name not in known:
                raise unknown("search setting", name, known)
        given = {name: value for name, value in options.items() if value is not None}
        kind = given.get("search", self.defaults.get("search", "beam"))
        usual = {k: v for k, v in self.defaults.items() if kind in ONLY_FOR.get(k, (kind,))}
        if given.get("screen"):
            usual.pop("shortlist", None)  # it is one or the other
        if given.get("screen") or given.get("shortlist") or given.get("distinct") is False:
            usual = {k: v for k, v in usual.items() if not k.startswith("forecast")}
        return SearchSettings(**{**usual, **given})

    def generate(
        self,
        prompt: str,
        *,
        negative: Sequence[str] = (),
        seed: int = 0,
        callback: Callable[[Step], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
        trace: str | PathLike[str] | None = None,
        resume: str | PathLike[str] | None = None,
        **options: Any,
    ) -> Result:
        """Search for the tokens whose picture fits the prompt best.

        negative: captions that the picture must not fit; they join the contrast captions.
        seed: same seed, same tokens. callback is called after each step, progress after each batch.
        trace: a file that every step is written to as JSON, see `tfgen.search.trace`. resume: a
        folder in which the search is kept after each step; one that was killed goes on from there.
        options: fields of SearchSettings (search, beam, candidates, tokens, schedule,
        prior_strength, budget, ...); those left out, or None, take the model's defaults.

        Ctrl-C ends the search with the best so far. Warns (PromptWarning) of how the verifier reads
        the prompt, if not as it is, of what it does not know, and of a prior that was asked for but
        is not used; raises InputError on a prompt or a setting it cannot use, TfgenError on a
        failure.
        """
        check_prompt(prompt, negative, self.score)
        settings = self.settings(**options)
        seed = whole_number("seed", seed, 0, 2**63 - 1)
        said = self._read(prompt)
        avoided = [self._read(caption) for caption in negative]
        # What a negative adds to a place is nothing that the user wants to avoid.
        avoided = [one if not one.added else Reworded(one.prompt, one.prompt) for one in avoided]
        told = [*said.sentences(), *(s for one in avoided for s in one.sentences("negative"))]
        told += [s for one in (said, *avoided) for s in self.verifier.warnings(one.text)]
        if self.prior_named and settings.prior_strength == settings.prior_weight == 0:
            told.append(
                f"The prior {self.prior.name} makes no difference at prior strength 0: give a "
                "strength above 0, or leave the prior out."
            )
        for sentence in dict.fromkeys(told):
            warnings.warn(sentence, PromptWarning, stacklevel=2)
        target = self.verifier.prepare(said.text, tuple(one.text for one in avoided))
        prior = self.prior.condition(said.text, partial(self.verifier.similarities, target=target))
        tokenizer = self.tokenizer.for_seed(seed)
        models = self.fingerprints | {"seed": None if tokenizer is self.tokenizer else seed}
        atlas = None
        if settings.atlas:
            atlas = Atlas.find(self.folder, models, tokenizer.vocab_size)
            settings = replace(settings, atlas=atlas is not None)
        forecaster = None
        if settings.forecast > 1:
            forecaster = Forecaster.find(self.folder, tokenizer, self.verifier)
            if forecaster is None and options.get("forecast") is None:
                settings = replace(settings, forecast=1)
        with ctrl_c_once() as ctrl_c:
            try:
                engine, cache = self.engine(tokenizer, self.verifier), self.cache
                about = self._about(prompt, negative, engine)
                if said.text != prompt:
                    about["read_as"] = said.text
                if any(one.text != one.prompt for one in avoided):
                    about["negative_read_as"] = [one.text for one in avoided]
                if forecaster is not None:
                    about["forecaster"] = forecaster.fingerprint()
                with ExitStack() as stack:
                    if cache is None and self.cache_folder is not None:
                        key = models | rounding(engine, tokenizer.device)
                        cache = stack.enter_context(EmbeddingCache(self.cache_folder, key))
                    found = search(
                        target,
                        tokenizer,
                        prior,
                        self.verifier,
                        settings,
                        seed,
                        callback=callback,
                        progress=progress,
                        engine=engine,
                        cache=cache,
                        atlas=atlas,
                        forecaster=forecaster,
                        trace=trace,
                        resume=resume,
                        about=about,
                    )
                ctrl_c.hold()
                image = render(tokenizer, found.tokens)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise TfgenError(
                    f"Out of memory on {self.tokenizer.device}: "
                    "use a smaller --beam or --batch-size, or --device cpu."
                ) from error
            if ctrl_c.pressed:
                found = replace(found, stopped="interrupt")
            return Result(
                image=image,
                tokens=found.tokens.tolist(),
                score=found.score,
                verifier_score=found.verifier_score,
                steps=found.steps,
                decodes=found.decodes,
                accounts=found.accounts,
                seconds=found.seconds,
                stopped=found.stopped,
                settings=found.settings,
                recipe=self._recipe(about, seed, found, image),
                _tokenizer=tokenizer,
            )

    def _read(self, prompt: str) -> Reworded:
        return Reworded(prompt, prompt) if self.verbatim else self.verifier.reword(prompt)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of tokenizer and verifier."""
        return {
            "tokenizer": self.tokenizer.fingerprint(),
            "verifier": self.verifier.fingerprint(),
        }

    def _about(self, prompt: str, negative: Sequence[str], engine: Engine) -> dict[str, Any]:
        """What a search is of, for its recipe and its trace."""
        return {
            "tfgen": tfgen.__version__,
            "torch": torch.__version__,
            "device": self.tokenizer.device.type,
            "engine": engine.name,
            "prompt": prompt,
            "negative": list(negative),
            "model": {
                "name": self.model_name or self.tokenizer.name,
                "fingerprint": self.tokenizer.picture_fingerprint(),
            },
            "verifier": {
                "name": self.verifier_name or self.verifier.name,
                "fingerprint": self.fingerprints["verifier"],
                "score": self.score,
            },
            "prior": {"name": self.prior.name, **self.prior.options()},
        }

    def _recipe(
        self, about: dict[str, Any], seed: int, found: SearchResult, image: Image.Image
    ) -> dict[str, Any]:
        return {
            "format": RECIPE_FORMAT,
            **about,
            "seed": seed,
            "tokens": found.tokens.tolist(),
            "score": found.score,
            "verifier_score": found.verifier_score,
            "decodes": found.decodes,
            "accounts": {
                name: value
                for name, value in found.accounts.as_dict().items()
                if name not in MEASURED
            },
            "stopped": found.stopped,
            "interrupted": found.interrupted,
            "settings": asdict(found.settings),
            "size": list(image.size),
            "pixels_sha256": pixel_hash(image),
        }


def generate(
    prompt: str,
    *,
    model: str = hub.DEFAULT_MODEL,
    verifier: str | None = None,
    prior: str | None = None,
    guidance: float | None = None,
    device: str = "auto",
    score: str = "contrast",
    views: int = 1,
    engine: str = "auto",
    verbatim: bool = False,
    **options: Any,
) -> Result:
    """Load the models and make one picture; `Pipeline` keeps them loaded for more.

    model, verifier, prior, guidance, device, score, views, engine, verbatim: see `Pipeline.load`.
    options: see `Pipeline.generate`, such as beam=16, seed=0.
    """
    check_prompt(prompt)
    pipeline = Pipeline.load(
        model,
        verifier=verifier,
        prior=prior,
        guidance=guidance,
        device=device,
        score=score,
        views=views,
        engine=engine,
        verbatim=verbatim,
    )
    return pipeline.generate(prompt, **options)


@torch.inference_mode()
def render(tokenizer: Tokenizer, tokens: Tensor) -> Image.Image:
    """Int64[k] -> the final picture; always alone in its batch, and on a CPU on one thread, so that
    a replay rounds alike."""
    with one_thread():
        return to_image(tokenizer.render(tokens[None].to(tokenizer.device))[0])


def find_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu` or `cuda`; InputError where it is not to be had."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError(
            f"This torch ({torch.__version__}) finds no CUDA device to use: use --device cpu."
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def check_prompt(prompt: str, negative: Sequence[str] = (), score: str = "contrast") -> None:
    """What can be said against a prompt before any model is loaded. Raises InputError."""
    if not prompt.strip():
        raise InputError(
            'The prompt is empty: say what the picture shows, as in "a red fox in snow".'
        )
    if isinstance(negative, str):
        raise InputError(f"negative is a list of captions, not one string: use [{negative!r}].")
    if not all(caption.strip() for caption in negative):
        raise InputError("A negative prompt is empty: say what the picture must not show.")
    if negative and score != "contrast":
        raise InputError(
            f"Negative prompts need the score contrast: the score {score} knows no other captions."
        )
