"""ValueError where a figure is given what it cannot draw; `name` says in the message what it was."""

from collections.abc import Iterable, Sized

import numpy as np
import pandas as pd


def array(name: str, found: np.ndarray, *expected: int | None) -> None:
    """An array of this shape; None stands for any size but 0."""
    fits = (n if e is None else n == e for n, e in zip(np.shape(found), expected, strict=False))
    if np.ndim(found) != len(expected) or not all(fits):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name}: shape {np.shape(found)}, expected ({wanted})")


def array_8bit(name: str, found: np.ndarray, *expected: int | None) -> None:
    """An array of uint8 of this shape."""
    array(name, found, *expected)
    if found.dtype != np.uint8:
        raise ValueError(f"{name}: found {found.dtype}, expected uint8")


def table(name: str, found: pd.DataFrame, columns: Iterable[str]) -> None:
    """A table that has these columns."""
    if missing := [c for c in columns if c not in found]:
        raise ValueError(f"{name}: lacks {', '.join(missing)}; it has {', '.join(map(str, found))}")


def full_table(name: str, found: pd.DataFrame, columns: Iterable[str]) -> None:
    """A table with rows, and a number or a word in each of these columns."""
    table(name, found, columns)
    if found.empty or found[list(columns)].isna().any(axis=None):
        raise ValueError(f"{name}: {len(found)} rows, expected at least one and no missing value")


def some(name: str, items: Sized, most: int) -> None:
    """One of them at least, and not too many to be drawn."""
    if not 0 < len(items) <= most:
        raise ValueError(f"{name}: found {len(items)}, expected 1 to {most}")
