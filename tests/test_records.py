"""A patient is whole, or what lacks is named."""

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
    before = records.digest(paths)
    assert records.digest(paths[::-1]) == before
    moved = paths[0].rename(folder / "dce/9.dcm")
    assert records.digest([*paths[1:], moved]) == before
    moved.write_bytes(b"eno")
    assert records.digest([*paths[1:], moved]) != before


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


def test_a_text_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    records.write_whole(path, "old")
    with pytest.raises(TypeError):
        records.write_whole(path, 7)
    assert path.read_text() == "old"


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
