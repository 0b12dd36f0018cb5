"""Duke's patients in the stand-in archive: a series for each phase under the archive's own names, a segmentation
of several tissues, and IDC's clinical table."""

import shutil
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom import dcmread
from pydicom.uid import generate_uid
from rebuild import duke

from her2core.cohorts.phantom import write_patient
from her2core.formats.dicom_write import write_seg
from her2core.phantom.patient import Patient
from rehearsal import phantoms
from rehearsal.patients import Person

CLINICAL = "duke_breast_cancer_mri_clinical.csv"
_TUMOUR = "tumor_characteristics_"
# how the archive calls pre-contrast and the passes after it; its four families of names, one of them misspelt
FAMILIES = (
    ("ax dyn pre", "ax dyn 1st pass", "ax dyn 2nd pass", "ax dyn 3rd pass", "ax dyn 4th pas"),
    ("ax dynamic", *(f"Ph{k}/ax dynamic" for k in range(1, 5))),
    ("ax 3d pre", "1st ax dyn", "2nd ax dyn", "3rd ax dyn", "4th ax dyn"),
    ("t1_fl3d_tra_dynVIEWS_spair pre", *(f"t1_fl3d_tra_dynVIEWS_spair_{k} pass" for k in ("1st", "2nd", "3rd"))),
)
_SEG = "AIMI breast-tumor AI segmentation"
_TISSUES = ("Breast", "Structural Tumor")  # the segments, from 1


def write(person: Person, patient: Patient, folder: Path) -> pd.DataFrame:
    """A patient's series where the archive has them → the manifest's rows, chosen by the manifest's own rule."""
    home = folder / "raw/duke" / person.patient
    write_patient(
        {"patient": person.patient, "dataset": "duke"}, patient, phantoms.site_for(person), folder / "raw"
    )
    names = FAMILIES[person.seed % len(FAMILIES)][: len(patient.series.array)]
    rows = [_phase(person, k, name, home, folder) for k, name in enumerate(names)]
    rows.append(_segmentation(person, patient, home, folder, rows[0]["StudyInstanceUID"]))
    shutil.rmtree(home)
    manifest, out = duke(pd.DataFrame(rows))
    if len(manifest) != 4 or len(out):
        raise RuntimeError(f"{person.patient}: {names} gave {manifest.to_dict('list')}, {out.to_dict('list')}")
    return manifest


def _row(person, name, target, header, **more):
    """What the archive's index says of a series."""
    sizes = [path.stat().st_size for path in target.iterdir()]
    row = {"collection_id": "duke_breast_cancer_mri", "PatientID": person.patient, "SeriesDescription": name}
    row |= {"SeriesInstanceUID": header.SeriesInstanceUID, "StudyInstanceUID": header.StudyInstanceUID}
    row |= {"crdc_series_uuid": target.name, "aws_bucket": target.parent.name, "Modality": header.Modality}
    row |= {"instanceCount": len(sizes), "series_size_MB": sum(sizes) / 1e6, "idc_version": 25}
    row |= {"license_short_name": "CC BY-NC 4.0", "source_DOI": "10.7937/tcia.e3sv-re93"}
    return row | {"analysis_result_id": ""} | more


def _target(folder, bucket, person, name):
    target = folder / "served" / bucket / str(uuid.uuid5(uuid.NAMESPACE_OID, f"{person.patient} {name}"))
    target.mkdir(parents=True)
    return target


def _phase(person, number, name, home, folder):
    """One phase as a series of its own: nothing but the clock tells its place among the others."""
    target = _target(folder, "idc-open-data-cr", person, name)
    uid = generate_uid(entropy_srcs=[person.patient, name])
    for path in sorted((home / "dce").iterdir()):
        dataset = dcmread(path)
        if dataset.TemporalPositionIdentifier == number + 1:
            del dataset.TemporalPositionIdentifier, dataset.NumberOfTemporalPositions
            dataset.SeriesInstanceUID, dataset.SeriesDescription = uid, name
            dataset.save_as(target / path.name)
    return _row(person, name, target, dcmread(next(target.iterdir()), stop_before_pixels=True))


def _segmentation(person, patient, home, folder, study):
    """The segmentation of the whole breast and of the tumour in it."""
    target = _target(folder, "idc-open-data", person, _SEG)
    labels = np.where(patient.annotator_mask, 2, patient.body_mask).astype(np.uint8)
    about = {"series_description": _SEG, "study_description": "MRI BREAST"}
    geometry, path = patient.series.geometry, target / "seg.dcm"
    write_seg(labels, geometry, path, meaning="segments", patient_id=person.patient, **about)
    dataset = dcmread(path)
    for segment, tissue in zip(dataset.SegmentSequence, _TISSUES, strict=True):
        segment.SegmentLabel = segment.SegmentDescription = tissue
        segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = tissue
    dataset.save_as(path)
    more = {"analysis_result_id": "bamf_aimi_annotations", "license_short_name": "CC BY 4.0"}
    return _row(person, _SEG, target, dataset, StudyInstanceUID=study, **more)


def clinical(people: list[Person]) -> pd.DataFrame:
    """IDC's table: the columns that the study reads, in the codes of the collection's legend, and the trap."""
    rows = []
    for person in people:
        her2 = 2 if person.odd == "equivocal" else person.her2
        row = {"dicom_patient_id": person.patient, "demographics_date_of_birth_days": -365.25 * person.age}
        row |= {"demographics_menopause_at_diagnosis": int(person.menopause == "post")}
        row |= {f"{_TUMOUR}{name}": value for name, value in (("er", person.hr), ("pr", 0), ("her2", her2))}
        bilateral = int(person.odd == "bilateral")
        row[f"{_TUMOUR}bilateral_information_bilateral_breast_cancer"] = bilateral
        row |= {f"{_TUMOUR}her2_for_the_other_side": 1 - person.her2, f"{_TUMOUR}side_annotated": "L"}
        row |= {f"{_TUMOUR}tumor_location": "L", "mri_technical_information_field_strength_tesla": 1}
        row |= {"mri_technical_information_manufacturer": 0}
        rows.append(row | {"mri_technical_information_manufacturer_model_name": 2})
    return pd.DataFrame(rows)
