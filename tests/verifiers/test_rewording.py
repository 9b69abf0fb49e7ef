"""What a prompt in people's words is searched for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from tfgen import hub
from tfgen.errors import InputError
from tfgen.judge_prompt import metadata_of
from tfgen.spriteeval import EVERYDAY, SPLITS, load
from tfgen.training.captions import Captioner
from tfgen.training.clip import contrast_words
from tfgen.training.objects import load_objects
from tfgen.verifiers.contrast import ContrastWords
from tfgen.verifiers.everyday import EMOJI, LEXICON, Everyday, key
from tfgen.verifiers.rewording import Rewording
from tfgen.verifiers.words import WordTokenizer

PACKAGED = hub.WEIGHTS / "sprites-clip"
WORLD = ContrastWords.load(PACKAGED / "contrast.json")
VOCABULARY = WordTokenizer.load(PACKAGED / "vocabulary.json")


@pytest.fixture(scope="module")
def reword() -> Rewording:
    return Rewording(WORLD)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_of_the_worlds_own_words_are_left_as_they_are(
    reword: Rewording, split: str
) -> None:
    relations = tuple(f"{p} a" for phrases in WORLD.relations for p in phrases)
    turned = 0
    for metadata in load(split):
        said = reword(metadata["prompt"])
        if metadata["prompt"].startswith(relations):  # "above a fox there is a cat"
            turned += 1
            assert said.text != metadata["prompt"]
            assert agrees(metadata, metadata_of(said.text))
        else:
            assert said.text == metadata["prompt"] and not said.sentences()
    assert 5 < turned < 10


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("on the left a dog, on the right a cat", "a dog to the left of a cat"),
        ("a castle, above it a balloon", "a balloon above a castle"),
        ("under a car there is a cat", "a cat below a car"),
        ("a dog that is red and a cat", "a red dog and a cat"),
        ("the fox is red and the cat is blue", "a red fox and a blue cat"),
        ("a fox red, a cat blue", "a red fox and a blue cat"),
        ("a dog with a cat under it", "a cat below a dog"),
        ("fire truck", "a red truck"),
        ("a cat and its kitten", "two cats"),
    ],
)
def test_known_words_in_another_order_than_captions_are_put_in_it(
    reword: Rewording, prompt: str, text: str
) -> None:
    """Most of these the verifier reads backwards."""
    assert reword(prompt).text == text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a dog without a hat", "a dog"),
        ("a beach with no people", "a palm tree on a beach"),
        ("not a dog but a cat", "a cat"),
        ("neither a cat nor a dog but a ship", "a sailboat"),
        ("a dog without a hat or scarf, in the snow", "a dog in snow"),
        ("a bird that isn't blue in the snow", "a bird in snow"),
        ("a non-red apple", "an apple"),
        ("a boat, not in the sea", "a sailboat"),
        ("a puppy --no hat", "a dog"),
        ("a puppy. Negative prompt: hat, cat, night", "a dog"),
        ("a not so friendly dragon", "a dragon"),
        ("not only a cat but also a dog", "a cat and a dog"),
        ("don't draw a dog, draw a cat", "a cat"),
        ("a kitten instead of a puppy", "a cat"),
        ("no cats, dogs, or birds, just a fox", "a fox"),
        ("a garden with no flowers, trees or people", "a balloon on grass"),
        ("a castle --no dragon, knight", "a castle"),
        ("a house without people and cars", "a house"),
        ("a girl without shoes on a bike", "a person above a bicycle"),
        ("a dog, no text on a white background", "a dog on a white background"),
        ("a street without cars", "a balloon in a city"),
        ("anything but a cat: a dog", "a dog"),
        ("a snowman sans hat, never a bottle", "a snowman"),
        ("a street with a bus, zero cars", "a bus in a city"),
    ],
)
def test_what_is_denied_is_not_searched_for(reword: Rewording, prompt: str, text: str) -> None:
    said = reword(prompt)
    assert said.text == text


def test_a_prompt_that_only_denies_is_refused(reword: Rewording) -> None:
    with pytest.raises(InputError, match="only says what the picture must not show"):
        reword("don't draw a cat")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        # other words, and what is nearest
        ("a majestic ship in a storm", "a sailboat in the rain"),
        ("a Labrador on the lawn", "a dog on grass"),
        ("wolves howling at midnight", "two dogs at night"),
        ("an astronaut on the moon", "a person in space"),
        ("a scarlet macaw flying over the jungle", "a red bird in a forest"),
        # places, with and without what says that they are
        ("sitting on a wooden table, a cup of cocoa", "a cup indoors"),
        ("a fox in the deep dark old woods", "a fox in a forest"),
        ("palm tree by the ocean", "a palm tree on a beach"),
        ("a snowy owl", "a white owl"),  # a kind of owl
        ("a snowy castle", "a castle in snow"),
        ("desert fox", "a fox in the desert"),
        ("a toy car, plain gray backdrop", "a car on a gray background"),
        ("a phone isolated on white", "a cell phone on a white background"),
        ("a green apple, yellow backdrop, museum lighting", "a green apple on a yellow background"),
        ("a car between tall city buildings", "a car in a city"),
        # colours, before and after
        ("a car that is bright red", "a red car"),
        ("t-rex, red, roaring", "a red dragon"),
        ("a cat with blue eyes", "a cat"),
        ("a couch in emerald velvet", "a green couch"),
        ("a fluffy orange tabby", "an orange cat"),
        ("a squeezed orange", "an orange"),
        ("a polar bear and a lemon", "a white bear and a yellow orange"),
        ("a brown polar bear", "a brown bear"),
        # numbers
        ("a couple of cute kittens", "two cats"),
        ("a flock of geese", "four white ducks"),
        ("saguaros, three of them", "three cacti"),
        ("a hundred years ago: a pair of tortoises", "two turtles"),
        ("a tall saguaro cactus", "a cactus"),
        ("a bowl of ramen", "a bowl"),
        ("a cat astronaut", "a cat"),
        ("a baby penguin", "a small penguin"),
        ("doggo, sloop, 4k", "a dog and a sailboat"),
        ("a puppy chasing another puppy", "two dogs"),
        # two kinds, and how they stand
        ("a kitten wearing a hat", "a hat above a cat"),
        ("a gecko in a tiny sombrero", "a hat above a dragon"),
        ("a man riding a purple horse", "a person above a purple horse"),
        ("a crown that hovers over a sleepy frog", "a crown above a frog"),
        ("hiding under a mushroom, a wee snail", "a snail below a mushroom"),
        ("a laptop with an espresso to its right", "a cup to the right of a laptop"),
        ("a star on the left, a shiny key on the right", "a star to the left of a key"),
        ("a bunny nibbling a carrot", "a rabbit and a carrot"),
        ("three huge cats and a fluffy dog", "a cat and a dog"),
        # emoji
        ("🦊❄️", "a fox in snow"),
        ("🐱🐱 on grass", "two cats on grass"),
        ("🔴🚗🏙️", "a red car in a city"),
        ("🎩⬆️🐱", "a hat above a cat"),
        ("a cat and a 🐺", "a cat and a dog"),
        ("👋🏽 🤖", "a robot"),
        # what is misspelt, or only seems to name something
        ("a purple motorcyle", "a purple motorcycle"),
        ("a fox, storybook illustration", "a fox"),
        ("a red lighthouse with sails and a beard", "a red castle"),
        ("pengiun in the mountians", "a penguin in the mountains"),
        ("a blakc hosre", "a black horse"),
        ("rocky terrain", "rocky terrain"),  # no terrapin
        # what people write to other generators
        ("two kittens, digital art --ar 16:9 --v 5", "two cats"),
        ("a corgi & a kitten w/ shadows", "a dog and a cat"),
        ("puppy,lawn", "a dog on grass"),
        ("2cats", "two cats"),
        ("twelve red apples", "four red apples"),
        ("100 kittens", "four cats"),
        ("a 1920 car", "a car"),
        ("two kittens at 7 pm", "two cats"),
        # parts of things, and what places are like
        ("a three-headed dragon", "a dragon"),
        ("a blue-eyed white cat", "a white cat"),
        ("a 3 year old girl", "a person"),
        ("a kitten, green grass", "a cat on grass"),
        ("a kitten on green grass", "a cat on grass"),
        ("a chef in a white toque hacking a melon", "a person and a watermelon"),
        ("a puppy and a white fluffy kitten", "a dog and a white cat"),
        # two of one kind
        ("a red and a blue balloon", "a red balloon and a blue balloon"),
        ("a puppy with red and blue balloons", "a dog and a red balloon"),
        ("two dogs, one black and one white", "a black dog and a white dog"),
        ("a crimson balloon and a navy balloon", "a red balloon and a blue balloon"),
        ("one red and one green apple", "a red apple and a green apple"),
        ("a red car and a blue one", "a red car and a blue car"),
        # what is only compared with, written, or of a part
        ("a dog that looks like a bear", "a dog"),
        ("a car as red as a rose", "a red car"),
        ("a hat bigger than a house", "a hat"),
        ("a banana-shaped car", "a car"),
        ("a neon sign saying \"DOG\" above a house", "a house"),
        ("a cat whose eyes are green", "a cat"),
        ("a horse, its mane is white", "a horse"),
        # numbers
        ("3x strawberry", "three strawberries"),
        ("kittens x3", "three cats"),
        ("1,000 balloons", "four balloons"),
        ("one hundred balloons", "four balloons"),
        ("cats, 3", "three cats"),
        ("red, blue and green balloons", "a red balloon and a blue balloon"),
        # things on things, and the place among several
        ("a cat on a car", "a cat above a car"),
        ("a fox in the snow at night", "a fox in snow"),
        ("a car on a road through the desert", "a car in the desert"),
        ("a cup of tea on a table", "a cup indoors"),
        ("three red apples and one green apple", "a red apple and a green apple"),
        ("a fluffy big cat", "a large cat"),
        ("a baby elephant", "a small elephant"),
        ("a baby", "a person"),
        ("a skateboarder", "a person"),
        # orange
        ("a person with orange hair", "a person"),
        ("the balloon should be orange", "an orange balloon"),
        ("there is a cat. it is orange.", "an orange cat"),
        ("an orange fluffy kitten", "an orange cat"),
        ("a lavender suitcase", "a purple suitcase"),
        # sides, and whose they are
        ("a corgi is on the left", "a dog on the left"),
        ("a cat to the left, a dog to the right", "a cat to the left of a dog"),
        ("left: apple, right: banana", "an apple to the left of a banana"),
        ("a cat and, to its right, a fish", "a fish to the right of a cat"),
        ("the balloon on the left is red", "a red balloon on the left"),
        ("a wolf and on the right a lynx", "a dog to the left of a cat"),
        ("a puppy on top, kitten on bottom", "a dog above a cat"),
        ("a kitten to the puppy's left", "a cat to the left of a dog"),
        ("a monkey on an elephant's back", "a monkey above an elephant"),
        # of one kind: sizes and sides
        ("a gigantic sleepy panda on the left", "a large panda on the left"),
    ],
)  # fmt: skip
def test_people_are_understood(reword: Rewording, prompt: str, text: str) -> None:
    assert reword(prompt).text == text


def test_what_is_made_of_a_prompt_is_told(reword: Rewording) -> None:
    assert reword("a fluffy corgi with green eyes in the park").sentences() == [
        "The prompt is read as 'a dog on grass', without 'fluffy', 'green', 'eyes'."
    ]
    assert reword("a snowy forest").sentences() == [
        "The prompt is read as 'a pine tree in a forest', without 'snowy'; it names no object, so "
        "a pine tree was added."
    ]


def test_told_is_what_the_picture_lacks(reword: Rewording) -> None:
    assert reword("two cats, one black and one white").left_out == ()
    assert reword("three big lynxes and two corgis").left_out == ("three", "big", "two")
    assert reword("a red and white lighthouse").left_out == ("white",)
    assert reword("not a dog but a cat without a hat").left_out == ("dog", "hat")


@pytest.mark.parametrize("prompt", ["qwerty", "red", "nothing but verse", "plain white"])
def test_where_nothing_is_understood_the_prompt_stands(reword: Rewording, prompt: str) -> None:
    assert reword(prompt).text == prompt


def test_a_thing_beside_better_ones_is_left_out(reword: Rewording) -> None:
    assert reword("a flickering candle").text == "a fire"
    said = reword("a birthday cake with a flickering candle")
    assert said.text == "a cake" and "candle" in said.left_out
    said = reword("a puppy, a kitten and a bunny")
    assert said.text == "a dog and a cat" and said.left_out == ("bunny",)


@pytest.mark.parametrize("prompt", ["two cats and a dog", "a cat, a dog and a bird"])
def test_what_no_picture_shows_is_made_less(reword: Rewording, prompt: str) -> None:
    assert reword(prompt).text == "a cat and a dog"


def test_most_everyday_prompts_are_read_as_their_writers_meant_them(reword: Rewording) -> None:
    """The lexicon was tuned on the first split, which is the harder one, never on the second."""
    for split, least in zip(EVERYDAY, (0.75, 0.85), strict=True):
        prompts = load(split)
        right = sum(
            agrees(metadata, metadata_of_or_none(metadata["prompt"])) for metadata in prompts
        )
        assert right / len(prompts) >= least


def metadata_of_or_none(prompt: str) -> dict | None:
    try:
        return metadata_of(prompt)
    except hub.InputError:
        return None


def agrees(asked: dict, read: dict | None) -> bool:
    """Whether what is searched for has the objects, numbers, colours and place that are asked."""
    if read is None or read.get("background") != asked.get("background"):
        return False
    if len(read["include"]) != len(asked["include"]):
        return False
    for entry in asked["include"]:
        names = {entry["class"], *entry.get("or", ())}
        found = [e for e in read["include"] if e["class"] in names]
        if not found or found[0]["count"] != entry["count"]:
            return False
        if "color" in entry and found[0].get("color") != entry["color"]:
            return False
    return True


# ---- the lexicon


@pytest.mark.parametrize("tier", ["small", "medium", "full"])
def test_it_reads_for_worlds_of_other_sizes(tier: str) -> None:
    words = ContrastWords(**contrast_words(Captioner(list(load_objects(tier)))))
    reword = Rewording(words)
    assert reword("a grumpy puppy in the park").text == "a dog on grass"
    wolf = {"small": "dog", "medium": "dog", "full": "wolf"}[tier]  # its own word goes before
    assert reword("a grumpy wolf in the park").text == f"a {wolf} on grass"


def test_everything_it_says_is_in_the_vocabulary(reword: Rewording) -> None:
    told = [v for kinds in reword.everyday.table.values() for v in kinds.values()]
    said = [v.value for v in told if isinstance(v.value, str) and v.kind != "relation"]
    said += [name for names in reword.everyday.lexicon["company"].values() for name in names]
    said += [spec[k] for spec in WORLD.objects for k in ("name", "plural")]
    assert not VOCABULARY.unknown(" ".join(said))


def test_the_lexicon_names_only_what_some_world_has() -> None:
    lexicon = json.loads(Path(LEXICON).read_text(encoding="utf-8"))
    words = ContrastWords(**contrast_words(Captioner(list(load_objects("full")))))
    names = {spec["name"] for spec in words.objects}
    coloured = {f"{colour} {name}" for colour in words.colours for name in names}
    assert set(lexicon["object"]) | set(lexicon["alone"]) <= names | coloured
    places = {phrase for phrases in words.backgrounds for phrase in phrases}
    assert set(lexicon["place"]) | set(lexicon["company"]) <= places
    assert set(lexicon["colour"]) <= set(words.colours)
    assert set(lexicon["worn"]) <= names


def test_every_emoji_says_something_of_the_full_world() -> None:
    words = ContrastWords(**contrast_words(Captioner(list(load_objects("full")))))
    everyday = Everyday(words)
    for emoji in json.loads(EMOJI.read_text(encoding="utf-8")):
        _, items = everyday.scan(everyday.spelled_out(emoji))
        assert any(item.kind not in ("", "pause") for item in items), emoji


def test_no_phrase_of_the_lexicon_names_two_objects() -> None:
    lexicon = json.loads(Path(LEXICON).read_text(encoding="utf-8"))
    owner: dict[tuple[str, ...], str] = {}
    for kind in ("object", "alone"):
        for name, phrases in lexicon[kind].items():
            for phrase in phrases:
                assert owner.setdefault(key(phrase), name) == name, phrase


def test_a_words_own_meaning_goes_before_the_lexicons() -> None:
    table = Everyday(WORLD).table
    for i, spec in enumerate(WORLD.objects):
        for phrase in (spec["name"], spec["plural"]):
            assert table[key(phrase)]["object"].value == i


def test_words_that_clip_knows_are_no_misspellings() -> None:
    """Of the 33,000 whole words of CLIP's vocabulary those that look like a name are in the list
    of words that are spelt right; those that were left out of it are misspelt there, too."""
    slips = {"ballon", "camra", "chery", "chocolat", "coffey", "persons", "noodle", "snowflake"}
    words = {word.removesuffix("</w>") for word in SimpleTokenizer().encoder if "</w>" in word}
    assert len(words) > 30_000
    everyday = Everyday(ContrastWords(**contrast_words(Captioner(list(load_objects("full"))))))
    taken = {word: everyday._misspelling.meant(word) for word in words if word.isascii()}
    wrong = {w: name for w, name in taken.items() if name and not w.startswith(name)}
    assert wrong.keys() <= slips


def test_whatever_is_said_becomes_a_caption_that_stays_as_it_is(reword: Rewording) -> None:
    """Words of all kinds in any order, with signs between: no error but that only denials are said,
    and what comes out is read as it is."""
    draw = random.Random(0)
    phrases = [" ".join(key) for key in reword.everyday.table]
    joints = (
        "not no without one is and , . : like than as it's to the left the a 3 x 12 -- --no ( ) /"
    )
    for _ in range(1500):
        words = [
            draw.choice(phrases) if draw.random() < 0.6 else draw.choice(joints.split(" "))
            for _ in range(draw.randint(1, 9))
        ]
        prompt = " ".join(words)
        try:
            said = reword(prompt)
        except InputError as error:
            assert "must not show" in str(error)
            continue
        if said.text != prompt:
            assert reword(said.text).text == said.text, prompt
