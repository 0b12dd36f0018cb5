"""Classes, numbers of patients and intervals, as figures say them."""

from collections.abc import Iterable

from her2core.config import Endpoint, Title


def endpoint_of(cohort: str) -> Endpoint:
    """What the study predicts; of a plain text HER2."""
    return getattr(cohort, "endpoint", Title.endpoint)


def patients_of(name: str, estimates: Iterable, cohort: str) -> str:
    """ "n = 180, 72 HER2+"; all must rest on the same patients, or one n would not do."""
    found = sorted({(int(e.patients), int(e.positives)) for e in estimates})
    if len(found) != 1:
        raise ValueError(f"{name}: patients and positives differ from row to row: {found}")
    return f"n = {found[0][0]}, {found[0][1]} {endpoint_of(cohort).positive}"


def _number(value, sign=""):
    return f"{round(value, 2) + 0.0:{sign}.2f}".replace("-", "−")  # adding 0 turns −0 into 0


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.72 (0.65–0.79); where a dash could be a minus, −0.05 (−0.09 to −0.01); or that all scores are tied."""
    if low == value == high:
        return f"{_number(value, sign)}, all scores tied"
    dash = " to " if sign or low < 0 else "–"
    return f"{_number(value, sign)} ({_number(low, sign)}{dash}{_number(high, sign)})"
