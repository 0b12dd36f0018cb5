"""The real cohort: from the public archives to three cropped phases per patient, all in one layout.

I-SPY2 and AMBL come as DICOM series from the NCI Imaging Data Commons (IDC), by the pinned manifests; I-SPY1 from
BreastDCEDL's MinCrop release on Zenodo, because only that has all of its 167 patients with a known HER2 status.
I-SPY2 may come from either.  166 GB of series never lie on disk together: patient by patient they are
downloaded, read, cropped as MinCrop crops, stored, and deleted.

<folder>/
    <dataset>/dce/*.nii.gz, <dataset>/mask/*.nii.gz   BreastDCEDL's layout, pre, early and late phase
    downloads/                                         what is under way: a patient's series, a release's file
"""

import hashlib
import json
import re
import shutil
import tarfile
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd
from tqdm import tqdm

from her2core.config import root
from her2core.dicom import read_dce, read_seg, read_seg_labels
from her2core.labels import breastdcedl_phases, index_lesion, read_ambl_clinical, read_breastdcedl
from her2core.manifest import read_manifest
from her2core.nifti import mask_file, min_crop, phase_files, write_breastdcedl
from her2core.parallel import each
from her2core.records import read_record, write_record
from her2core.transfer import Unreachable, check_reachable, check_space, fetch_file, fetch_series
from her2core.volume import DceSeries, nearest_phases

MANIFESTS = {"spy2": "ispy2", "spy1": "ispy1", "ambl": "ambl"}
MINCROP = {  # of Zenodo record 18114231: file, MD5
    "spy2": ("BreastDCEDL_ISPY2_min_crop.tar.gz", "2f1a00310bd00d344664319fb7bd679c"),
    "spy1": ("BreastDCEDL_ISPY1_min_crop.tar.gz", "d2d2630940a861819e6a385877f45ba5"),
    "table": ("BreastDCEDL_metadata_min_crop.csv", "d58b84d0f343b4b8338cbb222e6dda08"),
}
MINCROP_LICENCE = "CC BY-NC 4.0"
PUBLISHED = {"spy2": (982, 982), "spy1": (172, 167)}  # patients of BreastDCEDL, and those with a HER2 status
KEPT_MB = 16.7  # per patient: three cropped phases, uncompressed; 16.4 GB over the 982 of I-SPY2
MEANING = {"spy2": "tumour_is_zero", "spy1": "segments"}


@dataclass(frozen=True)
class ArchiveConfig:
    """Where the real cohort comes from, and what is kept of it.

    source: "archive".  collections: {spy2, spy1, ambl} → idc or zenodo; one that is left out is not fetched.
    ambl_clinical: the collection's spreadsheet, to be downloaded by hand from its page at TCIA; relative to the
        compendium.  ambl_her2: values of its column HER2 [SII] → 1, 0 or null (equivocal); public projects read
        this column in opposite ways, so the sheet's own legend decides, and a value not listed stops the run.
    early_s, late_s: wanted times after the first phase, where no table names the phases (AMBL).
    ambl_phases: indices of pre, early and late instead, where the files carry no times either; null: by time.
    crop_px, margin_slices: MinCrop keeps 256 × 256 pixels around the tumour and two slices beyond it.
    allow_missing: false ends with an error when a patient could not be had; true goes on without it, and the
        patient table says why.
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


# ------------------------------------------------------------------------------------------------------ the plan


def wanted(dataset):
    """A collection's manifest → {patient: its series, as rows}."""
    table = read_manifest(root() / "manifests" / f"{MANIFESTS[dataset]}.csv")
    return {patient: part.to_dict("records") for patient, part in table.groupby("patient", sort=True)}


def plan(config):
    """What getting the cohort means, one row per collection; without network.  GB: NaN where unknown."""
    rows = []
    for dataset, where in config.collections.items():
        if where == "zenodo":
            patients, files, licence = PUBLISHED[dataset][0], 1, {MINCROP_LICENCE}
            series, gigabytes = 0, np.nan
        else:
            table = pd.DataFrame([s for part in wanted(dataset).values() for s in part])
            patients, files, licence = table["patient"].nunique(), table["instances"].sum(), set(table["licence"])
            series, gigabytes = len(table), table["size_MB"].sum() / 1000
        row = {"collection": dataset, "from": where, "patients": patients, "series": series, "files": int(files)}
        kept = patients * KEPT_MB / 1000
        rows.append(row | {"download_GB": gigabytes, "kept_GB": kept, "licence": ", ".join(sorted(licence))})
    return pd.DataFrame(rows)


def largest_patient_gb(config):
    sizes = [
        sum(series["size_MB"] for series in part) / 1000
        for dataset, where in config.collections.items()
        if where == "idc"
        for part in wanted(dataset).values()
    ]
    return max(sizes, default=0.0)


def describe(config):
    """The plan in words."""
    table = plan(config)
    gigabytes, kept = table["download_GB"].sum(), table["kept_GB"].sum()
    peak = kept + largest_patient_gb(config) * max(config.jobs, 1)
    lines = [table.round(1).to_string(index=False), ""]
    published = [PUBLISHED[d] for d in config.collections if d in PUBLISHED]
    known = sum(n for _, n in published)
    lines.append(f"With a known HER2 status in BreastDCEDL: {' + '.join(str(n) for _, n in published)} = {known:,}")
    if table["download_GB"].isna().any():
        lines.append("Zenodo tells a file's size only when asked (all of MinCrop: 22 to 25 GB); not counted below")
    hours = gigabytes * 8 / 3600  # at 1 Gbit/s
    lines.append(f"Download: {gigabytes:.1f} GB; {hours / 0.1:.1f} h at 0.1 Gbit/s, {hours:.1f} h at 1 Gbit/s")
    lines.append(f"Disk: up to {peak:.0f} GB, of which {kept:.0f} GB stay; series are deleted patient by patient")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- IDC: series


def fetch_patient(series, folder, config):
    """All series of a patient → its folders of DCE series, and its SEG file or None."""
    dce, seg = [], None
    for number, one in enumerate(series):
        target = folder / f"{one['role']}{number}"
        fetch_series(one, target, config.idc, config.connections)
        if one["role"] == "dce":
            dce.append(target)
        else:
            seg = next(p for p in target.iterdir() if not p.name.startswith("."))
    if seg is None:
        raise ValueError("no segmentation of the tumour in the archive")
    return dce, seg


# ------------------------------------------------------------------------------------- one patient, cropped, kept


def phases_of(row, times_s, config):
    """Indices of pre, early and late: the table's, else MinCrop's rule for I-SPY, else by time after contrast."""
    named = [row.get(c) for c in ("pre", "post_early", "post_late")]
    if not any(pd.isna(k) for k in named):
        return [int(k) for k in named]
    if row["dataset"] != "ambl":
        return list(breastdcedl_phases(len(times_s)))
    if config.ambl_phases is not None:
        return list(config.ambl_phases)
    return nearest_phases(times_s, config.early_s, config.late_s)


def tumour(row, seg, series):
    """The mask of a patient's tumour, bool `(Z, Y, X)`.

    AMBL has a segment per lesion, benign ones too, and its table counts lesions: the segments are taken in the
    table's order where both count as many, else nobody can tell which is which and the patient is out.
    """
    shape = series.array.shape[1:]
    if row["dataset"] != "ambl":
        return read_seg(seg, series.geometry, shape, meaning=MEANING[row["dataset"]])
    labels = read_seg_labels(seg, series.geometry, shape)
    found = len(np.unique(labels)) - 1
    if found != row["lesions"]:
        raise ValueError(f"{found} segments for {row['lesions']} lesions of the table")
    mask = np.isin(labels, row["malignant_lesions"])
    if not mask.any():
        raise ValueError(f"segments {row['malignant_lesions']} are empty")
    return mask


def crop_patient(row, dce, seg, folder, config):
    """Series of a patient → three cropped phases and their mask in BreastDCEDL's layout; returns the paths and
    the patient's row of the table as it now is."""
    series = read_dce(*dce)
    mask = tumour(row, seg, series)
    chosen = phases_of(row, series.times_s, config)
    if not 0 <= chosen[0] < chosen[1] < chosen[2] < len(series.array):
        raise ValueError(f"phases {chosen} of {len(series.array)} are not pre < early < late")
    phases, cropped, _ = min_crop(series.array[chosen], mask, config.margin_slices, config.crop_px)
    small = DceSeries(phases, series.geometry, (float("nan"),) * 3)
    home = folder / row["dataset"]
    write_breastdcedl(
        small, cropped, home, patient_id=row["pid"], cohort=row["dataset"], phases=dict(enumerate(chosen)).values()
    )
    paths = [*phase_files(home, row["pid"]).values(), mask_file(home, row["pid"])]
    z_mm, _, x_mm = series.geometry.spacing_mm
    return paths, {
        **{k: v for k, v in row.items() if k not in ("lesions", "malignant_lesions")},
        **dict(zip(("pre", "post_early", "post_late"), chosen, strict=True)),
        **{"n_times": len(series.array), "slice_thick": z_mm, "xy_spacing": x_mm, "layout": "breastdcedl"},
        "mask_voxels": int(mask.sum()),
    }


def recipe(config, series):
    """What a stored patient depends on: another crop or other series make it another one."""
    keep = ("early_s", "late_s", "ambl_phases", "crop_px", "margin_slices", "ambl_her2")
    settings = {k: asdict(config)[k] for k in keep}
    text = json.dumps([settings, [s["crdc_series_uuid"] for s in series]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def get_patient(row, config, folder):
    """One patient from IDC → its record, or the row of the table with the reason why not."""
    series, row = row["series"], {k: plain(v) for k, v in row.items() if k != "series"}
    patient, stamp = row["pid"], recipe(config, series)
    if (record := read_record(folder, patient)) and record["recipe"] == stamp:
        return record
    raw = folder / "downloads" / patient
    try:
        dce, seg = fetch_patient(series, raw, config)
        paths, metadata = crop_patient(row, dce, seg, folder, config)
    except Unreachable:
        raise
    except (ValueError, OSError) as error:
        return row | {"layout": "breastdcedl", "reason": f"not usable: {error}"}
    uids = " ".join(s["SeriesInstanceUID"] for s in series)
    record = write_record(folder, patient, paths, recipe=stamp, series_uid=uids, metadata=metadata)
    shutil.rmtree(raw)
    return record


def plain(value):
    """A table's value as JSON has it; missing is None."""
    if isinstance(value, list):
        return value
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


# ----------------------------------------------------------------------------------------- Zenodo: MinCrop, whole


def unpack(archive, home, dataset):
    """MinCrop's tar → <home>/dce and <home>/mask; only files of the release's own names are written."""
    file = rf"[A-Za-z0-9_][A-Za-z0-9_-]*_{dataset}_[A-Za-z0-9_]+\.nii(?:\.gz)?"
    pattern = re.compile(rf"(?:[^/]+/)*(dce|mask)/({file})")
    for name in ("dce", "mask"):
        (home / name).mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r|*") as tar:
        for member in tqdm(tar, desc=f"unpack {archive.name}", unit="file"):
            match = pattern.fullmatch(member.name)
            target = home / match[1] / match[2] if match and member.isfile() else None
            if target is None or (target.is_file() and target.stat().st_size == member.size):
                continue
            part = target.with_name(f".partial-{target.name}")
            with open(part, "wb") as out:
                shutil.copyfileobj(tar.extractfile(member), out)
            part.replace(target)


def get_mincrop(dataset, rows, config, folder):
    """A collection of the MinCrop release → one record, or row with a reason, per patient of the table."""
    name, md5 = MINCROP[dataset]
    known = {row["pid"]: read_record(folder, row["pid"]) for row in rows}
    if missing := [pid for pid, record in known.items() if record is None or record["recipe"] != md5]:
        archive = fetch_file(f"{config.zenodo}/{name}/content", folder / "downloads" / name, md5)
        unpack(archive, folder / dataset, dataset)
        for row in (r for r in rows if r["pid"] in missing):
            known[row["pid"]] = keep_mincrop(row, folder, md5)
        archive.unlink()
    return [known[row["pid"]] for row in rows]


def keep_mincrop(row, folder, md5):
    """The record of one unpacked patient, or its row with the reason why not."""
    row = {k: plain(v) for k, v in row.items()} | {"layout": "breastdcedl"}
    home = folder / row["dataset"]
    try:
        paths = [*phase_files(home, row["pid"]).values(), mask_file(home, row["pid"])]
    except ValueError as error:
        return row | {"reason": f"not usable: {error}"}
    if row["pre"] is None:
        row |= dict(zip(("pre", "post_early", "post_late"), phase_files(home, row["pid"]), strict=False))
    return write_record(folder, row["pid"], paths, recipe=md5, series_uid="", metadata=row)


# ------------------------------------------------------------------------------------------------------ all of it


def clinical_table(config, folder):
    """BreastDCEDL's rows of the I-SPY collections and AMBL's from its spreadsheet, in the same columns."""
    parts = []
    if "ambl" in config.collections:  # first: it is there or not, and no download is in vain
        sheet = root() / config.ambl_clinical
        if not sheet.is_file():
            raise ValueError(
                f"{config.ambl_clinical}: no such file; download the clinical spreadsheet from the page of "
                "Advanced-MRI-Breast-Lesions at TCIA (10.7937/c7x1-yn57), or leave ambl out of `collections`"
            )
        parts.append(ambl_table(read_ambl_clinical(sheet, config.ambl_her2)))
    if set(config.collections) & {"spy1", "spy2"}:
        name, md5 = MINCROP["table"]
        path = fetch_file(f"{config.zenodo}/{name}/content", folder / name, md5)
        table = read_breastdcedl(path)
        parts.append(table[table["dataset"].isin(list(config.collections))])
    return pd.concat(parts, ignore_index=True)


def ambl_table(lesions):
    """AMBL's patients in BreastDCEDL's columns, with how many lesions the sheet counts and which are malignant."""
    known, table = index_lesion(lesions)
    counted = lesions[lesions["malignant"].notna()].groupby("patient").size()
    malignant = known.groupby("patient")["lesion"].agg(list)
    return table.assign(
        lesions=table["pid"].map(counted).astype("Int64"), malignant_lesions=table["pid"].map(malignant)
    )


def get(config, folder):
    """The whole cohort, as far as it can be had → records of the complete patients, rows of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    table = clinical_table(config, folder)
    table = table.assign(reason=table.get("reason", "")).fillna({"reason": ""})
    results = table[table["reason"] != ""].to_dict("records")
    for dataset, where in config.collections.items():
        rows = table[(table["dataset"] == dataset) & (table["reason"] == "")].to_dict("records")
        if where == "zenodo":
            results += get_mincrop(dataset, rows, config, folder)
            continue
        series = wanted(dataset)
        results += [r | {"reason": "no series in the archive"} for r in rows if r["pid"] not in series]
        todo = [r | {"series": series[r["pid"]]} for r in rows if r["pid"] in series]
        results += get_idc(dataset, todo, config, folder)
    return [r for r in results if "files" in r], [r for r in results if "files" not in r]


def get_idc(dataset, todo, config, folder):
    """The patients of one collection from IDC, several at a time."""
    stamps = {r["pid"]: recipe(config, r["series"]) for r in todo}
    stored = {p: read_record(folder, p) for p in stamps}
    new = [p for p, stamp in stamps.items() if not stored[p] or stored[p]["recipe"] != stamp]
    if new:
        check_reachable(config.idc)
        check_space(len(new) * KEPT_MB / 1000 + largest_patient_gb(config) * max(config.jobs, 1), folder)
    return each(partial(get_patient, config=config, folder=folder), todo, config.jobs, dataset)
