"""CLIP as the verifier: any open_clip model, scored on the device the pictures are on.

Source of the contrast score: ours; a softmax over captions is CLIP's own zero-shot classifier
(arXiv 2103.00020, section 3.1), here of the prompt against itself with one thing said differently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen.errors import InputError, TfgenError, unknown
from tfgen.hub import download, load_weights, read_json, read_safetensors
from tfgen.packing import fingerprint, unpack
from tfgen.verifiers.base import Target, Verifier
from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.rewording import Reworded, Rewording
from tfgen.verifiers.sprites_clip import SpritesClip
from tfgen.verifiers.sprites_tower import is_tower, tell_timm
from tfgen.verifiers.words import WordTokenizer

GENERAL_WORDS = Path(__file__).with_name("contrast_words.json")
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
SCORES = ("contrast", "cosine")
LOGIT_WEIGHT = 0.1
"""Share of the plain similarity (in logits) in the contrast score: it decides between pictures that
all fit the prompt better than any contrast caption."""

TEXT_BATCH = 256
LARGE = 50_000_000  # parameters


@dataclass(frozen=True)
class ClipTarget(Target):
    """text: Float32[V, 1 + C, d] normalised features of the prompt and its C contrast captions, in
    each of V ways to say what the prompt leaves open; captions: the C contrast captions; factors:
    what each of them says differently; part_text: Float32[P, d], of each of the prompt's objects,
    beside any other."""

    text: Tensor
    captions: tuple[str, ...]
    factors: tuple[str, ...]
    part_text: Tensor

    @property
    def parts(self) -> int:
        return len(self.part_text)


class ClipVerifier(Verifier):
    """Scores pictures against a prompt with an open_clip model.

    score "contrast": the log-probability of the prompt among its contrast captions (the prompt with
    one thing said differently, and the user's negatives), summed over the factors (objects,
    colours, backgrounds, ..., negatives), plus LOGIT_WEIGHT times its own logit. One softmax over
    all captions would hear of the worst factor only, and a search could not tell progress in the
    others. Where the prompt leaves open which of two objects is where, each caption counts as the
    best-fitting of its arrangements: pictures show one of them, and a text that says it is closer
    to them than one that means all. score "cosine": the cosine similarity, minus that of the
    best-fitting negative if there are any. Both float32, higher is better.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[..., Tensor],
        words: ContrastWords,
        *,
        name: str,
        score: str = "contrast",
    ):
        """tokenize: a WordTokenizer, or called as open_clip's tokenizers are, (texts,
        context_length=...) -> Int64[N, context_length]."""
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        self.model = model.eval().requires_grad_(False)
        self.tokenize, self.words, self.name, self.mode = tokenize, words, name, score
        self.preprocess: dict[str, Any] = dict(model.visual.preprocess_cfg)
        self.mean, self.std = (  # [3, 1, 1]
            torch.tensor(self.preprocess[k], dtype=torch.float32)
            .expand(3)[:, None, None]
            .to(self.device)
            for k in ("mean", "std")
        )
        # Half precision, where the model is too large for it to matter; similarities stay float32.
        large = sum(p.numel() for p in model.parameters()) > LARGE
        self._half = large and self.device.type == "cuda"

    @classmethod
    def load(
        cls, source: str | Path, device: torch.device | str = "cpu", score: str = "contrast"
    ) -> ClipVerifier:
        """Load a local folder (open_clip_config.json + safetensors), an open_clip model by
        "MODEL/PRETRAINED", where PRETRAINED is one of its tags or the path of a safetensors file,
        or a repository by "hf-hub:OWNER/NAME".

        A folder with vocabulary.json reads text with that closed vocabulary; one with contrast.json
        brings its own contrast words. Raises InputError for an unknown name or unusable files,
        TfgenError where weights cannot be downloaded.
        """
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        if Path(source).is_dir():
            return cls._from_folder(Path(source), device, score)
        if str(source).startswith("hf-hub:"):
            repository = str(source).removeprefix("hf-hub:")
            folder = download(repository, CONFIG_FILE, "--verifier").parent
            download(repository, WEIGHTS_FILE, "--verifier")
            return cls._from_folder(folder, device, score, name=str(source))
        return cls._from_open_clip(str(source), device, score)

    @classmethod
    def _from_folder(
        cls, folder: Path, device: torch.device | str, score: str, name: str | None = None
    ) -> ClipVerifier:
        config = read_json(folder / CONFIG_FILE)
        if "model_cfg" not in config:
            raise InputError(
                f"{str(folder / CONFIG_FILE)!r} describes no open_clip model: "
                'it has no "model_cfg".'
            )
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            files = sorted(folder.glob("*.safetensors"))
            if len(files) != 1:
                raise InputError(
                    f"{str(folder)!r} must hold the weights as {WEIGHTS_FILE} (or as its only "
                    f"safetensors file; it has {len(files)})."
                )
            weights = files[0]
        if SpritesClip.is_of(config):
            with _making(f"local-dir:{folder}"):
                model = SpritesClip(config)
            load_weights(model, unpack(read_safetensors(weights)), weights)
        else:
            told = config["model_cfg"]
            vision = told.get("vision_cfg") if isinstance(told, dict) else None
            if isinstance(vision, dict) and is_tower(vision.get("timm_model_name")):
                tell_timm(vision["timm_model_name"])
            model = _create(f"local-dir:{folder}", load_weights=False)
            _fill(model, weights)
        vocabulary, contrast = folder / "vocabulary.json", folder / "contrast.json"
        if vocabulary.is_file():
            tokenize = WordTokenizer.load(vocabulary)
            read = (model.vocab_size, model.context_length)
            if (tokenize.vocab_size, tokenize.context_length) != read:
                raise InputError(
                    f"{str(vocabulary)!r} belongs to another model: it has "
                    f"{tokenize.vocab_size} entries and a context of {tokenize.context_length}, "
                    f"the weights have {read[0]} and {read[1]}."
                )
        else:
            tokenize = _tokenizer(name or f"local-dir:{folder}")
        words = ContrastWords.load(contrast if contrast.is_file() else GENERAL_WORDS)
        return cls(model.to(device), tokenize, words, name=name or folder.name, score=score)

    @classmethod
    def _from_open_clip(cls, source: str, device: torch.device | str, score: str) -> ClipVerifier:
        import open_clip

        name, _, pretrained = source.partition("/")
        if name not in open_clip.list_models():
            raise _unknown(f"There is no open_clip model {name!r}", name, open_clip.list_models())
        tag = open_clip.get_pretrained_cfg(name, pretrained)
        if tag:
            hub_id = PurePosixPath(tag.get("hf_hub", ""))
            if len(hub_id.parts) < 2:
                raise InputError(
                    f"open_clip has {source} only as a pickled file, which tfgen does not load: "
                    "choose another tag."
                )
            file = (
                hub_id.with_suffix(".safetensors").name if len(hub_id.parts) > 2 else WEIGHTS_FILE
            )
            path = download("/".join(hub_id.parts[:2]), file, "--verifier")
        else:
            path = Path(pretrained).expanduser()
            if not path.is_file():
                raise _unknown(
                    f"{pretrained!r} is neither a tag of open_clip's {name} nor a safetensors file",
                    pretrained,
                    open_clip.list_pretrained_tags_by_model(name),
                )
        keys = ("mean", "std", "interpolation", "resize_mode")
        model = _create(
            name,
            force_preprocess_cfg={k: tag[k] for k in keys if k in tag},
            force_quick_gelu=tag.get("quick_gelu", False),
        )
        _fill(model, path)
        words = ContrastWords.load(GENERAL_WORDS)
        return cls(model.to(device), _tokenizer(name), words, name=source, score=score)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def fingerprint(self) -> str:
        return fingerprint(self.model)

    @cached_property
    def _rewording(self) -> Rewording:
        return Rewording(self.words)

    def reword(self, prompt: str) -> Reworded:
        if not isinstance(self.tokenize, WordTokenizer):
            return Reworded(prompt, prompt)
        return self._rewording(prompt)

    def warnings(self, prompt: str) -> list[str]:
        if not isinstance(self.tokenize, WordTokenizer):
            return []
        sentences = []
        for word in self.tokenize.unknown(prompt):
            near = self.tokenize.nearest(word)
            hint = f"; the nearest words it knows: {', '.join(near)}" if near else ""
            sentences.append(f"The verifier {self.name} does not know the word {word!r}{hint}.")
        return sentences

    @torch.no_grad()
    def prepare(self, prompt: str, negatives: Sequence[str] = ()) -> ClipTarget:
        """Encode the prompt and what it is scored against.

        Raises InputError for a prompt or negative that is empty or too long, a negative that is the
        prompt, and a prompt of which a closed vocabulary knows no word.
        """
        words = WordTokenizer.split(prompt)
        advice = 'say what to show, for example "a red fox in snow"'
        self._check(prompt, "prompt", advice, self.words.examples())
        for negative in negatives:
            self._check(negative, "negative", 'say what not to show, for example "a blue fox"')
            if WordTokenizer.split(negative) == words:
                raise InputError(f"The negative {negative!r} is the prompt itself: leave it out.")
        captions: dict[str, str] = {}  # and the factor of each
        if self.mode == "contrast":
            swaps = {c: factor for factor, group in self.words.swaps(prompt).items() for c in group}
            fitting = zip(swaps.items(), self._fit(list(swaps)), strict=True)
            captions = {caption: factor for (caption, factor), fits in fitting if fits}
            captions |= dict.fromkeys(self.words.nothing, "nothing")
        # Contrast captions have no punctuation; what they are compared with must not stand out.
        texts = [" ".join(words) if captions else prompt]
        for negative in negatives:
            captions.setdefault(negative, "negative")
        text = torch.stack([self._encode(way) for way in self._ways(texts + list(captions))])
        parts = [
            F.normalize(self._encode(part).mean(0), dim=0)
            for part in map(self._read_whole, self.words.beside(prompt))
            if part
        ]
        parts = torch.stack(parts) if len(parts) > 1 else text.new_zeros(0, text.shape[-1])
        return ClipTarget(prompt, text, tuple(captions), tuple(captions.values()), parts)

    def _read_whole(self, texts: list[str]) -> list[str]:
        """Those of the texts that are read whole."""
        return [text for text, fits in zip(texts, self._fit(texts), strict=True) if fits]

    def _ways(self, texts: list[str]) -> list[list[str]]:
        """The texts, prompt first, in each way to say what the prompt leaves open."""
        ways = self.words.arranged(texts[0]) if self.mode == "contrast" else []
        if not ways:
            return [texts]
        said = [self.words.arranged(text) or [text] * len(ways) for text in texts]
        fit = all(all(self._fit(texts)) for texts in said)
        return [list(way) for way in zip(*said, strict=True)] if fit else [texts]

    def _check(self, text: str, kind: str, advice: str, known: Sequence[str] = ()) -> None:
        if not text.strip():
            raise InputError(f"The {kind} is empty: {advice}.")
        if isinstance(self.tokenize, WordTokenizer):
            self.tokenize.check(text, self.name, kind, known)
        elif not self._fit([text])[0]:
            room = int(self.model.context_length) - 2
            raise InputError(
                f"The {kind} is too long: {self.name} reads at most {room} text tokens. "
                f"Shorten {text!r}."
            )

    def _fit(self, texts: list[str]) -> list[bool]:
        """Which texts are read whole (open_clip's tokenizers cut long ones silently)."""
        if isinstance(self.tokenize, WordTokenizer) or not texts:
            return [self.tokenize.fits(text) for text in texts]
        context = int(self.model.context_length)

        def used(length: int) -> Tensor:
            """How many places of a context hold something else than in that of an empty text."""
            rows = self.tokenize(["", *texts], context_length=length)
            return (rows[1:] != rows[:1]).sum(1)

        return (used(context) == used(8 * context)).tolist()

    def _encode(self, texts: list[str]) -> Tensor:
        """Normalised text features Float32[N, d]."""
        with self._autocast():
            parts = [
                self.model.encode_text(self.tokenize(texts[i : i + TEXT_BATCH]).to(self.device))
                for i in range(0, len(texts), TEXT_BATCH)
            ]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    def embed(self, images: Tensor) -> Tensor:
        return self.embed_input(self._input(images))

    def embed_input(self, shown: Tensor) -> Tensor:
        """`embed`, of pictures that are resized and normalised as `preprocess` says."""
        shown = shown.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            features = self.model.encode_image(shown)
        return F.normalize(features.float(), dim=-1)

    def score(self, images: Tensor, target: Target) -> Tensor:
        return self.score_embeddings(self.embed(images), target)

    def score_embeddings(self, embeddings: Tensor, target: Target) -> Tensor:
        _require_clip(target)
        cosine = (embeddings @ target.text.mT).amax(0)  # [N, 1 + C]
        if self.mode == "cosine" and not target.captions:
            return cosine[:, 0]
        if self.mode == "cosine":  # minus the best-fitting negative
            return cosine[:, 0] - cosine[:, 1:].amax(1).clamp(min=0)
        logits = self.model.logit_scale.exp().float() * cosine
        score = LOGIT_WEIGHT * logits[:, 0]
        for factor in dict.fromkeys(target.factors):
            columns = [0, *(i + 1 for i, f in enumerate(target.factors) if f == factor)]
            score = score + logits[:, columns].log_softmax(1)[:, 0]
        return score

    @torch.no_grad()
    def similarities(self, embeddings: Tensor, target: Target) -> Tensor:
        _require_clip(target)
        whole = (embeddings @ target.text[:, 0].T).amax(1, keepdim=True)
        cosine = torch.cat([whole, embeddings @ target.part_text.T], dim=1)
        return self.model.logit_scale.exp().float() * cosine

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.float16, enabled=self._half)

    def _input(self, images: Tensor) -> Tensor:
        """open_clip's own preprocessing of this model, on the device: Float[N, 3, H, W] in [0, 1]
        -> resized, cropped or padded, normalised.

        Equal to its PIL transform (open_clip/transform.py) up to that one's rounding to 8 bits.
        """
        cfg, shape = self.preprocess, images.shape[-2:]
        size = cfg["size"] if isinstance(cfg["size"], (tuple, list)) else (cfg["size"],) * 2
        if tuple(shape) != tuple(size):
            ratios = [want / have for want, have in zip(size, shape, strict=True)]
            if cfg["resize_mode"] == "squash":
                target = list(size)
            elif cfg["resize_mode"] == "longest":
                target = [round(side * min(ratios)) for side in shape]
            elif size[0] == size[1]:  # torchvision's Resize rounds the longer side down
                target = [side * size[0] // min(shape) for side in shape]
            else:
                target = [round(side * max(ratios)) for side in shape]
            mode = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
            images = F.interpolate(images, target, mode=mode, antialias=True).clamp(0, 1)
            for axis in (-2, -1):
                images = _centre(images, axis, size[axis], cfg["fill_color"] / 255)
        return (images - self.mean) / self.std


def _require_clip(target: Target) -> None:
    if not isinstance(target, ClipTarget):
        raise TypeError("ClipVerifier.score needs the target that its prepare() returned")


def _centre(images: Tensor, axis: int, size: int, fill: float) -> Tensor:
    """Cut or pad one axis to `size` about its centre, to the pixel as torchvision does."""
    have = images.shape[axis]
    if have >= size:
        return images.narrow(axis, round((have - size) / 2), size)
    before = (size - have) // 2
    pads = (before, size - have - before)
    return F.pad(images, pads if axis == -1 else (0, 0, *pads), value=fill)


def _unknown(sentence: str, name: str, known: list[str]) -> InputError:
    """Like errors.unknown, for lists too long to print whole."""
    near = get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    return InputError(f"{sentence}; the nearest: {', '.join(near)}." if near else f"{sentence}.")


def _create(name: str, **options: Any) -> nn.Module:
    """An open_clip model with random weights."""
    import open_clip

    with _making(name), _no_warnings():
        return open_clip.create_model(
            name, pretrained_text=False, pretrained_image=False, **options
        )


@contextmanager
def _making(name: str) -> Iterator[None]:
    """Around what makes a network from a config: says what is wrong with it in a sentence."""
    try:
        yield
    except (ImportError, OSError) as error:  # of a text tower that comes from transformers
        raise TfgenError(
            f"open_clip cannot make {name!r} ({_first_line(error)}): it may need "
            "`pip install transformers` and a network."
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        raise InputError(
            f"open_clip cannot make {name!r} ({_first_line(error)}): its config is damaged or of "
            "another version."
        ) from error


def _tokenizer(name: str) -> Callable[..., Tensor]:
    """open_clip's tokenizer of a model; some come from the hub."""
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except (ImportError, OSError) as error:
        raise TfgenError(
            f"The tokenizer of {name} cannot be had ({_first_line(error)}): it may need "
            "`pip install transformers` and a network."
        ) from error


def _fill(model: nn.Module, path: Path) -> None:
    """Load a safetensors checkpoint through open_clip, which knows its own format's history."""
    import open_clip

    read_safetensors(path)  # says clearly what is wrong with a damaged or pickled file
    if path.suffix != ".safetensors":  # open_clip would unpickle it
        raise InputError(f"The name of the weights file {str(path)!r} must end in .safetensors.")
    try:
        open_clip.load_checkpoint(model, str(path), strict=True)
    except Exception as error:  # whatever its conversions of unknown weights run into
        raise InputError(
            f"{str(path)!r} holds the weights of another model ({_first_line(error)}): "
            "use the weights and the config that belong together."
        ) from error


def _first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):  # torch's "Error(s) in loading state_dict:"
        del lines[0]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 160 else line[:160].rsplit(" ", 1)[0] + " ..."


@contextmanager
def _no_warnings() -> Iterator[None]:
    """open_clip warns (through the root logger) of random weights, which are filled right after."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
