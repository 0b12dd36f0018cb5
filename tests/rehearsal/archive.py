"""What the archives would serve, in their layout and under their identifiers; made once for the same inputs.

FOLDER/
    served/<bucket>/<crdc_series_uuid>/*.dcm        I-SPY2, AMBL and Duke
    served/records/<record>/files/*                 I-SPY1 as MinCrop's tar, BreastDCEDL's table
    manifests/*.csv                                 with the true number and size of files, and MD5 in releases.csv
    labels/                                         AMBL's sheet, and IDC's table of Duke
    weights/                                        pretrained networks, real in keys and shapes, random in values
    alone/<patient>/                                manifests and sheet of one patient of real size
"""

import csv
import hashlib
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pandas as pd

from her2core.cohorts.collections import collections
from her2core.cohorts.phantom import write_patient
from her2core.config import root
from her2core.formats.dicom_file import read_dataset
from her2core.formats.nifti import min_crop, write_breastdcedl
from her2core.formats.volume import DceSeries
from her2core.parallel import each
from her2core.records import whole
from rehearsal import duke, phantoms
from rehearsal.patients import ODD, REAL_SIZE, Person, Size, draw
from rehearsal.weights import make_weights

RECORD = 18114231  # of Zenodo
TAR, TABLE = "BreastDCEDL_ISPY1_min_crop.tar.gz", "BreastDCEDL_metadata_min_crop.csv"
SHEET = "Advanced-MRI-Breast-Lesions-DA-Clinical-Jan112024.xlsx"
_INTEGERS = ["HER2"]  # with gaps


def make_archive(size: Size, folder: Path, with_weights: bool = True) -> list[Person]:
    """Fill `folder`, unless the same inputs filled it before; returns who is in it."""
    people, stamp = draw(size, root() / "manifests"), folder / "inputs"
    digest = _inputs(size, with_weights)
    if stamp.is_file() and stamp.read_text() == digest:
        return people
    shutil.rmtree(folder, ignore_errors=True)
    jobs = -1 if size.real else 1  # the start of a process takes longer than many small patients
    written = each(partial(_write, folder=folder), people, jobs, "stand-in archive")
    _write_release(written, folder)
    _write_tables(people, written, folder)
    for pid in REAL_SIZE if size.real else ():
        _single_out(pid, folder)
    shutil.rmtree(folder / "raw")
    if with_weights:
        make_weights(folder / "weights")
    with whole(stamp) as part:
        part.write_text(digest)
    return people


def _inputs(size, with_weights):
    """Digest of all that the archive's bytes depend on."""
    package, own = root() / "her2core", ("archive", "duke", "patients", "phantoms", "weights")
    sources = [*package.glob("phantom/*"), *package.glob("formats/*.py")]
    sources += [Path(__file__).with_name(f"{name}.py") for name in own]
    sources += [package / "cohorts/phantom.py", *(root() / "manifests").glob("*.csv")]
    content = b"".join(path.read_bytes() for path in sorted(sources) if path.is_file())
    return hashlib.sha256(repr((size, with_weights)).encode() + content).hexdigest()


def _write(person, folder):
    """One patient's files where the archive has them → what the tables and the manifests say of it."""
    patient = phantoms.make(person)
    if person.dataset == "spy1":
        _write_mincrop(person, patient, folder / "raw")
        return {"row": phantoms.release_row(person, patient)}
    if person.dataset == "duke":
        return {"series": duke.write(person, patient, folder).to_dict("index")}
    row = {"patient": person.patient, "dataset": person.dataset}
    write_patient(row, patient, phantoms.site_for(person), folder / "raw")
    home = folder / "raw" / person.dataset / person.patient
    series = {role: _serve(person, role, home, folder) for role in ("dce", "seg")}
    shutil.rmtree(home)
    if person.dataset == "ambl":
        return {"series": series, "lesions": phantoms.lesions_of(person, patient)}
    return {"series": series, "row": phantoms.release_row(person, patient)}


def _write_mincrop(person, patient, raw):
    """The three phases that MinCrop keeps, under their indices."""
    chosen = phantoms.phases_of(person)
    phases, mask, _ = min_crop(patient.series.array[list(chosen)], patient.annotator_mask)
    small = DceSeries(phases, patient.series.geometry, (float("nan"),) * 3)
    write_breastdcedl(small, mask, raw / "spy1", patient_id=person.patient, cohort="spy1", phases=chosen)


def _manifest(dataset):
    return pd.read_csv(root() / "manifests" / f"{collections()[dataset].manifest}.csv", dtype=str)


def _serve(person, role, home, folder):
    """Move one series into its bucket under its real name; returns its row of the manifest, true to the files."""
    table = _manifest(person.dataset)
    row = table[(table["patient"] == person.patient) & (table["role"] == role)].iloc[0].to_dict()
    target = folder / "served" / row["bucket"] / row["crdc_series_uuid"]
    if role == "dce":
        target.parent.mkdir(parents=True, exist_ok=True)
        (home / "dce").rename(target)
    else:
        target.mkdir(parents=True)
        (home / "seg.dcm").rename(target / "seg.dcm")
    sizes = [path.stat().st_size for path in target.iterdir()]
    uid = str(read_dataset(next(target.iterdir())).SeriesInstanceUID)
    if person.odd == "not served":
        shutil.rmtree(target)
    return row | {"SeriesInstanceUID": uid, "instances": len(sizes), "size_MB": f"{sum(sizes) / 1e6:.6f}"}


def _write_release(written, folder):
    """Zenodo's files: the tar of I-SPY1, and the table with a patient of Duke, whom the study has to leave out."""
    files = folder / "served" / "records" / str(RECORD) / "files"
    files.mkdir(parents=True)
    with tarfile.open(files / TAR, "w:gz", compresslevel=1) as tar:
        tar.add(folder / "raw/spy1", TAR.removesuffix(".tar.gz"))
    rows = [w["row"] for w in written if "row" in w]
    duke = rows[0] | {"pid": "Breast_MRI_001", "dataset": "duke"}
    pd.DataFrame([*rows, duke]).astype(dict.fromkeys(_INTEGERS, "Int64")).to_csv(files / TABLE, index=False)


def _write_tables(people, written, folder):
    """Manifests, AMBL's sheet with two lines above its rows, and the table of Duke."""
    (folder / "manifests").mkdir()
    for dataset, collection in collections().items():
        rows = [s for p, w in zip(people, written, strict=True) if p.dataset == dataset for s in _series_of(w)]
        if dataset == "spy1":  # from Zenodo; the manifest says what IDC has
            table = _manifest(dataset)
            rows = table[table["patient"].isin([p.patient for p in people])]
        pd.DataFrame(rows).to_csv(
            folder / "manifests" / f"{collection.manifest}.csv", index=False, float_format="%.6f"
        )
    shutil.copy(root() / "manifests/excluded.csv", folder / "manifests")
    md5 = {TAR: "spy1", TABLE: "table"}
    rows = [(name, file, _md5(folder, file)) for file, name in md5.items()]
    rows.insert(0, ("spy2", "BreastDCEDL_ISPY2_min_crop.tar.gz", "0" * 32))
    with open(folder / "manifests/releases.csv", "w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([("dataset", "file", "md5"), *rows])
    (folder / "labels").mkdir()
    table = duke.clinical([p for p in people if p.dataset == "duke"])
    table.to_csv(folder / "labels" / duke.CLINICAL, index=False)
    sheet = pd.DataFrame([w["lesions"] for w in written if "lesions" in w])
    excluded = pd.read_csv(folder / "manifests/excluded.csv").query("collection == 'advanced_mri_breast_lesions'")
    stranger = sheet.iloc[[0]].assign(**{"Patient ID": excluded["patient"].iloc[0]})  # a case without a mask
    pd.concat([sheet, stranger]).to_excel(folder / "labels" / SHEET, index=False, startrow=1)


def _series_of(written):
    return list(written.get("series", {}).values())


def _md5(folder, file):
    return hashlib.md5((folder / "served/records" / str(RECORD) / "files" / file).read_bytes()).hexdigest()


def _single_out(pid, folder):
    """The manifests and the sheet of one patient, for measuring it alone."""
    home = folder / "alone" / pid
    shutil.copytree(folder / "manifests", home / "manifests")
    for name in ("ispy2", "ambl"):
        table = pd.read_csv(home / f"manifests/{name}.csv", dtype=str)
        if (own := table[table["patient"] == pid]).size:
            own.to_csv(home / f"manifests/{name}.csv", index=False, float_format="%.6f")
    sheet = pd.read_excel(folder / "labels" / SHEET, header=1)
    sheet[sheet["Patient ID"] == pid].to_excel(home / SHEET, index=False, startrow=1)


def check_reasons(people: list[Person], found: dict[str, str]) -> None:
    """found: {patient: kind of reason} of those who are not used.  RuntimeError unless these are the odd ones, each
    for its own reason, and the case of AMBL's sheet that has no mask."""
    expected = {person.patient: ODD[person.odd][1] for person in people if person.odd}
    others = {p: why for p, why in found.items() if p not in expected and why != "no series in the archive"}
    wrong = {p: found.get(p) for p, why in expected.items() if found.get(p) != why} | others
    if wrong:
        raise RuntimeError(f"not used, or used after all: {wrong}; expected {expected}")
