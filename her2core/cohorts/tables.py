"""Clinical tables as text: what every reader of one checks.

Nothing is corrected: an impossible value is a ValueError with file, patient, column, what was found and what was
expected.  Unknown is NA.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from her2core.config import read_yaml
from her2core.formats.boundary import reading

DECLARED = read_yaml(Path(__file__).with_suffix(".yaml"))  # tables.yaml: their columns and codes
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f]")  # and line breaks: then a quotation mark is wrong


def read_texts(path: Path) -> pd.DataFrame:
    """A CSV as text, empty cells as missing; rows need all cells and an end, so that a cut-off file is noticed."""
    with reading(path, "a CSV table in UTF-8, a line for each row"):
        content = path.read_bytes()
        if content[:4] == b"PK\x03\x04":
            raise ValueError("a workbook; save it as CSV (UTF-8, comma)")
        text = content.decode("utf-8-sig")
        header, *rows = [*csv.reader(StringIO(text, newline=""), strict=True)] or [[]]
        if len(header) == 1 and (other := re.search("[;\t]", header[0])):
            kind = {";": "semicolons", "\t": "tabs"}[other[0]]
            raise ValueError(f"{kind} between cells, expected commas; save it as CSV (UTF-8, comma)")
        if len({*header}) < len(header):
            raise ValueError(f"a heading twice in {', '.join(header)}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: expected {len(header)} values, found {len(row)}")
        if wrong := [*filter(_CONTROL.search, row)]:
            raise ValueError(f"{path}, row {number}: expected text without line breaks, found {wrong[0][:60]!r}")
    if rows and text[-1] not in "\r\n":
        raise ValueError(f"{path}: found no line break after the last row: is it cut off?  Add one if it is not")
    return pd.DataFrame(rows, columns=header, dtype=object).replace("", None)


def plain_text(cell: Any) -> str | None:
    """A cell as text: 1.0, "1.0" and "1 " are "1"; missing stays missing."""
    return None if pd.isna(cell) else re.sub(r"^(-?[0-9]+)\.0$", r"\1", str(cell).strip()) or None


def read_idc_table(path: Path) -> pd.DataFrame:
    """A clinical table of IDC, CSV or parquet, as text, the names of its columns in lower case."""
    if path.suffix == ".parquet":
        with reading(path, "a table in parquet", "parquet needs pyarrow; pip install pyarrow, or save it as CSV"):
            table = pd.read_parquet(path)
    else:
        table = read_texts(path)
    return table.map(plain_text).set_axis([str(c).strip().lower() for c in table.columns], axis=1)


def need_columns(table: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Raise ValueError unless the table has rows and every column exactly once."""
    found = list(table.columns)
    if missing := [c for c in columns if found.count(c) != 1]:
        raise ValueError(f"{path}: expected one column each of {', '.join(missing)}; found {', '.join(found)}")
    if table.empty:
        raise ValueError(f"{path}: found no rows, expected one per patient")


def by_patient(table: pd.DataFrame, column: str, pattern: str, path: Path) -> pd.DataFrame:
    """The table with its identifiers as index; each must match `pattern` and occur once."""
    need_columns(table, [column], path)
    good = table[column].str.fullmatch(pattern, na=False)
    if not good.all():
        (row, value), *_ = table.loc[~good, column].items()
        found = f"missing in row {row + 2}" if pd.isna(value) else _quoted(value)
        raise ValueError(f"{path}: {column} cannot be {found}, expected {pattern}")
    rows = table[column].value_counts()
    if rows.max() > 1:
        raise ValueError(f"{path}: {rows.idxmax()}: expected one row, found {rows.max()}")
    return table.set_index(column)


def _quoted(value):
    return "missing" if pd.isna(value) else repr(str(value))


def fault(bad: pd.Series, found: pd.Series, column: str, expected: str) -> str:
    """What is wrong of the first patient for whom `bad` is true, and not NA, and of how many; "" if of nobody."""
    bad = bad.fillna(False).astype(bool)
    if not bad.any():
        return ""
    patient = bad.index[bad][0]
    return f"{patient}: {column} is {_quoted(found[patient])}, expected {expected}; {bad.sum()} such"


def refuse(bad: pd.Series, found: pd.Series, column: str, expected: str, path: Path) -> None:
    """Raise ValueError where there is a `fault`."""
    if wrong := fault(bad, found, column, expected):
        raise ValueError(f"{path}: {wrong}")


def numbers_within(texts: pd.Series, path: Path, rule: tuple[float, float, bool, bool]) -> pd.Series:
    """A column of text, indexed by patient → Int64 or float, each value within its rule of `TABLE_RULES`."""
    low, high, whole, gaps = rule
    found = pd.to_numeric(texts, errors="coerce").astype(float)
    right = found.between(low, high) & (found.mod(1).eq(0) | (not whole))
    expected = f"{'a whole number' if whole else 'a number'} from {low} to {high}"
    refuse(~right & ~(texts.isna() & gaps), texts, texts.name, expected, path)
    return found.astype("Int64") if whole else found


def declared_meanings(codes: Mapping[Any, Any], allowed: Iterable, where: str) -> dict[str, Any]:
    """What a study's parameter `where` declares of a column's values → {value, as `translated` has it: meaning}.

    1, 1.0 and "1" are one value.  ValueError for a value twice and for a meaning that is not allowed."""
    allowed = [*dict.fromkeys([*allowed, None])]
    found = {str(plain_text(value)).lower(): meaning for value, meaning in codes.items()}
    if len(found) < len(codes) or any(isinstance(m, bool) or m not in allowed for m in codes.values()):
        raise ValueError(f"{where}: expected each value once, with one of {allowed}, found {dict(codes)}")
    return found


def translated(texts: pd.Series, meanings: Mapping[str, Any], path: Path, remedy: str = "") -> pd.Series:
    """A column of text as what its values mean, whatever their case; ValueError counts them where one has none."""
    keys = texts.astype(object).str.lower()
    if unlisted := sorted(set(keys.dropna()) - set(meanings)):
        found = f"values without a meaning: {', '.join(unlisted)} (all: {texts.value_counts().to_dict()})"
        raise ValueError(f"{path}: {texts.name} has {found}, expected {', '.join(meanings)}{remedy}")
    return keys.map(meanings)
