"""Ctrl-C ends a search once; what it found is not lost by another."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toy_models import SavedTokenizer
from tfgen import Pipeline
from tfgen.cache import EmbeddingCache
from tfgen.interrupts import ctrl_c_once, hold_ctrl_c
from tfgen.search import Trail

PROMPT = "a red fox in snow"


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_raised_and_others_are_held_back() -> None:
    with ctrl_c_once() as ctrl_c:
        assert not ctrl_c.pressed
        with pytest.raises(KeyboardInterrupt):
            press()
        press()
        assert ctrl_c.pressed
    with pytest.raises(KeyboardInterrupt):
        press()


def test_once_held_none_is_raised() -> None:
    for hold in (hold_ctrl_c, None):
        with ctrl_c_once() as ctrl_c:
            (hold or ctrl_c.hold)()
            press()
            assert ctrl_c.pressed


def test_one_within_another_is_that_other() -> None:
    with ctrl_c_once() as outer:
        with ctrl_c_once() as inner:
            inner.hold()
        press()
        assert outer is inner and outer.pressed
    with ctrl_c_once() as ctrl_c, pytest.raises(KeyboardInterrupt):
        assert not ctrl_c.pressed
        press()


def test_a_failure_gives_ctrl_c_back() -> None:
    with pytest.raises(ZeroDivisionError), ctrl_c_once() as ctrl_c:
        ctrl_c.hold()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_with_a_handler_of_its_own_keeps_it() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with ctrl_c_once() as ctrl_c:
            ctrl_c.hold()
            press()
        assert seen == [signal.SIGINT] and not ctrl_c.pressed
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes() -> None:
    handlers = []

    def other() -> None:
        with ctrl_c_once():
            hold_ctrl_c()
            handlers.append(signal.getsignal(signal.SIGINT))

    with ctrl_c_once() as ctrl_c:
        mine = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert handlers == [mine]
        with pytest.raises(KeyboardInterrupt):
            press()
        assert ctrl_c.pressed


# in a generation


@pytest.fixture
def pipeline(toy_weights: Path) -> Pipeline:
    return Pipeline.load(device="cpu")


PLACES = [(Trail, "result"), (EmbeddingCache, "close"), (SavedTokenizer, "render")]


@pytest.mark.parametrize(("owner", "method"), PLACES)
@pytest.mark.parametrize("times", [1, 3])
def test_after_the_last_step_the_picture_is_kept(
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    times: int,
) -> None:
    expected, inner = pipeline.generate(PROMPT), getattr(owner, method)

    def pressed(*args: object) -> object:
        for _ in range(times):
            press()
        return inner(*args)

    monkeypatch.setattr(owner, method, pressed)
    result = replace(pipeline, cache_folder=tmp_path).generate(PROMPT)
    assert result.image.tobytes() == expected.image.tobytes() and result.tokens == expected.tokens
    assert result.interrupted and result.recipe["stopped"] == "interrupt"


def test_pressed_twice_it_keeps_the_best_picture_so_far(pipeline: Pipeline) -> None:
    def twice(_: object) -> None:
        try:
            press()
        finally:
            press()

    result = pipeline.generate(PROMPT, callback=twice)
    assert result.interrupted and len(result.steps) == 1
    assert result.tokens == result.steps[0].best_tokens.tolist()


def test_before_anything_was_scored_it_is_passed_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedTokenizer, "decode", lambda *args: press())
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(PROMPT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_saves_the_picture_can_hold_it_back_until_then(pipeline: Pipeline) -> None:
    with ctrl_c_once() as ctrl_c:
        result = pipeline.generate(PROMPT)
        press()
        assert ctrl_c.pressed and not result.interrupted
