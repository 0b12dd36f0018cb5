"""One examination from outside the cohort: read it, and say where it is unlike the patients trained on.

A network gives a number for any three images.  Whether the number means anything depends on how much the case
resembles the training patients, so each measure of it is held against theirs.

<case>/dce/*.dcm, seg.dcm                      one DICOM series with all phases, a SEG with the lesion's segments
<case>/dce/*.nii.gz, mask/*.nii.gz, case.json  one patient in BreastDCEDL's layout
<case>/case.json                               see `Sidecar`; with DICOM only where the files' times do not serve

Nothing that says who the patient is leaves this module: messages name the case by its folder's last name.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.config import build
from her2core.dataset import read_prepared, with_neighbours
from her2core.formats.boundary import reading
from her2core.formats.dicom import read_dce
from her2core.formats.nifti import min_crop, read_breastdcedl
from her2core.formats.seg import read_seg
from her2core.formats.volume import PHASE_COLUMNS, Geometry, Phases, as_uint16, nearest_phases
from her2core.kinetics import lesion_features
from her2core.normalize import maps, piecewise
from her2core.preprocess import PrepareConfig, pack
from her2core.runs import Run

_TAILS = (0.01, 0.99)  # quantiles of the training patients that bound their range
# Of the range's width, granted beyond it: of normal values 1 in 200 lies outside instead of 1 in 50, so that ten
# measures warn of 1 in 20 patients like the training ones.  The tails' own error among 100 patients is as large.
_MARGIN = 0.1
_ROUNDING = 0.01  # of the limit: headers are rounded, and one protocol for all has a range without width
# A phase of I-SPY2 lasts about 80 to 100 s: the nearest to the wanted time begins no more than half of that away.
_TIME_TOLERANCE_S = 50.0
_TIME_GRACE_S = 20.0  # beyond the range: a phase takes a minute or more, and its beginning is what files note
_CUT_OFF = 0.5  # of its largest section; a sphere cut there has 6 % of its volume beyond.  Masks have stray voxels


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Sidecar:
    """case.json: what the files of a case cannot say.

    pre, post_early, post_late: acquisition indices of the phases, from 0.  NIfTI needs them; with DICOM they choose
    the phases where the times in the files are absent or wrong.  slice_thick, xy_spacing: mm, as in BreastDCEDL's
    table, for NIfTI with headers like its own.  early_s, late_s: seconds from pre to the other two.
    """

    pre: int | None = None
    post_early: int | None = None
    post_late: int | None = None
    slice_thick: float | None = None
    xy_spacing: float | None = None
    early_s: float | None = None
    late_s: float | None = None

    def __post_init__(self):
        named = [getattr(self, c) for c in PHASE_COLUMNS]
        if self.phases is None and named != [None] * 3:
            raise ValueError(f"phases {named}, expected {', '.join(PHASE_COLUMNS)}, or none of them")
        numbers = {name: getattr(self, name) for name in ("slice_thick", "xy_spacing", "early_s", "late_s")}
        if wrong := {name: n for name, n in numbers.items() if n is not None and (n is True or not 0 < n < np.inf)}:
            raise ValueError(f"{wrong}, expected positive numbers")

    @property
    def phases(self) -> Phases | None:
        """The three phases, None where they are left to the files' times."""
        return Phases.named(vars(self))

    def known_times(self, times_s: Sequence[float]) -> tuple[float, ...]:
        """Times of pre, early and late: those written here, else those of the files."""
        given = (None, self.early_s, self.late_s)
        return tuple(t if g is None else g for g, t in zip(given, times_s, strict=True))


@dataclass(frozen=True)
class Case:
    """name: the folder's.  phases: `(3, Z, Y, X)` uint16, pre, early, late.  mask: bool `(Z, Y, X)`.
    times_s: `(3,)` seconds after pre, NaN where unknown.  remarks: what the reader doubted.
    """

    name: str
    phases: np.ndarray
    mask: np.ndarray
    geometry: Geometry
    times_s: tuple[float, ...]
    remarks: tuple[str, ...] = ()


def _read_sidecar(folder):
    path = folder / "case.json"
    if not path.is_file():
        return Sidecar()
    with reading(path, f"a JSON object with some of {', '.join(Sidecar.__dataclass_fields__)}, each once"):
        values = json.loads(path.read_bytes(), object_pairs_hook=_once)  # in UTF-8, UTF-16 or UTF-32
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__}")
    return build(Sidecar, values, path, optional=True)


def _once(pairs):
    """A JSON object as a dictionary; ValueError where a key stands twice."""
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError(f"a key twice among {', '.join(key for key, _ in pairs)}")
    return values


def _remarked(folder, read, *args, **kwargs):
    """What a reader returns, and what it doubts of files below a folder: its warnings as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=re.escape(str(folder)))
        found = read(*args, **kwargs)
    return found, [str(w.message) for w in caught if str(w.message).startswith(str(folder))]


def _read_dicom(folder, sidecar, config):
    """dce/ and seg.dcm → the fields of `Case` after its name.

    A series that announces other phases than are there is an error, unless the sidecar names those to take.
    """
    series, remarks = _remarked(folder, read_dce, folder / "dce")
    if remarks and sidecar.phases is None:
        raise ValueError(f"doubtful series, export it again or name the phases to take in case.json ({remarks[0]})")
    chosen = sidecar.phases or nearest_phases(series.times_s, config.early_s, config.late_s)
    chosen.check(len(series.array))
    grid, whose = (series.geometry, series.array.shape[1:]), {"meaning": "segments", "source": series.source}
    mask, doubts = _remarked(folder, read_seg, folder / "seg.dcm", *grid, **whose)
    times_s = sidecar.known_times([series.times_s[k] - series.times_s[chosen.pre] for k in chosen])
    return series.array[list(chosen)], mask, series.geometry, times_s, (*remarks, *doubts)


def _patient_of(folder):
    """The id in the name of the one mask file, None where it does not say."""
    names = [p.name for p in folder.glob("mask/*")]
    match = re.fullmatch(r"(.+)_[^_]+_vis1_mask\.nii(\.gz)?", names[0]) if len(names) == 1 else None
    return match and match[1]


def _read_nifti(folder, sidecar):
    """dce/, mask/ and case.json → the fields of `Case` after its name."""
    known = {k: v for k, v in asdict(sidecar).items() if v is not None}
    if missing := [k for k in PHASE_COLUMNS if k not in known]:
        raise ValueError(f"{folder}: these NIfTI files say nothing of {', '.join(missing)}; expected in case.json")
    if (patient := _patient_of(folder)) is None:
        raise ValueError(f"{folder}/mask: expected one file <patient>_<collection>_vis1_mask.nii.gz")
    series, mask = read_breastdcedl(folder, patient, known, phases=sidecar.phases)
    phases = series.array[[0, 1, -1]]  # as read, in order; the early phase may also be the late one
    return phases, mask, series.geometry, sidecar.known_times([0.0, np.nan, np.nan]), ()


def _anonymous(text, folder):
    """A message without the folders above the case and without the patient's id."""
    text = text.replace(str(folder), folder.name)
    patient = _patient_of(folder)
    return re.sub(rf"(?<!\w){re.escape(patient)}(?=[_:])", folder.name, text) if patient else text


def _read_files(folder, config):
    """Whichever layout the folder has → the fields of `Case` after its name."""
    sidecar = _read_sidecar(folder)
    if (folder / "seg.dcm").is_file():
        return _read_dicom(folder, sidecar, config)
    if (folder / "mask").is_dir():
        return _read_nifti(folder, sidecar)
    raise ValueError(f"{folder}: expected dce/ and seg.dcm (DICOM), or dce/, mask/ and case.json (NIfTI)")


def read_case(folder: Path, config: PrepareConfig, cut: tuple[int, int] | None = None) -> Case:
    """A folder, of either layout → `Case`.

    config: its wanted times choose the phases of a DICOM series.  cut: (slices beyond the
    lesion, pixels) where the cohort's volumes were cut before the stage `prepare`, as those of MinCrop: a window
    counts the intensities of the whole volume, so the case has to be cut alike.  ValueError for a case that is
    incomplete or cannot be read.
    """
    folder = Path(folder)
    try:
        phases, mask, geometry, times_s, remarks = _read_files(folder, config)
        phases, factor = as_uint16(phases, folder.name)
    except (ValueError, OSError) as error:
        text = _anonymous(str(error), folder)
        raise ValueError(text if text.startswith(folder.name) else f"{folder.name}: {text}") from None
    if factor != 1:
        remarks += (f"intensities were multiplied by {factor:.10g} to keep their levels as whole numbers",)
    if cut:
        phases, mask, _ = min_crop(phases, mask, *cut)
    return Case(folder.name, phases, mask, geometry, times_s, tuple(_anonymous(r, folder) for r in remarks))


def network_input(case: Case, config: PrepareConfig, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the networks of a run see of a case, in a few slices through the lesion.

    Returns images `(n, 3, H, W)` uint8, the lesion in them, bool `(n, H, W)`, and what the networks are fed: the
    images or, where heads see adjacent slices, `(n, 9, H, W)` as `Prepared.under`.
    """
    neighbours = run.sees_neighbours
    config = replace(config, bias_fields=(run.bias_field,), neighbours=neighbours)
    _, masks, packed = pack(case.phases, case.mask, case.geometry, config)
    found = packed[run.bias_field]
    x, y = maps(run.window, found["quantiles"], config.quantiles, found["moments"], run.opened.training)
    images = piecewise(found["images"], x, y)
    if not neighbours:
        return images, masks, images
    fed = piecewise(with_neighbours(found["images"], found["neighbours"]), x, y)
    return images, masks, fed.reshape(len(images), -1, *images.shape[2:])


# ------------------------------------------------------------------------------------------------- applicability


@dataclass(frozen=True)
class Measure:
    """words, unit, doubt: for the reader; doubt: what a value outside the range suggests.
    log: the margin is that of the logarithm.  below: a margin is granted below, too.  least: margin in the unit.
    """

    words: str
    unit: str
    doubt: str
    log: bool = False
    below: bool = True
    least: float = 0.0


_OTHER_GRID = "The lesion's texture looks coarser or finer than the networks know it."
_OTHER_TIME = "The lesion had more or less time to take up and wash out contrast."
_OTHER_GREY = "Other fat suppression, another sequence, or images processed before the export?"
MEASURES = {
    "slice_mm": Measure("Slice spacing", "mm", _OTHER_GRID),
    "pixel_mm": Measure("Pixel spacing", "mm", _OTHER_GRID),
    "volume_ml": Measure("Lesion volume", "ml", "Is the whole lesion outlined, and nothing else?", log=True),
    "early_s": Measure("Early phase, time after the first", "s", _OTHER_TIME, least=_TIME_GRACE_S),
    "late_s": Measure("Late phase, time after the first", "s", _OTHER_TIME, least=_TIME_GRACE_S),
    # no margin below: a missing contrast agent that passes costs more than a false alarm
    "uptake": Measure("Contrast enhancement of the lesion", "%", "Are these subtraction images?", below=False),
    "grey_pre": Measure("Mean grey level, pre-contrast phase", "% of white", _OTHER_GREY),
    "grey_early": Measure("Mean grey level, early phase", "% of white", _OTHER_GREY),
    "grey_late": Measure("Mean grey level, late phase", "% of white", _OTHER_GREY),
    "white": Measure("Saturated pixels", "%", _OTHER_GREY),
}
_NO_UPTAKE = (
    "Little or no contrast enhancement in the lesion",
    "Was contrast given, and is the first phase really the one before it?",
)


@dataclass(frozen=True)
class Range:
    """low, high: in the unit of the measure.  of: whose range it is."""

    low: float
    high: float
    of: str = "98 % of the training patients"

    def holds(self, value: float, measure: Measure) -> bool:
        """Whether a value lies inside, the margin granted."""
        scale = np.log if measure.log else float
        low, high, value = scale(self.low), scale(self.high), scale(value)
        below, above = (max(_MARGIN * (high - low), _ROUNDING * abs(edge), measure.least) for edge in (low, high))
        return bool(low - measure.below * below <= value <= high + above)


def _in_units(sheet, images):
    """{name: value of each patient} for each of `MEASURES`.

    sheet: the columns of kinetics.csv.  images: `(N, 3, H, W)` uint8, the middle slices under the run's window.
    """
    pre, early, late = images.mean((2, 3)).T / 2.55
    return {
        "slice_mm": sheet["slice_mm"],
        "pixel_mm": sheet["pixel_native_mm"],
        "volume_ml": np.exp(sheet["log_volume_ml"]),
        "early_s": sheet["early_s"],
        "late_s": sheet["late_s"],
        "uptake": 100 * sheet["pe_early"],
        "grey_pre": pre,
        "grey_early": early,
        "grey_late": late,
        "white": 100 * (images == 255).mean((1, 2, 3)),
    }


def measures(case: Case, images: np.ndarray) -> dict[str, float]:
    """{name: value} of a case, for each of `MEASURES`; of its images, `network_input`'s, the middle one counts."""
    slice_mm, pixel_mm, _ = case.geometry.spacing_mm
    _, early_s, late_s = case.times_s
    sheet = {"slice_mm": slice_mm, "pixel_native_mm": pixel_mm, "early_s": early_s, "late_s": late_s}
    sheet |= lesion_features(case.phases, case.mask, case.geometry.spacing_mm)
    return {k: np.asarray(v, float).item() for k, v in _in_units(sheet, images[[len(images) // 2]]).items()}


def _training_measures(run):
    """{name: values `(n,)`} of the training patients, for each of `MEASURES`; unknown times are NaN."""
    prepared = run.opened
    table = read_prepared(prepared.folder, "kinetics.csv", pd.read_csv)
    table = table[table["split"] == "train"]
    if table.empty:
        raise ValueError("kinetics.csv: no training patient, whose range a case could lie in")
    middle = prepared.middle()
    images = prepared.under(run.window, rows=middle[prepared.split[middle] == "train"]).images.numpy()
    return _in_units(table, images)


def training_ranges(run: Run, config: PrepareConfig) -> dict[str, Range]:
    """{name: `Range`} of a run's training patients, for each of `MEASURES`.

    Where no training file carries times, the phases' times have to lie near those `config` wants.
    """
    ranges = {}
    for name, values in _training_measures(run).items():
        values = np.asarray(values, float)
        known = values[~np.isnan(values)]
        if known.size:
            ranges[name] = Range(*np.quantile(known, _TAILS).tolist())
        else:
            wanted = {"early_s": config.early_s, "late_s": config.late_s}[name]
            ranges[name] = Range(wanted - _TIME_TOLERANCE_S, wanted + _TIME_TOLERANCE_S, "wanted")
    return ranges


def _digits(value):
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _warning(name, value, limits):
    """One measure outside its range, in words."""
    measure = MEASURES[name]
    words, doubt = _NO_UPTAKE if name == "uptake" and value < limits.low else (measure.words, measure.doubt)
    low, high = _digits(limits.low), _digits(limits.high)
    return f"{words}: {_digits(value)} {measure.unit}; {limits.of}: {low} to {high} {measure.unit}. {doubt}"


def _border_warnings(mask):
    """Where the images cut the lesion off: outermost planes with `_CUT_OFF` of its largest section or more."""
    found = []
    for axis, plane in enumerate(("slice", "row", "column")):
        voxels = mask.sum(tuple({0, 1, 2} - {axis}))
        share = max(voxels[0], voxels[-1]) / voxels.max()
        if share >= _CUT_OFF:
            section = f"the outermost {plane} of the images, with {share:.0%} of its largest section"
            found.append(f"The lesion reaches {section}. Does part of it lie outside?")
    return found


def warnings_for(case: Case, images: np.ndarray, ranges: dict[str, Range]) -> list[str]:
    """Why the networks may not apply to a case: sentences for its reader, none where nothing speaks against it.

    images: `network_input`'s; ranges: `training_ranges`'s.
    """
    found = measures(case, images)
    known = {name: value for name, value in found.items() if not np.isnan(value)}
    doubts = [f"Doubtful series: {remark}." for remark in case.remarks]
    if len(known) < len(found):
        times = "The files do not say when the phases were acquired"
        doubts.append(f"{times}: nothing here could check that they are the right ones.")
    outside = [name for name, value in known.items() if not ranges[name].holds(value, MEASURES[name])]
    return doubts + [_warning(k, found[k], ranges[k]) for k in outside] + _border_warnings(case.mask)
