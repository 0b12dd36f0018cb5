"""A real Dask scheduler and workers on this machine: the same bytes, and an error for whatever fails."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from threadpoolctl import threadpool_info

from her2core import parallel  # and no more: every worker imports this file
from her2core.parallel import each

TOP = Path(__file__).resolve().parents[1]
HERE = f"{TOP}{os.pathsep}{TOP / 'tests'}"
LIMIT_S = 300  # for a whole test, of which each takes seconds: a busy machine is no failure
WITHOUT = "import sys; sys.modules['her2core'] = None; from distributed.cli.dask_worker import main; main()"
UNPINNED = "import os; del os.environ['OPENBLAS_CORETYPE']; from distributed.cli.dask_worker import main; main()"


@pytest.fixture(autouse=True)
def time_limit():
    """A hang is the failure that all this is about, so each test has a limit."""

    def stop(*_):
        raise TimeoutError(f"{LIMIT_S} s are over")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def start(folder, *arguments, path=HERE):
    """A process of this interpreter; its output goes to a file in `folder`."""
    env = os.environ | {"PYTHONPATH": path}
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen([sys.executable, *arguments], env=env, cwd=folder, stdout=log, stderr=log)


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


class Cluster:
    """A scheduler and workers on this machine, all of them this test's own processes."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        arguments = ["--no-dashboard", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", "scheduler.json"]
        self.scheduler = start(folder, "-m", "distributed.cli.dask_scheduler", *arguments)
        wait_until((folder / "scheduler.json").is_file)
        self.address = json.loads((folder / "scheduler.json").read_text())["address"]

    def known_workers(self):
        from distributed import Client

        with Client(self.address, timeout=120, set_as_default=False) as client:
            return len(client.nthreads())

    def add_workers(self, count, launcher=("-m", "distributed.cli.dask_worker"), threads=1, path=HERE):
        options = [self.address, "--nthreads", str(threads), "--no-nanny", "--no-dashboard"]
        self.workers += [start(self.folder, *launcher, *options, path=path) for _ in range(count)]
        wait_until(lambda: self.known_workers() == len(self.workers))

    def kill_workers(self, keep=0):
        while len(self.workers) > keep:
            process = self.workers.pop()
            process.kill()
            process.wait()
        wait_until(lambda: self.known_workers() == keep)

    @contextmanager
    def third_worker(self, **options):
        """One more worker for as long as the block lasts."""
        try:
            self.add_workers(1, **options)
            yield self.workers[2]
        finally:
            self.kill_workers(keep=2)

    def stop(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(scheduler, monkeypatch):
    """The cluster that `each` uses, with two workers, and patience with them."""
    scheduler.add_workers(2 - len(scheduler.workers))
    monkeypatch.setattr(parallel, "_CONNECT_S", 120)
    monkeypatch.setenv("DASK_SCHEDULER", scheduler.address)
    return scheduler


def square(x):
    return x * x


def where(x, folder):
    """Tell where it runs, and wait until both workers run one."""
    (folder / f"{os.getpid()}.running").touch()
    wait_until(lambda: len(list(folder.glob("*.running"))) == 2)
    return os.getpid(), {pool["num_threads"] for pool in threadpool_info()}


def refuse_three(x, folder):
    """Tell that it runs; the third is broken, the others take a second."""
    (folder / f"{x}.begun").touch()
    if x == 3:
        raise ValueError(f"patient {x} is broken")
    time.sleep(1)


def long_task(x, folder):
    """Tell that it runs, and where, then take longer than any test may."""
    (folder / f"{os.getpid()}.running").touch()
    time.sleep(2 * LIMIT_S)


def test_results_come_in_the_order_of_the_items_with_a_bar(cluster, capsys):
    assert each(square, iter(range(9)), 1, "squares") == [x * x for x in range(9)]
    assert "squares: 100%" in (shown := capsys.readouterr().err) and "9/9" in shown


def test_tasks_run_on_the_workers_with_one_thread(cluster, tmp_path):
    places = each(partial(where, folder=tmp_path), range(12), 1, "test")
    assert {pid for pid, _ in places} == {p.pid for p in cluster.workers}
    assert all(threads <= {1} for _, threads in places)


def test_the_first_exception_is_raised_here_and_stops_the_rest(cluster, tmp_path):
    with pytest.raises(ValueError, match="patient 3 is broken"):
        each(partial(refuse_three, folder=tmp_path), range(4 * LIMIT_S), 1, "test")
    assert 0 < len(list(tmp_path.glob("*.begun"))) < LIMIT_S
    assert each(square, [5], 1, "test") == [25]  # the cluster is free again


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A patient or two of every site, and what one process makes of them."""
    import pandas as pd
    from test_preprocess import COHORT, CONFIG

    from her2core.cohort import included, patient_table
    from her2core.cohorts.acquire import get_all
    from her2core.preprocess import prepare

    monkeypatch.delenv("DASK_SCHEDULER", raising=False)
    get_all(replace(COHORT, spy2=(1, 0, 0), spy1=(1, 0, 0)), tmp_path / "acquire")
    patients = included(patient_table(pd.read_csv(tmp_path / "acquire" / "metadata.csv")))
    prepare(patients, tmp_path / "acquire", tmp_path / "here", CONFIG)
    return partial(prepare, patients, config=CONFIG)


@pytest.mark.slow
def test_prepared_arrays_are_the_same_bytes_as_of_one_process(here, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere: relative paths must not reach them
    table, _ = here(Path("acquire"), Path("there"))
    names = sorted(f.name for f in (tmp_path / "here").iterdir())
    assert names == sorted(f.name for f in (tmp_path / "there").iterdir()) and len(names) == 13
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    assert set(table["dataset"]) == {"spy1", "spy2", "ambl"} and table["patient"].nunique() == 4


def test_a_worker_without_the_package_is_refused_before_any_work(cluster, tmp_path):
    with cluster.third_worker(launcher=("-c", WITHOUT)):
        with pytest.raises(ValueError, match=r"tcp://\S+ cannot run test_dask: ModuleNotFoundError.*her2core"):
            each(long_task, [tmp_path], 1, "test")


def test_a_worker_with_other_sources_is_refused_before_any_work(cluster, tmp_path):
    shutil.copytree(TOP / "her2core", tmp_path / "her2core", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "her2core" / "config.py", "a") as file:
        file.write("# edited\n")
    with cluster.third_worker(path=f"{tmp_path}{os.pathsep}{HERE}"):
        with pytest.raises(ValueError, match=f"her2core [0-9a-f]{{12}}, here it is {parallel._CODE[:12]}"):
            each(square, range(3), 1, "test")


@pytest.mark.skipif(parallel.INSTRUCTIONS != "AVX2", reason="nothing is pinned on this processor")
def test_a_worker_that_computes_with_other_instructions_is_refused_before_any_work(cluster):
    with cluster.third_worker(launcher=("-c", UNPINNED)):
        wanted = "because numpy came .*; here: AVX2. Start the workers anew after: export .*CORETYPE=Haswell"
        with pytest.raises(ValueError, match=wanted):
            each(square, range(3), 1, "test")


def test_a_worker_that_comes_later_with_other_sources_is_refused_by_its_task():
    assert parallel._numbered(square, parallel.CODE_DIGEST, 4, 3) == (4, 9)
    with pytest.raises(ValueError, match="this worker has her2core .*, the caller has 0123456789ab"):
        parallel._numbered(square, "0123456789abcdef", 4, 3)


def test_a_worker_whose_tasks_would_share_a_process_is_refused(cluster):
    with cluster.third_worker(threads=2):
        with pytest.raises(ValueError, match=r"workers need --nthreads 1.*found \{'tcp://\S+': 2\}"):
            each(square, range(3), 1, "test")


@contextmanager
def killed_at_work(process, worker, folder, number=signal.SIGKILL):
    """Within the block, `process` gets a signal as soon as `worker` has begun a long task."""
    begun, over = folder / f"{worker.pid}.running", threading.Event()

    def kill():
        while not over.wait(0.05):
            if begun.is_file():
                return process.send_signal(number)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_worker_killed_in_mid_run_is_an_error(cluster, tmp_path):
    with killed_at_work(cluster.workers[0], cluster.workers[0], tmp_path):
        with pytest.raises(ConnectionError, match=r"worker tcp://\S+ died at its task: killed, or out of memory"):
            each(partial(long_task, folder=tmp_path), range(6), 1, "test")
    cluster.kill_workers()  # the other one sleeps on in its task


@contextmanager
def thawed_afterwards(process):
    """A frozen process goes on when the block ends."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_task_may_take_longer_than_a_heartbeat(cluster, monkeypatch):
    monkeypatch.setattr(parallel, "_SILENT_S", 10)
    assert each(time.sleep, [13], 1, "test") == [None]


def test_a_worker_that_freezes_at_its_task_is_an_error_that_names_it(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_SILENT_S", 3)
    worker = cluster.workers[1]
    with thawed_afterwards(worker), killed_at_work(worker, worker, tmp_path, signal.SIGSTOP):
        with pytest.raises(ConnectionError, match=r"worker tcp://\S+ was lost: it is frozen, or cut off; end it"):
            each(partial(long_task, folder=tmp_path), range(2), 1, "test")
    cluster.kill_workers()  # both sleep on in their tasks


def test_a_worker_that_is_frozen_from_the_start_is_an_error(cluster, monkeypatch):
    monkeypatch.setattr(parallel, "_SILENT_S", 1)
    with thawed_afterwards(cluster.workers[0]) as worker:
        worker.send_signal(signal.SIGSTOP)
        with pytest.raises(ConnectionError, match=r"worker tcp://\S+ was lost: it is frozen"):
            each(square, range(3), 1, "test")


def test_a_scheduler_that_freezes_is_an_error_in_mid_run_and_when_it_is_called(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_SILENT_S", 15)  # a worker's heartbeat must not be late before the freeze
    with thawed_afterwards(cluster.scheduler) as scheduler:
        with killed_at_work(scheduler, cluster.workers[0], tmp_path, signal.SIGSTOP):
            with pytest.raises(ConnectionError, match="the Dask scheduler was lost .*start the cluster anew"):
                each(partial(long_task, folder=tmp_path), range(2), 1, "test")
        monkeypatch.setattr(parallel, "_CONNECT_S", 1)
        with pytest.raises(ConnectionError, match=r"no scheduler answers at tcp://\S+ \(timed out\)"):
            each(square, range(3), 1, "test")
    cluster.kill_workers()


def out_of_time(x):
    raise TimeoutError(f"the archive did not send {x} in time")


def out_of_memory(x):
    raise MemoryError(f"no room for {x}")


def test_a_tasks_own_errors_of_time_and_memory_are_not_taken_for_the_clusters(cluster):
    with pytest.raises(TimeoutError, match="the archive did not send 7 in time"):
        each(out_of_time, [7], 1, "test")
    with pytest.raises(ChildProcessError, match="acquire: MemoryError: .*; what is complete is kept: run it again"):
        each(out_of_memory, [7], 1, "acquire")


class Stub:
    """A client that answers what it was made with."""

    def __init__(self, scheduler, silent):
        self.scheduler, self.silent = scheduler, silent

    def scheduler_info(self):
        return {"address": self.scheduler}

    def run_on_scheduler(self, function, callback_timeout):
        return self.silent


def test_no_workers_and_workers_that_never_come_back_are_an_error(monkeypatch):
    monkeypatch.setattr(parallel, "_CONNECT_S", 0.1)
    monkeypatch.setattr(parallel, "_POLL_S", 0.05)
    nobody = Stub("tcp://127.0.0.1:1", {})
    with pytest.raises(ConnectionError, match="the scheduler has no workers after 0.1 s"):
        parallel._check_cluster(nobody, "test_dask", "tcp://127.0.0.1:1")
    pending = SimpleNamespace(key="task", done=lambda: False)
    with pytest.raises(ConnectionError, match="the scheduler has no workers after 0.1 s"):
        list(parallel._as_they_end(nobody, {0: pending, 1: pending}, []))


@pytest.mark.parametrize("address", ["tcp://198.51.100.7:8786", "198.51.100.7:8786", "tcp://[2001:db8::1]:1"])
def test_an_address_that_strangers_can_reach_is_refused_before_a_byte_is_sent(monkeypatch, address):
    monkeypatch.setenv("DASK_SCHEDULER", address)
    monkeypatch.setattr(parallel.socket, "create_connection", None)
    with pytest.raises(
        ValueError, match=r"anybody who reaches it can run code as you; take --host 127.0.0.1, tls://"
    ):
        each(square, range(3), 1, "test")


@pytest.mark.parametrize("open_one", ["scheduler", "worker"])
def test_a_scheduler_or_worker_that_listens_to_the_network_is_refused_though_it_is_called_on_the_loopback(open_one):
    listening = {"scheduler": "tcp://127.0.0.1:8786", "worker": "tcp://127.0.0.1:1"}
    listening[open_one] = "tcp://198.51.100.7:40000"
    client = Stub(listening["scheduler"], {listening["worker"]: 0})
    with pytest.raises(ValueError, match="at tcp://198.51.100.7:40000 anybody who reaches it can run code as you"):
        parallel._check_cluster(client, "test_dask", "tcp://127.0.0.1:8786")


def test_dasks_own_switch_allows_a_network_without_strangers():
    import dask

    for open_one in ("tcp://198.51.100.7:8786", "ws://198.51.100.7:8786"):
        with dask.config.set({"distributed.comm.require-encryption": False}):
            parallel._check_private(open_one)
        with dask.config.set({"distributed.comm.require-encryption": True}), pytest.raises(ValueError):
            parallel._check_private(open_one)
    for private in ("tcp://localhost:1", "127.0.0.2:1", "tcp://[::1]:1", "tls://198.51.100.7:8786"):
        parallel._check_private(private)


@pytest.fixture
def certificates(tmp_path, monkeypatch):
    """Dask's configuration for TLS, with a certificate made for this test; processes started here have it, too."""
    from distributed.security import Security

    made, settings = Security.temporary(), {"distributed.comm.require-encryption": True}
    texts = {"ca-file": made.tls_ca_file}
    for who in ("scheduler", "worker", "client"):
        texts |= {f"{who}.{kind}": getattr(made, f"tls_{who}_{kind}") for kind in ("cert", "key")}
    for name, text in texts.items():
        (tmp_path / f"{name}.pem").write_text(text)
        settings[f"distributed.comm.tls.{name}"] = str(tmp_path / f"{name}.pem")
    for name, value in settings.items():
        monkeypatch.setenv("DASK_" + name.upper().replace(".", "__").replace("-", "_"), str(value))
    return settings


@pytest.mark.slow
def test_a_cluster_behind_tls_is_used_with_the_certificates_of_dasks_configuration(
    certificates, tmp_path, monkeypatch
):
    import dask

    cluster = Cluster(tmp_path)
    try:
        monkeypatch.setattr(parallel, "_CONNECT_S", 60)
        monkeypatch.setenv("DASK_SCHEDULER", cluster.address)
        with dask.config.set(certificates):
            cluster.add_workers(1)
            assert cluster.address.startswith("tls://127.0.0.1:")
            assert each(square, range(3), 1, "test") == [0, 1, 4]
        with pytest.raises(
            ConnectionError, match=r"no scheduler answers at tls://\S+ \(TLS expects .*configuration"
        ):
            each(square, range(3), 1, "test")  # without certificates
        monkeypatch.setattr(parallel, "_CONNECT_S", 1)
        monkeypatch.setenv("DASK_SCHEDULER", cluster.address.replace("tls", "tcp"))
        with pytest.raises(ConnectionError, match="no scheduler answers at tcp://"):
            each(square, range(3), 1, "test")
    finally:
        cluster.stop()


def test_a_scheduler_killed_in_mid_run_is_an_error(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path)
    try:
        cluster.add_workers(1)
        monkeypatch.setenv("DASK_SCHEDULER", cluster.address)
        monkeypatch.setattr(parallel, "_CONNECT_S", 60)
        with killed_at_work(cluster.scheduler, cluster.workers[0], tmp_path):
            with pytest.raises(ConnectionError, match="the Dask scheduler was lost"):
                each(partial(long_task, folder=tmp_path), range(2), 1, "test")
    finally:
        cluster.stop()


@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_no_scheduler_is_an_error_and_leaves_no_client_that_garbage_collection_would_close(monkeypatch, protocol):
    from distributed import Client

    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"{protocol}://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("DASK_SCHEDULER", address)
    monkeypatch.setattr(parallel, "_CONNECT_S", 1)
    with pytest.raises(ConnectionError, match=f"no scheduler answers at {address}"):
        each(square, range(3), 1, "test")
    assert all(client.status == "closed" for client in gc.get_objects() if type(client) is Client)
