"""A file or folder is written whole or not at all; a patient is complete, or what lacks is named."""

import errno
import json
import os
import resource
import shutil
import signal

import numpy as np
import pytest

from her2core import records
from her2core.formats import dicom_write, nifti
from her2core.formats.volume import DceSeries, Geometry


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dce").mkdir()
    for name, content in (("dce/1.dcm", b"one"), ("dce/2.dcm", b"two!"), ("seg.dcm", b"mask")):
        (tmp_path / name).write_bytes(content)
    paths = [p for p in tmp_path.rglob("*.dcm")]
    records.write_record(tmp_path, "P1", paths, series_uid="1.2", metadata={"dataset": "spy2"})
    return tmp_path


def test_a_record_lists_the_files_with_their_sizes_whatever_order_they_came_in(folder):
    record = records.read_record(folder, "P1")
    assert record["files"] == {"dce/1.dcm": 3, "dce/2.dcm": 4, "seg.dcm": 4}
    records.check_complete("P1", folder)


def test_the_digest_is_of_the_contents_whatever_the_names(folder):
    paths = sorted(folder.rglob("*.dcm"))
    before = records._digest(paths)
    assert records._digest(paths[::-1]) == before
    moved = paths[0].rename(folder / "dce/9.dcm")
    assert records._digest([*paths[1:], moved]) == before
    moved.write_bytes(b"eno")
    assert records._digest([*paths[1:], moved]) != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dce/2.dcm").write_bytes(b"tw"), "P1: dce/2.dcm: expected 4 bytes, found 2"),
        (lambda f: (f / "dce/2.dcm").unlink(), "P1: dce/2.dcm: expected 4 bytes, found no file"),
        (lambda f: (f / "records/P1.json").unlink(), "P1: not acquired; run: python -m her2core.cohorts.acquire"),
    ],
    ids=["truncated", "missing", "no record"],
)
def test_what_lacks_is_named_and_the_record_counts_for_nothing(folder, damage, message):
    damage(folder)
    assert records.read_record(folder, "P1") is None
    with pytest.raises(ValueError, match=message):
        records.check_complete("P1", folder)


@pytest.mark.parametrize(("name", "content"), [("dce/2.dcm", b"two?"), ("seg.dcm", bytes(4))])
def test_files_of_the_right_size_with_other_content_are_refused_and_remade(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(records.Incomplete, match=r"P1: not the files that were acquired \(SHA-256\); run: python"):
        records.check_complete("P1", folder)
    assert (
        records.read_record(folder, "P1") is None
    )  # acquire makes the patient again, with nothing to delete first


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
        lambda path: edited(path, files=["seg.dcm"]),
        lambda path: edited(path, files={"seg.dcm": "4"}),
        lambda path: edited(path, sha256=None),
        lambda path: edited(path, metadata={"dataset": "spy1"}),
        lambda path: path.write_text("[" * 100_000),
    ],
    ids="broken,empty,cut off,list,no text,list of files,text size,no digest,another collection,deep".split(","),
)
def test_a_record_that_is_not_as_it_was_written_counts_for_nothing(folder, damage):
    damage(folder / "records/P1.json")
    assert records.read_record(folder, "P1") is None
    with pytest.raises(records.Incomplete, match=r"P1: P1.json is damaged or another patient's; run: python -m"):
        records.check_complete("P1", folder)


def test_a_bit_that_flips_anywhere_in_a_record_is_noticed(folder):
    path = folder / "records/P1.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped(path, at)
        assert records.read_record(folder, "P1") is None, at
        path.write_bytes(whole)
    assert records.read_record(folder, "P1")


def test_a_record_under_another_patients_name_is_not_that_patients(folder):
    shutil.copy(folder / "records/P1.json", folder / "records/P2.json")
    with pytest.raises(records.Incomplete, match="P2: P2.json is damaged or another patient's"):
        records.check_complete("P2", folder)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_and_the_place_of_an_older_one_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.csv.gz"
    for text in ("old", "new"):
        with records.whole(path) as part:
            part.write_text(text)
            assert part.suffixes == path.suffixes and names_in(path.parent)[0].startswith(".partial-")
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text and names_in(path.parent) == ["table.csv.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_block_that_fails_leaves_what_was_there_and_no_partial(tmp_path, is_folder, error):
    path = tmp_path / "result"
    kept = path / "kept.txt" if is_folder else path
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("old")
    with pytest.raises(error), records.whole(path) as part:
        if is_folder:
            part.mkdir()
        (part / "half.txt" if is_folder else part).write_text("half")
        raise error
    assert names_in(tmp_path) == ["result"] and kept.read_text() == "old"


def test_a_folder_is_replaced_and_nothing_of_the_older_one_stays(tmp_path):
    path = tmp_path / "result"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "old.txt").write_text("old")
    with records.whole(path) as part:
        part.mkdir()
        (part / "new.txt").write_text("new")
        assert (path / "deep" / "old.txt").is_file()
    assert names_in(path) == ["new.txt"] and names_in(tmp_path) == ["result"]


def test_what_an_interrupted_writer_left_does_not_get_into_the_next_one(tmp_path):
    (tmp_path / ".partial-result").mkdir()
    (tmp_path / ".partial-result" / "half.txt").write_text("half")
    with records.whole(tmp_path / "result") as part:
        part.mkdir()
    assert names_in(tmp_path) == ["result"] and names_in(tmp_path / "result") == []


def test_a_folder_survives_a_kill_while_it_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "result"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), records.whole(path) as part:
        part.mkdir()
        patch.setattr(records, "_remove", lambda path: None)  # a process that is killed cleans nothing up
        patch.setattr(type(part), "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not path.exists()
    with pytest.raises(ValueError), records.whole(path):
        raise ValueError
    assert names_in(tmp_path) == ["result"] and names_in(path) == ["old.txt"]


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_the_disk_does_not_take_in_the_end_never_gets_the_name(tmp_path, monkeypatch, is_folder, number):
    path = tmp_path / "result"

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(number)), records.whole(path) as part:
        if is_folder:
            part.mkdir()
        (part / "new.txt" if is_folder else part).write_text("new")
    assert names_in(tmp_path) == []


def test_windows_which_syncs_only_what_may_be_written_gets_files_that_are_open_for_writing(tmp_path, monkeypatch):
    fcntl, path, modes = pytest.importorskip("fcntl"), tmp_path / "a", {}
    path.write_text("kept")
    for name in ("nt", "posix"):
        monkeypatch.setattr(
            records.os, "fsync", lambda file: modes.update({os.name: fcntl.fcntl(file, fcntl.F_GETFL)})
        )
        with monkeypatch.context() as patch:
            patch.setattr(os, "name", name)
            records._flush(path)
    assert {name: mode & os.O_ACCMODE for name, mode in modes.items()} == {"nt": os.O_RDWR, "posix": os.O_RDONLY}
    assert path.read_text() == "kept"


def test_all_files_of_a_folder_are_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def fsync(handle):
        assert not (tmp_path / "result").exists()
        flushed.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(records.os, "fsync", fsync)
    with records.whole(tmp_path / "result") as part:
        (part / "deep").mkdir(parents=True)
        for name in ("a", "deep/b", "deep/c"):
            (part / name).write_text(name)
    assert sorted(flushed) == sorted((tmp_path / "result" / n).stat().st_ino for n in ("a", "deep/b", "deep/c"))


@pytest.fixture
def small_disk():
    """No file of this process can be longer than 20 kB: a write beyond fails as on a disk that is full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[0][1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former[0])
    signal.signal(signal.SIGXFSZ, former[1])


def write_table(folder, series, mask):
    with records.whole(folder / "table.csv") as part:
        part.write_bytes(b"x" * 30_000)


def write_dicom(folder, series, mask):
    acquisition = dicom_write.Acquisition("dce", "GE", 1.5, 5.3, 2.4, 10)
    dicom_write.write_dce(series, folder / "dce", patient_id="P1", acquisition=acquisition)


def write_nifti(folder, series, mask):
    nifti.write_breastdcedl(series, mask, folder, patient_id="P1")


@pytest.mark.parametrize("write", [write_table, write_dicom, write_nifti])
def test_a_disk_that_is_full_ends_with_an_error_and_leaves_nothing_complete(tmp_path, rng, small_disk, write):
    array = rng.integers(0, 60000, (3, 4, 128, 128)).astype(np.uint16)
    series = DceSeries(array, Geometry((2.0, 1.0, 1.0)), (0.0, 90.0, 180.0))
    with pytest.raises(OSError, match="too large|written whole"):
        write(tmp_path, series, array[0] > 40000)
        records.write_record(tmp_path, "P1", [p for p in tmp_path.rglob("*") if p.is_file()])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [] and records.read_record(tmp_path, "P1") is None


def test_digests_of_files_are_a_table_that_reads_back(folder):
    paths = sorted(folder.rglob("*.dcm"))
    records.write_digests(folder / "digests.csv", paths)
    found = records.read_digests(folder / "digests.csv", "make it again")
    assert found == {path.name: records.file_digest(path) for path in paths} and len(found) == 3
    (folder / "digests.csv").write_text("file,size\n1.dcm,3\n")
    with pytest.raises(ValueError, match=r"digests.csv: 'sha256', expected columns .*; make it again$"):
        records.read_digests(folder / "digests.csv", "make it again")


def test_two_writers_of_one_path_are_told_apart_by_their_marks(tmp_path):
    path = tmp_path / "part.npz"
    with records.whole(path, "a-") as one, records.whole(path, "b-") as other:
        one.write_text("same")
        other.write_text("same")
        assert one != other and one.parent == other.parent == tmp_path
    assert names_in(tmp_path) == ["part.npz"] and path.read_text() == "same"


def test_the_row_that_dvc_tracks_has_counts_and_digest(folder):
    row = records.files_row(records.read_record(folder, "P1"))
    assert row | {"sha256": ""} == {
        "patient": "P1",
        "dataset": "spy2",
        "series_uid": "1.2",
        "files": 3,
        "bytes": 11,
        "sha256": "",
    }
    assert len(row["sha256"]) == 64
