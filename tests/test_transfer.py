"""Bytes arrive whole, are resumed, and what lacks is named; the archives are served on loopback."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in import Archive, serve

from her2core.cohorts import transfer

UUID, UID = "835d740c-f130-47a8-a5af-713b3e2257a0", "1.2.3.4"


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
    return {"SeriesInstanceUID": UID, "crdc_series_uuid": UUID, "instances": 6, "size_MB": sum(sizes) / 1e6}


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def test_a_series_arrives_whole_and_is_not_asked_for_again(bucket, series, tmp_path):
    with serve(bucket) as server:
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)
        asked = len(server.asked)
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        assert len(server.asked) == asked


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_fetched_again_and_the_others_are_left(bucket, series, tmp_path, damage):
    with serve(bucket) as server:
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        victim, other = tmp_path / "dce/3.dcm", tmp_path / "dce/2.dcm"
        victim.write_bytes(victim.read_bytes()[:-7]) if damage == "truncated" else victim.unlink()
        before, server.asked[:] = other.stat().st_mtime_ns, []
        transfer.fetch_series(series, tmp_path / "dce", server.url, 4)
        assert {a.split("/")[-1].split("?")[0] for a in server.asked if ".dcm" in a} == {"3.dcm"}
    assert contents(tmp_path / "dce") == contents(bucket / "idc-open-data" / UUID)
    assert other.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"instances": 7}, {"size_MB": 1.0}], ids=str)
def test_what_the_manifest_does_not_say_is_refused(bucket, series, tmp_path, change):
    with (
        serve(bucket) as server,
        pytest.raises(ValueError, match=f"series {UID}: 6 files of 240015 bytes, expected"),
    ):
        transfer.fetch_series(series | change, tmp_path / "dce", server.url, 4)


def test_a_series_the_archive_does_not_have_is_named(bucket, series, tmp_path):
    gone = series | {"crdc_series_uuid": UUID.replace("8", "9")}
    with serve(bucket) as server, pytest.raises(ValueError, match=f"series {UID}: "):
        transfer.fetch_series(gone, tmp_path / "dce", server.url, 4)


def test_an_archive_that_cannot_be_reached_is_one_clear_line(series, tmp_path):
    with pytest.raises(
        transfer.Unreachable, match=r"^127\.0\.0\.1:9 cannot be reached \(.*\); what is complete is"
    ):
        transfer.fetch_series(series, tmp_path / "dce", "http://127.0.0.1:9", 1)


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
        assert transfer._problem_with(series, tmp_path / "dce")
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


@pytest.fixture
def release(tmp_path, rng):
    """One large file of a release and its MD5."""
    folder = tmp_path / "release"
    folder.mkdir()
    content = rng.bytes(2_500_000)
    (folder / "crop.tar.gz").write_bytes(content)
    return folder, hashlib.md5(content).hexdigest()


def test_a_file_goes_on_where_it_stopped(release, tmp_path):
    folder, md5 = release
    whole = (folder / "crop.tar.gz").read_bytes()
    target = tmp_path / "out" / "crop.tar.gz"
    target.parent.mkdir()
    (target.parent / ".crop.tar.gz.partial").write_bytes(whole[:2_000_000])
    with serve(folder) as server:
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
    assert target.read_bytes() == whole and len(list(target.parent.iterdir())) == 1


def test_a_file_that_is_whole_but_not_yet_named_is_only_checked(release, tmp_path):
    folder, md5 = release
    target = tmp_path / "crop.tar.gz"
    (tmp_path / ".crop.tar.gz.partial").write_bytes((folder / "crop.tar.gz").read_bytes())
    with serve(folder) as server:
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
    assert hashlib.md5(target.read_bytes()).hexdigest() == md5


def test_a_file_with_other_content_never_gets_its_name(release, tmp_path):
    folder, _ = release
    target = tmp_path / "crop.tar.gz"
    with serve(folder) as server, pytest.raises(ValueError, match="MD5 .*, expected 00; deleted, run again"):
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, "00")
    assert [p.name for p in tmp_path.iterdir() if "crop" in p.name] == []


def test_a_file_that_changed_under_its_name_is_fetched_again(release, tmp_path):
    folder, md5 = release
    target = tmp_path / "crop.tar.gz"
    with serve(folder) as server:
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
        target.write_bytes(b"another release")
        transfer.fetch_file(f"{server.url}/crop.tar.gz", target, md5)
        assert len(server.asked) == 2
    assert hashlib.md5(target.read_bytes()).hexdigest() == md5


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_the_server_does_not_give_is_told_apart_from_a_server_that_cannot_be_reached(
    release, tmp_path, monkeypatch, status
):
    folder, md5 = release
    monkeypatch.setattr(Archive, "do_GET", lambda self: self.send(status))
    (tmp_path / ".x.partial").write_bytes(b"begun")
    with serve(folder) as server, pytest.raises(ValueError, match=rf"x: not available; .* HTTP {status}$"):
        transfer.fetch_file(f"{server.url}/x", tmp_path / "x", md5)
    assert (tmp_path / ".x.partial").read_bytes() == b"begun"


def test_a_server_that_cannot_answer_now_or_is_not_there_is_one_clear_line(release, tmp_path, monkeypatch):
    folder, md5 = release
    monkeypatch.setattr(Archive, "do_GET", lambda self: self.send(503))
    with (
        serve(folder) as server,
        pytest.raises(transfer.Unreachable, match="x: HTTP 503; what is complete is kept"),
    ):
        transfer.fetch_file(f"{server.url}/x", tmp_path / "x", md5)
    with pytest.raises(transfer.Unreachable, match="ConnectionError; what is complete is kept"):
        transfer.fetch_file("http://127.0.0.1:9/crop.tar.gz", tmp_path / "x", md5)


def test_a_disk_that_is_too_small_is_told_before_the_download(tmp_path):
    with pytest.raises(ValueError, match=r"1000000000 GB needed, \d+ GB free"):
        transfer.check_space(1e9, tmp_path)
