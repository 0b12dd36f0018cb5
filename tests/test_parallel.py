"""The fan-out over patients on this machine; the cluster's tests are in test_dask.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
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


def too_large(x):
    return bytearray(10**15)


def too_large_an_array(x):
    return np.zeros(10**15)


def killed(x):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("task", "jobs", "kind"),
    [
        (too_large, 1, "MemoryError"),
        (too_large, 2, "MemoryError"),
        (too_large_an_array, 2, "MemoryError"),
        (killed, 2, "TerminatedWorkerError"),
        (os._exit, 2, "TerminatedWorkerError"),
    ],
)
def test_want_of_memory_and_a_killed_worker_are_one_error_that_says_what_to_do(task, jobs, kind):
    remedy = f"^acquire: {kind}: memory was short, or a process was killed; what is complete is kept: run it again"
    with pytest.raises(ChildProcessError, match=remedy):
        each(task, range(4), jobs, "acquire")


def busy(x, folder):
    (folder / f"{os.getpid()}.running").touch()
    while True:
        sum(range(10**6))


ALONE = """
import sys, test_parallel
from functools import partial
from pathlib import Path
from her2core.parallel import each
each(partial(test_parallel.busy, folder=Path(sys.argv[1])), range(4), 2, "busy")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_busy_workers_end_with_the_process_that_started_them(tmp_path, number):
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    parent = subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path)], env=env, stderr=subprocess.DEVNULL)
    assert_all_end(parent, number, tmp_path)


def assert_all_end(parent, number, folder):
    """Of two busy workers, which say so in `folder`, and all else `parent` started, none is left in 10 s."""
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("*.running"))) < 2:
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        started = psutil.Process(parent.pid).children(recursive=True)
        assert {int(p.stem) for p in folder.glob("*.running")} <= {p.pid for p in started}
    finally:
        parent.send_signal(number)
    try:
        parent.wait(10)
        _, alive = psutil.wait_procs(started, timeout=10)
        assert alive == []
    finally:
        for process in [p for p in started if p.is_running()]:
            process.kill()
        parent.kill()


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
    with pytest.raises(ValueError, match=r"distributed is missing: install her2core\[dev\], or unset"):
        each(square, range(3), 1, "test")
