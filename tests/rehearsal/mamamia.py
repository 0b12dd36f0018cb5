"""MAMA-MIA's release in its layout, filled with phantoms, and a study on it: table, check, all stages."""

from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import SimpleITK as sitk
from ruamel.yaml import YAML

from her2core.cohorts.phantom import site_of
from her2core.config import read_yaml
from her2core.formats.volume import to_sitk
from her2core.phantom.patient import make_patient
from her2core.phantom.truth import draw_clinical
from rehearsal.compendium import overridden, run

NAME = "mamamia"
# the sheet's columns in their order
COLUMNS = """patient_id dataset bilateral_breast_cancer multifocal_cancer nac_agent endocrine_therapy
    anti_her2_neu_therapy pcr mastectomy_post_nac days_to_follow_up days_to_recurrence days_to_metastasis
    days_to_death hr er pr her2 mammaprint oncotype_score nottingham_grade tumor_subtype age menopause ethnicity
    has_implant weight patient_size bmi_group view bilateral_mri num_phases fat_suppressed field_strength image_rows
    image_columns num_slices pixel_spacing slice_thickness site manufacturer scanner_model high_bit window_center
    window_width echo_time repetition_time acquisition_times acquisition_date tcia_series_uid""".split()
# per collection: identifiers, the phantom's site, patients in training and test
_PEOPLE = {
    "ISPY2": ("ISPY2_1{:05d}", "spy2", 16, 6),
    "ISPY1": ("ISPY1_1{:03d}", "spy1", 12, 4),
    "DUKE": ("DUKE_{:03d}", "ambl", 12, 4),
    "NACT": ("NACT_{:02d}", "spy1", 4, 2),
}
_SMALL = {
    "runs": ["thda-channel_q98-raw", "thda-n4"],
    "prepare": {"crop_px": 32, "slices": 3, "n4": {"iterations": [5]}, "neighbours": False},
    "models": {"thda": {"width": 8}},
    "train": {"seeds": [0, 1], "epochs": 2, "batch_size": 8},
    "evaluate": {"bootstrap": 200},
}


def make_release(folder: Path) -> int:
    """Write the release; returns how many patients it has."""
    (folder / "segmentations/expert").mkdir(parents=True)
    rng, rows, splits = np.random.default_rng(11), [], {"train_split": [], "test_split": []}
    for dataset, (name, site, train, test) in _PEOPLE.items():
        for k in range(train + test):
            row = _patient(name.format(k + 1), dataset, site, k, rng, folder)
            rows.append(row)
            splits["train_split" if k < train else "test_split"].append(row["patient_id"])
    book = openpyxl.Workbook()
    book.active.title = "dataset_info"
    for line in (COLUMNS, *([row.get(c) for c in COLUMNS] for row in rows)):
        book.active.append(line)
    book.save(folder / "clinical_and_imaging_info.xlsx")
    columns = {name: pd.Series(patients) for name, patients in splits.items()}
    pd.DataFrame(columns).to_csv(folder / "train_test_splits.csv", index=False)
    return len(rows)


def _patient(name, dataset, site, number, rng, folder):
    """One patient's images and expert mask → its row of the sheet."""
    her2, seed = number % 2, 70_000 + 100 * len(dataset) + number
    protocol = site_of({"dataset": site, "seed": seed}, 2)
    patient = make_patient(seed, her2, protocol, bayes_auc=0.95)
    home, geometry = folder / "images" / name, patient.series.geometry
    home.mkdir(parents=True)
    for k, phase in enumerate(patient.series.array):
        sitk.WriteImage(to_sitk(phase, geometry), str(home / f"{name.lower()}_{k:04d}.nii.gz"))
    mask = to_sitk(patient.annotator_mask.astype(np.uint8), geometry)
    sitk.WriteImage(mask, str(folder / f"segmentations/expert/{name.lower()}.nii.gz"))
    clinical = draw_clinical(rng, her2=her2)
    row = {"patient_id": name, "dataset": dataset, "her2": her2, "hr": clinical["hr"], "age": clinical["age"]}
    row |= {"menopause": clinical["menopause"], "pcr": number % 3 // 2, "num_phases": len(patient.series.array)}
    times = ", ".join(f"{t:g}" for t in patient.series.times_s)
    return row | {"acquisition_times": f"[{times}]", "tcia_series_uid": f"1.3.6.1.4.1.14519.{seed}"}


def rehearse(top: Path) -> str:
    """The release in `top`/data, its table, its check, and the study to report.html → the counts of the check."""
    people = make_release(top / "data/release")
    run(top, "python", "-m", "her2core.cohorts.mamamia", "data/release")
    run(top, "python", "-m", "her2core.study", "study", NAME, "--table", "data/release/patients.csv")
    params = top / f"studies/{NAME}/params.yaml"
    values = overridden(read_yaml(params), _SMALL)
    with open(params, "w") as out:
        YAML().dump(values, out)
    said = run(top, "python", "-m", "her2core.study", "check", NAME).splitlines()
    if len([line for line in said if "label" in line and "OUT" not in line]) != people:
        raise RuntimeError("MAMA-MIA: " + "\n".join(said))
    run(top, "dvc", "repro", f"studies/{NAME}/dvc.yaml")
    return "\n".join(said[people:])
