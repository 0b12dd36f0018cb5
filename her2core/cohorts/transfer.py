"""Downloads from the archives: tried again, resumed where they stopped, and complete and checked or refused.

Two things go wrong.  TransportFault: the network or this machine is at fault, and never a patient.  NotThere: the
archive says that it does not have it.  Proxies are those of HTTP_PROXY, HTTPS_PROXY and NO_PROXY, for all requests.
"""

import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from her2core.records import file_digest

fcntl = None
with suppress(ModuleNotFoundError):  # Windows has none: no lock there
    import fcntl

_NOT_THERE = (403, 404, 410)  # a definite no; any other error may pass
_KEPT = "what is complete is kept, run again"


@dataclass(frozen=True)
class Patience:
    """How long a download is waited for, and how often it is tried."""

    tries: int = 5  # per file or list
    pause_s: float = 1.0  # before the second try; then 2, 4, 8, …
    digest_tries: int = 2  # of a whole file that has the wrong digest; it may be 20 GB
    connect_s: float = 5.0  # until a host answers at all
    window_s: float = 60.0  # silence of that length, or fewer bytes than the floor over it, is a dead connection
    floor_bytes_s: float = 10_000.0  # 28 hours for one gigabyte; nobody waits longer


PATIENCE = Patience()
_SESSION = requests.Session()  # keeps connections open from file to file
for _scheme in ("http://", "https://"):
    _SESSION.mount(_scheme, requests.adapters.HTTPAdapter(pool_maxsize=64))


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


@contextmanager
def _answer(url, start=0, query=None):
    """The answer to a GET, from byte `start` on."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    timeout = PATIENCE.connect_s, PATIENCE.window_s
    with _SESSION.get(url, params=query, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code in _NOT_THERE:
            raise NotThere(f"not available; the server answers HTTP {answer.status_code}")
        if answer.status_code >= 400 and answer.status_code != 416:
            raise TransportFault(f"HTTP {answer.status_code}")
        yield answer


def _pieces(answer):
    """The body as it arrives; TransportFault where in a whole window less of it comes than the floor."""
    since, came = time.monotonic(), 0
    while piece := answer.raw.read1(1 << 20):  # to wait for full pieces would hide a connection that only trickles
        came += len(piece)
        yield piece
        if (passed := time.monotonic() - since) < PATIENCE.window_s:
            continue
        if came < PATIENCE.floor_bytes_s * passed:
            expected = f"expected at least {PATIENCE.floor_bytes_s:.0f} per second"
            raise TransportFault(f"the server brought {came} bytes in {passed:.1f} s, {expected}")
        since, came = time.monotonic(), 0


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
    query = {"list-type": "2", "prefix": prefix, "continuation-token": None}
    while query["continuation-token"] != "":
        page = _list_page(f"{endpoint.rstrip('/')}/{series['bucket']}", query)
        for item in page.iterfind("{*}Contents"):
            key, size, etag = (item.findtext(f"{{*}}{tag}", "").strip('"') for tag in ("Key", "Size", "ETag"))
            name = key.removeprefix(prefix)
            if not re.fullmatch(r"\w[\w.-]*", name):  # it becomes a file's name here
                raise NotThere(f"the archive lists a file {name!r}, expected a plain name")
            listed[name] = int(size), etag if re.fullmatch("[0-9a-f]{32}", etag) else ""
        query["continuation-token"] = page.findtext("{*}NextContinuationToken", "")
    return listed


def _contents(folder, series):
    """Which revision of a series, and the MD5 of each file that is not hidden."""
    files = sorted(folder.glob("[!.]*"))
    return "\n".join([series["crdc_series_uuid"], *(f"{file_digest(p, 'md5')} {p.name}" for p in files)])


def fetch_series(series: Mapping, folder: Path, endpoint: str, connections: int) -> None:
    """Download one series, a row of the manifest, into `folder`; files that are there and right are kept.

    Number, sizes and, where the archive lists them, MD5s are checked; a file `.checked` keeps them.
    Raises TransportFault after several tries, NotThere where the archive has other than the manifest says.
    """
    expected, checked = (series["instances"], round(series["size_MB"] * 1e6)), folder / ".checked"
    if checked.is_file() and checked.read_text() == _contents(folder, series):
        return
    what = f"series {series['SeriesInstanceUID']} from {endpoint}"
    listed = _persist(partial(_list_series, series, endpoint), what)
    found = len(listed), sum(size for size, _ in listed.values())
    if found != expected:
        there = f"{found[0]} files of {found[1]} bytes under {series['crdc_series_uuid']}"
        raise NotThere(f"{what}: {there}, expected {expected[0]} of {expected[1]}, as the manifest says")
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{endpoint.rstrip('/')}/{series['bucket']}/{series['crdc_series_uuid']}"
    with open(folder / ".lock", "w") as lock, ThreadPoolExecutor(connections) as pool:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a worker whose parent was killed may still be at it
        for path in folder.glob("[!.]*"):
            if path.name not in listed:
                path.unlink()
        # the first file that fails stops the others
        list(pool.map(lambda name: fetch_file(f"{url}/{name}", folder / name, listed[name][1]), listed))
    sizes = [p.stat().st_size for p in folder.glob("[!.]*")]
    if (found := (len(sizes), sum(sizes))) != expected:
        shutil.rmtree(folder)
        raise TransportFault(f"{what}: {found[0]} files of {found[1]} bytes came, and were deleted; run again")
    checked.write_text(_contents(folder, series))


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
        bar = {"total": total, "initial": start, "desc": part.name[1:-8], "disable": total < 1e8}
        with open(part, "ab" if start else "wb") as out, tqdm.wrapattr(out, "write", **bar) as file:
            for piece in _pieces(answer):
                file.write(piece)


def fetch_file(url: str, path: Path, digest: str, kind: str = "md5") -> Path:
    """Download a file to `path`, from where an earlier attempt stopped; it gets this name once its digest is right.

    digest: its first digits, of the kind md5 or sha256; "" where none is known.
    Raises TransportFault after several tries, NotThere where the server does not have the file.
    """
    if path.is_file() and file_digest(path, kind).startswith(digest):
        return path
    part = path.with_name(f".{path.name}.partial")
    for _ in range(PATIENCE.digest_tries):
        _persist(partial(_stream_to, part, url), url)
        if (found := file_digest(part, kind)).startswith(digest):
            part.replace(path)
            return path
        part.unlink()
    found = f"{kind.upper()} {found}, expected {digest}, in each of {PATIENCE.digest_tries} downloads; deleted"
    raise TransportFault(f"{url}: {found}. It is another release than pinned, or changed on the way; run again")
