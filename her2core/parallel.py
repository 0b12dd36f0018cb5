"""One function over many patients: on all cores, with a progress bar, results in the order given.

With a Dask scheduler's address in the environment variable DASK_SCHEDULER the same call runs on that cluster.
Its machines need this version of the package and the folders of this machine under the same paths; its workers
have one thread each:  dask worker ADDRESS --nthreads 1 --nworkers -1
and the variables of `her2core.PINS` in their environment, as they load numpy before they know this package.
Tasks are Dask's futures: joblib's Dask backend waits forever where a worker dies or a package is missing there.
Whoever reaches a scheduler or worker can run code there, so it listens on the loopback, or through TLS (README).
"""

import hashlib
import os
import socket
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from her2core import INSTRUCTIONS, PINS

_CONNECT_S = 10  # a scheduler, and then a worker, must answer in that time
_SILENT_S = 300  # then a heartbeat is lost: a training may take hours, but never keeps Python's lock for so long
_POLL_S = 0.5


def _code_digest():
    """SHA-256 over the names and contents of this package's modules and YAML tables."""
    top = Path(__file__).parent
    paths = [*top.rglob("*.py"), *top.rglob("*.yaml")]
    named = sorted((m.relative_to(top).as_posix(), m) for m in paths)
    return hashlib.sha256(b"".join(n.encode() + b"\0" + m.read_bytes() for n, m in named)).hexdigest()


_CODE = _code_digest()  # when imported: a worker started before an edit still runs the old code
CODE_DIGEST: str = hashlib.sha256(f"{_CODE} {INSTRUCTIONS}".encode()).hexdigest()  # what every result depends on


def each(function: Callable, items: Iterable, jobs: int, label: str, unit: str = "patient") -> list:
    """[function(item) for item in items], each on one thread: on the cluster at DASK_SCHEDULER if that is set,
    else on `jobs` processes here (-1: one per core).

    The first exception stops everything and is raised here.  ConnectionError where the cluster or a worker is lost;
    ValueError where it is unlike this machine or open to strangers; ChildProcessError where memory is short here.
    """
    items = list(items)
    address = os.environ.get("DASK_SCHEDULER")
    done = _on_cluster(function, items, address) if address else _on_this_machine(function, items, jobs)
    try:
        results = dict(tqdm(done, total=len(items), desc=label, unit=unit))
    except (MemoryError, BrokenExecutor) as error:
        why = f"{label}: {type(error).__name__}: memory was short, or a process was killed"
        raise ChildProcessError(f"{why}; what is complete is kept: run it again, with fewer jobs") from error
    return [results[number] for number in range(len(items))]


def _on_this_machine(function, items, jobs):
    """(number, result) of every item as it ends."""
    tasks = (delayed(_numbered)(function, CODE_DIGEST, number, item) for number, item in enumerate(items))
    follow = {"initializer": start_new_thread, "initargs": (_follow, (os.getpid(),))}
    with parallel_config(backend="loky", inner_max_num_threads=1, **follow):
        return Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)


def _follow(parent):
    """In a worker: end with the process that started it, which may be killed while a task has hours to go."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _numbered(function, digest, number, item):
    if digest != CODE_DIGEST:  # a worker that came after an edit, or to the cluster after the check
        raise ValueError(f"this worker has her2core {CODE_DIGEST[:12]}, the caller has {digest[:12]}: restart it")
    with threadpool_limits(1):  # more threads are slower here, and give other last bits
        return number, function(item)


def _on_cluster(function, items, address):
    """(number, result) of every item as it ends."""
    with _connect(address) as client:
        events, waiting = [], {}
        try:
            _check_cluster(client, getattr(function, "func", function).__module__, address)
            client.subscribe_topic("all", events.append)
            task = partial(_numbered, function, CODE_DIGEST)
            waiting |= enumerate(client.map(task, range(len(items)), items, pure=False))
            yield from _as_they_end(client, waiting, events)
        except CancelledError as error:  # what a future says once the scheduler is gone
            raise ConnectionError(f"{address}: the Dask scheduler was lost ({error})") from error
        except TimeoutError:  # a worker keeps its answer to itself, or the task itself had a limit
            _heard(client)
            raise
        finally:
            client.cancel(list(waiting.values()))


def _connect(address):
    """A client of the scheduler at `address`, to be closed by `with`."""
    try:
        from distributed import Client
        from distributed.comm import parse_address
    except ModuleNotFoundError as error:
        raise ValueError("DASK_SCHEDULER: distributed is missing: install her2core[dev], or unset it") from error
    try:
        _check_private(address)
        if parse_address(address)[0] in ("tcp", "tls"):
            _await_greeting(address)
        return Client(address, timeout=_CONNECT_S, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"DASK_SCHEDULER: no scheduler answers at {address} ({error})") from error


def _await_greeting(address):
    """Return when the scheduler has sent its first byte, else raise OSError.

    Dask waits for a frozen one without limit, and a Client that found none blocks whoever collects it as garbage.
    """
    from distributed.comm import get_address_host_port, parse_address
    from distributed.security import Security

    with socket.create_connection(get_address_host_port(address), _CONNECT_S) as line:
        if parse_address(address)[0] == "tls":
            tls = Security().get_connection_args("client")["ssl_context"]
            if tls is None:
                raise ConnectionError("TLS expects certificates in Dask's configuration; see the README")
            line = tls.wrap_socket(line)
        with line:
            line.recv(1)


def _check_private(address):
    """Raise ValueError where others can reach what listens at `address`, unless Dask is told that they may."""
    from dask import config
    from distributed.comm import get_address_host, resolve_address

    allowed = address.startswith("tls:") or config.get("distributed.comm.require-encryption") is False
    if not allowed and not ip_address(get_address_host(resolve_address(address))).is_loopback:
        ways = "--host 127.0.0.1, tls://, or for trusted networks DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=False"
        raise ValueError(f"at {address} anybody who reaches it can run code as you; take {ways}")


def _check_cluster(client, module, address):
    """Raise unless scheduler and workers can import `module` and have this code, and the workers compute alike."""

    def twin_there():  # a function within a function is sent by value: it runs where the package is missing
        from importlib import import_module

        import_module(module)  # the scheduler unpickles the tasks too
        twin = import_module("her2core.parallel")
        return twin._CODE, twin.INSTRUCTIONS

    for where in (client.scheduler_info()["address"], *_heard(client)):
        _check_private(where)
    answers = client.run(twin_there, on_error="return", callback_timeout=2 * _SILENT_S)
    try:
        answers[address] = client.run_on_scheduler(twin_there, callback_timeout=_SILENT_S)
    except Exception as error:
        answers[address] = error
    for where, answer in sorted(answers.items()):
        if isinstance(answer, Exception):
            raise ValueError(f"{where} cannot run {module}: {type(answer).__name__}: {answer}") from answer
        if answer[0] != _CODE:
            raise ValueError(f"{where} has her2core {answer[0][:12]}, here it is {_CODE[:12]}: restart it")
        if answer[1] != INSTRUCTIONS and where != address:  # other instructions give other last digits
            wanted = " ".join(f"{name}={value}" for name, value in PINS.items()) or "HER2_PINS=off"
            raise ValueError(
                f"{where} computes with other instructions: {answer[1]}; here: {INSTRUCTIONS}. "
                f"Start the workers anew after: export {wanted}"
            )
    if crowded := {w: n for w, n in client.nthreads().items() if n != 1}:
        raise ValueError(f"workers need --nthreads 1, as threads share random states; found {crowded}")


def _heard(client):
    """Workers; ConnectionError where one has no heartbeat any more, none comes, or the scheduler is silent."""

    def silence(dask_scheduler):  # by the clock that stamps the heartbeats
        return {worker: time.time() - state.last_seen for worker, state in dask_scheduler.workers.items()}

    end, silent = time.monotonic() + _CONNECT_S, {}
    while not silent:
        try:
            silent = client.run_on_scheduler(silence, callback_timeout=_SILENT_S)
        except OSError as error:
            raise ConnectionError(f"the Dask scheduler was lost ({error}): start the cluster anew") from error
        if lost := [worker for worker, seconds in silent.items() if seconds > _SILENT_S]:
            raise ConnectionError(f"worker {lost[0]} was lost: it is frozen, or cut off; end it and start another")
        if not silent and time.monotonic() > end:
            raise ConnectionError(f"the scheduler has no workers after {_CONNECT_S} s")
        time.sleep(_POLL_S)
    return silent


def _as_they_end(client, waiting, events):
    """Yield the results of `waiting`, {number: future}, emptying it; raise as soon as a worker dies with one.

    Dask would give such a task three more workers to kill.  events: the scheduler's, as they come.
    """
    while waiting:
        keys = {future.key for future in waiting.values()}
        gone = [e for _, e in events if e.get("action") == "remove-worker" and not e["expected"]]
        if dead := [e["worker"] for e in gone if keys & set(e["processing-tasks"])]:
            raise ConnectionError(f"worker {dead[0]} died at its task: killed, or out of memory; see its log")
        _heard(client)
        for number in [number for number, future in waiting.items() if future.done()]:
            yield waiting.pop(number).result(timeout=2 * _SILENT_S)
