"""CLIP as the verifier, on small open_clip models with random weights: scores and prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from tests.verifiers.toy_clip import (
    PREPROCESS,
    WORDS,
    pictures,
    refused,
)
from tfgen.verifiers.base import Target
from tfgen.verifiers.clip import LOGIT_WEIGHT, ClipVerifier

# ---- what the model is shown


class Recorder(nn.Module):
    """Stands in for a model: keeps what it was shown."""

    def __init__(self, preprocess: dict) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.preprocess_cfg = preprocess
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, shown: Tensor) -> Tensor:
        self.shown = shown
        return shown.flatten(1)


SETTINGS = [
    (size, mode, interpolation)
    for size in ((32, 32), (24, 33))
    for mode in ("shortest", "longest", "squash")
    for interpolation in ("bicubic", "bilinear")
    # where open_clip ignores the interpolation
    if (size, mode, interpolation) != ((24, 33), "shortest", "bilinear")
]


@pytest.mark.parametrize(("size", "mode", "interpolation"), SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(32, 32), (20, 20), (50, 50), (40, 67), (31, 22)], ids=str)
def test_preprocessing_equals_open_clips_own_up_to_rounding(
    shape: tuple[int, int], size: tuple[int, int], mode: str, interpolation: str
) -> None:
    cfg = PREPROCESS | {
        "size": size,
        "mode": "RGB",
        "resize_mode": mode,
        "interpolation": interpolation,
        "fill_color": 90,
    }
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(50, 200, (2, 3, *shape), generator=generator).to(torch.uint8)
    transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    expected = [transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images]

    model = Recorder(cfg)
    ClipVerifier(model, open_clip.tokenize, WORDS, name="recorder").embed(images.float() / 255)

    assert model.shown.shape == (2, 3, *size)
    off = (model.shown - torch.stack(expected)) * torch.tensor(cfg["std"])[:, None, None] * 255
    assert off.abs().max() < 2  # PIL rounds after each of two passes
    assert off.abs().mean() < 0.5


def test_a_square_size_may_be_one_number_and_a_mean_too() -> None:
    cfg = PREPROCESS | {"size": 16, "mean": 0.5, "std": 0.5, "fill_color": 0}
    model = Recorder(cfg)
    ClipVerifier(model, open_clip.tokenize, WORDS, name="recorder").embed(torch.ones(1, 3, 16, 16))
    assert torch.equal(model.shown, torch.ones(1, 3, 16, 16))


# ---- scores


@pytest.mark.parametrize("score", ["contrast", "cosine"])
def test_scores_do_not_depend_on_the_batch(general: Path, score: str) -> None:
    verifier = ClipVerifier.load(general, score=score)
    target = verifier.prepare("a red fox in snow")
    images = pictures(7)
    together = verifier.score(images, target)
    one_by_one = torch.cat([verifier.score(image[None], target) for image in images])
    assert together.dtype == torch.float32 and together.shape == (7,)
    assert torch.allclose(together, one_by_one, atol=1e-4)
    assert together.std() > 1e-3


def test_the_text_is_encoded_once(general: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = ClipVerifier.load(general)
    encoded: list[int] = []
    encode = verifier.model.encode_text
    monkeypatch.setattr(
        verifier.model, "encode_text", lambda text: encoded.append(len(text)) or encode(text)
    )
    target = verifier.prepare("a red fox in snow")
    assert sum(encoded) == 1 + len(target.captions)
    for _ in range(3):
        verifier.score(pictures(), target)
    assert sum(encoded) == 1 + len(target.captions)


def test_the_cosine_is_that_of_the_models_own_features(general: Path) -> None:
    verifier = ClipVerifier.load(general, score="cosine")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{general}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{general}")
    images = (pictures() * 255).round() / 255
    shown = [transform(Image.fromarray((i * 255).byte().permute(1, 2, 0).numpy())) for i in images]
    with torch.no_grad():
        seen = model.eval().encode_image(torch.stack(shown))
        text = model.encode_text(tokenize(["A red fox, in snow!"]))
    expected = torch.cosine_similarity(seen, text)
    score = verifier.score(images, verifier.prepare("A red fox, in snow!"))
    assert torch.allclose(score, expected, atol=0.01)
    assert verifier.prepare("A red fox, in snow!").captions == ()


def test_similarities_are_float32_whatever_the_towers_compute_in(
    general: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 products are rounded to 1/256, and thousands of candidates tie."""
    verifier = ClipVerifier.load(general, score="cosine")
    target = verifier.prepare("a red fox in snow")
    features = (torch.ones(400, 16) + 0.05 * torch.randn(400, 16)).bfloat16()
    monkeypatch.setattr(verifier.model, "encode_image", lambda _: features)
    score = verifier.score(pictures(1), target)
    expected = torch.cosine_similarity(features.double(), target.text[0, :1].double())
    assert torch.allclose(score.double(), expected, atol=1e-6)
    assert len(score.unique()) > 390


def test_the_contrast_score_is_the_log_probability_of_the_prompt(worldly: Path) -> None:
    """Of the prompt among itself and the captions of each factor in turn, summed."""
    verifier = ClipVerifier.load(worldly)
    prompt, negatives = "a red fox in snow", ["a gray cat", "two foxes"]
    target = verifier.prepare(prompt, negatives=negatives)
    swaps = WORDS.swaps(prompt)
    factors = {f: group for f, group in swaps.items() if group} | {"negative": negatives}
    assert list(factors) == ["object", "colour", "background", "count", "negative"]
    assert list(target.captions) == [caption for group in factors.values() for caption in group]
    assert list(target.factors) == [f for f, group in factors.items() for _ in group]

    images = pictures(3)
    scale = math.exp(verifier.model.logit_scale.item())
    with torch.no_grad():
        seen = verifier.embed(images).double()

        def logit(image: Tensor, caption: str) -> float:
            text = verifier.model.encode_text(verifier.tokenize([caption]))[0].double()
            return scale * float(image @ (text / text.norm()))

        for image, score in zip(seen, verifier.score(images, target).tolist(), strict=True):
            own = math.exp(logit(image, prompt))
            expected = LOGIT_WEIGHT * math.log(own)
            for group in factors.values():
                others = sum(math.exp(logit(image, caption)) for caption in group)
                expected += math.log(own / (own + others))
            assert score == pytest.approx(expected, abs=1e-3)


def test_a_picture_of_nothing_scores_as_the_empty_caption_tells(worldly: Path) -> None:
    """Where the verifier has learned what shows nothing, that is a factor of its own."""
    verifier = ClipVerifier.load(worldly)
    plain = verifier.prepare("a red fox and a bear")
    verifier.words = replace(verifier.words, nothing=[""])
    target = verifier.prepare("a red fox and a bear")
    assert target.captions == (*plain.captions, "")
    assert target.factors == (*plain.factors, "nothing")
    seen = verifier.embed(pictures(3))
    with torch.no_grad():
        empty = verifier.model.encode_text(verifier.tokenize([""]), normalize=True)[0]
        scale = verifier.model.logit_scale.exp()
        own = scale * (seen @ target.text[:, 0].T).amax(1)
        added = -torch.nn.functional.softplus(scale * (seen @ empty) - own)
    expected = verifier.score_embeddings(seen, plain) + added
    torch.testing.assert_close(verifier.score_embeddings(seen, target), expected)
    assert verifier.prepare("a red fox", ["a cat"]).factors[-2:] == ("nothing", "negative")
    bare = ClipVerifier.load(worldly, score="cosine")
    bare.words = verifier.words
    assert bare.prepare("a red fox").captions == ()


def test_where_the_prompt_leaves_an_arrangement_open_each_caption_counts_as_its_best(
    worldly: Path,
) -> None:
    joint = {"open": ["and"], "among": ["on", "in"]}
    verifier = ClipVerifier.load(worldly)
    verifier.words = replace(WORDS, arrangements=[joint])
    target = verifier.prepare("a fox and a cat", negatives=["two foxes"])
    above, below = target.text
    assert torch.equal(above[-1], below[-1])  # the negative says no arrangement
    assert not torch.isclose(above[0], below[0], atol=1e-3).all()
    drawn = torch.randn(40, len(above[0]), generator=torch.Generator().manual_seed(0))
    seen = torch.nn.functional.normalize(drawn, dim=-1)
    each = [replace(target, text=way[None]) for way in target.text]
    logits = torch.stack([verifier.similarities(seen, one)[:, 0] for one in each])
    assert set(logits.argmax(0).tolist()) == {0, 1}
    assert torch.allclose(verifier.similarities(seen, target)[:, 0], logits.amax(0), atol=1e-4)
    best = (seen @ torch.cat(list(target.text)).T).unflatten(1, (2, -1)).amax(1)
    scale = verifier.model.logit_scale.exp()
    expected = LOGIT_WEIGHT * scale * best[:, 0]
    for factor in dict.fromkeys(target.factors):
        group = [0, *(i + 1 for i, f in enumerate(target.factors) if f == factor)]
        expected = expected + (scale * best[:, group]).log_softmax(1)[:, 0]
    assert torch.allclose(verifier.score_embeddings(seen, target), expected, atol=1e-4)


@pytest.mark.parametrize("score", ["contrast", "cosine"])
@pytest.mark.parametrize("negatives", [(), ("a gray cat",)], ids=["", "negative"])
def test_embeddings_score_as_their_pictures_do(
    worldly: Path, score: str, negatives: tuple[str, ...]
) -> None:
    """What searches for many prompts over the same pictures rely on."""
    verifier = ClipVerifier.load(worldly, score=score)
    images = pictures(4)
    embeddings = verifier.embed(images)
    assert embeddings.shape == (4, 16) and embeddings.dtype == torch.float32
    for prompt in ("a red fox in snow", "two cats"):
        target = verifier.prepare(prompt, negatives)
        assert torch.equal(
            verifier.score_embeddings(embeddings, target), verifier.score(images, target)
        )
    with pytest.raises(TypeError, match="prepare"):
        verifier.score_embeddings(embeddings, Target("two cats"))


@pytest.mark.parametrize("score", ["contrast", "cosine"])
def test_a_negative_lowers_the_score_of_what_fits_it(worldly: Path, score: str) -> None:
    verifier = ClipVerifier.load(worldly, score=score)
    images = pictures(30)
    plain = verifier.score(images, verifier.prepare("a red fox"))
    loss = plain - verifier.score(images, verifier.prepare("a red fox", ["two cats in snow"]))
    fit = ClipVerifier.load(worldly, score="cosine")
    fit = fit.score(images, fit.prepare("two cats in snow"))
    assert (loss >= -1e-6).all() and loss.max() > 1e-4
    if score == "cosine":
        assert torch.allclose(loss, fit.clamp(min=0), atol=1e-6)


@pytest.mark.parametrize("score", ["contrast", "cosine"])
def test_the_gradient_of_a_score_says_how_it_changes_with_the_picture(
    general: Path, score: str
) -> None:
    verifier = ClipVerifier.load(general, score=score)
    target = verifier.prepare("a red fox in snow")
    picture = pictures(1).requires_grad_()
    (gradient,) = torch.autograd.grad(verifier.score(picture, target).sum(), picture)
    step = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        change = verifier.score(picture + step, target) - verifier.score(picture - step, target)
    assert float(change) == pytest.approx(0.1 * float(gradient.norm()), rel=0.05)


def test_a_negative_that_is_a_contrast_caption_counts_once(worldly: Path) -> None:
    verifier = ClipVerifier.load(worldly)
    plain = verifier.prepare("a red fox").captions
    assert verifier.prepare("a red fox", ["a blue fox"]).captions == plain


def test_punctuation_and_capitals_do_not_set_the_prompt_apart(general: Path) -> None:
    verifier = ClipVerifier.load(general)
    images = pictures()
    plain = verifier.score(images, verifier.prepare("a red fox in snow"))
    assert torch.equal(verifier.score(images, verifier.prepare("A red fox, in snow!")), plain)


def test_a_target_of_another_verifier_is_a_mistake(general: Path) -> None:
    with pytest.raises(TypeError, match="prepare"):
        ClipVerifier.load(general).score(pictures(), Target("a fox"))


def test_an_unknown_score_is_refused(general: Path) -> None:
    message = refused(lambda: ClipVerifier.load(general, score="cosin"))
    assert "'cosine'" in message


# ---- prompts


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_or_negative_is_refused(general: Path, prompt: str) -> None:
    verifier = ClipVerifier.load(general)
    assert "prompt is empty" in refused(lambda: verifier.prepare(prompt))
    assert "negative is empty" in refused(lambda: verifier.prepare("a fox", [prompt]))


def test_a_negative_that_is_the_prompt_is_refused(general: Path) -> None:
    verifier = ClipVerifier.load(general)
    assert "'A Fox!'" in refused(lambda: verifier.prepare("a fox", ["A Fox!"]))


def test_a_prompt_may_fill_the_context_and_not_more(general: Path, worldly: Path) -> None:
    verifier = ClipVerifier.load(general)  # 16 tokens, two of them marks
    verifier.prepare(" ".join(["fox"] * 14))
    message = refused(lambda: verifier.prepare(" ".join(["fox"] * 15)))
    assert "at most 14 text tokens" in message
    assert "negative" in refused(lambda: verifier.prepare("a fox", [" ".join(["fox"] * 15)]))
    # words are not tokens: an unusual one takes several
    refused(lambda: verifier.prepare("supercalifragilisticexpialidocious " * 3))

    verifier = ClipVerifier.load(worldly)
    verifier.prepare(" ".join(["fox"] * 7))
    assert "at most 7 words" in refused(lambda: verifier.prepare(" ".join(["fox"] * 8)))


def test_contrast_captions_longer_than_the_context_are_left_out(worldly: Path) -> None:
    verifier = ClipVerifier.load(worldly)
    prompt = "the wide red fox on in snow"  # seven words, as many as fit
    captions = verifier.prepare(prompt).captions
    assert "the wide blue fox on in snow" in captions
    assert not any("beach" in c for c in captions)  # "on a wide beach" is longer than "in snow"


def test_unknown_words_are_named_with_the_nearest_known_ones(worldly: Path, general: Path) -> None:
    verifier = ClipVerifier.load(worldly)
    foxx, qqq = verifier.warnings("a grey foxx in snow, qqq")
    assert "'foxx'" in foxx and "fox" in foxx.split("it knows: ")[1]
    assert "'qqq'" in qqq and "nearest" not in qqq
    assert verifier.warnings("two foxes in snow") == []
    assert ClipVerifier.load(general).warnings("a foxx") == []


@pytest.mark.parametrize("prompt", ["zebra", "the zebra", "zebra zebra", "!?", "zebra qqq"])
def test_a_prompt_with_no_known_word_is_refused(worldly: Path, prompt: str) -> None:
    verifier = ClipVerifier.load(worldly)
    message = refused(lambda: verifier.prepare(prompt))
    assert repr(prompt) in message and "foxes" in message
    verifier.prepare("zebra in snow")


def test_parts_of_a_prompt_are_its_objects_beside_any_other(worldly: Path) -> None:
    verifier = ClipVerifier.load(worldly)
    objects = [*WORDS.objects, {"name": "snow", "plural": "snow", "synonyms": []}]
    verifier.words = replace(WORDS, objects=objects, backgrounds=[])
    target = verifier.prepare("a fox and a cat")
    assert target.parts == 2
    seen = torch.nn.functional.normalize(torch.randn(5, target.text.shape[-1]), dim=-1)
    logits = verifier.similarities(seen, target)
    assert logits.shape == (5, 3)
    for i, (captions, column) in enumerate(
        zip(verifier.words.beside("a fox and a cat"), logits.T[1:], strict=True)
    ):
        kept = "fox" if i == 0 else "cat"
        assert captions and all(kept in caption.split() for caption in captions)
        mean = torch.cat([verifier.prepare(caption).text[0, :1] for caption in captions]).mean(0)
        cosine = torch.nn.functional.cosine_similarity(seen, mean[None])
        assert torch.allclose(column, verifier.model.logit_scale.exp() * cosine, atol=1e-4)
    alone = verifier.prepare("a fox")
    assert alone.parts == 0 and verifier.similarities(seen, alone).shape == (5, 1)
