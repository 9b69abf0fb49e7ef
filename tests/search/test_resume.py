"""A search that was killed, at whatever point, goes on as if it had not been."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch

from tests.toy_search import pools, run
from tests.toys import ToyPrior, ToyTokenizer, rugged
from tfgen.errors import InputError

VOCAB, TOKENS, FILE = 50, 5, "seed-0.jsonl"
WAYS = {
    "beam": {"beam": 4, "candidates": 8, "prior_weight": 0.1, "tokens": 4, "complete": "sample"},
    "lookahead": {"search": "lookahead", "beam": 3, "candidates": 5, "rollouts": 2},
    "best-of-n": {"search": "best-of-n", "samples": 700},
    "a budget": {"beam": 4, "candidates": 8, "budget": 77},
    "refinement": {"beam": 3, "candidates": 6, "tokens": 2, "refine": 2, "anneal": 0.1},
    "crossover": {"beam": 3, "candidates": 6, "tokens": 3, "prior_strength": 1.0, "crossover": 2},
    "patience": {
        "beam": 3,
        "candidates": 6,
        "tokens": 3,
        "prior_strength": 1.0,
        "crossover": 9,
        "patience": 1,
        "refine": 1,
        "budget": 150,
    },
    "re-encoding": {"beam": 3, "candidates": 6, "reencode": 3, "reencode_loss": 9.0},
}


def go(folder=None, trace=None, **options):
    options = {
        "tokenizer": ToyTokenizer(VOCAB, TOKENS),
        "prior": ToyPrior(VOCAB, TOKENS),
        "prior_strength": 1.0,
        "batch_size": 16,
        "about": {"prompt": "a toy"},
    } | options
    return run(resume=folder, trace=trace, **options)


def run_until_killed(folder, trace, decodes, steps, options):
    """In a process of its own: dies at so many decodes, or after so many steps."""

    def die(now, limit):
        if limit is not None and now >= limit:
            os.kill(os.getpid(), signal.SIGKILL)

    go(
        folder,
        trace,
        progress=lambda progress: die(progress.decodes, decodes),
        callback=lambda step: die(step.index, steps),
        **options,
    )


def run_slowly(folder, options):
    """In a process of its own: takes a while, so that there is time to kill it."""
    go(folder, progress=lambda _: time.sleep(0.02), **options)


@pytest.fixture(scope="module")
def start():
    """Starts a function in a new process, which has torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.toy_search"])

    def start(function, *args):
        process = context.Process(target=function, args=args)
        process.start()
        return process

    return start


def same(lines):
    """What two traces of the same search have in common: all but seconds and memory."""

    def strip(value):
        if isinstance(value, dict):
            passing = ("seconds", "peak_memory")
            return {k: strip(v) for k, v in value.items() if not k.endswith(passing)}
        return value

    return [strip(json.loads(line)) for line in lines.splitlines()]


def assert_same_search(resumed, unbroken, trace, expected_trace):
    assert resumed.tokens.tolist() == unbroken.tokens.tolist()
    assert (resumed.score, resumed.verifier_score) == (unbroken.score, unbroken.verifier_score)
    assert (resumed.decodes, resumed.stopped) == (unbroken.decodes, unbroken.stopped)
    assert pools(resumed) == pools(unbroken)
    assert same(trace.read_text()) == same(expected_trace.read_text())


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_several_points_a_search_finds_the_same(start, tmp_path, way):
    options, trace = WAYS[way], tmp_path / "run.jsonl"
    unbroken = go(trace=tmp_path / "unbroken.jsonl", **options)
    last = len(unbroken.steps)
    # in the first step, at the end of one, in the midst of a later one, before the end is written
    for decodes, steps in [(1, None), (None, 1), (unbroken.decodes - 1, None), (None, last)]:
        process = start(run_until_killed, tmp_path / "kept", trace, decodes, steps, options)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    resumed = go(tmp_path / "kept", trace, **options)
    assert_same_search(resumed, unbroken, trace, tmp_path / "unbroken.jsonl")


def test_killed_from_outside_at_any_moment_a_search_finds_the_same(start, tmp_path):
    options, kept = WAYS["beam"], tmp_path / "kept"
    for moment in (0.01, 0.05, 0.11):
        process = start(run_slowly, kept, options)
        while not (kept / FILE).exists():
            time.sleep(0.005)
        time.sleep(moment)
        process.kill()
        process.join(60)
    unbroken, trace = go(trace=tmp_path / "unbroken.jsonl", **options), tmp_path / "run.jsonl"
    resumed = go(kept, trace, **options)
    assert_same_search(resumed, unbroken, trace, tmp_path / "unbroken.jsonl")


@pytest.mark.parametrize("way", WAYS)
def test_wherever_the_kill_cut_the_journal_the_search_finds_the_same(tmp_path, way):
    options, kept, trace = WAYS[way], tmp_path / "kept", tmp_path / "run.jsonl"
    unbroken = go(kept, tmp_path / "unbroken.jsonl", **options)
    whole = (kept / FILE).read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, len(whole)} | {end + after for end in ends for after in (0, 1, 200)}
    for cut in sorted(cut for cut in cuts if cut <= len(whole)):
        (kept / FILE).write_bytes(whole[:cut])
        resumed = go(kept, trace, **options)
        assert_same_search(resumed, unbroken, trace, tmp_path / "unbroken.jsonl")
        assert same((kept / FILE).read_text()) == same(whole.decode())


def test_steps_that_are_done_are_not_made_again(tmp_path):
    go(tmp_path, **WAYS["beam"])
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(lines[:4]))  # the header and three steps
    tokenizer, seen = ToyTokenizer(VOCAB, TOKENS), []
    go(tmp_path, tokenizer=tokenizer, callback=seen.append, **WAYS["beam"])
    assert [step.index for step in seen] == [4, 5]
    assert {batch.shape[1] for batch in tokenizer.batches} == {4, 5}


def test_a_finished_search_gives_its_result_again_without_a_decode(tmp_path):
    first = go(tmp_path, **WAYS["beam"])
    tokenizer = ToyTokenizer(VOCAB, TOKENS)
    again = go(tmp_path, tmp_path / "run.jsonl", tokenizer=tokenizer, **WAYS["beam"])
    assert again.tokens.tolist() == first.tokens.tolist() and again.score == first.score
    assert again.accounts == first.accounts and again.seconds == first.seconds
    assert tokenizer.batches == []
    assert (tmp_path / "run.jsonl").read_text().splitlines()[-1].startswith('{"kind": "end"')


def test_a_search_that_ctrl_c_ended_goes_on(tmp_path):
    def interrupt(progress):
        if progress.decodes >= 70:
            raise KeyboardInterrupt

    unbroken = go(trace=tmp_path / "unbroken.jsonl", **WAYS["beam"])
    assert go(tmp_path / "kept", progress=interrupt, **WAYS["beam"]).interrupted
    resumed = go(tmp_path / "kept", tmp_path / "run.jsonl", **WAYS["beam"])
    assert_same_search(resumed, unbroken, tmp_path / "run.jsonl", tmp_path / "unbroken.jsonl")


def test_seconds_and_the_rest_of_the_accounts_go_on_from_where_they_were(tmp_path):
    go(tmp_path, **WAYS["beam"])
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()][:3]
    lines[-1]["seconds"] = 1000.0
    lines[-1]["accounts"] |= {"score_seconds": 500.0, "screened": 7}
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = go(tmp_path, **WAYS["beam"])
    assert result.seconds > 1000 and result.steps[-1].seconds > 1000
    assert result.accounts.score_seconds > 500 and result.accounts.screened == 7


def test_time_that_is_spent_stays_spent(tmp_path):
    options = {**WAYS["beam"], "time_limit": 999.0}
    go(tmp_path, **options)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()][:3]
    lines[-1]["seconds"] = 1000.0
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = go(tmp_path, **options)
    assert result.stopped == "time" and len(result.steps) <= 3


def test_the_batch_size_may_change_on_the_way(tmp_path):
    unbroken = go(tmp_path, **WAYS["beam"])
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(lines[:3]))
    assert pools(go(tmp_path, batch_size=64, **WAYS["beam"])) == pools(unbroken)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"beam": 5}, "its beam is 4, not 5"),
        ({"search": "lookahead"}, "its search is 'beam', not 'lookahead'"),
        ({"schedule": "1,4"}, "its schedule is 'one', not '1,4'"),
        ({"about": {"prompt": "a dog"}}, "its prompt is 'a toy', not 'a dog'"),
        ({"about": {"prompt": "a toy", "model": {"fingerprint": "f00"}}},
         "its model fingerprint is None, not 'f00'"),
    ],
)  # fmt: skip
def test_a_folder_of_another_search_is_refused_with_what_differs(tmp_path, change, complaint):
    go(tmp_path, **WAYS["beam"])
    with pytest.raises(InputError) as error:
        go(tmp_path, **{**WAYS["beam"], **change})
    assert complaint in str(error.value) and "give another folder" in str(error.value)


def test_other_seeds_have_files_of_their_own_in_the_same_folder(tmp_path):
    for seed in (0, 1):
        go(tmp_path, seed=seed, **WAYS["beam"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0.jsonl", "seed-1.jsonl"]


@pytest.mark.parametrize("content", ["hello\n", '{"kind": "step"}\n', "[1]\n", '{"a": 1}\n{}\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match="is damaged or no journal of a search"):
        go(tmp_path, **WAYS["beam"])
    assert (tmp_path / FILE).read_text() == content


def test_a_journal_with_a_step_missing_is_refused(tmp_path):
    go(tmp_path, **WAYS["beam"])
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(InputError, match="is damaged"):
        go(tmp_path, **WAYS["beam"])


PARTS = ["news", "pool", "generator", "accounts", "notes", "seconds", "partial", "best_tokens"]
NONSENSE = [("generator", "AAAA"), ("pool", {}), ("accounts", {"a": 1})]


@pytest.mark.parametrize(
    ("part", "value"),
    [*((part, None) for part in PARTS), *NONSENSE],
)
def test_a_journal_with_an_incomplete_line_is_refused(tmp_path, part, value):
    """value: None takes the part out."""
    go(tmp_path, **WAYS["beam"])
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()][:3]
    del lines[-1][part]
    lines[-1] |= {} if value is None else {part: value}
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match="is damaged or no journal of a search: give another"):
        go(tmp_path, **WAYS["beam"])
    assert (tmp_path / FILE).read_text() == content


@pytest.mark.parametrize("part", ["seconds", "accounts", "stopped"])
def test_a_journal_with_an_incomplete_end_is_refused(tmp_path, part):
    go(tmp_path, **WAYS["beam"])
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    del lines[-1][part]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="is damaged"):
        go(tmp_path, **WAYS["beam"])
    (tmp_path / FILE).write_text("".join(json.dumps(lines[i]) + "\n" for i in (0, -1)))
    with pytest.raises(InputError, match="is damaged"):
        go(tmp_path, **WAYS["beam"])


def test_a_folder_is_of_one_run_at_a_time(start, tmp_path):
    process = start(run_slowly, tmp_path, WAYS["best-of-n"])
    while not (tmp_path / FILE).exists() or not (tmp_path / FILE).stat().st_size:
        time.sleep(0.005)
    with pytest.raises(InputError, match="Another run keeps its search in .*seed-0"):
        go(tmp_path, **WAYS["best-of-n"])
    go(tmp_path, seed=1, **WAYS["best-of-n"])
    process.kill()
    process.join(60)
    unbroken, resumed = go(**WAYS["best-of-n"]), go(tmp_path, **WAYS["best-of-n"])
    assert pools(resumed) == pools(unbroken)


def test_a_search_that_failed_leaves_its_folder_to_the_next(tmp_path):
    def fail(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        go(tmp_path, callback=fail, **WAYS["beam"])
    assert pools(go(tmp_path, **WAYS["beam"])) == pools(go(**WAYS["beam"])) and error.tb
    with pytest.raises(InputError, match="keeps another search") as error:
        go(tmp_path, **{**WAYS["beam"], "beam": 5})
    go(tmp_path, **WAYS["beam"])
    assert error.tb  # which holds all that the failed search had


@pytest.mark.parametrize("refused", [{"screen": True}, {"shortlist": 2}, {"forecast": 2}])
def test_a_search_that_is_refused_leaves_all_files_as_they_are(tmp_path, refused):
    (tmp_path / "run.jsonl").write_text("an old trace")
    with pytest.raises(InputError):
        go(tmp_path / "kept", tmp_path / "run.jsonl", beam=2, candidates=4, **refused)
    assert (tmp_path / "run.jsonl").read_text() == "an old trace"
    assert not (tmp_path / "kept").exists()
    with pytest.raises(InputError, match="Cannot write"):
        go(tmp_path / "kept", tmp_path / "no" / "run.jsonl", **WAYS["beam"])
    assert not (tmp_path / "kept").exists()


def test_a_lookahead_that_ended_between_the_rollouts_of_its_first_candidate_is_read_again(tmp_path):
    options = {"search": "lookahead", "beam": 2, "candidates": 2, "rollouts": 4, "budget": 2}
    first, again = (go(tmp_path, tmp_path / "run.jsonl", **options) for _ in range(2))
    assert (first.stopped, first.decodes) == ("budget", 2)
    assert again.tokens.tolist() == first.tokens.tolist() and again.score == first.score
    pool, pool_again = first.steps[0].pool, again.steps[0].pool
    assert torch.equal(pool.scores, pool_again.scores) and len(pool.scores) == 1
    torch.testing.assert_close(pool_again.rollout_scores, pool.rollout_scores, equal_nan=True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="The search cannot be kept in .*: give another folder"):
        go(tmp_path / "file" / "kept", **WAYS["beam"])


def test_the_result_is_the_best_of_the_steps_before_and_after_the_kill(tmp_path):
    unbroken = go(tmp_path, **WAYS["beam"])
    decoded = [tokens for step in pools(unbroken) for tokens in step]
    assert unbroken.verifier_score == pytest.approx(rugged(tuple(unbroken.tokens.tolist())))
    assert unbroken.tokens.tolist() in decoded
