"""One examination from outside the cohort: read it, and say where it is unlike the patients trained on.

A network gives a number for any three images.  Whether the number means anything depends on how much the case
resembles the training patients, so each measure of it is held against theirs.

<case>/dce/                     images, as in `examination`: DICOM, or NIfTI
<case>/seg.dcm or mask/*.nii.gz  the lesion; or a box in case.json
<case>/case.json                 what the files cannot say, see `Told`

Nothing that says who the patient is leaves this module: messages name the case by its folder's last name.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.config import build, read_yaml
from her2core.dataset import read_prepared, seen_by, with_neighbours
from her2core.formats.boundary import reading
from her2core.formats.examination import Examination, Told, anonymous, read_examination
from her2core.formats.nifti import min_crop
from her2core.formats.volume import as_uint16
from her2core.kinetics import lesion_features
from her2core.normalize import Window, knots, learn_standard, piecewise
from her2core.preprocess import PrepareConfig, largest_part, pack
from her2core.runs import Run

_TAILS = (0.01, 0.99)  # quantiles of the training patients that bound their range
_FEW = 50  # training patients, of whom these quantiles are as good as the ends
# Of the range's width, granted beyond it: of normal values 1 in 200 lies outside instead of 1 in 50, so that ten
# measures warn of 1 in 20 patients like the training ones.  The tails' own error among 100 patients is as large.
_MARGIN = 0.1
_ROUNDING = 0.01  # of the limit: headers are rounded, and one protocol for all has a range without width
# A phase of I-SPY2 lasts about 80 to 100 s: the nearest to the wanted time begins no more than half of that away.
_TIME_TOLERANCE_S = 50.0
_CUT_OFF = 0.5  # of its largest section; a sphere cut there has 6 % of its volume beyond.  Masks have stray voxels


# ------------------------------------------------------------------------------------------------------- reading


def _told(folder):
    """What case.json tells."""
    path = folder / "case.json"
    if not path.is_file():
        return Told()
    with reading(path, f"a JSON object with some of {', '.join(Told.__dataclass_fields__)}, each once"):
        values = json.loads(path.read_bytes(), object_pairs_hook=_once)  # in UTF-8, UTF-16 or UTF-32
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__}")
    return build(Told, values, path, optional=True)


def _once(pairs):
    """A JSON object as a dictionary; ValueError where a key stands twice."""
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError(f"a key twice among {', '.join(key for key, _ in pairs)}")
    return values


def _mask_of(folder, told):
    """The case's mask: seg.dcm, or the one file in mask/; None where case.json has a box."""
    files = [p for p in (folder / "seg.dcm", *folder.glob("mask/[!.]*")) if p.is_file()]
    if len(files) + (told.box is not None) != 1:
        found = ", ".join(str(p.relative_to(folder)) for p in files) or "none"
        raise ValueError(f"{folder}: masks: {found}; expected one: seg.dcm, a file in mask/, or a box in case.json")
    return files[0] if files else None


def _anonymous(text, folder):
    """A message without the folders above the case, and of names below it only what tells files apart."""
    return anonymous(text.replace(str(folder), folder.name), folder, ["dce", "mask"])


def read_case(folder: Path, config: PrepareConfig, cut: tuple[int, int] | None = None) -> Examination:
    """A folder → `Examination` with uint16 phases, named like the folder.

    config: its wanted times choose the phases of a series that has times, unless case.json names them.  cut:
    (slices beyond the lesion, pixels) where the cohort's volumes were cut before the stage `prepare`, as those of
    MinCrop: a window counts the intensities of the whole volume, so the case has to be cut alike.  ValueError for a
    case that is incomplete, cannot be read or, unless case.json names the phases, has others than it announces."""
    folder = Path(folder)
    wanted = {"early_s": config.early_s, "late_s": config.late_s, "name": folder.name}
    try:
        told = _told(folder)
        found = read_examination(folder / "dce", _mask_of(folder, told), told, **wanted)
        phases, factor = as_uint16(found.phases, folder.name)
    except (ValueError, OSError) as error:
        text = _anonymous(str(error), folder)
        raise ValueError(text if text.startswith(folder.name) else f"{folder.name}: {text}") from None
    remarks, mask = found.remarks, found.mask
    if factor != 1:
        remarks += (f"intensities were multiplied by {factor:.10g} to keep their levels as whole numbers",)
    if cut:
        phases, mask = _cut(phases, mask, cut, folder.name)
    remarks += tuple(filter(None, largest_part(mask, found.geometry, config)[1:]))
    said = tuple(_anonymous(remark, folder) for remark in remarks)
    return replace(found, phases=phases, mask=mask, remarks=said)


def _cut(phases, mask, cut, name):
    """Phases and mask as `min_crop` leaves them."""
    try:
        return min_crop(phases, mask, *cut)[:2]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


@dataclass(frozen=True)
class View:
    """How images become what networks see.

    window, bias_field: of a run; neighbours: whether its heads see adjacent slices.  standard: of Nyúl's method, a
    row a phase, the landmarks' grey levels as learnt on training patients; None under other windows.
    """

    window: Window
    standard: tuple[tuple[float, ...], ...] | None
    bias_field: str
    neighbours: bool

    @classmethod
    def of(cls, run: Run) -> "View":
        """That of a run's networks."""
        window, standard = Window.parse(run.window), None
        if window.method == "nyul":
            quantiles, names = run.opened.training
            learnt = learn_standard(window, quantiles, run.opened.levels, names)
            standard = tuple(map(tuple, learnt.tolist()))
        return cls(window, standard, run.bias_field, run.sees_neighbours)


def network_input(
    case: Examination, config: PrepareConfig, view: View
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What networks see of a case, in a few slices through the lesion.

    Returns images `(n, 3, H, W)` uint8, the lesion in them, bool `(n, H, W)`, and what the networks are fed: the
    images or, where heads see adjacent slices, `(n, 9, H, W)` as `Prepared.under`.
    """
    config = replace(config, bias_fields=(view.bias_field,), neighbours=view.neighbours)
    _, masks, packed = pack(case.phases, case.mask, case.geometry, config)
    found, standard = packed[view.bias_field], view.standard and np.array(view.standard)
    x, y = knots(view.window, found["quantiles"], config.quantiles, found["moments"], standard)
    images = piecewise(found["images"], x, y)
    if not view.neighbours:
        return images, masks, images
    fed = piecewise(with_neighbours(found["images"], found["neighbours"]), x, y)
    return images, masks, fed.reshape(len(images), -1, *images.shape[2:])


# ------------------------------------------------------------------------------------------------- applicability


@dataclass(frozen=True)
class Measure:
    """words, unit, doubt: for the reader; doubt: what a value outside the range suggests, doubt_below one below it.
    log: the margin is that of the logarithm.  below: a margin is granted below, too.  least: margin in the unit.
    """

    words: str
    unit: str
    doubt: str
    words_below: str = ""
    doubt_below: str = ""
    log: bool = False
    below: bool = True
    least: float = 0.0


_TABLE = Path(__file__).with_suffix(".yaml")
MEASURES = {name: build(Measure, told, f"{_TABLE}: {name}", True) for name, told in read_yaml(_TABLE).items()}


@dataclass(frozen=True)
class Range:
    """low, high: in the unit of the measure.  of: whose range it is."""

    low: float
    high: float
    of: str = "98 % of the training patients"  # with few, all of them

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


def measures(case: Examination, images: np.ndarray) -> dict[str, float]:
    """{name: value} of a case, for each of `MEASURES`; of its images, `network_input`'s, the middle one counts."""
    slice_mm, pixel_mm, _ = case.geometry.spacing_mm
    _, early_s, late_s = case.times_s
    sheet = {"slice_mm": slice_mm, "pixel_native_mm": pixel_mm, "early_s": early_s, "late_s": late_s}
    sheet |= lesion_features(case.phases, case.mask, case.geometry.spacing_mm)
    return {k: np.asarray(v, float).item() for k, v in _in_units(sheet, images[[len(images) // 2]]).items()}


def training_ranges(run: Run, config: PrepareConfig) -> dict[str, Range]:
    """{name: `Range`} of a run's training patients, for each of `MEASURES`.

    Where no training file carries times, the phases' times have to lie near those `config` wants.
    """
    prepared, ranges, wanted_s = run.opened, {}, {"early_s": config.early_s, "late_s": config.late_s}
    table = read_prepared(prepared.folder, "kinetics.csv", pd.read_csv)
    table = table[seen_by(table["split"]) == "train"]
    if table.empty:
        raise ValueError("kinetics.csv: no training patient, whose range a case could lie in")
    few = {"of": f"all {len(table)} training patients here"} if len(table) < _FEW else {}
    middle = prepared.middle()
    images = prepared.under(run.window, rows=middle[seen_by(prepared.split[middle]) == "train"]).images.numpy()
    for name, values in _in_units(table, images).items():
        low, high = pd.Series(values).quantile(_TAILS)  # of those that are known
        ranges[name] = Range(low, high, **few)
        if np.isnan(low):
            ranges[name] = Range(wanted_s[name] - _TIME_TOLERANCE_S, wanted_s[name] + _TIME_TOLERANCE_S, "wanted")
    return ranges


def _digits(value):
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _warning(name, value, limits):
    """One measure outside its range, in words."""
    measure = MEASURES[name]
    words, doubt = measure.words, measure.doubt
    if value < limits.low:
        words, doubt = measure.words_below or words, measure.doubt_below or doubt
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


def warnings_for(case: Examination, images: np.ndarray, ranges: dict[str, Range]) -> list[str]:
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
