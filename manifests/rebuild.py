"""Rebuild the manifests:  python manifests/rebuild.py [TABLE]          (pip install -e .[dev])

Found by rule in the offline index of the NCI Imaging Data Commons (package idc-index-data), never by hand.
Every patient of a collection is either in its manifest or a row with a reason in excluded.csv.  The archive
cannot tell which patients of I-SPY2 are in BreastDCEDL: the column `pid` of TABLE, BreastDCEDL's table of I-SPY2,
does, or without TABLE the present manifest.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy
import sys
from pathlib import Path

import pandas as pd

from her2core.cohorts.manifest import IDC_COLLECTIONS, MANIFEST_COLUMNS, read_manifest
from her2core.records import whole

_RULED_BY = "StudyInstanceUID StudyDate StudyDescription Modality SeriesDescription SeriesNumber".split()
_RULED_BY += ["analysis_result_id"]
_INDEX_COLUMNS = (*(n for n, _ in MANIFEST_COLUMNS.values() if n not in ("role", "idc_version")), *_RULED_BY)
_BREASTDCEDL_ISPY2 = 982  # patients
_T0 = ("ISPY2_MRI_T0", "ACRIN-6698_ISPY2_MRI_T0")
_DCE, _MASK, _SER = ": original DCE", ": Analysis Mask", ": SER"
_VOI_SEG = "VOI PE Segmentation thresh="
_REGISTERED = "Registered AX Sen Vibrant MultiPhase"
_PASS = "(?P<phase>[1-9])(?:st|nd|rd|th)"
_DUKE_PHASES = {  # family of names: how a dynamic series is called; without a number it is before contrast
    "pass": rf"(?P<sequence>ax (?:3d )?dyn) (?:pre|{_PASS} pass?)",  # one is misspelt
    "Ph": "(?:Ph(?P<phase>[1-9])/)?(?P<sequence>ax (?:3d )?dyn(?: MP)?|ax dynamic|Ax Vibrant MultiPhase)",
    "number first": rf"ax 3d pre|{_PASS} (?P<sequence>ax dyn)",
    "Siemens": rf"(?P<sequence>t1_fl3d_tra_dynVIEWS_spair)[ _]*(?:pre|{_PASS} pass?)",
}
_BAMF = "bamf_aimi_annotations"
_DUKE_SEG = "AIMI breast-tumor (?:AI|radiologist [0-9]+ corrected) segmentation"


def _read_index(columns, collections):
    """Rows of some collections as a frame, plus `idc_version`; missing text is ""."""
    # imported here: reading a manifest needs neither package
    import idc_index_data
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    index = pyarrow.parquet.ParquetFile(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)
    wanted = pyarrow.array(collections, pyarrow.large_string())
    batches = []  # a block of a million rows, filtered piece by piece so that it is never in memory as a whole
    for batch in index.iter_batches(20_000, columns=list(columns), use_threads=False):
        batches.append(batch.filter(pyarrow.compute.is_in(batch["collection_id"], wanted)))
    frame = pyarrow.Table.from_batches(batches).to_pandas()
    text = [c for c in frame if not pd.api.types.is_numeric_dtype(frame[c])]
    version = int(idc_index_data.__version__.split(".")[0])  # the package counts with the archive
    return frame.fillna(dict.fromkeys(text, "")).assign(idc_version=version)


def _one_each(series, patients, what):
    """The series of `patients`; ValueError unless each has exactly one."""
    counts = series["PatientID"].value_counts().reindex(sorted(patients), fill_value=0)
    if (counts != 1).any():
        patient = counts.index[counts != 1][0]
        found = sorted(series.loc[series["PatientID"] == patient, "SeriesDescription"])
        raise ValueError(f"{patient}: expected one {what}, found {found or 'none'}; {(counts != 1).sum()} such")
    return series[series["PatientID"].isin(patients)]


def _refuse(bad, expected, column):
    """Raise ValueError for the first of the bad rows, if there are any."""
    if len(bad):
        first = bad.iloc[0]
        raise ValueError(f"{first['PatientID']}: expected {expected}, found {column} {first[column]}")


def _manifest(dce, seg):
    """Chosen rows of the index → the manifest's columns, sorted."""
    rows = pd.concat([dce.assign(role="dce"), seg.assign(role="seg")])
    _, buckets = MANIFEST_COLUMNS["bucket"]
    _refuse(rows[~rows["aws_bucket"].str.fullmatch(buckets)], buckets, "aws_bucket")
    names = {name: column for column, (name, _) in MANIFEST_COLUMNS.items()}
    table = rows.rename(columns=names)[list(MANIFEST_COLUMNS)]
    return table.sort_values(["patient", "role", "SeriesInstanceUID"], ignore_index=True)


def _excluded(index, reasons):
    """{patient: reason} → one row each, with the collection."""
    collection = index.drop_duplicates("PatientID").set_index("PatientID")["collection_id"]
    rows = [(p, collection[p], reasons[p]) for p in sorted(reasons)]
    return pd.DataFrame(rows, columns=["patient", "collection", "reason"])


def ispy2(index: pd.DataFrame, members: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """I-SPY2 and ACRIN-6698 → manifest, excluded.  members: the patients of BreastDCEDL's table.

    The first visit is named in `StudyDescription`.  Its one series `ISPY2: VOLSER: <kind>: original DCE` holds
    all phases; BreastDCEDL's volumes are these, not the site's own series.  The SEG of the same kind is the
    Analysis Mask, an inverse code in which 0 is the tumour.
    """
    index = index[index["collection_id"].isin(("ispy2", "acrin_6698"))]
    visit = index[index["StudyDescription"].isin(_T0)]
    volser = visit["SeriesDescription"].str.fullmatch("ISPY2: VOLSER: .+" + _DCE) & (visit["Modality"] == "MR")
    found = visit[volser]
    dce = _one_each(found, members, "original DCE at T0")
    mask = dce.set_index("PatientID")["SeriesDescription"].str.removesuffix(_DCE) + _MASK
    is_mask = (visit["SeriesDescription"] == visit["PatientID"].map(mask)) & (visit["Modality"] == "SEG")
    seg = _one_each(visit[is_mask], members, "Analysis Mask at T0 of the DCE's kind")
    reasons = {p: "no study at T0" for p in set(index["PatientID"]) - set(visit["PatientID"])}
    reasons |= {p: "no original DCE at T0" for p in set(visit["PatientID"]) - set(found["PatientID"])}
    reasons |= {p: "not in BreastDCEDL's table" for p in set(found["PatientID"]) - set(members)}
    return _manifest(dce, seg), _excluded(index, reasons)


def _earliest(index):
    """The series of each patient's first study; the dates are shifted to the 1980s, but in order.

    By study, not by series: a few series have lost the date that the others of their study have.
    """
    dated = index[index["StudyDate"] != ""]
    first = dated[dated["StudyDate"] == dated.groupby("PatientID")["StudyDate"].transform("min")]
    studies = first.drop_duplicates("StudyInstanceUID")
    _refuse(studies[studies["PatientID"].duplicated()], "one earliest study", "StudyInstanceUID")
    return index[index["StudyInstanceUID"].isin(studies["StudyInstanceUID"])]


def _series_of_map(study, ser_map):
    """The DCE series that a SER map was computed from: (series, "") or (none, reason).

    The map `<base>: SER` has one instance per slice.  Its number is 10,000 times that of the first series, plus
    1000; Philips' series 101, 201, … count as 1, 2, ….  Mostly that series holds all phases, and others of its
    name, with one phase or a part of one, are repeats.  Otherwise the later series of its name hold the later
    phases, and an earlier one is a repeat.
    """
    name, slices = ser_map["SeriesDescription"].removesuffix(_SER), ser_map["instanceCount"]
    named = study[(study["SeriesDescription"] == name) & (study["Modality"] == "MR") & (name != "")]
    if named.empty:
        return named, "SER map names no series of the study"
    number = named["SeriesNumber"].astype(int)
    first = number[number.where(number < 100, number // 100) == int(ser_map["SeriesNumber"]) // 10_000]
    if len(first) != 1:
        which = f"one {name!r} that SER map {ser_map['SeriesNumber']} refers to"
        raise ValueError(f"{ser_map['PatientID']}: expected {which}, found numbers {sorted(number)}")
    alone = named.loc[first.index]
    series = alone if alone["instanceCount"].item() >= 3 * slices else named[number >= first.item()]
    _refuse(series[series["instanceCount"] % slices != 0], f"phases of {slices} slices", "instanceCount")
    if series["instanceCount"].sum() < 3 * slices:
        return series.iloc[:0], "phases under other names than the SER map's"
    return series, ""


def ispy1(index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """I-SPY1 → manifest, excluded.  One patient may have several DCE series, each with one or more phases.

    Series names differ from site to site, so the DCE is the one that the core laboratory's SER map names.
    The SEG is `VOI PE Segmentation thresh=N`: `PE Segmentation` marks all that enhances, vessels and skin too;
    only within the reader's box (VOI) is it the tumour.  It must bear the map's number plus 1100.  Where it is
    missing the patient has no SEG row.  The archive's notes say that some of these SEGs are empty.
    """
    index = index[index["collection_id"] == "ispy1"]
    first = _earliest(index)
    reasons = dict.fromkeys(set(index["PatientID"]) - set(first["PatientID"]), "no dated study")
    dce, seg = [index.iloc[:0]], [index.iloc[:0]]
    for patient, study in first.groupby("PatientID"):
        maps = study[study["SeriesDescription"].str.endswith(_SER) & (study["Modality"] == "MR")]
        if maps.empty:
            reasons[patient] = "no SER map at the earliest study"
            continue
        ser_map = _one_each(maps, [patient], "SER map").iloc[0]
        series, reason = _series_of_map(study, ser_map)
        if reason:
            reasons[patient] = reason
            continue
        masks = study[study["SeriesDescription"].str.startswith(_VOI_SEG) & (study["Modality"] == "SEG")]
        masks = masks[masks["SeriesNumber"].astype(int) == int(ser_map["SeriesNumber"]) + 1100]
        dce.append(series)
        seg.append(masks if masks.empty else _one_each(masks, [patient], "VOI PE Segmentation"))
    return _manifest(pd.concat(dce), pd.concat(seg)), _excluded(index, reasons)


def ambl(index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Advanced-MRI-Breast-Lesions → manifest, excluded: the patients with a lesion SEG, `ROI`.

    The SEG belongs to the registered series, not to the original of nearly the same name; five time points.
    """
    index = index[index["collection_id"] == "advanced_mri_breast_lesions"]
    rois = index[(index["SeriesDescription"] == "ROI") & (index["Modality"] == "SEG")]
    patients = set(rois["PatientID"])
    seg = _one_each(rois, patients, "SEG ROI")
    registered = index[(index["SeriesDescription"] == _REGISTERED) & (index["Modality"] == "MR")]
    dce = _one_each(registered, patients, _REGISTERED)
    _refuse(dce[dce["instanceCount"] % 5 != 0], "five phases", "instanceCount")
    reasons = dict.fromkeys(set(index["PatientID"]) - patients, "no lesion SEG")
    return _manifest(dce, seg), _excluded(index, reasons)


def _duke_dynamics(index):
    """Duke's dynamic series, with `family` and `sequence` by name, and `phase`: 0 before contrast, then 1, 2, …"""
    mr, found = index[index["Modality"] == "MR"], []
    for family, pattern in _DUKE_PHASES.items():
        named = mr[mr["SeriesDescription"].str.fullmatch(pattern)]
        parts = named["SeriesDescription"].str.extract(f"^(?:{pattern})$")
        phase = parts["phase"].astype(float).fillna(0).astype(int)
        found.append(named.assign(family=family, sequence=parts["sequence"], phase=phase))
    return pd.concat(found)


def _unresolved(dynamics):
    """{patient: why the names of the dynamic series do not tell three phases}."""
    twice = set(dynamics.loc[dynamics.duplicated(["PatientID", "phase"]), "PatientID"])
    several = "several dynamic series have the name of one phase: only their times tell which"
    patients = dynamics.groupby("PatientID")
    few = (patients.size() < 3) | (patients["phase"].min() > 0)
    mixed = patients[["family", "sequence"]].nunique().max(axis=1) > 1
    out = set(few.index[few | mixed])
    return dict.fromkeys(out, "no pre phase and two later ones of one sequence") | dict.fromkeys(twice, several)


def _duke_masks(index, patients):
    """The tumour segmentation of those of `patients` who have one: the radiologist's, else the network's alone."""
    masks = index[(index["analysis_result_id"] == _BAMF) & index["PatientID"].isin(patients)]
    unknown = ~masks["SeriesDescription"].str.fullmatch(_DUKE_SEG)
    _refuse(masks[unknown], f"a segmentation named {_DUKE_SEG}", "SeriesDescription")
    corrected = masks["SeriesDescription"].str.contains("corrected")
    masks = masks[corrected | ~masks["PatientID"].isin(masks.loc[corrected, "PatientID"])]
    return _one_each(masks, set(masks["PatientID"]), "tumour segmentation")


def duke(index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Duke-Breast-Cancer-MRI → manifest, excluded.  One series per phase, of which three are listed.

    Pre-contrast, the first after contrast, and the last: the phases that BreastDCEDL's table names for Duke
    (0, 1, last, as others quote it).  Where that table names others for a patient, it has precedence at run time,
    and the series listed here are not enough.  Of 922 patients 918 resolve: 479 have four phases, 430 five, 9
    three, one of the nine (Breast_MRI_700) without its first pass, so that its early phase is the second.  The
    three phases are 226 GB of the 336 GB of all.

    The SEG is BAMF's (10.5281/zenodo.8345959): 805 patients have the network's, 92 of them also a radiologist's
    correction, which is taken.  The collection's own 127 SEGs, `Segmentation`, are tissue, not tumour.  The index
    says of a SEG only the study, and each patient has one; the series it was drawn on stands in the file.
    Whoever has no SEG has no SEG row.
    """
    index = index[index["collection_id"] == "duke_breast_cancer_mri"]
    dynamics = _duke_dynamics(index).sort_values(["PatientID", "phase"])
    reasons = dict.fromkeys(set(index["PatientID"]) - set(dynamics["PatientID"]), "no dynamic series")
    reasons |= _unresolved(dynamics)
    phases = dynamics[~dynamics["PatientID"].isin(list(reasons))]
    patients = phases.groupby("PatientID")
    uneven = phases["instanceCount"] != patients["instanceCount"].transform("first")
    _refuse(phases[uneven], "as many slices as before contrast", "instanceCount")
    dce = phases[(patients.cumcount() < 2) | (patients.cumcount(ascending=False) == 0)]
    seg = _duke_masks(index, set(dce["PatientID"]))
    _refuse(seg[~seg["StudyInstanceUID"].isin(dce["StudyInstanceUID"])], "the DCE's study", "StudyInstanceUID")
    return _manifest(dce, seg), _excluded(index, reasons)


def _write_table(table, path):
    """Write a CSV, the same bytes on every system."""
    with whole(path) as part:
        part.write_bytes(table.to_csv(index=False, lineterminator="\n", float_format="%.6f").encode())


def write_manifests(out_folder: Path, members: pd.Series) -> None:
    """Write ispy2.csv, ispy1.csv, ambl.csv, duke.csv and excluded.csv; nothing is written if a rule fails.

    members: identifiers of the I-SPY2 patients that are in BreastDCEDL.
    """
    if len(set(members)) != _BREASTDCEDL_ISPY2:
        raise ValueError(f"expected BreastDCEDL's {_BREASTDCEDL_ISPY2} I-SPY2 patients, found {len(set(members))}")
    index = _read_index(_INDEX_COLUMNS, IDC_COLLECTIONS)
    made = {"ispy2": ispy2(index, set(members)), "ispy1": ispy1(index), "ambl": ambl(index), "duke": duke(index)}
    tables = {name: table for name, (table, _) in made.items()}
    out = pd.concat([out for _, out in made.values()])
    tables["excluded"] = out.sort_values(["collection", "patient"], ignore_index=True)
    for name, table in tables.items():
        _write_table(table, Path(out_folder) / f"{name}.csv")


def main(arguments: list[str]) -> None:
    """Write the five tables beside this file."""
    folder = Path(__file__).parent
    try:
        if arguments:
            members = pd.read_csv(arguments[0], usecols=["pid"], dtype=str)["pid"]
        else:
            members = read_manifest(folder / "ispy2.csv")["patient"]
        write_manifests(folder, members)
    except (ValueError, OSError) as error:
        sys.exit(f"manifest: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
