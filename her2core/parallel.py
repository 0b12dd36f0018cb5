"""One function over many patients: on all cores, with a progress bar, results in the order given.

With a Dask scheduler's address in the environment variable DASK_SCHEDULER the same call runs on that cluster.
Its machines need this version of the package and the folders of this machine under the same paths; its workers
have one thread each:  dask worker ADDRESS --nthreads 1 --nworkers -1
and the variables of `her2core.PINS` in their environment, as they load numpy before they know this package.
Tasks are Dask's futures: joblib's Dask backend waits forever where a worker dies or a package is missing there.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from her2core import INSTRUCTIONS, PINS

_CONNECT_S = 10  # a scheduler, and then a worker, must answer in that time
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

    The first exception stops everything and is raised here.  ConnectionError where a worker dies with a task or no
    cluster can be reached; ValueError where its code or instructions differ, or a worker has several threads.
    """
    items = list(items)
    address = os.environ.get("DASK_SCHEDULER")
    done = _on_cluster(function, items, address) if address else _on_this_machine(function, items, jobs)
    results = dict(tqdm(done, total=len(items), desc=label, unit=unit))
    return [results[number] for number in range(len(items))]


def _on_this_machine(function, items, jobs):
    """(number, result) of every item as it ends."""
    tasks = (delayed(_numbered)(function, number, item) for number, item in enumerate(items))
    with parallel_config(backend="loky", inner_max_num_threads=1):
        return Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)


def _numbered(function, number, item):
    with threadpool_limits(1):  # more threads are slower here, and give other last bits
        return number, function(item)


def _on_cluster(function, items, address):
    """(number, result) of every item as it ends."""
    with _connect(address) as client:
        _check_cluster(client, getattr(function, "func", function).__module__, address)
        events = []
        client.subscribe_topic("all", events.append)
        task = partial(_on_worker, function, CODE_DIGEST)
        waiting = dict(enumerate(client.map(task, range(len(items)), items, pure=False)))
        try:
            yield from _as_they_end(client, waiting, events)
        except CancelledError as error:  # what a future says once the scheduler is gone
            raise ConnectionError(f"{address}: the Dask scheduler was lost ({error})") from error
        finally:
            client.cancel(list(waiting.values()))


def _connect(address):
    """A client of the scheduler at `address`, to be closed by `with`."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        missing = "the package distributed is missing here: install her2core[dev], or unset DASK_SCHEDULER"
        raise ValueError(f"DASK_SCHEDULER is {address}, but {missing}") from error
    try:
        return Client(address, timeout=_CONNECT_S, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"DASK_SCHEDULER: no scheduler answers at {address} ({error})") from error


def _check_cluster(client, module, address):
    """Raise unless scheduler and workers can import `module` and have this code, and the workers compute alike."""

    def twin_there():  # a function within a function is sent by value: it runs where the package is missing
        from importlib import import_module

        import_module(module)  # the scheduler unpickles the tasks too
        twin = import_module("her2core.parallel")
        return twin._CODE, twin.INSTRUCTIONS

    try:
        client.wait_for_workers(1, timeout=_CONNECT_S)
    except TimeoutError as error:
        raise ConnectionError(f"{address}: the scheduler has no workers after {_CONNECT_S} s") from error
    answers = client.run(twin_there, on_error="return")
    try:
        answers[address] = client.run_on_scheduler(twin_there)
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


def _on_worker(function, digest, number, item):
    if digest != CODE_DIGEST:  # a worker that came after the check
        raise ValueError(f"this worker has her2core {CODE_DIGEST[:12]}, the caller has {digest[:12]}: restart it")
    return _numbered(function, number, item)


def _as_they_end(client, waiting, events):
    """Yield the results of `waiting`, {number: future}, emptying it; raise as soon as a worker dies with one.

    Dask would give such a task three more workers to kill, and wait forever where none is left.
    events: the scheduler's, as they come.
    """
    seen = time.monotonic()
    while waiting:
        ended = [number for number, future in waiting.items() if future.done()]
        for number in ended:
            yield waiting.pop(number).result(timeout=_CONNECT_S)
        if ended:
            continue
        keys = {future.key for future in waiting.values()}
        gone = [e for _, e in events if e.get("action") == "remove-worker" and not e["expected"]]
        if dead := [e["worker"] for e in gone if keys & set(e["processing-tasks"])]:
            raise ConnectionError(f"worker {dead[0]} died at its task: killed, or out of memory; see its log")
        if client.nthreads():
            seen = time.monotonic()
        elif time.monotonic() - seen > _CONNECT_S:
            raise ConnectionError(f"no workers are left, and {len(waiting)} tasks are not done")
        time.sleep(_POLL_S)
