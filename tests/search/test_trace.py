import json
from pathlib import Path

import pytest
import torch

from tests.toy_search import run
from tests.toys import ToyPrior, ToyTokenizer, rugged
from tfgen.errors import InputError, TfgenError
from tfgen.search import RecordWarning
from tfgen.search.journal import Journal
from tfgen.search.trace import Trace, read_step

WAYS = [
    {"beam": 3, "candidates": 4, "tokens": 3, "complete": "sample"},
    {"search": "lookahead", "beam": 3, "candidates": 4, "rollouts": 2},
    {"search": "best-of-n", "samples": 20},
]


def traced(path, **options):
    options = {"tokenizer": ToyTokenizer(9, 5), "prior": ToyPrior(9, 5)} | options
    result = run(trace=path, about={"prompt": "a toy"}, **options)
    return result, [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("way", WAYS)
def test_a_trace_tells_the_whole_search(tmp_path, way):
    result, (header, *steps, end) = traced(tmp_path / "run.jsonl", seed=7, **way)
    assert (header["kind"], end["kind"]) == ("header", "end")
    assert (header["prompt"], header["seed"]) == ("a toy", 7)
    assert header["settings"]["search"] == result.settings.search
    assert [line["index"] for line in steps] == [step.index for step in result.steps]
    for line, step in zip(steps, result.steps, strict=True):
        again = read_step(line)
        for name in ("index", "phase", "length", "decodes", "seconds", "best_score", "partial"):
            assert getattr(again, name) == getattr(step, name)
        assert torch.equal(again.best_tokens, step.best_tokens)
        for name in ("tokens", "scores", "verifier_scores", "parents", "kept"):
            assert torch.equal(getattr(again.pool, name), getattr(step.pool, name))
        if step.pool.rollouts is not None:
            assert torch.equal(again.pool.rollouts, step.pool.rollouts)
            assert torch.equal(again.pool.rollout_scores, step.pool.rollout_scores)
    assert end["tokens"] == result.tokens.tolist() and end["score"] == result.score
    assert end["stopped"] == "done" and end["accounts"]["decodes"] == result.decodes


@pytest.mark.parametrize("way", WAYS[:2])
def test_the_search_tree_can_be_redrawn_from_a_trace(tmp_path, way):
    _, (header, *steps, _) = traced(tmp_path / "run.jsonl", **way)
    above = None
    for line in steps:
        pool = line["pool"]
        for tokens, parent in zip(pool["tokens"], pool["parents"], strict=True):
            if above is None:
                assert parent == -1 and header["start"] == [[]]
            else:
                assert parent in above["kept"]
                prefix = above["tokens"][parent]
                assert tokens[: len(prefix)] == prefix
        above = pool


def test_scores_are_those_of_the_pictures_told_of(tmp_path):
    _, (_, *steps, _) = traced(tmp_path / "run.jsonl", **WAYS[0])
    for line in steps:
        for tokens, score in zip(
            line["pool"]["tokens"], line["pool"]["verifier_scores"], strict=True
        ):
            assert score == pytest.approx(rugged(tuple(tokens)))


def test_each_step_is_written_when_it_is_done(tmp_path):
    path, lines = tmp_path / "run.jsonl", []

    def callback(step):
        lines.append(len(path.read_text().splitlines()))

    traced(path, beam=2, candidates=3, callback=callback)
    assert lines == [2, 3, 4, 5, 6]


def test_an_interrupted_step_is_told_as_partial(tmp_path):
    def interrupt(progress):
        if progress.decodes >= 30:
            raise KeyboardInterrupt

    options = {"beam": 2, "candidates": 24, "batch_size": 16, "progress": interrupt}
    path = tmp_path / "run.jsonl"
    result, (_, *steps, end) = traced(path, tokenizer=ToyTokenizer(50, 3), prior=None, **options)
    assert [line["partial"] for line in steps] == [True]
    assert len(steps[0]["pool"]["tokens"]) == 32
    assert end["stopped"] == "interrupt" and end["tokens"] == result.tokens.tolist()


def test_a_score_that_is_not_a_number_is_null(tmp_path):
    def function(tokens):
        return float("nan") if tokens == (1,) else 0.5

    _, (_, first, *_) = traced(tmp_path / "run.jsonl", function=function, beam=9, candidates=9)
    assert first["pool"]["scores"] == [0.5] * 8 + [None]
    assert "NaN" not in json.dumps(first) and "Infinity" not in json.dumps(first)
    assert read_step(first).pool.scores[-1] == -torch.inf


@pytest.mark.parametrize("kind", ["trace", "resume"])
def test_a_disk_that_is_full_costs_the_record_and_not_the_search(tmp_path, monkeypatch, kind):
    written = {"trace": Trace, "resume": Journal}[kind]
    write = written.write

    def full(self, line):
        if line.get("index", 0) > 2:
            raise TfgenError("No space left on device.")
        write(self, line)

    monkeypatch.setattr(written, "write", full)
    options = {"tokenizer": ToyTokenizer(9, 5), "beam": 3}
    with pytest.warns(RecordWarning, match="No space left on device. The search goes on") as told:
        result = run(**{kind: tmp_path / "kept"}, **options)
    assert len(told) == 1 and len(result.steps) == 5
    assert result.tokens.tolist() == run(**options).tokens.tolist()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_really_full_does_no_more(tmp_path):
    """What could not be flushed is still in the file's buffer, and fails once more at its close."""
    with pytest.warns(RecordWarning, match="No space left on device. The search goes on") as told:
        result = run(trace="/dev/full", tokenizer=ToyTokenizer(9, 5), beam=3)
    assert len(told) == 1 and len(result.steps) == 5
    journal = Journal(tmp_path, {"kind": "header", "seed": 0})
    journal.close()
    journal._file = Path("/dev/full").open("ab")
    with pytest.raises(TfgenError, match="No space left on device"):
        journal.write({"kind": "step"})
    journal.close()


def test_a_trace_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there is no folder"):
        traced(tmp_path / "gone" / "run.jsonl", beam=1)
    with pytest.raises(InputError, match="it is a folder"):
        traced(tmp_path, beam=1)
    with pytest.raises(InputError, match="File name too long"):
        traced(tmp_path / ("f" * 300), beam=1)
    trace = Trace(tmp_path / "run.jsonl")
    trace.write({})

    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace._file, "write", full)
    with pytest.raises(TfgenError, match="cannot be written: No space left on device"):
        trace.write({})
