import pytest

from tfgen.errors import InputError
from tfgen.search.schedule import prefix_lengths


@pytest.mark.parametrize(
    ("schedule", "num_tokens", "lengths"),
    [
        ("one", 4, [1, 2, 3, 4]),
        ("one", 1, [1]),
        ("geometric", 8, [1, 2, 4, 8]),
        ("geometric", 12, [1, 2, 4, 8, 12]),
        ("geometric", 1, [1]),
        ("linear", 3, [1, 2, 3]),
        ("linear:4", 12, [4, 8, 12]),
        ("linear:5", 12, [5, 10, 12]),
        ("linear:12", 12, [12]),
        ("1,2,4,8", 16, [1, 2, 4, 8]),
        ("3", 16, [3]),
        (" 2, 4 ", 16, [2, 4]),
        ([1, 5, 16], 16, [1, 5, 16]),
        ((2,), 16, [2]),
    ],
)
def test_a_schedule_is_a_list_of_prefix_lengths(schedule, num_tokens, lengths):
    assert prefix_lengths(schedule, num_tokens) == lengths


@pytest.mark.parametrize("schedule", ["one", "geometric", "linear", "linear:2", "linear:7"])
@pytest.mark.parametrize("num_tokens", [7, 8, 9, 256])
def test_named_schedules_rise_and_end_at_the_last_token(schedule, num_tokens):
    lengths = prefix_lengths(schedule, num_tokens)
    assert lengths == sorted(set(lengths))
    assert lengths[0] >= 1
    assert lengths[-1] == num_tokens


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        ("geometirc", "There is no schedule 'geometirc'; did you mean 'geometric'"),
        ("fixed", "Known: one, geometric, linear"),
        ("", "There is no schedule ''"),
        ("geometric:3", "There is no schedule 'geometric:3'"),
        ("linear:0", "from 1 to 16, not 0"),
        ("linear:-1", "from 1 to 16, not -1"),
        ("linear:17", "from 1 to 16, not 17"),
        ("linear:", "holds '', which is no whole number"),
        ("linear:two", "holds 'two', which is no whole number"),
        ("1,,2", "holds '', which is no whole number"),
        ("1,2.5", "holds '2.5', which is no whole number"),
        ("0,1", "from 1 to 16, not 0"),
        ("1,17", "from 1 to 16, not 17"),
        ("4,2", "must rise, as in 1,2,4,8: 4,2 do not"),
        ("2,2", "must rise"),
        ([], "must rise"),
        ([1, 2.5], "not 2.5"),
    ],
)
def test_a_schedule_that_is_none_is_refused(schedule, complaint):
    with pytest.raises(InputError) as error:
        prefix_lengths(schedule, 16)
    assert complaint in str(error.value)
