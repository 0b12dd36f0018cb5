"""One function over many patients: on all cores, with a progress bar, results in the order given.

With a Dask scheduler's address in the environment variable DASK_SCHEDULER the same call runs on that cluster.
Its machines need this version of the package and the folders of this machine under the same paths; its workers
have one thread each:  dask worker ADDRESS --nthreads 1 --nworkers -1
Tasks are Dask's futures.  joblib's Dask backend waits for ever where a worker dies or lacks a package.
"""

import hashlib
import os
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits
from tqdm import tqdm

CONNECT_S = 10  # a scheduler, and then a worker, must answer in that time
POLL_S = 0.5


def sources_digest():
    """SHA-256 over the names and contents of this package's modules."""
    top = Path(__file__).parent
    named = sorted((m.relative_to(top).as_posix(), m) for m in top.rglob("*.py"))
    return hashlib.sha256(b"".join(n.encode() + b"\0" + m.read_bytes() for n, m in named)).hexdigest()


SOURCES = sources_digest()  # as imported: a worker that lives on through an edit still runs the old code


def each(function, items, jobs, label, unit="patient"):
    """[function(item) for item in items], each on one thread: on the cluster at DASK_SCHEDULER if that is set,
    else on `jobs` processes here (-1: one per core).

    The first exception stops everything and is raised here.  A worker that dies with a task, and a cluster that
    cannot be reached, are a ConnectionError; one whose code differs or whose workers share threads a ValueError.
    """
    items = list(items)
    address = os.environ.get("DASK_SCHEDULER")
    done = on_cluster(function, items, address) if address else on_this_machine(function, items, jobs)
    results = dict(tqdm(done, total=len(items), desc=label, unit=unit))
    return [results[number] for number in range(len(items))]


def on_this_machine(function, items, jobs):
    """(number, result) of every item as it ends."""
    tasks = (delayed(numbered)(function, number, item) for number, item in enumerate(items))
    with parallel_config(backend="loky", inner_max_num_threads=1):
        return Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)


def numbered(function, number, item):
    with threadpool_limits(1):  # other thread counts are slower here, and give other last bits
        return number, function(item)


def on_cluster(function, items, address):
    """(number, result) of every item as it ends."""
    with connect(address) as client:
        check_cluster(client, getattr(function, "func", function).__module__, address)
        deaths = []
        client.subscribe_topic("all", partial(note_death, deaths))
        task = partial(on_worker, function, SOURCES)
        waiting = dict(enumerate(client.map(task, range(len(items)), items, pure=False)))
        try:
            yield from as_they_end(client, waiting, deaths)
        except CancelledError as error:  # what a future says once the scheduler is gone
            raise ConnectionError(f"{address}: the Dask scheduler was lost ({error})") from error
        finally:
            client.cancel(list(waiting.values()))


def connect(address):
    """A client of the scheduler at `address`, to be closed by `with`."""
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            f"DASK_SCHEDULER is {address}, but the package distributed is missing here: "
            "install her2core[dev], or unset DASK_SCHEDULER"
        ) from error
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"DASK_SCHEDULER: no scheduler answers at {address} ({error})") from error


def check_cluster(client, module, address):
    """Raise unless scheduler and workers can import `module`, have these sources, and one thread per worker."""

    def sources_there():  # a function within a function travels by value: it runs where the package is missing
        from importlib import import_module

        import_module(module)  # the scheduler too unpickles the tasks
        return import_module("her2core.parallel").SOURCES

    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise ConnectionError(f"{address}: the scheduler has no workers after {CONNECT_S} s") from error
    answers = client.run(sources_there, on_error="return")
    try:
        answers[address] = client.run_on_scheduler(sources_there)
    except Exception as error:
        answers[address] = error
    for where, answer in sorted(answers.items()):
        if isinstance(answer, Exception):
            raise ValueError(f"{where} cannot run {module}: {type(answer).__name__}: {answer}") from answer
        if answer != SOURCES:
            raise ValueError(f"{where} has her2core {answer[:12]}, here it is {SOURCES[:12]}: update or restart it")
    if crowded := {w: n for w, n in client.nthreads().items() if n != 1}:
        raise ValueError(f"workers need --nthreads 1, as threads share random states; found {crowded}")


def on_worker(function, sources, number, item):
    if sources != SOURCES:  # a worker that came after the check
        raise ValueError(f"this worker has her2core {SOURCES[:12]}, the caller has {sources[:12]}")
    return numbered(function, number, item)


def note_death(deaths, event):
    """Keep the scheduler's event if a worker left without notice."""
    _, message = event
    if message.get("action") == "remove-worker" and not message["expected"]:
        deaths.append(message)


def as_they_end(client, waiting, deaths):
    """Yield the results of `waiting`, {number: future}, emptying it; raise as soon as a worker dies with one.

    Dask would give a task that kills its worker three more workers to kill, and wait for ever without any.
    """
    seen = time.monotonic()
    while waiting:
        ended = [number for number, future in waiting.items() if future.done()]
        for number in ended:
            yield waiting.pop(number).result(timeout=CONNECT_S)
        if ended:
            continue
        keys = {future.key for future in waiting.values()}
        if dead := [d["worker"] for d in deaths if keys & set(d["processing-tasks"])]:
            raise ConnectionError(f"worker {dead[0]} died at its task: killed, or out of memory; see its log")
        if client.nthreads():
            seen = time.monotonic()
        elif time.monotonic() - seen > CONNECT_S:
            raise ConnectionError(f"no workers are left, and {len(waiting)} tasks are not done")
        time.sleep(POLL_S)
