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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from her2core.cohort import SPLIT_OF_CODE
from her2core.cohorts.ambl import find_ambl_sheet, index_lesion, read_ambl_clinical
from her2core.cohorts.collections import collections
from her2core.cohorts.duke import read_duke_clinical
from her2core.cohorts.examination import Recipe, Unusable, check_release, crop_patient
from her2core.cohorts.labels import check_against, read_breastdcedl_table, read_idc_clinical
from her2core.cohorts.mamamia import masks_by_series
from her2core.cohorts.manifest import MINCROP_LICENCE, pinned_sources, read_releases, series_with_seg, totals
from her2core.cohorts.transfer import NotThere, TransportFault, check_reachable, fetch_file, fetch_series
from her2core.config import root
from her2core.formats.boundary import reading
from her2core.formats.volume import PHASE_COLUMNS, Phases
from her2core.parallel import each
from her2core.records import file_digest, read_record, record_path, whole, write_record

_FAULTS = 3  # patients in a row that could not be fetched: then it is the archive or the network, not the patient
_MINCROP_MB = 12  # per patient of the release, about: all of it is 22 to 25 GB for 2,063
_KEPT_MB = 16.7  # per real patient: three cropped phases, uncompressed; 16.4 GB over the 982 of I-SPY2
_LOSSES = 10  # patients in a row that cannot be used: then it is the tables, or another archive


@dataclass(frozen=True)
class ArchiveConfig(Recipe):
    """Where the real cohort comes from, and what is kept of it; folders and files are relative to the compendium.

    Whoever is missing has a row that says why.  Patients that the manifests leave out are known beforehand and no
    error; a network or a disk that fails always is one.
    """

    source: str  # "archive"
    manifests: str  # the folder with the pinned series and releases
    collections: dict[str, str]  # {name in collections.yaml: idc or zenodo}; one that is left out is not fetched
    ambl_clinical: str  # the collection's spreadsheet, downloaded by hand from its page at TCIA, or its folder
    ambl_her2: dict[str | int | float, str | int | None]  # see `read_ambl_clinical`, and why it has no default
    ambl_pathology_out: tuple[int, ...]  # codes of its columns `pathology` that are no invasive cancer
    duke_clinical: str  # IDC's clinical table of Duke, CSV or parquet
    duke_codes: dict[str, dict[str | int | float, str | int | float | None]]  # see `read_duke_clinical`
    duke_bilateral: str  # "out", or "in" to keep cancers of both breasts
    idc_clinical: tuple[str, ...]  # IDC's tables of I-SPY2, where at hand: their HER2 has to be BreastDCEDL's
    mamamia: str  # MAMA-MIA's release, whose expert masks are then taken where it has one; "" takes the archive's
    allow_missing: bool  # go on without expected patients that cannot be used, though not without a collection
    idc: str  # address of the archive or a mirror
    zenodo: str  # likewise
    zenodo_record: int  # of the release
    connections: int  # at once, per patient
    jobs: int  # patients at once

    def __post_init__(self):
        allowed = {name: collection.sources for name, collection in collections().items()}
        for name, where in self.collections.items():
            if where not in allowed.get(name, ()):
                raise ValueError(f"collections: {name} from {where!r}, expected one of {allowed}")
        if min(self.crop_px, self.connections) < 1 or self.margin_slices < 0:
            raise ValueError(f"crop_px and connections must be positive, margin_slices 0 or more, found {self}")
        if self.ambl_phases is not None:
            Phases(*self.ambl_phases)

    def get(self, folder: Path) -> tuple[list[dict], list[dict]]:
        """Get all patients that can be obtained → records of the complete ones, rows with a reason of the others.

        A row has `failed` where the patient was expected; excluded.csv, a table, or a manifest without SEG rule the
        others out.  TransportFault lists the patients that could not be fetched; the next run continues there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows, lesions = _clinical_rows(self, folder)
        results, faults, listed = [row for row in rows if row["reason"]], [], {row["pid"] for row in rows}
        unlisted = _out(f"not in the manifest: nor in {self.manifests}/excluded.csv", folder)
        for dataset, where in self.collections.items():
            todo = [row for row in rows if row["dataset"] == dataset and not row["reason"]]
            if where == "zenodo":
                known = _get_mincrop(dataset, todo, self, folder)
            else:
                series, out = series_with_seg(dataset, root() / self.manifests)
                known = {pid: {"reason": f"no series in the archive: {why}"} for pid, why in out.items()}
                known |= _get_idc(dataset, todo, series, lesions, self, folder)
                why = {"dataset": dataset, "reason": "not in the clinical table"} | _place(dataset)
                results += [{"pid": pid} | why for pid in series["patient"].unique() if pid not in listed]
            faults += [f"{pid}: {result['fault']}" for pid, result in known.items() if "fault" in result]
            results += [_complete(row, known.get(row["pid"], unlisted)) for row in todo]
        if faults:
            found = f"{len(faults)} patients could not be fetched; all others are complete.  Run again:"
            raise TransportFault("\n".join([found, *faults]))
        return [r for r in results if "files" in r], [r for r in results if "files" not in r]

    def describe(self) -> pd.DataFrame:
        """A row per collection: where from, patients, series, files, GB (of MinCrop about), licences."""
        rows = []
        for dataset, where in self.collections.items():
            if where == "idc":
                series = series_with_seg(dataset, root() / self.manifests)[0]
                largest = series.groupby("patient")["size_MB"].sum().max() / 1000
                row = totals(series) | {"under_way_GB": largest * max(self.jobs, 1)}
            else:
                patients, _ = collections()[dataset].published
                row = {"patients": patients, "series": 0, "instances": 1, "licences": [MINCROP_LICENCE]}
                row["GB"] = row["under_way_GB"] = patients * _MINCROP_MB / 1000
            rows.append({"collection": dataset, "from": where} | row)
        table = pd.DataFrame(rows).rename(columns={"instances": "files", "GB": "download_GB"})
        return table.assign(licences=table["licences"].str.join(", "), kept_GB=table["patients"] * _KEPT_MB / 1000)

    def sources(self) -> Iterator[dict]:
        """What the data are: an entry per collection and version, with licence and citation."""
        for dataset, where in self.collections.items():
            if where == "idc":
                yield from pinned_sources(dataset, root() / self.manifests)
            else:
                yield _release_source(dataset, self)
            if collections()[dataset].labels != "breastdcedl":
                yield _table_source(dataset, self)

    def checks(self, folder: Path, network: bool) -> Iterator[Callable]:
        """What raises an error where a table cannot be read, or an archive that is needed does not answer."""
        table, wanted = folder / "metadata.csv", set(self.collections)
        with reading(table, "the table that acquire writes", "delete it"):
            all_here = table.is_file() and wanted <= set(pd.read_csv(table)["dataset"])  # acquired before
        if network and "idc" in self.collections.values() and not all_here:
            yield partial(check_reachable, self.idc)
        labels = {collections()[dataset].labels for dataset in wanted}
        if network and "breastdcedl" in labels:
            yield partial(_check_zenodo, self, folder, all_here)
        yield from (partial(LABELS[name], self, folder) for name in labels - {"breastdcedl"})

    def release(self, name: str) -> tuple[str, str, str]:
        """A file of the release, "spy1", "spy2" or "table": its name, MD5 and address."""
        path = root() / self.manifests / "releases.csv"
        if name not in (releases := read_releases(path)):
            raise ValueError(f"{path}: found {', '.join(releases)}, expected {name} too; restore it from git")
        file, md5 = releases[name]
        return file, md5, f"{self.zenodo.rstrip('/')}/records/{self.zenodo_record}/files/{file}"


def _release_source(dataset, config):
    """BreastDCEDL's MinCrop release; its files and their MD5 are pinned beside the manifests."""
    return {
        "dataset": dataset,
        "source": "Zenodo",
        "collection": "BreastDCEDL, MinCrop release",
        "doi": f"10.5281/zenodo.{config.zenodo_record}",
        "described_in": "10.1038/s41597-026-06589-6",
        "licence": MINCROP_LICENCE,
        "version": f"record {config.zenodo_record}",
        "pinned_in": f"{config.manifests}/releases.csv",
    }


def _table_source(dataset, config):
    """The clinical table of AMBL or Duke, which has no version but its bytes."""
    if dataset == "ambl":
        path, _ = find_ambl_sheet(root() / config.ambl_clinical)
        kind, coding = "sheet", {"HER2": config.ambl_her2, "pathology_out": list(config.ambl_pathology_out)}
    else:
        path = root() / config.duke_clinical
        kind, coding = "table", {"codes": config.duke_codes, "bilateral": config.duke_bilateral}
    found = {"dataset": dataset, "source": f"clinical {kind}", "file": path.name}
    return found | {"md5": file_digest(path, "md5"), "coding": coding}


def _check_zenodo(config, folder, all_here):
    if not (all_here and (folder / config.release("table")[0]).is_file()):
        check_reachable(config.zenodo)
    _read_ispy(config, folder)


def _fetch_patient(series, folder, config):
    """All series of a patient → folders of the DCE series, and the SEG file.  Raises as `fetch_series` does."""
    folders = {"dce": [], "seg": []}
    for number, one in enumerate(series):
        target = folder / f"{one['role']}{number}"
        fetch_series(one, target, config.idc, config.connections)
        folders[one["role"]].append(target)
    return folders["dce"], next(folders["seg"][-1].glob("[!.]*"))


def _digest(config, row, series, lesions, expert):
    """Digest of all that a patient's stored files depend on: not the table's labels, which `_complete` adds."""
    settings = [*(getattr(config, field.name) for field in fields(Recipe)), [row[c] for c in PHASE_COLUMNS]]
    masks = [file_digest(expert)] if expert else []
    text = json.dumps([settings, [s["crdc_series_uuid"] for s in series], lesions, *masks])
    return hashlib.sha256(text.encode()).hexdigest()


def _out(reason, folder):
    """What stands for a patient that was expected and cannot be used, the same on every machine."""
    kind = "not in the archive: " * isinstance(reason, NotThere)
    return {"layout": "breastdcedl", "reason": kind + str(reason).replace(f"{folder}/", ""), "failed": True}


def _get_patient(job, config, folder):
    """One patient from IDC → its record, the reason why there is none, or the fault.  job: row, series, lesions,
    and an expert's mask or None.

    If that fails, the series stay in downloads/<patient>, and the next run fetches only what is missing there.
    """
    row, series, lesions, expert = job
    pid, recipe = row["pid"], _digest(config, *job)
    raw, faults, losses = (folder / "downloads" / name for name in (pid, "faults", "losses"))
    record = read_record(folder, pid)
    if record and record["recipe"] == recipe:
        losses.unlink(missing_ok=True)
        shutil.rmtree(raw, ignore_errors=True)  # of a run that was killed at the last moment
        return record
    try:
        dce, seg = _fetch_patient(series, raw, config)
        paths, found = crop_patient(row, lesions, dce, expert or seg, folder, config)
        uids = " ".join(s["SeriesInstanceUID"] for s in series)
        record = write_record(folder, pid, paths, recipe=recipe, series_uid=uids, found=found)
    except (Unusable, NotThere) as error:
        faults.unlink(missing_ok=True)
        out = _out(error, folder)
        if _in_a_row(losses) >= _LOSSES and not config.allow_missing:
            found = f"{_LOSSES} patients in a row cannot be used, at last {pid}: {out['reason']}"
            how = "Compare tables, manifest and archive; acquire.allow_missing: true goes on all the same"
            raise ValueError(f"{found}.  {how}") from error
        return out
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
    experts = masks_by_series(root() / config.mamamia) if config.mamamia else {}
    jobs = []
    for row in (row for row in rows if row["pid"] in parts):
        own = parts[row["pid"]]
        expert = next((experts[s["SeriesInstanceUID"]] for s in own if s["SeriesInstanceUID"] in experts), None)
        jobs.append((row, own, lesions.get(row["pid"]), expert))
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
        return _out(error, folder)
    return write_record(folder, row["pid"], paths, recipe=md5, series_uid="", found=found)


def _plain(table):
    """A table's or column's values as JSON has them; missing is None."""
    return table.astype(object).where(table.notna(), None)


def _read_ambl(config, folder):
    """AMBL's patients; {patient: count of lesions in the sheet, malignant ones, sides}."""
    lesions = read_ambl_clinical(root() / config.ambl_clinical, config.ambl_her2, config.ambl_pathology_out)
    known, table = index_lesion(lesions)
    counted = lesions[lesions["malignant"].notna()].groupby("patient").size()
    found = {}
    for pid, part in _plain(known).groupby("patient"):
        columns = {"malignant": part["lesion"].tolist(), "sides": part["laterality"].tolist()}
        found[pid] = {"count": int(counted[pid])} | columns
    return table, found


def _read_duke(config, folder):
    """Duke's patients."""
    return read_duke_clinical(root() / config.duke_clinical, config.duke_codes, config.duke_bilateral), {}


def _read_ispy(config, folder):
    """BreastDCEDL's rows of the collections wanted, fetched where they are not there; a patient whose HER2 another
    table contradicts has the reason."""
    name, md5, url = config.release("table")
    table = read_breastdcedl_table(fetch_file(url, folder / name, md5))
    table = table[table["dataset"].isin(list(config.collections))]
    differing = {}
    for path in config.idc_clinical:
        differing |= check_against(table, read_idc_clinical(root() / path))
    return table.assign(reason=[differing.get(pid, "") for pid in table["pid"]]), {}


# what knows the patients of a collection: (config, folder) → rows in BreastDCEDL's columns, and lesions by patient
LABELS = {"ambl": _read_ambl, "duke": _read_duke, "breastdcedl": _read_ispy}


def _place(dataset, code=None):
    """Site and split of a patient; code: BreastDCEDL's of the split."""
    collection = collections()[dataset]
    return {"site": collection.site, "split": "external" if collection.external else SPLIT_OF_CODE.get(code)}


def _clinical_rows(config, folder):
    """Rows of all collections wanted, in the same columns, with site and split; and AMBL's lesions by patient."""
    rows, lesions = [], {}
    wanted = {collections()[dataset].labels for dataset in config.collections}
    for name in (name for name in LABELS if name in wanted):
        table, more = LABELS[name](config, folder)
        lesions |= more
        rows += _plain(table).to_dict("records")
    for row in rows:
        row |= _place(row["dataset"], row.pop("test"))
    return rows, lesions


def _complete(row, result):
    """A patient's record with the table's present row, or that row with the reason why there is no record.

    What the files say takes precedence over the table, except for phases that it names: they chose the files.
    """
    if "files" not in result:
        return row | result
    named = {c: row[c] for c in PHASE_COLUMNS if row[c] is not None}
    return result | {"metadata": row | result["found"] | named}
