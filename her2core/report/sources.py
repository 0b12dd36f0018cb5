"""What a cohort's data are: collections, versions, licences, and what lies on disk of them."""

import pandas as pd

from her2core.cohorts.ambl import find_ambl_sheet
from her2core.cohorts.manifest import MANIFESTS, MINCROP_LICENCE, read_manifest
from her2core.config import Study
from her2core.formats.boundary import reading
from her2core.records import file_digest


def _archive_sources(dataset, path):
    """One entry per collection of a pinned manifest."""
    for (collection, doi), part in read_manifest(path).groupby(["collection", "source_DOI"], sort=True):
        yield {
            "dataset": dataset,
            "source": "NCI Imaging Data Commons",
            "collection": collection,
            "doi": doi,
            "licence": ", ".join(sorted(set(part["licence"]))),
            "version": "IDC v" + ", v".join(map(str, sorted(set(part["idc_version"])))),
            "patients": int(part["patient"].nunique()),
            "series": len(part),
            "instances": int(part["instances"].sum()),
            "bytes": int((part["size_MB"] * 1e6).round().sum()),
            "manifest": f"{path.parent.name}/{path.name}",
            "manifest_md5": file_digest(path, "md5"),
        }


def _release_source(dataset, acquire):
    """BreastDCEDL's MinCrop release; its files and their MD5 are pinned beside the manifests."""
    record = acquire["zenodo_record"]
    return {
        "dataset": dataset,
        "source": "Zenodo",
        "collection": "BreastDCEDL, MinCrop release",
        "doi": f"10.5281/zenodo.{record}",
        "described_in": "10.1038/s41597-026-06589-6",
        "licence": MINCROP_LICENCE,
        "version": f"record {record}",
        "pinned_in": f"{acquire['manifests']}/releases.csv",
    }


def _sheet_source(study, acquire):
    """AMBL's clinical sheet, which has no version but its bytes."""
    sheet, _ = find_ambl_sheet(study.top / acquire["ambl_clinical"])
    coding = {"HER2": acquire["ambl_her2"], "pathology_out": list(acquire["ambl_pathology_out"])}
    return {
        "dataset": "ambl",
        "source": "clinical sheet",
        "file": sheet.name,
        "md5": file_digest(sheet, "md5"),
        "coding": coding,
    }


def _sources(study):
    """One entry per collection and version."""
    acquire = study.section("acquire")
    if study.is_synthetic:  # such a cohort is its parameters; `jobs` changes no byte
        yield {
            "source": "phantom: made by her2core.phantom.patient",
            "doi": None,
            "licence": "MIT, as the code",
            "seed": acquire["seed"],
            "parameters": {k: v for k, v in acquire.items() if k not in ("jobs", "source", "seed")},
        }
        return
    for dataset, where in acquire["collections"].items():
        if where == "idc":
            yield from _archive_sources(dataset, study.top / acquire["manifests"] / f"{MANIFESTS[dataset]}.csv")
        else:
            yield _release_source(dataset, acquire)
        if dataset == "ambl":
            yield _sheet_source(study, acquire)


def data_sources(study: Study) -> dict:
    """What a study's data are and which version, for JSON; read from the raw files as they are here."""
    files = study.data("acquire") / "files.csv"
    with reading(files, "the table that acquire writes", "run it again"):
        table = pd.read_csv(files, dtype={"patient": str, "series_uid": str}).assign(patients=1)
        table["series"] = table["series_uid"].fillna("").str.split().str.len()  # NIfTI has none
        on_disk = table.groupby("dataset")[["patients", "series", "files", "bytes"]].sum()
    return {
        "cohort": study.name,
        "synthetic": study.is_synthetic,
        "sources": list(_sources(study)),
        "on_disk": on_disk.to_dict("index"),
        "files_md5": file_digest(files, "md5"),
    }
