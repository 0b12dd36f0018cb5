"""The embedded cohort: phantom patients written in the formats of the real collections.

Stages that read them treat them as they treat real ones.  A patient is complete when its record is written, so that
an interrupted run goes on where it stopped.

<folder>/
    spy2/<patient>/dce/*.dcm, seg.dcm      one series with all phases, inverse Analysis Mask    (as I-SPY2)
    spy1/dce/*.nii.gz, spy1/mask/*.nii.gz  BreastDCEDL's layout, geometry only in the table     (as I-SPY1)
    ambl/<patient>/dce/*.dcm, seg.dcm      five phases, SEG "ROI" with a segment per lesion     (as AMBL)
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom import dcmread

from her2core.cohorts.collections import collections
from her2core.formats import dicom_write, nifti
from her2core.formats.volume import PHASE_COLUMNS
from her2core.parallel import each
from her2core.phantom.patient import Patient, make_patient
from her2core.phantom.sites import Site, draw_protocol
from her2core.phantom.truth import draw_clinical, posterior
from her2core.records import read_record, whole, write_record

_LAYOUTS = {"spy2": "dicom_analysis_mask", "spy1": "breastdcedl", "ambl": "dicom_roi"}
_UNI_LATERAL = "ISPY2: VOLSER: uni-lateral cropped: "
_REGISTERED = "Registered AX Sen Vibrant MultiPhase"


@dataclass(frozen=True)
class EmbeddedConfig:
    """How the embedded cohort is made."""

    source: str  # "phantom"
    seed: int  # of the whole cohort
    bayes_auc: float  # of the latent variable behind HER2 status; 0.80 follows the literature's effects
    prevalence: float  # share of HER2-positives in every split
    spy2: tuple[int, int, int]  # patients in train, validation, test
    spy1: tuple[int, int, int]
    ambl: int  # external patients
    unknown_her2: int  # further patients of spy1 without a HER2 result, as in the real table
    coarse: int  # voxels this much larger in all directions (1: 24 × 128 × 128)
    jobs: int  # processes, -1 for one per core
    shading: float = 1.0  # strength of the coils' shading; 0 for none, 2 for twice that of the sites

    def __post_init__(self):
        if not 0 < self.prevalence < 1:
            raise ValueError(f"prevalence must lie between 0 and 1, found {self.prevalence}")
        if not 0 <= self.shading <= 3:  # beyond, the far wall is darker than the noise
            raise ValueError(f"shading must lie between 0 and 3, found {self.shading}")

    def get(self, folder: Path) -> tuple[list[dict], list[dict]]:
        """Make all patients that are not there yet; returns their records, in the order of the cohort, and nobody
        else.  A folder that other code or other parameters filled is emptied first."""
        stamp, recipe = folder / "recipe", _recipe(self)
        if not stamp.is_file() or stamp.read_text() != recipe:
            shutil.rmtree(folder, ignore_errors=True)
            with whole(stamp) as part:
                part.write_text(recipe)
        return each(partial(_make_one, config=self, folder=folder), draw_cohort(self), self.jobs, "acquire"), []

    def describe(self) -> pd.DataFrame:
        """A row per collection: patients, GB to be kept."""
        table = pd.DataFrame(draw_cohort(self)).assign(patients=1)
        sites = [site_of(row, self.coarse, self.shading) for row in table.to_dict("records")]
        table["kept_GB"] = [2e-9 * math.prod(s.shape) * len(s.phase_times_s) for s in sites]  # 16 bits per voxel
        table = table.groupby("dataset", sort=False)[["patients", "kept_GB"]].sum().reset_index(names="collection")
        return table.assign(**{"from": "phantom", "under_way_GB": 0.0})

    def sources(self) -> Iterator[dict]:
        """What the data are: such a cohort is its parameters; `jobs` changes no byte."""
        yield {
            "source": "phantom: made by her2core.phantom.patient",
            "doi": None,
            "licence": "MIT, as the code",
            "seed": self.seed,
            "parameters": {k: v for k, v in asdict(self).items() if k not in ("jobs", "source", "seed")},
        }

    def checks(self, folder: Path, network: bool) -> Iterator[Callable]:
        """Nothing can lack."""
        yield from ()


def draw_cohort(config: EmbeddedConfig) -> list[dict]:
    """The patients to make, one row each: patient, dataset, split, her2, her2_known, seed, age, hr, menopause."""
    rng, rows, groups = np.random.default_rng(config.seed), [], []
    for dataset in ("spy2", "spy1"):
        train, validation, test = getattr(config, dataset)
        groups += [(dataset, "train", train, True), (dataset, "test", test, True)]
        groups += [(dataset, "validation", validation, True)]
    groups += [("ambl", "external", config.ambl, True), ("spy1", "train", config.unknown_her2, False)]
    for dataset, split, count, known in groups:
        labels = rng.permutation(np.arange(count) < round(config.prevalence * count))
        group = {"dataset": dataset, "split": split, "her2_known": known}
        rows += [group | {"her2": int(her2)} for her2 in labels]
    for number, row in enumerate(rows):
        row["patient"] = f"PHANTOM-{row['dataset'].upper()}-{number + 1:04d}"
        row["seed"] = config.seed * 100_000 + number
        row |= draw_clinical(rng, her2=row["her2"])
    return rows


def site_of(row: dict, coarse: int, shading: float = 1.0) -> Site:
    """The patient's scanner and protocol, with voxels `coarse` times larger over the same field of view, and the
    shading of the coil `shading` times as strong."""
    site = draw_protocol(row["dataset"], row["seed"])
    shape = tuple(n // coarse for n in site.shape)
    spacing_mm = tuple(s * coarse for s in site.spacing_mm)
    return replace(site, shape=shape, spacing_mm=spacing_mm, bias=site.bias * shading)


def _acquisition_of(site):
    """DICOM header values of a phantom site."""
    ispy = site.name == "spy2"
    return dicom_write.Acquisition(
        series_description=_UNI_LATERAL + "original DCE" if ispy else _REGISTERED,
        study_description="ISPY2_MRI_T0" if ispy else "MRI BREAST",
        manufacturer=site.manufacturer,
        field_strength_T=site.field_T,
        bits_stored=site.bits,
        tr_ms=site.tr_s * 1000,
        te_ms=site.te_s * 1000,
        flip_deg=site.flip_deg,
        first_temporal_position=0 if ispy else 1,
    )


def _analysis_mask(patient):
    """I-SPY2's inverse bit mask: 0 tumour, 1 below the enhancement threshold, 16 background, 32 outside the box."""
    tumour = patient.annotator_mask
    code = np.full(tumour.shape, 32, np.uint8)
    code[patient.voi] = 0
    return code + ~tumour + np.uint8(16) * ~(tumour | patient.body_mask)


def write_patient(row: dict, patient: Patient, site: Site, folder: Path) -> list[Path]:
    """Write the files of one patient in its collection's format; returns their paths."""
    name, dataset = row["patient"], row["dataset"]
    if dataset == "spy1":
        home = folder / "spy1"
        nifti.write_breastdcedl(patient.series, patient.annotator_mask, home, patient_id=name, cohort="spy1")
        return sorted(home.glob(f"*/{name}_*.nii.gz"))
    home, geometry = folder / dataset / name, patient.series.geometry
    shutil.rmtree(home, ignore_errors=True)  # without a record, what lies there is incomplete
    acquisition = _acquisition_of(site)
    dicom_write.write_dce(patient.series, home / "dce", patient_id=name, acquisition=acquisition)
    inverse = dataset == "spy2"
    dicom_write.write_seg(
        _analysis_mask(patient) if inverse else patient.focus_labels,
        geometry,
        home / "seg.dcm",
        meaning="tumour_is_zero" if inverse else "segments",
        patient_id=name,
        series_description=_UNI_LATERAL + "Analysis Mask" if inverse else "ROI",
        study_description=acquisition.study_description,
    )
    return sorted(p for p in home.rglob("*") if p.is_file())


def _metadata_row(row, site):
    """The patient's row of the table, in BreastDCEDL's columns; of AMBL the phases follow from the files' times."""
    phases = (None, None, None) if row["dataset"] == "ambl" else (0, site.early_index, site.late_index)
    return {
        "pid": row["patient"],
        "dataset": row["dataset"],
        "layout": _LAYOUTS[row["dataset"]],
        "site": collections()[row["dataset"]].site,
        "split": row["split"],
        "HER2": row["her2"] if row["her2_known"] else None,
        "HR": row["hr"],
        "age": row["age"],
        "menopause": row["menopause"],
        "n_xy": site.shape[1],
        "n_z": site.shape[0],
        "n_times": len(site.phase_times_s),
        **dict(zip(PHASE_COLUMNS, phases, strict=True)),
        "slice_thick": site.spacing_mm[0],
        "xy_spacing": site.spacing_mm[1],
    }


def _make_one(row, config, folder):
    """Make and write one patient unless its record says that it is complete; returns the record."""
    if record := read_record(folder, row["patient"]):
        return record
    site = site_of(row, config.coarse, config.shading)
    patient = make_patient(row["seed"], row["her2"], site, bayes_auc=config.bayes_auc)
    paths = write_patient(row, patient, site, folder)
    dicoms = [path for path in paths if path.parent.name == "dce" and path.suffix == ".dcm"][:1]
    truth = {k: getattr(site, k) for k in ("manufacturer", "field_T", "bits", "gain")} | asdict(patient.truth)
    (right,) = posterior(pd.DataFrame([truth]), config.prevalence).round(6).to_dict("records")
    return write_record(
        folder,
        row["patient"],
        paths,
        series_uid=" ".join(dcmread(path, stop_before_pixels=True).SeriesInstanceUID for path in dicoms),
        metadata=_metadata_row(row, site),
        truth={"patient": row["patient"], "seed": row["seed"]} | truth | right,
    )


def _recipe(config):
    """A digest of what the cohort is made from: parameters, phantom and writers."""
    package = Path(__file__).parents[1]
    writers = [package / f"formats/{name}.py" for name in ("volume", "dicom_write", "nifti")]
    phantom = sorted(p for p in (package / "phantom").iterdir() if p.suffix in (".py", ".yaml"))
    told = [package / "formats/dicom_write.yaml", package / "cohorts/collections.yaml"]
    sources = [*phantom, *writers, *told, Path(__file__)]
    settings = {k: v for k, v in asdict(config).items() if k != "jobs"}
    return hashlib.sha256(json.dumps(settings).encode() + b"".join(p.read_bytes() for p in sources)).hexdigest()
