"""Settings outside their range are refused, in one sentence that says what would be right."""

import pytest

from tests.toy_search import run
from tfgen.errors import InputError


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


def test_an_unknown_search_is_refused_with_the_known_names():
    with pytest.raises(InputError, match="There is no search 'baem'; did you mean 'beam'?"):
        run(search="baem")
