"""Settings outside their range are refused, in one sentence that says what would be right."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.toy_search import pools, run
from tfgen.errors import InputError
from tfgen.search import SearchSettings


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"beam": 0}, "beam must be a whole number from 1 up, not 0"),
        ({"beam": 2.5}, "beam must be a whole number from 1 up, not 2.5"),
        ({"beam": "wide"}, "beam must be a whole number from 1 up, not 'wide'"),
        ({"candidates": -1}, "candidates must be a whole number from 1 up, not -1"),
        ({"tokens": 0}, "tokens must be a whole number from 1 up, not 0"),
        ({"tokens": 4}, "tokens must be a whole number from 1 to 3, not 4"),
        ({"budget": 0}, "budget must be a whole number from 1 up, not 0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 up, not 0"),
        ({"prior_strength": -0.5}, "prior_strength must be a finite number from 0 up, not -0.5"),
        ({"prior_strength": float("nan")}, "prior_strength must be a finite number"),
        ({"prior_weight": float("inf")}, "prior_weight must be a finite number"),
        ({"prior_weight": "much"}, "prior_weight must be a finite number from 0 up, not 'much'"),
        ({"schedule": "geometirc"}, "did you mean 'geometric'"),
        ({"branch": "lats"}, "There is no branch 'lats'; did you mean 'last'?"),
        ({"search": "beems"}, "There is no search 'beems'; did you mean 'beam'?"),
        ({"first_step": "beams"}, "There is no first_step 'beams'; did you mean 'beam'?"),
        ({"keep": "all"}, "There is no keep 'all'. Known: best, last."),
        ({"complete": "gready"}, "There is no complete 'gready'; did you mean 'greedy'?"),
        ({"max_children": 0}, "max_children must be a whole number from 1 up, not 0"),
        ({"time_limit": 0}, "time_limit must be a number of seconds above 0, not 0"),
        ({"time_limit": -1}, "time_limit must be a finite number from 0 up, not -1"),
        ({"refine": -1}, "refine must be a whole number from 0 up, not -1"),
        ({"shortlist": -1}, "shortlist must be a whole number from 0 up, not -1"),
        ({"distinct": False, "branch": "last"}, "use it with distinct, or branch 'all'"),
        ({"search": "lookahead", "lookahead": -2}, "or 'end' (-1) for the end"),
        ({"search": "lookahead", "lookahead": "far"}, "or 'end' (-1) for the end"),
        ({"search": "lookahead", "rollouts": 0}, "rollouts must be a whole number from 1 up"),
        ({"search": "lookahead", "rollout": "gready"}, "did you mean 'greedy'?"),
        ({"search": "lookahead", "rollout_score": "min"}, "Known: mean, max."),
        ({"search": "lookahead", "lookahead_steps": -1}, "lookahead_steps must be"),
        (
            {"search": "lookahead", "rollout": "greedy", "rollouts": 2},
            "2 greedy rollouts of a candidate are all the same",
        ),
        ({"search": "lookahead", "rollout": "greedy"}, "at prior strength 0"),
        ({"search": "best-of-n", "samples": 0}, "samples must be a whole number from 1 up, not 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
        ({"prior_strength": "0.5"}, "prior_strength must be a finite number from 0 up, not '0.5'"),
        ({"distinct": "no"}, "distinct must be True or False, not 'no'"),
        ({"schedule": [1, 2.5]}, "A length in the schedule must be a whole number from 1 up"),
        ({"schedule": 3}, "schedule must be a list of whole numbers, not 3"),
        ({"start": 3}, "start must be a list of whole numbers, not 3"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting, complaint):
    with pytest.raises(InputError) as error:
        run(**setting)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("search", "setting"),
    [
        ("beam", {"samples": 9}),
        ("beam", {"lookahead": 0}),
        ("beam", {"rollouts": 2}),
        ("lookahead", {"samples": 9}),
        ("best-of-n", {"lookahead": "end"}),
        ("best-of-n", {"max_children": 1}),
        ("best-of-n", {"complete": "sample"}),
        ("best-of-n", {"refine": 1}),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(search, setting):
    with pytest.raises(InputError, match=f"{next(iter(setting))} means nothing to the search"):
        run(search=search, **setting)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"beam": 10**12}, "beam must be 1000000 at most, not 1000000000000."),
        ({"candidates": 10**12}, "candidates must be 1000000 at most"),
        ({"forecast": 10**9}, "forecast must be 10000 at most"),
        ({"crossover": 3 * 10**9}, "crossover must be 100000 at most"),
        ({"refine": 10**9}, "refine must be 10000 at most"),
        ({"search": "lookahead", "rollouts": 10**12}, "rollouts must be 1000000 at most"),
        ({"search": "best-of-n", "samples": 3 * 10**12}, "samples must be 100000000 at most"),
        (
            {"search": "best-of-n", "beam": 10**6, "candidates": 10**6, "distinct": False},
            "draws 3000000000000 sequences: say how many best-of-n shall draw, 100000000 at most",
        ),
    ],
)
def test_counts_beyond_all_reason_are_refused_at_once(setting, complaint):
    with pytest.raises(InputError) as error:
        run(budget=10, schedule=[1, 2, 3], **setting)
    assert complaint in str(error.value)


def test_numbers_of_numpy_and_torch_are_kept_as_those_of_python():
    plain = SearchSettings(
        "lookahead", beam=4, schedule=[1, 3], start=[[1], [2]], lookahead=2, rollouts=2,
        prior_strength=0.5, budget=9, time_limit=2.0, typicality=False, max_children=3,
    )  # fmt: skip
    same = SearchSettings(
        "lookahead", beam=np.int64(4), schedule=np.array([1, 3]), start=torch.tensor([[1], [2]]),
        lookahead=np.int16(2), rollouts=np.uint8(2), prior_strength=np.float32(0.5),
        budget=torch.tensor(9), time_limit=np.float64(2), typicality=np.False_,
        max_children=np.int64(3),
    )  # fmt: skip
    assert json.dumps(asdict(same)) == json.dumps(asdict(plain))
    one = SearchSettings(start=(np.int64(5), 6), schedule=(np.int64(1), 2), tokens=True)
    assert json.loads(json.dumps(asdict(one)))["start"] == [5, 6] and one.schedule == [1, 2]
    assert type(one.tokens) is int
    result = run(seed=np.int64(3), beam=np.int64(2), prior_strength=np.float32(0))
    assert pools(result) == pools(run(seed=3, beam=2))


def test_an_unknown_search_is_refused_with_the_known_names():
    with pytest.raises(InputError, match="There is no search 'baem'; did you mean 'beam'?"):
        run(search="baem")
