"""Bytes arrive whole, are resumed, and what lacks is named; the archives are served on loopback."""

import fcntl
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from stand_in import serve

from her2core.cohorts import transfer
from her2core.cohorts.transfer import NotThere, TransportFault

UUID, UID = "835d740c-f130-47a8-a5af-713b3e2257a0", "1.2.3.4"
NOWHERE = "http://127.0.0.1:9"  # refuses every connection
QUICK = transfer.Patience(tries=2, pause_s=0.01)
HASTY = transfer.Patience(tries=1, connect_s=0.5, window_s=0.5)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transfer, "PATIENCE", QUICK)
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bucket(tmp_path, rng):
    """A series of six files, 40 kB each, as the archive holds it."""
    folder = tmp_path / "served" / "idc-open-data" / UUID
    folder.mkdir(parents=True)
    for k in range(6):
        (folder / f"{k}.dcm").write_bytes(rng.bytes(40_000 + k))
    return tmp_path / "served"


@pytest.fixture
def series(bucket):
    sizes = [p.stat().st_size for p in (bucket / "idc-open-data" / UUID).iterdir()]
    place = {"crdc_series_uuid": UUID, "bucket": "idc-open-data"}
    return {"SeriesInstanceUID": UID, "instances": 6, "size_MB": sum(sizes) / 1e6} | place


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("[!.]*"))}


# --- whatever goes wrong: the kind of error, its words, what stays on disk, and the next run -----------------


@contextmanager
def no_fault():
    yield


@contextmanager
def full_disk():
    """No file grows beyond 20 kB."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@contextmanager
def little_space():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(1000))
        yield


@contextmanager
def broken_proxy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", NOWHERE)
        yield


@contextmanager
def haste():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "PATIENCE", HASTY)
        yield


Row = namedtuple("Row", "name faults kind words around url", defaults=(no_fault, None))
FLOOR = r"the server brought \d+ bytes in [0-9.]+ s, expected at least 10000 per second"
AGAIN = r" \(2 tries\); what is complete is kept, run again$"
ONE = f"^http://[0-9.:]+/idc-open-data/{UUID}/3.dcm: "
REFUSED = r"ConnectionError: \[Errno 111\] Connection refused"
TIMEOUT = r"ReadTimeout: Read timed out. \(read timeout=0.5\)"
CUT = r"ProtocolError: IncompleteRead\(\d+ bytes read, \d+ more expected\)"
SERIES = (
    Row("404", {404: "3.dcm"}, NotThere, f"{ONE}not available; the server answers HTTP 404$"),
    Row("403", {403: "3.dcm"}, NotThere, f"{ONE}not available; the server answers HTTP 403$"),
    Row("500", {500: "3.dcm"}, TransportFault, f"{ONE}HTTP 500{AGAIN}"),
    Row("503 for the list", {503: "prefix"}, TransportFault, rf"^series {UID} from http\S+: HTTP 503{AGAIN}"),
    Row("404 for the bucket", {404: "prefix"}, TransportFault, "no listing of a bucket at .* 404.; check the"),
    Row("refused", {}, TransportFault, f"^series {UID} from {NOWHERE}: {REFUSED}{AGAIN}", url=NOWHERE),
    Row("truncated", {"truncated": "3.dcm"}, TransportFault, f"{ONE}.*IncompleteRead.*{AGAIN}"),
    Row("flipped", {"flipped": "3.dcm"}, TransportFault, rf"{ONE}MD5 \w+, expected \w+, in each of 2 downloads"),
    Row("silent", {"silent": "3.dcm"}, TransportFault, f"{ONE}{TIMEOUT}", haste),
    Row("silent for the list", {"silent": "prefix"}, TransportFault, f"^series {UID} from .*{TIMEOUT}", haste),
    Row("1 kB/s", {"slow": "3.dcm"}, TransportFault, f"{ONE}{FLOOR}", haste),
    Row("full disk", {}, TransportFault, f"/{UUID}/0.dcm: .*File too large{AGAIN}", full_disk),
    Row("little space", {}, TransportFault, f" 0 GB needed, 0 GB free on this disk{AGAIN}", little_space),
    Row("no proxy", {}, TransportFault, rf"ProxyError: \[Errno 111\] Connection refused{AGAIN}", broken_proxy, "http://an.archive"),
)  # fmt: skip


def by_name(row):
    return row.name


@pytest.mark.parametrize("row", SERIES, ids=by_name)
def test_a_series_that_fails_says_why_keeps_what_is_right_and_is_completed_by_the_next_run(
    bucket, series, tmp_path, row
):
    folder, truth = tmp_path / "dce", contents(bucket / "idc-open-data" / UUID)
    with serve(bucket) as server:
        server.faults = row.faults
        with row.around(), pytest.raises(row.kind, match=row.words):
            transfer.fetch_series(series, folder, row.url or server.url, 4)
        kept = {n: c for n, c in contents(folder).items() if n in truth}
        assert kept.items() <= truth.items() and "3.dcm" not in kept and not (folder / ".checked").exists()
        if row.faults and "list" not in row.name and "bucket" not in row.name:
            assert {"0.dcm", "1.dcm", "2.dcm"} <= set(kept)  # what was before it
        server.faults, server.asked[:] = {}, []
        transfer.fetch_series(series, folder, server.url, 4)
        assert contents(folder) == truth
        assert not [a for a in server.asked if any(name in a for name in kept)]


FILE = (
    Row("404", {404: ""}, NotThere, "/crop.tar.gz: not available; the server answers HTTP 404$"),
    Row("403", {403: ""}, NotThere, "/crop.tar.gz: not available; the server answers HTTP 403$"),
    Row("503", {503: ""}, TransportFault, f"/crop.tar.gz: HTTP 503{AGAIN}"),
    Row("429", {429: ""}, TransportFault, f"/crop.tar.gz: HTTP 429{AGAIN}"),
    Row("refused", {}, TransportFault, f"/crop.tar.gz: {REFUSED}{AGAIN}", url=NOWHERE),
    Row("truncated", {"truncated": ""}, TransportFault, f"/crop.tar.gz: {CUT}{AGAIN}"),
    Row("silent", {"silent": ""}, TransportFault, f"/crop.tar.gz: {TIMEOUT}", haste),
    Row("1 kB/s", {"slow": ""}, TransportFault, f"/crop.tar.gz: {FLOOR}", haste),
    Row("full disk", {}, TransportFault, f"/crop.tar.gz: .*File too large{AGAIN}", full_disk),
    Row("little space", {}, TransportFault, f" 0 GB needed, 0 GB free on this disk{AGAIN}", little_space),
    Row("no proxy", {}, TransportFault, rf"ProxyError: \[Errno 111\] Connection refused{AGAIN}", broken_proxy, "http://an.archive"),
)  # fmt: skip


@pytest.fixture
def release(tmp_path, rng):
    """A folder with one large file of a release, and its MD5."""
    content = rng.bytes(500_000)
    (tmp_path / "release").mkdir()
    (tmp_path / "release/crop.tar.gz").write_bytes(content)
    return tmp_path / "release", hashlib.md5(content).hexdigest()


@pytest.mark.parametrize("row", FILE, ids=by_name)
def test_a_file_that_fails_says_why_and_the_next_run_goes_on_where_it_stopped(release, tmp_path, row):
    folder, md5 = release
    whole, part = (folder / "crop.tar.gz").read_bytes(), tmp_path / ".crop.tar.gz.partial"
    part.write_bytes(whole[:10_000])
    with serve(folder) as server:
        server.faults = row.faults
        with row.around(), pytest.raises(row.kind, match=row.words):
            transfer.fetch_file(f"{row.url or server.url}/crop.tar.gz", tmp_path / "crop.tar.gz", md5)
        kept = part.read_bytes()
        assert whole.startswith(kept) and len(kept) >= 10_000 and not (tmp_path / "crop.tar.gz").exists()
        server.faults = {}
        transfer.fetch_file(f"{server.url}/crop.tar.gz", tmp_path / "crop.tar.gz", md5)
    assert (tmp_path / "crop.tar.gz").read_bytes() == whole and not part.exists()


def test_a_file_that_arrives_changed_is_tried_once_more_and_never_gets_its_name(release, tmp_path):
    folder, md5 = release
    target = tmp_path / "crop.tar.gz"
    with serve(folder) as server:
        server.faults = {"flipped": ""}
        words = f"MD5 [0-9a-f]{{32}}, expected {md5}, in each of 2 downloads; deleted. It is another release"
        with pytest.raises(TransportFault, match=words):
            transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
        assert not list(tmp_path.glob("*crop*")) and len(server.asked) == 2
        server.times = 1
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
    assert target.read_bytes() == (folder / "crop.tar.gz").read_bytes()


# --- a series -----------------------------------------------------------------------------------------------


def test_a_series_arrives_whole_and_is_not_asked_for_again(bucket, series, tmp_path):
    with serve(bucket) as server:
        server.page = 4  # the list comes in two pages
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)
        asked = len(server.asked)
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        assert len(server.asked) == asked


def test_a_series_is_listed_and_fetched_in_the_bucket_that_the_manifest_names(bucket, series, tmp_path):
    (bucket / "idc-open-data").rename(bucket / "idc-open-data-cr")
    with serve(bucket) as server:
        with pytest.raises(TransportFault, match="no listing of a bucket at .*/idc-open-data "):
            transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        transfer.fetch_series(series | {"bucket": "idc-open-data-cr"}, tmp_path / "dce", server.url, 4)
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data-cr" / UUID)


@pytest.mark.parametrize("damage", ["another byte", "another name", "another revision"])
def test_a_series_that_changed_since_it_was_checked_is_fetched_again(bucket, series, tmp_path, damage):
    folder = tmp_path / "dce"
    with serve(bucket) as server:
        transfer.fetch_series(series, folder, server.url, 4)
        if damage == "another byte":
            (folder / "3.dcm").write_bytes((folder / "3.dcm").read_bytes()[:-1] + b"?")
        elif damage == "another name":
            (folder / "3.dcm").rename(folder / "x.dcm")
        else:
            (folder / ".checked").write_text((folder / ".checked").read_text().replace(UUID, "0" * len(UUID)))
        server.asked.clear()
        transfer.fetch_series(series, folder, server.url, 4)
        files = [name for name in contents(folder) if any(name in address for address in server.asked)]
    assert contents(folder) == contents(bucket / "idc-open-data" / UUID)
    assert files == ([] if damage == "another revision" else ["3.dcm"])


@pytest.mark.parametrize("fault", [{503: "prefix"}, {"flipped": "3.dcm"}], ids=str)
def test_a_fault_that_passes_is_not_noticed(bucket, series, tmp_path, fault):
    with serve(bucket) as server:
        server.faults, server.times = fault, 1
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)


def test_only_what_a_killed_transfer_left_undone_is_fetched_and_its_remains_go(bucket, series, tmp_path):
    truth = contents(bucket / "idc-open-data" / UUID)
    folder = tmp_path / "dce"
    folder.mkdir()
    for name in ("0.dcm", "1.dcm", "2.dcm"):
        (folder / name).write_bytes(truth[name])
    (folder / "2.dcm").write_bytes(truth["2.dcm"][:-7])  # cut off
    (folder / "3.dcm").write_bytes(truth["3.dcm"][:-1] + b"?")  # in full size, but changed
    (folder / "4.dcm186134091").write_bytes(truth["4.dcm"][:500])  # of another program
    (folder / ".5.dcm.partial").write_bytes(truth["5.dcm"][:500])
    with serve(bucket) as server:
        transfer.fetch_series(series, folder, server.url, 4)
        asked = {name for name in truth if any(name in address for address in server.asked)}
    assert asked == {"2.dcm", "3.dcm", "4.dcm", "5.dcm"} and contents(folder) == truth


def test_an_etag_that_is_no_md5_is_not_compared(bucket, series, tmp_path):
    with serve(bucket) as server:
        server.faults = {"multipart": "", "flipped": "3.dcm"}
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
    assert len(contents(tmp_path / "dce")) == 6


@pytest.mark.parametrize("change", [{"instances": 7}, {"size_MB": 1.0}], ids=str)
def test_what_the_manifest_does_not_say_is_refused_at_once(bucket, series, tmp_path, change):
    expected = rf"series {UID} from http\S+: 6 files of 240015 bytes under {UUID}, expected \d of \d+, as the"
    with serve(bucket) as server, pytest.raises(NotThere, match=expected):
        transfer.fetch_series(series | change, tmp_path / "dce", server.url, 4)
    assert len(server.asked) == 1


def test_a_series_the_archive_does_not_have_is_named(bucket, series, tmp_path):
    gone = series | {"crdc_series_uuid": UUID.replace("8", "9")}
    with serve(bucket) as server, pytest.raises(NotThere, match=rf"series {UID} from http\S+: 0 files of 0 bytes"):
        transfer.fetch_series(gone, tmp_path / "dce", server.url, 4)


def test_a_series_that_another_process_still_fetches_is_waited_for(bucket, series, tmp_path):
    (tmp_path / "dce").mkdir()
    with serve(bucket) as server, open(tmp_path / "dce/.lock", "w") as other, ThreadPoolExecutor() as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        second = pool.submit(transfer.fetch_series, series, tmp_path / "dce", server.url, 4)
        wait_for(lambda: server.asked)
        time.sleep(0.1)
        assert not contents(tmp_path / "dce") and not second.done()
        fcntl.flock(other, fcntl.LOCK_UN)
        second.result()
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)


@pytest.mark.parametrize("name", [".hidden", "a b.dcm"])
def test_a_listed_file_whose_name_is_no_plain_one_is_never_written(bucket, series, tmp_path, name):
    stray = bucket / "idc-open-data" / UUID / name
    stray.write_bytes(b"x")
    with serve(bucket) as server, pytest.raises(NotThere, match=f"lists a file '{name}', expected a plain name"):
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
    assert not (tmp_path / "dce").exists()


def test_files_of_another_size_than_listed_are_deleted(bucket, series, tmp_path):
    (tmp_path / "dce").mkdir()
    (tmp_path / "dce/3.dcm").write_bytes(b"short")
    with serve(bucket) as server:
        server.faults = {"multipart": ""}
        with pytest.raises(TransportFault, match="6 files of 200017 bytes came, and were deleted; run again"):
            transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)


SCRIPT = """
import sys
from pathlib import Path
from her2core.cohorts.transfer import fetch_series
fetch_series({series!r}, Path(sys.argv[1]), sys.argv[2], 1)
"""


def test_a_transfer_killed_in_the_middle_is_taken_up_and_ends_in_the_same_bytes(bucket, series, tmp_path):
    with serve(bucket, pause_s=0.15) as server:
        code = SCRIPT.format(series=series)
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "dce"), server.url], env=environment())
        wait_for(lambda: any((tmp_path / "dce").glob("[0-9]*")))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "dce/.checked").exists()
        server.pause_s = 0
        transfer.fetch_series(series, tmp_path / "dce", server.url, 1)
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)


def environment():
    return os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


# --- a file -------------------------------------------------------------------------------------------------


def test_a_server_that_ignores_ranges_is_named_and_only_this_file_starts_again(release, tmp_path, capsys):
    folder, md5 = release
    whole = (folder / "crop.tar.gz").read_bytes()
    (tmp_path / ".crop.tar.gz.partial").write_bytes(whole[:400_000])
    (tmp_path / ".other.tar.gz.partial").write_bytes(b"begun")
    with serve(folder) as server:
        server.faults = {"no range": ""}
        transfer.fetch_file(f"{server.url}/crop.tar.gz", tmp_path / "crop.tar.gz", md5)
    assert "/crop.tar.gz: the server ignores Range; this file starts again\n" in capsys.readouterr().err
    assert (tmp_path / "crop.tar.gz").read_bytes() == whole
    assert (tmp_path / ".other.tar.gz.partial").read_bytes() == b"begun"


def test_a_file_that_is_whole_but_not_yet_named_is_only_checked(release, tmp_path):
    folder, md5 = release
    target = tmp_path / "crop.tar.gz"
    (tmp_path / ".crop.tar.gz.partial").write_bytes((folder / "crop.tar.gz").read_bytes())
    with serve(folder) as server:
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
    assert hashlib.md5(target.read_bytes()).hexdigest() == md5


def test_a_file_that_changed_under_its_name_is_fetched_again(release, tmp_path):
    folder, md5 = release
    target = tmp_path / "crop.tar.gz"
    with serve(folder) as server:
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
        target.write_bytes(b"another release")
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
        assert len(server.asked) == 2
    assert hashlib.md5(target.read_bytes()).hexdigest() == md5


# --- before a download --------------------------------------------------------------------------------------


def test_where_only_a_proxy_knows_the_archive_all_goes_through_it(bucket, series, release, tmp_path, monkeypatch):
    folder, md5 = release
    shutil.copy(folder / "crop.tar.gz", bucket)
    with serve(bucket) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        transfer.check_reachable("http://an.archive.invalid")
        transfer.fetch_series(series, tmp_path / "dce", "http://an.archive.invalid", 4)
        transfer.fetch_file("http://an.archive.invalid/crop.tar.gz", tmp_path / "crop.tar.gz", md5)
        assert all(address.startswith("http://an.archive.invalid/") for address in proxy.asked)
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)


def test_an_archive_that_answers_anything_can_be_reached_also_beside_the_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(tmp_path) as server:
        server.faults = {503: ""}
        transfer.check_reachable(server.url)


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_an_archive_that_cannot_be_reached_is_one_clear_line(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(transfer, "PATIENCE", HASTY)
    words = r"^127\.0\.0\.1:\d+ cannot be reached \(.*\); behind a proxy, set HTTPS_PROXY; what is complete is kept"
    with serve(tmp_path) as server, pytest.raises(TransportFault, match=words):
        server.faults = {"silent": ""}
        transfer.check_reachable(NOWHERE if fault == "refused" else server.url)


def test_a_disk_that_is_too_small_is_told_before_the_download(tmp_path):
    with pytest.raises(TransportFault, match=r"1000000000 GB needed, \d+ GB free"):
        transfer.check_space(1e9, tmp_path)
