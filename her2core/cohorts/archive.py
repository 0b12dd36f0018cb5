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

import pandas as pd
from tqdm import tqdm

from her2core.cohorts.ambl import index_lesion, read_ambl_clinical
from her2core.cohorts.examination import Recipe, Unusable, check_release, crop_patient
from her2core.cohorts.labels import check_against, read_breastdcedl_table, read_idc_clinical
from her2core.cohorts.manifest import MANIFESTS, read_excluded, read_manifest, read_releases
from her2core.cohorts.transfer import NotThere, TransportFault, fetch_file, fetch_series
from her2core.config import root
from her2core.formats.volume import PHASE_COLUMNS, Phases
from her2core.parallel import each
from her2core.records import read_record, record_path, whole, write_record

_FAULTS = 3  # patients in a row that could not be fetched: then it is the archive or the network, not the patient
_LOSSES = 10  # patients in a row that cannot be used: then it is the tables, or another archive


@dataclass(frozen=True)
class ArchiveConfig:
    """Where the real cohort comes from, and what is kept of it.

    source: "archive".  manifests: the folder with the pinned series and releases.
    collections: {spy2, spy1, ambl} → idc or zenodo; one that is left out is not fetched.
    ambl_clinical: the collection's spreadsheet, to be downloaded by hand from its page at TCIA, or its folder.
    ambl_her2: values of its columns HER2 [SII] → 1, 0 or null (equivocal).  There is no default: public projects
        read them in contradictory ways, so the sheet's own legend decides, and a value not listed stops the run.
    ambl_pathology_out: codes of its columns `pathology` that are no invasive cancer.
    idc_clinical: IDC's clinical tables of I-SPY2 (CSV or parquet), where at hand: their HER2 has to be the table's.
    early_s, late_s: wanted times after the first phase, in seconds, where no table names the phases (AMBL).
    ambl_phases: indices of pre, early and late instead, where the files have no times either; null: by time.
    crop_px, margin_slices: MinCrop keeps 256 × 256 pixels around the tumour and two slices beyond it.
    allow_missing: false ends with an error when an expected patient cannot be used; true goes on without, though
        not without a whole collection.  Patients that the manifests leave out are known beforehand and no error.
        Whoever is missing has a row that says why.  A network or a disk that fails is always an error.
    idc, zenodo: addresses, of the archive or a mirror.  zenodo_record: of the release.  All folders and files are
        relative to the compendium.  connections: at once, per patient.  jobs: patients at once.
    """

    source: str
    manifests: str
    collections: dict[str, str]
    ambl_clinical: str
    ambl_her2: dict[str | int | float, str | int | None]
    ambl_pathology_out: tuple[int, ...]
    idc_clinical: tuple[str, ...]
    early_s: float
    late_s: float
    ambl_phases: tuple[int, int, int] | None
    crop_px: int
    margin_slices: int
    allow_missing: bool
    idc: str
    zenodo: str
    zenodo_record: int
    connections: int
    jobs: int

    def __post_init__(self):
        if self.source != "archive":
            raise ValueError(f"source={self.source!r}: expected archive")
        allowed = {"spy2": ("idc", "zenodo"), "spy1": ("idc", "zenodo"), "ambl": ("idc",)}
        for name, where in self.collections.items():
            if where not in allowed.get(name, ()):
                raise ValueError(f"collections: {name} from {where!r}, expected one of {allowed}")
        if min(self.crop_px, self.connections) < 1 or self.margin_slices < 0:
            raise ValueError(f"crop_px and connections must be positive, margin_slices 0 or more, found {self}")
        if self.ambl_phases is not None:
            Phases(*self.ambl_phases)

    @property
    def recipe(self) -> Recipe:
        """What of it a patient's stored files depend on."""
        return Recipe(self.early_s, self.late_s, self.ambl_phases, self.crop_px, self.margin_slices)

    def release(self, name: str) -> tuple[str, str, str]:
        """A file of the release, "spy1", "spy2" or "table": its name, MD5 and address."""
        path = root() / self.manifests / "releases.csv"
        if name not in (releases := read_releases(path)):
            raise ValueError(f"{path}: found {', '.join(releases)}, expected {name} too; restore it from git")
        file, md5 = releases[name]
        return file, md5, f"{self.zenodo.rstrip('/')}/records/{self.zenodo_record}/files/{file}"


def read_series(dataset: str, folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """A collection's manifest → series of the patients with images and SEG; {patient: why not} for the others."""
    table = read_manifest(folder / f"{MANIFESTS[dataset]}.csv")
    out = read_excluded(folder / "excluded.csv")
    out |= dict.fromkeys(set(table["patient"]) - set(table.loc[table["role"] == "seg", "patient"]), "no tumour SEG")
    return table[~table["patient"].isin(list(out))], out


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


def _digest(config, row, series, lesions):
    """Digest of all that a patient's stored files depend on: not the table's labels, which `_complete` adds."""
    settings = [*vars(config.recipe).values(), [row[c] for c in PHASE_COLUMNS]]
    text = json.dumps([settings, [s["crdc_series_uuid"] for s in series], lesions])
    return hashlib.sha256(text.encode()).hexdigest()


def _out(reason):
    """What stands for a patient that was expected and cannot be used."""
    return {"layout": "breastdcedl", "reason": str(reason), "failed": True}


def _get_patient(job, config, folder):
    """One patient from IDC → its record, the reason why there is none, or the fault.  job: row, series, lesions.

    If that fails, the series stay in downloads/<patient>, and the next run fetches only what is missing there.
    """
    row, series, lesions = job
    downloads = folder / "downloads"
    raw, faults, losses = (downloads / name for name in (row["pid"], "faults", "losses"))
    record = read_record(folder, row["pid"])
    if record and record["recipe"] == _digest(config, *job):
        losses.unlink(missing_ok=True)
        shutil.rmtree(raw, ignore_errors=True)  # of a run that was killed at the last moment
        return record
    try:
        dce, seg = _fetch_patient(series, raw, config)
        paths, found = crop_patient(row, lesions, dce, seg, folder, config.recipe)
        uids = " ".join(s["SeriesInstanceUID"] for s in series)
        record = write_record(folder, row["pid"], paths, recipe=_digest(config, *job), series_uid=uids, found=found)
    except (Unusable, NotThere) as error:
        faults.unlink(missing_ok=True)
        kind = "not in the archive: " if isinstance(error, NotThere) else ""
        reason = kind + str(error).replace(f"{folder}/", "")  # the same text on every machine
        if _in_a_row(losses) >= _LOSSES and not config.allow_missing:
            found = f"{_LOSSES} patients in a row cannot be used, at last {row['pid']}: {reason}"
            how = "Compare tables, manifest and archive; acquire.allow_missing: true goes on all the same"
            raise ValueError(f"{found}.  {how}") from error
        return _out(reason)
    except OSError as error:  # the next patient may do better, and this one in the next run
        if _in_a_row(faults) >= _FAULTS:
            raise TransportFault(f"{_FAULTS} patients in a row could not be fetched, at last: {error}") from error
        return {"fault": str(error)}
    shutil.rmtree(raw)
    for path in (faults, losses):
        path.unlink(missing_ok=True)
    return record


def _in_a_row(path):
    """Counts one more, in the file at `path`, which all processes share and any better patient deletes."""
    with open(path, "a") as file:
        file.write(".")
        return file.tell()


def _get_idc(dataset, rows, series, lesions, config, folder):
    """Patients of a collection from IDC, several at once → {patient: its record, or why there is none}."""
    parts = {patient: part.to_dict("records") for patient, part in series.groupby("patient")}
    jobs = [(row, parts[row["pid"]], lesions.get(row["pid"])) for row in rows if row["pid"] in parts]
    (folder / "downloads").mkdir(exist_ok=True)
    for name in ("faults", "losses"):
        (folder / "downloads" / name).unlink(missing_ok=True)
    made = each(partial(_get_patient, config=config, folder=folder), jobs, config.jobs, dataset)
    return {row["pid"]: result for (row, *_), result in zip(jobs, made, strict=True)}


def _unpack(archive, home, dataset):
    """MinCrop's tar → <home>/dce and <home>/mask; only files named as the release names them are written."""
    file = rf"[A-Za-z0-9_][A-Za-z0-9_-]*_{dataset}_[A-Za-z0-9_]+\.nii(?:\.gz)?"
    pattern = re.compile(rf"(?:[^/]+/)*(dce|mask)/({file})")
    with tarfile.open(archive, "r|*") as tar:
        for member in tqdm(tar, desc=f"unpack {archive.name}", unit="file"):
            match = pattern.fullmatch(member.name)
            target = home / match[1] / match[2] if match and member.isfile() else None
            if target:  # also where one lies there: the right size is no proof
                with whole(target) as part, open(part, "wb") as out:
                    shutil.copyfileobj(tar.extractfile(member), out)


def _get_mincrop(dataset, rows, config, folder):
    """A collection of the MinCrop release → {patient: its record, or the reason why there is none}."""
    name, md5, url = config.release(dataset)
    unpacked, archive = folder / dataset / f".{md5}", folder / "downloads" / name
    known = {row["pid"]: read_record(folder, row["pid"]) for row in rows}
    if missing := [row for row in rows if (known[row["pid"]] or {}).get("recipe") != md5]:
        # who has a record was complete once; the others could not be used, and nothing new would be in the release
        if not unpacked.exists() or any(record_path(folder, row["pid"]).exists() for row in missing):
            _unpack(fetch_file(url, archive, md5), folder / dataset, dataset)
            unpacked.touch()
        kept = each(partial(_keep_mincrop, folder=folder, md5=md5), missing, config.jobs, dataset)
        known |= {row["pid"]: result for row, result in zip(missing, kept, strict=True)}
    archive.unlink(missing_ok=True)
    return known


def _keep_mincrop(row, folder, md5):
    """The record of one unpacked patient, or the reason why there is none."""
    try:
        paths, found = check_release(row, folder)
    except Unusable as error:
        return _out(str(error).replace(f"{folder}/", ""))  # the same text on every machine
    return write_record(folder, row["pid"], paths, recipe=md5, series_uid="", found=found)


def _plain(value):
    """A table's value as JSON has it; missing is None."""
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def read_ambl(config: ArchiveConfig) -> tuple[pd.DataFrame, dict[str, dict]]:
    """AMBL's patients in BreastDCEDL's columns; {patient: count of lesions in the sheet, malignant ones, sides}."""
    lesions = read_ambl_clinical(root() / config.ambl_clinical, config.ambl_her2, config.ambl_pathology_out)
    known, table = index_lesion(lesions)
    counted = lesions[lesions["malignant"].notna()].groupby("patient").size()
    return table, {
        patient: {
            "count": int(counted[patient]),
            "malignant": part["lesion"].tolist(),
            "sides": [_plain(side) for side in part["laterality"]],
        }
        for patient, part in known.groupby("patient")
    }


def read_ispy(config: ArchiveConfig, folder: Path) -> pd.DataFrame:
    """BreastDCEDL's rows of the collections wanted, fetched where they are not there; a patient whose HER2 another
    table contradicts has the reason."""
    name, md5, url = config.release("table")
    table = read_breastdcedl_table(fetch_file(url, folder / name, md5))
    table = table[table["dataset"].isin(list(config.collections))]
    differing = {}
    for path in config.idc_clinical:
        differing |= check_against(table, read_idc_clinical(root() / path))
    return table.assign(reason=[differing.get(pid, "") for pid in table["pid"]])


def _clinical_rows(config, folder):
    """Rows of BreastDCEDL's table and of AMBL's sheet, in the same columns; and AMBL's lesions by patient."""
    parts, lesions = [], {}
    if "ambl" in config.collections:
        table, lesions = read_ambl(config)
        parts.append(table)
    if set(config.collections) & {"spy1", "spy2"}:
        parts.append(read_ispy(config, folder))
    rows = pd.concat(parts, ignore_index=True).to_dict("records")
    return [{name: _plain(value) for name, value in row.items()} for row in rows], lesions


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

    A row has `failed` where the patient was expected.  All others were known beforehand: the table or excluded.csv
    rules the patient out, or the manifest has no SEG.  TransportFault lists the patients that could not be fetched;
    the next run continues there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, lesions = _clinical_rows(config, folder)
    results, faults, known_pids = [row for row in rows if row["reason"]], [], {row["pid"] for row in rows}
    unlisted = _out(f"not in the manifest: nor in {config.manifests}/excluded.csv")
    for dataset, where in config.collections.items():
        todo = [row for row in rows if row["dataset"] == dataset and not row["reason"]]
        if where == "zenodo":
            known = _get_mincrop(dataset, todo, config, folder)
        else:
            series, out = read_series(dataset, root() / config.manifests)
            known = {patient: {"reason": f"no series in the archive: {why}"} for patient, why in out.items()}
            known |= _get_idc(dataset, todo, series, lesions, config, folder)
            why = {"dataset": dataset, "reason": "not in the clinical table"}
            results += [{"pid": pid} | why for pid in series["patient"].unique() if pid not in known_pids]
        faults += [f"{pid}: {result['fault']}" for pid, result in known.items() if "fault" in result]
        results += [_complete(row, known.get(row["pid"], unlisted)) for row in todo]
    if faults:
        found = f"{len(faults)} patients could not be fetched; all others are complete.  Run again:"
        raise TransportFault("\n".join([found, *faults]))
    return [r for r in results if "files" in r], [r for r in results if "files" not in r]
