"""The real cohort: from the public archives to three cropped phases per patient, all in one layout.

I-SPY2 and AMBL come as DICOM series from the NCI Imaging Data Commons (IDC), by the pinned manifests; I-SPY1 from
BreastDCEDL's MinCrop release on Zenodo, because only that has all of its 167 patients with a known HER2 status.
I-SPY2 may come from either.  The 166 GB of series are never on disk together: patient by patient they are
downloaded, read, cropped as MinCrop crops, stored, and deleted.

<folder>/
    <dataset>/dce/*.nii.gz, <dataset>/mask/*.nii.gz   BreastDCEDL's layout, pre, early and late phase
    downloads/                                         unfinished: a patient's series, a release's file.  Those of a
                                                       patient that failed stay, and the next run continues there
"""

import hashlib
import json
import re
import shutil
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from her2core.cohorts import manifest
from her2core.cohorts.labels import breastdcedl_phases, index_lesion, read_ambl_clinical, read_breastdcedl_table
from her2core.cohorts.transfer import Unreachable, check_reachable, check_space, fetch_file, fetch_series
from her2core.config import root
from her2core.formats.dicom import read_dce
from her2core.formats.nifti import mask_file, min_crop, phase_files, write_breastdcedl
from her2core.formats.seg import read_seg, read_seg_labels
from her2core.formats.volume import PHASE_COLUMNS, DceSeries, Phases, nearest_phases
from her2core.parallel import each
from her2core.records import read_record, whole, write_record

_MINCROP = {  # of Zenodo record 18114231: file, MD5
    "spy2": ("BreastDCEDL_ISPY2_min_crop.tar.gz", "2f1a00310bd00d344664319fb7bd679c"),
    "spy1": ("BreastDCEDL_ISPY1_min_crop.tar.gz", "d2d2630940a861819e6a385877f45ba5"),
    "table": ("BreastDCEDL_metadata_min_crop.csv", "d58b84d0f343b4b8338cbb222e6dda08"),
}
_BREASTDCEDL = {"spy2": (982, 982), "spy1": (172, 167)}  # its patients, and those with a HER2 status
_KEPT_MB = 16.7  # per patient: three cropped phases, uncompressed; 16.4 GB over the 982 of I-SPY2
_MEANING = {"spy2": "tumour_is_zero", "spy1": "segments"}


@dataclass(frozen=True)
class ArchiveConfig:
    """Where the real cohort comes from, and what is kept of it.

    source: "archive".  collections: {spy2, spy1, ambl} → idc or zenodo; one that is left out is not fetched.
    ambl_clinical: the collection's spreadsheet, to be downloaded by hand from its page at TCIA; relative to the
        compendium.  ambl_her2: values of its column HER2 [SII] → 1, 0 or null (equivocal); public projects read
        this column in opposite ways, so the sheet's own legend decides, and a value not listed stops the run.
    early_s, late_s: wanted times after the first phase, in seconds, where no table names the phases (AMBL).
    ambl_phases: indices of pre, early and late instead, where the files have no times either; null: by time.
    crop_px, margin_slices: MinCrop keeps 256 × 256 pixels around the tumour and two slices beyond it.
    allow_missing: false ends with an error when an expected patient could not be obtained or read; true goes on
        without.  Patients that the manifests leave out are known beforehand and no error.  Either way a patient
        that is missing has a row that says why.
    idc, zenodo: addresses.  connections: at once, per patient.  jobs: patients at once.
    """

    source: str
    collections: dict[str, str]
    ambl_clinical: str
    ambl_her2: dict[str, int | None]
    early_s: float
    late_s: float
    ambl_phases: tuple[int, int, int] | None
    crop_px: int
    margin_slices: int
    allow_missing: bool
    idc: str
    zenodo: str
    connections: int
    jobs: int

    def __post_init__(self):
        if self.source != "archive":
            raise ValueError(f"source={self.source!r}: expected archive")
        allowed = {"spy2": ("idc", "zenodo"), "spy1": ("idc", "zenodo"), "ambl": ("idc",)}
        for name, where in self.collections.items():
            if where not in allowed.get(name, ()):
                raise ValueError(f"collections: {name} from {where!r}, expected one of {allowed}")


def _read_series(dataset):
    """A collection's manifest → series of the patients with images and SEG; {patient: why not} for the others."""
    folder = root() / "manifests"
    table = manifest.read_manifest(folder / f"{manifest.MANIFESTS[dataset]}.csv")
    out = pd.read_csv(folder / "excluded.csv", index_col="patient")["reason"].to_dict()
    out |= dict.fromkeys(set(table["patient"]) - set(table.loc[table["role"] == "seg", "patient"]), "no tumour SEG")
    return table[~table["patient"].isin(list(out))], out


def _under_way_gb(series, config):
    """The most that is in downloads/ at a time."""
    return series.groupby("patient")["size_MB"].sum().max() / 1000 * max(config.jobs, 1)


def plan(config: ArchiveConfig, series: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What obtaining the cohort takes, by collection; GB are NaN where unknown.  series: of those from IDC."""
    rows = []
    for dataset, where in config.collections.items():
        if where == "idc":
            row = manifest.totals(series[dataset])
        else:
            row = {"patients": _BREASTDCEDL[dataset][0], "series": 0, "instances": 1, "GB": np.nan}
            row["licences"] = [manifest.MINCROP_LICENCE]
        rows.append({"collection": dataset, "from": where} | row | {"kept_GB": row["patients"] * _KEPT_MB / 1000})
    table = pd.DataFrame(rows).rename(columns={"instances": "files", "GB": "download_GB"})
    return table.assign(licences=table["licences"].str.join(", "))


def describe(config: ArchiveConfig) -> str:
    """The plan in words; needs no network."""
    series = {dataset: _read_series(dataset)[0] for dataset, where in config.collections.items() if where == "idc"}
    table = plan(config, series)
    size, kept = table["download_GB"].sum(), table["kept_GB"].sum()
    peak = kept + max((_under_way_gb(part, config) for part in series.values()), default=0.0)
    hours = size * 8 / 3600  # at 1 Gbit/s
    patients = f"Patients: {table['patients'].sum():,}"
    if known := [_BREASTDCEDL[d][1] for d in config.collections if d in _BREASTDCEDL]:
        patients += f"; HER2 status known in BreastDCEDL: {' + '.join(map(str, known))} = {sum(known):,}"
    lines = [
        table.round(1).to_string(index=False, na_rep="unknown") + "\n",
        patients,
        f"Download: {size:.1f} GB; {hours / 0.1:.1f} h at 0.1 Gbit/s, {hours:.1f} h at 1 Gbit/s",
        f"Disk: up to {peak:.0f} GB, of which {kept:.0f} GB stay; series are deleted patient by patient",
    ]
    if table["download_GB"].isna().any():
        lines += ["On top of both: Zenodo's part, whose size only its server tells (all of MinCrop: 22 to 25 GB)"]
    return "\n".join(lines)


def _fetch_patient(series, folder, config):
    """All series of a patient, one SEG among them → folders of the DCE series, and the SEG file.

    Raises as `fetch_series` does.
    """
    dce = []
    for number, one in enumerate(series):
        target = folder / f"{one['role']}{number}"
        fetch_series(one, target, config.idc, config.connections)
        if one["role"] == "dce":
            dce.append(target)
        else:
            seg = next(p for p in target.iterdir() if not p.name.startswith("."))
    return dce, seg


def _phases_of(row, times_s, config):
    """Pre, early and late: the table's, else MinCrop's rule for I-SPY, else by time after contrast."""
    if named := Phases.named(row):
        return named
    if row["dataset"] != "ambl":
        return Phases(*breastdcedl_phases(len(times_s)))
    if config.ambl_phases is not None:
        return Phases(*config.ambl_phases)
    return nearest_phases(times_s, config.early_s, config.late_s)


def _tumour(row, lesions, seg, series):
    """The mask of a patient's tumour, bool `(Z, Y, X)`.

    AMBL has a segment per lesion, benign ones too, and its table counts lesions: where both count as many, the
    segments are in the table's order; otherwise nothing tells which is which, and that is a ValueError.
    """
    shape = series.array.shape[1:]
    if row["dataset"] != "ambl":
        return read_seg(seg, series.geometry, shape, meaning=_MEANING[row["dataset"]])
    labels = read_seg_labels(seg, series.geometry, shape)
    found = len(np.unique(labels)) - 1
    if found != lesions["count"]:
        raise ValueError(f"{seg.name}: {found} segments, expected {lesions['count']}, one per lesion of the table")
    mask = np.isin(labels, lesions["malignant"])
    if not mask.any():
        raise ValueError(f"{seg.name}: segments {lesions['malignant']}, the malignant lesions, are empty")
    return mask


def _crop_patient(row, lesions, dce, seg, folder, config):
    """Write a patient's three cropped phases and mask in BreastDCEDL's layout; returns the paths, and what the
    images say of the patient in the table's columns.  Early and late may be one phase, and are then one file."""
    series = read_dce(*dce)
    mask = _tumour(row, lesions, seg, series)
    chosen = _phases_of(row, series.times_s, config)
    chosen.check(len(series.array))
    phases, cropped, _ = min_crop(series.array[list(chosen)], mask, config.margin_slices, config.crop_px)
    small = DceSeries(phases, series.geometry, (float("nan"),) * 3)
    home = folder / row["dataset"]
    for stale in home.glob(f"dce/{row['pid']}_*"):  # of an earlier recipe, perhaps with other phases
        stale.unlink()
    write_breastdcedl(small, cropped, home, patient_id=row["pid"], cohort=row["dataset"], phases=chosen)
    paths = [*phase_files(home, row["pid"]).values(), mask_file(home, row["pid"])]
    z_mm, _, x_mm = series.geometry.spacing_mm
    found = dict(zip(PHASE_COLUMNS, chosen, strict=True)) | {"n_times": len(series.array)}
    found |= {"slice_thick": z_mm, "xy_spacing": x_mm, "layout": "breastdcedl", "mask_voxels": int(mask.sum())}
    return paths, found


def _recipe(config, row, series, lesions):
    """Digest of all that a patient's stored files depend on: not the table's labels, which `_complete` adds."""
    settings = [config.early_s, config.late_s, config.ambl_phases, config.crop_px, config.margin_slices]
    text = json.dumps([settings, [row[c] for c in PHASE_COLUMNS], [s["crdc_series_uuid"] for s in series], lesions])
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(job, config, folder):
    """The record of a patient whose files are complete and of today's recipe; None otherwise."""
    record = read_record(folder, job[0]["pid"])
    return record if record and record["recipe"] == _recipe(config, *job) else None


def _get_patient(job, config, folder):
    """One patient from IDC → its record, or the reason why there is none.  job: row, series, lesions (AMBL only).

    If that fails, the series stay in downloads/<patient>, and the next run fetches only what is missing there.
    """
    row, series, lesions = job
    if record := _stored(job, config, folder):
        return record
    raw = folder / "downloads" / row["pid"]
    try:
        dce, seg = _fetch_patient(series, raw, config)
        paths, found = _crop_patient(row, lesions, dce, seg, folder, config)
    except Unreachable:
        raise
    except (ValueError, OSError) as error:
        return {"layout": "breastdcedl", "reason": f"not usable: {error}"}
    uids = " ".join(s["SeriesInstanceUID"] for s in series)
    record = write_record(folder, row["pid"], paths, recipe=_recipe(config, *job), series_uid=uids, found=found)
    shutil.rmtree(raw)
    return record


def _get_idc(dataset, rows, lesions, config, folder):
    """A collection from IDC, several patients at once → {patient: its record, or the reason why there is none}."""
    series, out = _read_series(dataset)
    parts = {patient: part.to_dict("records") for patient, part in series.groupby("patient")}
    jobs = [(row, parts[row["pid"]], lesions.get(row["pid"])) for row in rows if row["pid"] in parts]
    if new := sum(_stored(job, config, folder) is None for job in jobs):
        check_reachable(config.idc)
        check_space(new * _KEPT_MB / 1000 + _under_way_gb(series, config), folder)
    made = each(partial(_get_patient, config=config, folder=folder), jobs, config.jobs, dataset)
    results = {patient: {"reason": f"no series in the archive: {why}"} for patient, why in out.items()}
    return results | {row["pid"]: result for (row, *_), result in zip(jobs, made, strict=True)}


def _unpack(archive, home, dataset):
    """MinCrop's tar → <home>/dce and <home>/mask; only files named as the release names them are written."""
    file = rf"[A-Za-z0-9_][A-Za-z0-9_-]*_{dataset}_[A-Za-z0-9_]+\.nii(?:\.gz)?"
    pattern = re.compile(rf"(?:[^/]+/)*(dce|mask)/({file})")
    with tarfile.open(archive, "r|*") as tar:
        for member in tqdm(tar, desc=f"unpack {archive.name}", unit="file"):
            match = pattern.fullmatch(member.name)
            target = home / match[1] / match[2] if match and member.isfile() else None
            if target is None or (target.is_file() and target.stat().st_size == member.size):
                continue
            with whole(target) as part, open(part, "wb") as out:
                shutil.copyfileobj(tar.extractfile(member), out)


def _get_mincrop(dataset, rows, config, folder):
    """A collection of the MinCrop release → {patient: its record, or the reason why there is none}."""
    name, md5 = _MINCROP[dataset]
    known = {row["pid"]: read_record(folder, row["pid"]) for row in rows}
    if missing := [pid for pid, record in known.items() if record is None or record["recipe"] != md5]:
        archive = fetch_file(f"{config.zenodo}/{name}/content", folder / "downloads" / name, md5)
        _unpack(archive, folder / dataset, dataset)
        known |= {pid: _keep_mincrop(pid, folder, dataset, md5) for pid in missing}
        archive.unlink()
    return known


def _keep_mincrop(patient, folder, dataset, md5):
    """The record of one unpacked patient, or the reason why there is none."""
    try:
        files, mask = phase_files(folder / dataset, patient), mask_file(folder / dataset, patient)
    except ValueError as error:
        return {"layout": "breastdcedl", "reason": f"not usable: {error}"}
    found = {"layout": "breastdcedl", **dict(zip(PHASE_COLUMNS, files, strict=False))}
    return write_record(folder, patient, [*files.values(), mask], recipe=md5, series_uid="", found=found)


def _plain(value):
    """A table's value as JSON has it; missing is None."""
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def _clinical_rows(config, folder):
    """Rows of BreastDCEDL's table and of AMBL's spreadsheet, in the same columns; and AMBL's lesions by patient."""
    parts, lesions = [], {}
    if "ambl" in config.collections:  # first, so that a missing sheet is noticed before anything is downloaded
        sheet = root() / config.ambl_clinical
        if not sheet.is_file():
            raise ValueError(
                f"{config.ambl_clinical}: no such file; download the clinical spreadsheet from the page of "
                "Advanced-MRI-Breast-Lesions at TCIA (10.7937/c7x1-yn57), or remove ambl from `collections`"
            )
        table, lesions = _ambl_table(read_ambl_clinical(sheet, config.ambl_her2))
        parts.append(table)
    if set(config.collections) & {"spy1", "spy2"}:
        name, md5 = _MINCROP["table"]
        path = fetch_file(f"{config.zenodo}/{name}/content", folder / name, md5)
        table = read_breastdcedl_table(path)
        parts.append(table[table["dataset"].isin(list(config.collections))].assign(reason=""))
    rows = pd.concat(parts, ignore_index=True).to_dict("records")
    return [{name: _plain(value) for name, value in row.items()} for row in rows], lesions


def _ambl_table(lesions):
    """AMBL's patients in BreastDCEDL's columns; {patient: count of lesions in the sheet, malignant ones}."""
    known, table = index_lesion(lesions)
    counted = lesions[lesions["malignant"].notna()].groupby("patient").size()
    malignant = known.groupby("patient")["lesion"]
    return table, {p: {"count": int(counted[p]), "malignant": part.tolist()} for p, part in malignant}


def _complete(row, result):
    """A patient's record with the table's present row, or that row with the reason why there is no record.

    What the files say takes precedence over the table, except for phases that it names: they chose the files.
    """
    if "files" not in result:
        return row | result
    named = {c: row[c] for c in PHASE_COLUMNS if row[c] is not None}
    return result | {"metadata": row | result["found"] | named}


def get(config: ArchiveConfig, folder: Path) -> tuple[list[dict], list[dict]]:
    """Get all patients that can be obtained → records of the complete ones, rows with a reason of the others.

    A reason that begins with "not usable" is a failure; a patient whom the manifests do not mention is one, too.
    All others were known beforehand: the table or excluded.csv rules the patient out, or the manifest has no SEG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, lesions = _clinical_rows(config, folder)
    results = [row for row in rows if row["reason"]]
    unlisted = {"reason": "not usable: neither in the manifest nor in manifests/excluded.csv"}
    for dataset, where in config.collections.items():
        todo = [row for row in rows if row["dataset"] == dataset and not row["reason"]]
        if where == "zenodo":
            known = _get_mincrop(dataset, todo, config, folder)
        else:
            known = _get_idc(dataset, todo, lesions, config, folder)
        results += [_complete(row, known.get(row["pid"], unlisted)) for row in todo]
    return [r for r in results if "files" in r], [r for r in results if "files" not in r]
