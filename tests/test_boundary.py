"""What a library raises at a bad file leaves the package as one kind of error."""

import errno
import json
import zipfile
from pathlib import Path

import pytest

from her2core.formats.boundary import reading

A = Path("here/a.json")


def leaving(error, **more):
    with reading(A, "JSON", **more):
        raise error


@pytest.mark.parametrize(
    "error",
    [json.JSONDecodeError("Extra data", "x", 0), zipfile.BadZipFile("Extra data"), RuntimeError("Extra data")],
)
def test_every_kind_of_error_becomes_a_value_error_that_names_file_and_expectation(error):
    with pytest.raises(ValueError, match=r"^here/a\.json: Extra data.*, expected JSON$"):
        leaving(error)


def test_an_error_without_words_is_known_by_its_kind():
    with pytest.raises(ValueError, match=r"^here/a\.json: RecursionError, expected JSON; nest less$"):
        leaving(RecursionError(), remedy="nest less")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match=r"^here/a\.json: no such file, expected JSON$"):
        with reading(A, "JSON"):
            (tmp_path / "none").read_bytes()


def test_a_failing_disk_and_short_memory_are_not_the_files_fault():
    with pytest.raises(OSError, match="No space left"):
        leaving(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(MemoryError):
        leaving(MemoryError())


def test_a_long_text_is_cut_to_one_line():
    with pytest.raises(ValueError) as caught:
        leaving(RuntimeError("word\n" * 1000))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
