"""The fan-out over patients."""

import pytest

from her2core.parallel import each


def square(x):
    return x * x


def refuse_three(x):
    if x == 3:
        raise ValueError(f"patient {x} is broken")
    return x


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items(jobs):
    assert each(square, range(7), jobs, "test") == [0, 1, 4, 9, 16, 25, 36]


def test_an_exception_in_a_worker_is_raised_here_with_its_words():
    with pytest.raises(ValueError, match="patient 3 is broken"):
        each(refuse_three, range(5), 2, "test")
