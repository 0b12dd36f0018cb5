"""A file or folder is written whole or not at all; a patient is complete, or what lacks is named."""

import pytest

from her2core import records


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


def test_files_of_the_right_size_with_other_content_are_refused(folder):
    (folder / "dce/2.dcm").write_bytes(b"two?")
    with pytest.raises(records.Incomplete, match=r"P1: not the files that were acquired.*delete P1.json and run"):
        records.check_complete("P1", folder)


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
