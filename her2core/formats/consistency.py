"""What no file of a dynamic series may be, and what its files have to agree on: one line for each."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from her2core.formats.dicom_file import Header, digest

PLAUSIBLE_MM = (0.01, 100.0)  # of a voxel; breast MRI has 0.3 to 5
_SIZES = f"one, {PLAUSIBLE_MM[0]:g} to {PLAUSIBLE_MM[1]:g} mm"
_NO_VOLUME = re.compile(  # words of ImageType for what was made of other images, or is no magnitude of a volume
    r"(?<![A-Z0-9])(SUB\w*|MOSAIC|LOCALIZER|\w*(MIP|MINIP|MNIP|MPR)|(MAX|MIN)_IP|PROJECTION|RENDER\w*|P|R|I|REAL"
    r"|IMAGINARY|(?<!IN_)(?<!OPP_)(?<!OUT_)PHASE|VELOCITY|MAP|\w*ADC|\w*DIFFUSION\w*|TRACEW?|FA|TENSOR\w*|ASL"
    r"|\w*CB[FV]|MTT|TTP)(?![A-Z0-9])"
)


@dataclass(frozen=True)
class _Rule:
    """read: the value in a header, None where that does not say, which is no contradiction.

    allows: the values that a file may have, `expected` in words.  tolerance: by which numbers may differ.
    secret: errors show a digest of the value, as it may say who the patient is, or when.
    """

    name: str
    read: Callable[[Header], Any]
    allows: Callable[[Any], bool] = lambda value: True
    expected: str = "one"
    tolerance: float = 0.0
    secret: bool = False

    def same(self, a: Any, b: Any) -> bool:
        """Whether two values agree."""
        return a == b or bool(self.tolerance and np.allclose(a, b, rtol=0, atol=self.tolerance))

    def shown(self, value: Any) -> str:
        """A value as errors show it."""
        return digest(value) if self.secret else str(value)


def _text(keyword, only=None, **more):
    """A rule for text; only: the one value allowed."""
    allowed = {} if only is None else {"allows": lambda value: value == only, "expected": only}
    return _Rule(keyword, lambda header: header.text(keyword), **allowed | more)


def _image_type(header):
    """As DICOM writes it; a frame has its own."""
    text = header.text("FrameType") or header.text("ImageType")
    return text and "\\".join(part.strip(" '[]") for part in text.upper().split(","))


def _echo_ms(header):
    effective = header.number("EffectiveEchoTime")
    return header.number("EchoTime") if effective is None else effective


def _rescale(header):
    """Slope and intercept, which only stand together."""
    found = header.number("RescaleSlope"), header.number("RescaleIntercept")
    return (1.0, 0.0) if found == (None, None) else found


def plausible_mm(sizes_mm: Iterable[float]) -> bool:
    """Whether a voxel may have these sizes."""
    return all(PLAUSIBLE_MM[0] <= size <= PLAUSIBLE_MM[1] for size in sizes_mm)


def _scale_slope(header):
    """By how much values were scaled that the rescaling does not take back; None where no maker says."""
    scale, (slope, _) = header.scale_slope(), _rescale(header)
    return scale and scale * (slope or 1)


_TABLE = (
    _Rule("scale slope", _scale_slope),
    _text("SeriesInstanceUID"),
    _text("LossyImageCompression"),
    _Rule("NumberOfTemporalPositions", lambda header: header.whole("NumberOfTemporalPositions", absent=0)),
    _Rule("thickness", lambda header: header.number("SpacingBetweenSlices") or header.number("SliceThickness")),
    _Rule(
        "slope and intercept",
        _rescale,
        lambda value: None not in value and 1e-6 <= value[0] <= 1e6 and abs(value[1]) <= 1e6,
        "one for a phase, the slope from 1e-06 to 1e+06, the intercept up to 1e+06",
    ),
    _Rule("PatientID", Header.patient),
    _Rule("PatientName", lambda header: header.patient("PatientName")),
    _text("StudyInstanceUID", secret=True),
    _text("FrameOfReferenceUID", secret=True),
    _text("Modality", "MR"),
    _text("PhotometricInterpretation", "MONOCHROME2"),
    _Rule("ImageType", _image_type, lambda value: not _NO_VOLUME.search(value), "volumes, all of one kind"),
    _text("ComplexImageComponent", "MAGNITUDE"),
    _Rule("EchoTime (ms)", _echo_ms, tolerance=0.1),  # which is rounding
    _Rule("EchoNumbers", lambda header: header.text("EchoNumbers") or "1"),
    _text("ScanningSequence"),
    _Rule("DiffusionBValue", lambda header: header.number("DiffusionBValue"), lambda value: value == 0, "0"),
    _text("DiffusionDirectionality", "NONE"),
    _text("DiffusionGradientOrientation", allows=lambda value: not re.search("[1-9]", value), expected="none"),
    _text("ASLContext", "none"),
    _Rule("orientation", lambda header: header.numbers("ImageOrientationPatient", 6), tolerance=1e-3),
    _Rule("pixel spacing", lambda header: header.numbers("PixelSpacing", 2), plausible_mm, _SIZES, tolerance=1e-3),
    _Rule("matrix", lambda header: (header.whole("Rows"), header.whole("Columns"))),
)
_RULES = {rule.name: rule for rule in _TABLE}
_OF_AN_EXAMINATION = tuple(_RULES)[6:]


@lru_cache(maxsize=256)  # files of a series are equal but for their place and time, which no rule reads
def facts(header: Header) -> dict[str, Any]:
    """What a header says to each rule."""
    return {name: rule.read(header) for name, rule in _RULES.items()}


def refuse_contradictions(slices: Sequence, where: str, names: Sequence[str] = _OF_AN_EXAMINATION) -> None:
    """`ValueError` where a slice's `facts` are not allowed, or contradict those of another, by the rules named."""
    distinct = {}  # the files of a series repeat their facts
    for s in slices:
        distinct.setdefault(id(s.facts), s)
    for name in names:
        rule, said = _RULES[name], [s for s in distinct.values() if s.facts[name] is not None]
        bad = [s for s in said if not rule.allows(s.facts[name])]
        one = (bad + said)[:1]
        others = [s for s in said if not rule.same(s.facts[name], one[0].facts[name])][:1]
        if bad or others:
            apart = len({s.image.path.parent for s in one + others}) > 1
            files = [f"{s.image.path.parent.name}/{s.name}" if apart else s.name for s in one + others]
            values = [rule.shown(s.facts[name]) for s in one + others]
            found = ", ".join(f"{file} has {value}" for file, value in zip(files, values, strict=True))
            raise ValueError(
                f"{where}: {'mixed ' if others else ''}{name}: {found}, expected {rule.expected}; leave only the "
                "dynamic volumes there"
            )
