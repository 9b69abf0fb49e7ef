"""Train the verifier `sprites-clip`, a small CLIP that open_clip loads, on the sprite world.

    python -m tfgen.training.clip --config tfgen/training/configs/clip_small.json

Two stages, both resumable: clean scenes first; then, with `--tokenizer`, pictures as a search will
show them: decoded prefixes, and negatives that fit no caption (random tokens, true tokens
perturbed, sequences that a search against the current model found) and, with `--found`, what real
searches came to, see `found`. Batches are groups of scenes that differ in ONE factor, so that no
caption can be told by its other words; captions that also fit another picture of the batch are
masked out.

For worlds of many kinds a config's "reads" makes the image tower one that reads the scene
(`ReadingTower`): in its first "told" steps text and scribe learn from what scenes hold, without a
picture. "named" is the weight of the loss of `named`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfgen import hub
from tfgen.errors import InputError
from tfgen.hub import load_weights, read_safetensors
from tfgen.packing import pack, unpack, write_whole
from tfgen.tokenizers.sprites import SpritesTokenizer
from tfgen.tokenizers.sprites_reading import Holds
from tfgen.training.ahead import workers_beside
from tfgen.training.backgrounds import BACKGROUNDS
from tfgen.training.captions import (
    ANY,
    BESIDE,
    EVERYTHING,
    LEFT_OF,
    PLACE_PHRASES,
    RELATION_WORDS,
    REVERSED_WORDS,
    SIZE_WORDS,
    Captioner,
)
from tfgen.training.clip_batches import NOTHING, Batches
from tfgen.training.clip_model import CONTEXT_LENGTH, ClipTrainer, model_config
from tfgen.training.colours import COLOURS
from tfgen.training.commands import arguments, command_line, deadline_in, load_config, parsed
from tfgen.training.common import (
    HEADS_ALONE,
    Training,
    cache_folder,
    learning_rate,
    load_checkpoint,
)
from tfgen.training.found import Found
from tfgen.training.named import RENEWED, Named
from tfgen.training.negatives import embed
from tfgen.training.settings import CLIP, CLIP_DECODED
from tfgen.training.tokenizer import HELD_OUT_SEED
from tfgen.training.world import MAX_OBJECTS, Scenes, World, shares_in
from tfgen.training.writing import tokens_of
from tfgen.verifiers.clip import CONFIG_FILE, WEIGHTS_FILE
from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.sprites_tower import ReadingTower, SpritesTower, tower_name
from tfgen.verifiers.words import START, WordTokenizer, plural

IMAGE = "visual."  # what the names of the image tower's weights begin with
HELD_OUT = 200  # scenes that the model is measured on while it is trained


def contrast_words(captioner: Captioner) -> dict[str, Any]:
    """The world's words for contrast captions (the content of contrast.json)."""
    return {
        "objects": [
            {
                "name": s.name,
                "plural": s.plural,
                "synonyms": list(s.synonyms),
                "natural_colours": list(s.natural_colours),
            }
            for s in captioner.specs
        ],
        "colours": list(COLOURS[1:]),
        "backgrounds": [list(b.phrases) for b in BACKGROUNDS],
        "counts": [
            ["a", "an", "one", "the"],
            ["two", "2", "a pair of"],
            ["three", "3"],
            ["four", "4"],
        ],
        "relations": [
            list(RELATION_WORDS[2]),
            list(REVERSED_WORDS[2]),
            list(RELATION_WORDS[3]),
            list(REVERSED_WORDS[3]),
        ],
        "arrangements": [
            {
                "open": [*dict.fromkeys(RELATION_WORDS[ANY]), *RELATION_WORDS[BESIDE]],
                "among": [RELATION_WORDS[LEFT_OF][0], REVERSED_WORDS[LEFT_OF][0]],
            }
        ],
        "sizes": [list(w) for w in SIZE_WORDS.values()],
        "places": [list(w) for w in PLACE_PHRASES.values()],
        "nothing": [NOTHING],
    }


def copy_encoder(folder: Path, tower: SpritesTower) -> None:
    """Start the tower from a tokenizer's encoder, which has learned to see the same scenes. Raises
    InputError where the tower is to read what the encoder does not."""
    encoder = SpritesTokenizer.load(folder).model.encoder
    tower.convs.load_state_dict(encoder.convs.state_dict())
    tower.hidden.load_state_dict(encoder.head.state_dict())
    if isinstance(tower, ReadingTower):
        cfg = encoder.cfg
        if not cfg.scribe or (cfg.slots, cfg.kinds, cfg.colours, cfg.grounds) != tower.holds:
            raise InputError(
                f"The tokenizer {str(folder)!r} does not read scenes of this world, as the "
                'verifier is to: give one that was trained with a "scribe" on the same tier, or a '
                'config without "reads".'
            )
        tower.head.reader.load_state_dict(encoder.reader.state_dict())


def begin_with(model: nn.Module, words: WordTokenizer, name: str) -> bool:
    """Give the model the weights of another verifier of the same sizes, and the words that both
    know: a packaged one's name, or a folder. Of one with another tower the text's alone: returns
    whether the tower's were among them. Raises InputError where the sizes differ."""
    folder = hub.locate(name, "verifier")
    known = WordTokenizer.load(folder / "vocabulary.json")
    source = folder / WEIGHTS_FILE
    tensors = unpack(read_safetensors(source))
    table = model.token_embedding.weight.detach().cpu().clone()
    theirs = tensors["token_embedding.weight"]
    if theirs.shape[1] == table.shape[1]:  # or else load_weights says what differs
        both = [word for word in words.words if word in known.index]
        ours = [*range(START + 1), *(words.index[word] for word in both), words.end]
        table[ours] = theirs[[*range(START + 1), *(known.index[w] for w in both), known.end]]
    tensors["token_embedding.weight"] = table
    theirs = hub.read_json(folder / CONFIG_FILE)["model_cfg"]["vision_cfg"]["timm_model_name"]
    alike = theirs == tower_name(getattr(model.visual.trunk, "holds", None))
    if not alike:
        own = model.state_dict()
        tensors = {k: v for k, v in tensors.items() if not k.startswith(IMAGE)}
        tensors |= {k: v for k, v in own.items() if k.startswith(IMAGE)}
    load_weights(model, tensors, source)
    return alike


@torch.no_grad()
def evaluate(
    model: nn.Module,
    words: WordTokenizer,
    contrast: ContrastWords,
    scenes: Scenes,
    captions: list[str],
    shown: dict[str, Tensor],
) -> dict[str, dict[str, float]]:
    """The share of pictures that fit their own caption better than every caption with one factor
    said differently: one accuracy per factor, over the captions that mention it, for each way in
    which the scenes are `shown`."""
    seen = {
        kind: torch.cat([embed(model, part) for part in images.split(64)])
        for kind, images in shown.items()
    }
    hits: dict[str, dict[str, list[bool]]] = {kind: {} for kind in shown}
    for i, caption in enumerate(captions):
        swaps = contrast.swaps(caption)
        if not bool((scenes.colours[i][scenes.objects[i] >= 0] > 0).all()):
            swaps["colour"] = []  # a natural coat fits more than one colour word
        flat = [caption, *(s for group in swaps.values() for s in group)]
        device = next(iter(shown.values())).device
        text = F.normalize(model.encode_text(words(flat).to(device)).float(), dim=-1)
        for kind, embeddings in seen.items():
            own, *scores = (text @ embeddings[i]).tolist()
            for factor, group in swaps.items():
                theirs, scores = scores[: len(group)], scores[len(group) :]
                if theirs:
                    hits[kind].setdefault(factor, []).append(own > max(theirs))
    return {
        kind: {k: round(sum(v) / len(v), 4) for k, v in factors.items()}
        for kind, factors in hits.items()
    }


@command_line
def main() -> None:
    parser = arguments(__doc__, "clip_small")
    parser.add_argument("--start", type=Path, help="checkpoint of another run to start from")
    parser.add_argument(
        "--model", type=Path, help="folder of an exported verifier to start from; heads start anew"
    )
    parser.add_argument(
        "--tower", type=Path, help="start the image tower from this tokenizer's encoder"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of a tokenizer: train on its decodes too"
    )
    parser.add_argument(
        "--found", type=Path, help="what searches with this tokenizer found, by training.found"
    )
    parser.add_argument(
        "--export", type=Path, help="write the verifier's files to this folder at the end"
    )
    args = parsed(parser)
    settings = CLIP_DECODED if args.tokenizer else CLIP
    config = load_config(args.config, args.overrides, settings)
    if args.found and not args.tokenizer:
        parser.error("--found are tokens: give their --tokenizer")
    tokenizer = SpritesTokenizer.load(args.tokenizer, args.device) if args.tokenizer else None
    found = Found.open(args.found) if args.found else None
    world = World(config["tier"], (64,), device=args.device, **shares_in(config))
    folder = cache_folder() / "runs" / args.run
    begin = {"begin": args.start, "model": args.model, "tower": args.tower, "found": found}
    limits = {"until": args.until, "deadline": deadline_in(args.minutes)}
    trainer, words = train(config, folder, args.device, world, tokenizer, **begin, **limits)
    if args.export:
        export(trainer, words, Captioner(world.specs), config["width"], args.export)


def train(
    config: dict,
    folder: Path,
    device: str,
    world: World,
    tokenizer: SpritesTokenizer | None = None,
    begin: Path | None = None,
    model: Path | None = None,
    tower: Path | None = None,
    found: Found | None = None,
    until: int | None = None,
    deadline: float | None = None,
) -> tuple[ClipTrainer, WordTokenizer]:
    """Train as `config` says, checkpointing in `folder`; returns the trainer with EMA weights.

    tower: a tokenizer, whose encoder the image tower begins from, unless the verifier that the
    config's "start" names has such a tower; it has precedence over the verifier `model`. found:
    pictures of the tokenizer, of which each step has as many as the config's "found". deadline: see
    Training; raises TimeUp there.
    """
    if config.get("told") and not config.get("reads"):
        raise InputError('Only a verifier that "reads" can be "told" scenes: set both, or neither.')
    torch.manual_seed(config["seed"])
    captioner = Captioner(world.specs)
    words = WordTokenizer(captioner.vocabulary(), CONTEXT_LENGTH)
    contrast = ContrastWords(**contrast_words(captioner))

    weight = config.get("named", 0.0)
    named = Named(captioner, words) if weight else None
    grounds = len(BACKGROUNDS) * world.variants
    holds = Holds(MAX_OBJECTS, world.num_objects, len(COLOURS), grounds)

    def fresh() -> ClipTrainer:
        sizes = words.vocab_size, config["width"], world.num_objects
        reads = holds if config.get("reads") else None
        trainer = ClipTrainer(*sizes, config["head_weight"], named, weight, reads)
        return trainer.to(device).to(memory_format=torch.channels_last)

    trainer = fresh()
    decay = [p for p in trainer.parameters() if p.ndim > 1]
    plain = [p for p in trainer.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)
    training = Training(trainer, optimiser, config, folder, until, deadline)
    given = False  # a tower
    if training.start == 0 and config.get("start"):
        given = begin_with(trainer.model, words, config["start"])
        training.forget_average()
    if training.start == 0 and model is not None:
        begin_with(trainer.model, words, str(model))
        training.forget_average()
    if training.start == 0 and tower is not None and not given:
        copy_encoder(tower, trainer.model.visual.trunk)
        training.forget_average()
    if training.start == 0 and begin is not None:
        load_checkpoint(begin, trainer, optimiser, training.ema)
        training.finish()

    judged = config.get("held_out", HELD_OUT)
    held_out = world.sample(judged, torch.Generator().manual_seed(HELD_OUT_SEED + 1))
    held_captions, _ = captioner.write(held_out, random.Random(HELD_OUT_SEED), EVERYTHING)
    held_images = {"clean": world.render(held_out).images}
    if tokenizer is not None:
        codes = tokens_of(tokenizer, world, held_out)
        held_images |= {f"k={k}": tokenizer.decode(codes[:, :k]) for k in (4, 8, codes.shape[1])}

    batches = Batches(world, captioner, words, config, tokenizer, found)
    batches.remember(training.extra)
    new_heads = begin is None and (model is not None or bool(config.get("start")))
    for step, batch in batches.each(training, training.last, workers_beside(device)):
        trainer.heads_alone = new_heads and step < HEADS_ALONE
        with batches.autocast():
            if named is not None and step % RENEWED == 0:
                named.renew(trainer.model)
            loss, parts = trainer(batch)
        parts["scale"] = trainer.model.logit_scale.detach().exp()
        rate = learning_rate(step, config["steps"], config["peak_lr"], flat=config["flat"])
        training.learn(loss, parts, rate)
        if training.done % config["mine_every"] == 0:
            batches.mine(trainer.model, batch)
            training.extra = batches.mined()
        if training.is_milestone:
            averaged = training.averaged(fresh()).eval()
            told = evaluate(averaged.model, words, contrast, held_out, held_captions, held_images)
            for kind, accuracies in told.items():
                training.log(training.done, pictures=kind, **accuracies)
    training.finish()
    return trainer.eval(), words


def export(
    trainer: ClipTrainer, words: WordTokenizer, captioner: Captioner, width: int, folder: Path
) -> None:
    """Write the verifier as open_clip reads it, in float16, with its vocabulary and words. One that
    reads scenes is packed: open_clip needs its weights unpacked."""

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in trainer.model.state_dict().items()}
    if trainer.holds is not None:
        state = pack(trainer.model.state_dict())
    write_whole(state, folder / WEIGHTS_FILE)
    # Plurals of synonyms are in no caption; those of one word are read as the object's own plural.
    variants = {
        plural(synonym): spec.plural
        for spec in captioner.specs
        for synonym in spec.synonyms
        if " " not in synonym + spec.plural and plural(synonym) not in words.words
    }
    vocabulary = {
        "words": words.words,
        "context_length": words.context_length,
        "variants": variants,
    }
    for name, content in (
        (CONFIG_FILE, model_config(words.vocab_size, width, trainer.holds)),
        ("vocabulary.json", vocabulary),
        ("contrast.json", contrast_words(captioner)),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
