"""Runs, windows, classes, numbers of patients and intervals, as figures and sentences say them."""

from collections.abc import Iterable, Mapping

from her2core.config import Endpoint, Title

_MODELS = {
    "thda": "THDA",
    "thda_plain": "THDA without attention",
    "thda_channel": "THDA with channel attention only",
    "thda_spatial": "THDA with spatial attention only",
    "thda_last": "THDA with attention in stage 4 only",
    "thda_separate": "THDA with a network per head",
    "thda_adjacent": "THDA on adjacent slices",
    "thda_rgb": "THDA with RGB in each head",
    "thda_weighted": "THDA with weighted fusion",
    "thda_unweighted": "THDA with unweighted loss",
    "thda_half": "THDA on half the patients",
    "thda_redrawn": "THDA on halves drawn anew",
    "thda_plain_half": "THDA without attention on half the patients",
    "thda_plain_redrawn": "THDA without attention on halves drawn anew",
    "aggregate_max": "maximum over slices",
    "aggregate_mean": "mean over slices",
    "resnet34_rgb": "ResNet-34 on RGB",
    "vit": "ViT",
    "cvt": "CvT",
    "lesion_first_order": "regression on the outlined lesion",
    "crop_first_order": "regression on the whole crop",
    "kinetics": "regression on size and kinetics",
    "clinical": "regression on clinical data",
    "clinical_kinetics": "regression on size, kinetics and clinical data",
    "majority": "the same risk for everybody",
    "truth_latent": "latent of the phantom",
    "truth_parameters": "exact posterior of the phantom",
}
UNSEEN = "no difference detected"  # of `paired.verdict`
_SCOPES = {"channel": "per phase", "global": "over phases", "slice": "per slice"}
_METHODS = {"minmax": "min–max", "zscore": "z-score", "nyul": "Nyúl"}


def model_name(run: str) -> str:
    """vit → ViT, thda-n4 → THDA; of two models together both; a model without a name has that of its code."""
    first, together, second = run.partition("-")[0].partition("+")
    if together:
        return f"{model_name(second)} with {model_name(first).removeprefix('regression on ')}"
    return _MODELS.get(first, first.replace("thda_", "THDA, ").replace("_", " "))


def window_name(window: str) -> str:
    """`channel_q98` → "98 % per phase", `global_minmax` → "min–max over phases"; another text stays as it is."""
    scope, _, limits = window.partition("_")
    if scope not in _SCOPES:
        return window
    ends = [f"{100 * int(q[1:]) / 10 ** len(q[1:]):g}" for q in limits.split("_") if q[1:].isdigit()]
    return f"{' to '.join(ends) + ' %' if ends else _METHODS.get(limits, limits)} {_SCOPES[scope]}"


def run_name(run: str) -> str:
    """`thda-channel_q98-n4` → "THDA, 98 % per phase, N4", as a row of a figure begins."""
    model, rest = model_name(run), run.split("-")[1:]
    rest = ["N4" if part == "n4" else window_name(part) for part in rest if part not in ("none", "raw")]
    return ", ".join([model[:1].upper() + model[1:], *rest])


def endpoint_of(cohort: str) -> Endpoint:
    """What the study predicts; of a plain text HER2."""
    return getattr(cohort, "endpoint", Title.endpoint)


def patients_of(name: str, estimates: Iterable, cohort: str) -> str:
    """ "n = 180, 72 HER2+"; all must rest on the same patients, or one n would not do."""
    found = sorted({(int(e.patients), int(e.positives)) for e in estimates})
    if len(found) != 1:
        raise ValueError(f"{name}: patients and positives differ from row to row: {found}")
    return f"n = {found[0][0]}, {found[0][1]} {endpoint_of(cohort).positive}"


def _number(value):
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # adding 0 turns −0 into 0


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.72 (0.65–0.79); where a dash could be a minus, −0.05 (−0.09 to −0.01); or that all scores are tied.

    sign: "+" for differences, whose signs are those before rounding."""
    said = signed if sign else _number
    if low == value == high:
        return f"{said(value)}, all scores tied"
    return f"{said(value)} ({said(low)}{' to ' if sign or low < 0 else '–'}{said(high)})"


def auc_of(row: Mapping) -> str:
    """The AUC of a row of `evaluate.summary`, with its interval."""
    return interval(row["auc"], row["low"], row["high"])


def counted(number: float, word: str) -> str:
    """1 patient, 1,020 patients."""
    return f"{number:,.0f} {word}{'' if number == 1 else 's'}"


def percent(share: float, digits: int = 0) -> str:
    """0.24 → 24 %."""
    return f"{round(100 * share, digits) + 0.0:.{digits}f} %".replace("-", "−")  # adding 0 turns −0 into 0


def signed(value: float) -> str:
    """Two digits, with the sign of what they are rounded from: −0.00 lies below 0."""
    return f"{value:+.2f}".replace("-", "−")


def difference_of(row: Mapping) -> str:
    """A row of `evaluate.comparisons`: with its interval; where none was detected, with what could have been."""
    ends = f"{signed(row['low'])} to {signed(row['high'])}" if row["low"] < row["high"] else "no spread"
    unseen = f"; detectable {row['detectable']:.2f}" if row["verdict"] == UNSEEN else ""
    return f"{signed(row['difference'])} ({ends}{unseen})"
