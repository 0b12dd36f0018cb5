"""The fan-out over patients on this machine; the cluster's tests are in test_dask.py."""

import sys
import time

import pytest
from threadpoolctl import threadpool_info

from her2core import parallel
from her2core.parallel import each


def square(x):
    return x * x


def slow_start(x):
    time.sleep(0.2 * (x == 0))
    return x


def refuse_three(x):
    if x == 3:
        raise ValueError(f"patient {x} is broken")
    return x


def threads(_):
    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER", raising=False)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items(jobs):
    assert each(square, range(7), jobs, "test") == [0, 1, 4, 9, 16, 25, 36]
    assert each(slow_start, iter(range(4)), jobs, "test") == [0, 1, 2, 3]
    assert each(square, [], jobs, "test") == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exception_in_a_task_is_raised_here_with_its_words(jobs):
    with pytest.raises(ValueError, match="patient 3 is broken"):
        each(refuse_three, range(5), jobs, "test")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_has_one_thread(jobs):
    assert set().union(*each(threads, range(2), jobs, "test")) <= {1}


def test_progress_is_shown_in_the_unit_asked_for(capsys):
    each(square, range(3), 1, "prepare", unit="slice")
    assert "prepare: 100%" in (shown := capsys.readouterr().err) and "3/3" in shown and "slice" in shown


def test_the_digest_of_the_code_follows_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "__file__", str(tmp_path / "parallel.py"))
    found = []
    for name, text in (("a.py", ""), ("a.py", "x = 1\n"), ("b.yaml", ""), ("notes.txt", "not code")):
        (tmp_path / name).write_text(text)
        found.append(parallel._code_digest())
    assert len(set(found)) == 3 and found[2] == found[3]


def test_a_cluster_without_dask_installed_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", "tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"distributed is missing here: install her2core\[dev\], or unset"):
        each(square, range(3), 1, "test")
