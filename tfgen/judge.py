"""The judge of the sprite world: what a picture shows, and whether that is what was asked for.

`Judge.look` is an object detector, in the role that Mask2Former has in GenEval (arXiv 2310.11513):
it names objects with colour, box and confidence, and the background. `verdict` holds what it saw
against GenEval's metadata of a prompt; judge_prompt.py writes those for prompts in the sprite
world's words. The judge shares nothing with the verifier or the tokenizer, and was never trained on
what a search found (see the model card, tfgen/weights/README.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfgen import hub
from tfgen.errors import InputError, unknown
from tfgen.judge_model import Answers, JudgeConfig, JudgeModel, cell_centres
from tfgen.judge_prompt import CONFIG_FILE, NAME, RELATIONS, WORDS_FILE, metadata_of
from tfgen.verifiers.contrast import ContrastWords

__all__ = ["Detection", "Judge", "Seen", "Thresholds", "Verdict", "metadata_of", "verdict"]

WEIGHTS_FILE = "judge.safetensors"
OTHER, MIXED = "other", "mixed"
MARGIN = 0.1  # of the summed sizes: boxes' centres nearer than that are on one line (GenEval's)
BATCH = 64
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object that the judge sees.

    object: its name, or "other" where it is none that the judge can name; colour: a word of the
    world, "mixed" for a part in one colour and a part in another, "" for what is "other"; box:
    left, top, right, bottom in fractions of the picture; confidence in [0, 1]; also: further colour
    words that fit as well, as "orange" does for a fox in its natural coat that is called red.
    """

    object: str
    colour: str
    box: Box
    confidence: float
    also: tuple[str, ...] = ()

    def has_colour(self, word: str) -> bool:
        return word == self.colour or word in self.also


@dataclass(frozen=True)
class Seen:
    """What the judge sees in a picture: objects by falling confidence, and the background's name
    with its probability."""

    objects: list[Detection]
    background: str
    background_confidence: float


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was asked for, and in a few words why not ("" where it does)."""

    correct: bool
    reason: str


@dataclass(frozen=True)
class Thresholds:
    """What counts as seen; chosen on held-out scenes when the weights were written.

    centre: least probability of an object's centre; object: least probability of its name, below
    which it is "other"; overlap: boxes with more than this intersection over union are one object;
    colour: least probability of a colour word, below which it is "mixed".
    """

    centre: float = 0.4
    object: float = 0.5
    overlap: float = 0.5
    colour: float = 0.4


class Judge:
    """The detector, with the words for what it knows. Make one with `load`."""

    def __init__(
        self,
        model: JudgeModel,
        words: ContrastWords,
        backgrounds: Sequence[str],
        thresholds: Thresholds,
    ):
        self.model = model.eval()
        self.words, self.backgrounds, self.thresholds = words, list(backgrounds), thresholds
        self.objects = [spec["name"] for spec in words.objects]
        natural = [tuple(spec.get("natural_colours", ())) for spec in words.objects]
        more = sorted({c for colours in natural for c in colours} - set(words.colours))
        self.colours = [*words.colours, *more, MIXED]
        # A natural coat goes by each of the object's natural colours: [objects, colours].
        self._natural = torch.tensor([[float(c in own) for c in self.colours] for own in natural])

    @classmethod
    def load(cls, folder: str | Path | None = None, device: torch.device | str = "cpu") -> Judge:
        """The packaged judge, or one that tfgen/training/judge.py has written to `folder`.

        Raises InputError where the folder holds none.
        """
        folder = Path(folder) if folder else hub.WEIGHTS / NAME
        config = hub.read_json(folder / CONFIG_FILE)
        try:
            sizes = config["model"]
            model = JudgeModel(JudgeConfig(**sizes | {"widths": tuple(sizes["widths"])}))
            thresholds = Thresholds(**config["thresholds"])
            backgrounds = config["backgrounds"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{str(folder / CONFIG_FILE)!r} describes no judge ({error}): give the folder that "
                "tfgen.training.judge wrote."
            ) from error
        weights = folder / WEIGHTS_FILE
        tensors = {k: v.float() for k, v in hub.read_safetensors(weights).items()}
        hub.load_weights(model, tensors, weights)
        words = ContrastWords.load(folder / WORDS_FILE)
        model = model.to(device, memory_format=torch.channels_last)
        return cls(model, words, backgrounds, thresholds)

    @torch.inference_mode()
    def look(self, images: Tensor) -> list[Seen]:
        """What each of the pictures Float[N, 3, H, W] in [0, 1] shows; larger ones are averaged
        down to the 64 pixels that the judge sees."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"pictures must be [N, 3, H, W], not {list(images.shape)}")
        device = next(self.model.parameters()).device
        seen: list[Seen] = []
        for batch in images.float().split(BATCH):
            seen += self.read(self.model(self._fitted(batch.to(device))))
        return seen

    def read(self, answers: Answers) -> list[Seen]:
        """What the network's answers say, with this judge's thresholds."""
        heat = torch.sigmoid(answers.centre)
        peaks = (heat >= self.thresholds.centre) & (heat == F.max_pool2d(heat, 3, 1, 1))
        row, y, x = at = tuple(t.cpu() for t in peaks.nonzero(as_tuple=True))
        names = answers.objects.cpu()[at].softmax(1)  # [P, objects + 1], the last is other
        tints = answers.colours.cpu()[at].softmax(1)  # [P, natural, words, mixed]
        confidence = heat.cpu()[at] * names.amax(1)
        centre = cell_centres(*heat.shape[1:])[y, x]
        reach = answers.reach.cpu()[at]
        boxes = torch.cat([centre - reach[:, :2], centre + reach[:, 2:]], 1).clamp(0, 1)
        seen = []
        for i, likely in enumerate(answers.background.softmax(1).cpu()):
            mine = (row == i).nonzero()[:, 0]
            kept = distinct(boxes[mine], confidence[mine], self.thresholds.overlap)
            objects = [
                self._detection(names[p], tints[p], boxes[p], float(confidence[p]))
                for p in mine[kept].tolist()
            ]
            best = int(likely.argmax())
            seen.append(Seen(objects, self.backgrounds[best], float(likely[best])))
        return seen

    def _fitted(self, images: Tensor) -> Tensor:
        """The pictures at the size that the network sees."""
        side = self.model.cfg.image_size
        if images.shape[-2:] == (side, side):
            return images
        if min(images.shape[-2:]) >= side:
            return F.interpolate(images, (side, side), mode="area")
        return F.interpolate(images, (side, side), mode="bilinear", antialias=True)

    def _detection(self, names: Tensor, tints: Tensor, box: Tensor, confidence: float) -> Detection:
        best = int(names.argmax())
        place: Box = tuple(round(v, 4) for v in box.tolist())
        if best == len(self.objects) or names[best] < self.thresholds.object:
            return Detection(OTHER, "", place, confidence)
        likely = tints[0] * self._natural[best]
        likely[: len(self.words.colours)] += tints[1:-1]
        likely[-1] += tints[-1]
        first = int(likely.argmax())
        colour, also = self.colours[first], ()
        if likely[first] < self.thresholds.colour:
            colour = MIXED
        elif colour != MIXED:
            fit = (likely >= 0.5).tolist()
            also = tuple(c for i, c in enumerate(self.colours) if fit[i] and i != first)
        return Detection(self.objects[best], colour, place, confidence, also)


def distinct(boxes: Tensor, confidence: Tensor, overlap: float) -> list[int]:
    """Non-maximum suppression: the rows of boxes Float[P, 4] to keep, by falling confidence."""
    kept: list[int] = []
    for i in confidence.argsort(descending=True, stable=True).tolist():
        if all(shared(boxes[i].tolist(), boxes[k].tolist()) <= overlap for k in kept):
            kept.append(i)
    return kept


def shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def relations(a: Box, b: Box) -> set[str]:
    """Where box `a` is from box `b`, of RELATIONS; none where the centres are close.

    GenEval's rule: what the centres are apart beyond MARGIN of the boxes' summed widths (heights)
    counts, and a direction holds if that is more than half of the distance of the centres; so
    both "left of" and "above" hold of what is up on the left.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    slack = [MARGIN * (a[i + 2] - a[i] + b[i + 2] - b[i]) for i in (0, 1)]
    half = (offset[0] ** 2 + offset[1] ** 2) ** 0.5 / 2
    beyond = (abs(o) > s and abs(o) - s > half for o, s in zip(offset, slack, strict=True))
    across, down = beyond
    found = set()
    if across:
        found.add("left of" if offset[0] < 0 else "right of")
    if down:
        found.add("above" if offset[1] < 0 else "below")
    return found


def verdict(seen: Seen, metadata: Mapping[str, Any]) -> Verdict:
    """Whether what the judge saw is what GenEval's metadata ask for, or where an entry has other
    classes that do as well ("or"), any of the ways to read them; see `verdict_of_one`."""
    said = [verdict_of_one(seen, reading) for reading in readings(metadata)]
    return next((one for one in said if one.correct), said[0])


def readings(metadata: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Metadata with one class an entry, in each way that they allow; first that of "class"."""
    include = list(metadata.get("include", ()))
    for classes in product(*([entry["class"], *entry.get("or", ())] for entry in include)):
        named = dict(zip((entry["class"] for entry in include), classes, strict=True))
        chosen = [entry | {"class": name} for entry, name in zip(include, classes, strict=True)]
        exclude = [
            entry | {"class": named.get(entry["class"], entry["class"])}
            for entry in metadata.get("exclude", ())
        ]
        yield {**metadata, "include": chosen, "exclude": exclude}


def verdict_of_one(seen: Seen, metadata: Mapping[str, Any]) -> Verdict:
    """Whether what the judge saw is what metadata ask for, by "class" alone.

    include: each entry asks for at least `count` objects of `class`, with `color` if it has one,
    and with `position` [relation, i] that they stand so from those of entry i. exclude: fewer than
    `count` objects of `class`; this is how GenEval makes a number exact ("two cats": include 2,
    exclude 3). background: the background's name. Objects that are not asked for do no harm, as in
    GenEval, nor do more of the same where nothing is excluded.

    Three things are stricter than in GenEval, which looks only at the `count` most confident
    objects of a class: entries of one class (a red apple and a green one) need as many objects as
    they ask for together, each object serving one entry; no object of a class may have a colour
    that none of its entries has, where all of them state one; a relation must hold for all objects
    of its two entries. Raises InputError for a relation that is none of GenEval's.
    """
    include = list(metadata.get("include", ()))
    groups: dict[int, list[Detection]] = {}
    for name in dict.fromkeys(entry["class"] for entry in include):
        mine = [i for i, entry in enumerate(include) if entry["class"] == name]
        found = [d for d in seen.objects if d.object == name]
        wanted = sum(include[i]["count"] for i in mine)
        if len(found) < wanted:
            return Verdict(False, f"expected {wanted} {name}, found {len(found)}")
        served = assign(found, [include[i] for i in mine])
        if isinstance(served, str):
            return Verdict(False, served)
        groups |= dict(zip(mine, served, strict=True))
    for i, entry in enumerate(include):
        if "position" in entry:
            relation, target = entry["position"]
            if relation not in RELATIONS:
                raise unknown("relation", relation, RELATIONS)
            pairs = [(a.box, b.box) for a in groups[i] for b in groups[target]]
            if not all(relation in relations(a, b) for a, b in pairs):
                one, two = entry["class"], include[target]["class"]
                return Verdict(False, f"expected {one} {relation} {two}, which it is not")
    for entry in metadata.get("exclude", ()):
        count = sum(d.object == entry["class"] for d in seen.objects)
        if count >= entry["count"]:
            limit = entry["count"] - 1
            return Verdict(False, f"expected at most {limit} {entry['class']}, found {count}")
    wanted = metadata.get("background")
    if wanted and seen.background != wanted:
        return Verdict(False, f"expected background {wanted}, found {seen.background}")
    return Verdict(True, "")


def assign(
    found: Sequence[Detection], entries: Sequence[Mapping[str, Any]]
) -> list[list[Detection]] | str:
    """Objects of one class dealt to the entries that ask for it: by entry all that may serve it,
    or what is wrong."""
    name = entries[0]["class"]
    asked = [entry.get("color") for entry in entries]
    free = list(found)
    for entry, colour in zip(entries, asked, strict=True):
        if colour is None:
            continue
        # Those that no other entry wants go first, in case some answer to two of the colours.
        fit = sorted(
            (d for d in free if d.has_colour(colour)),
            key=lambda d: sum(d.has_colour(c) for c in asked if c),
        )
        if len(fit) < entry["count"]:
            return f"expected {entry['count']} {colour} {name}, found {colours_of(found)}"
        for taken in fit[: entry["count"]]:
            free.remove(taken)
    if None not in asked:
        for d in free:
            if not any(d.has_colour(c) for c in asked):
                return f"expected only {' and '.join(asked)} {name}, found {colours_of(found)}"
    return [[d for d in found if c is None or d.has_colour(c)] for c in asked]


def colours_of(found: Iterable[Detection]) -> str:
    return " and ".join(dict.fromkeys(d.colour for d in found))
