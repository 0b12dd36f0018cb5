"""What a cohort's data are: collections, versions, licences, and what lies on disk of them."""

import hashlib
import re
from pathlib import Path

import pandas as pd

from her2core.cohorts.manifest import MANIFESTS, MINCROP_LICENCE
from her2core.config import Study

_BREASTDCEDL = "10.1038/s41597-026-06589-6"


def _md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def _archive_sources(dataset, path):
    """One entry per collection of a pinned manifest."""
    table = pd.read_csv(path, dtype={"patient": str})
    entries = []
    for (collection, doi), part in table.groupby(["collection", "source_DOI"], sort=True):
        entries.append(
            {
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
                "manifest": f"manifests/{Path(path).name}",
                "manifest_md5": _md5(path),
            }
        )
    return entries


def _release_source(dataset, address):
    """BreastDCEDL's MinCrop release; its files and their MD5 are pinned in the code that fetches them."""
    record = re.search(r"records/(\d+)", address)
    if not record:
        raise ValueError(f"zenodo: expected an address with records/<number>, found {address!r}")
    return {
        "dataset": dataset,
        "source": "Zenodo",
        "collection": "BreastDCEDL, MinCrop release",
        "doi": f"10.5281/zenodo.{record[1]}",
        "described_in": _BREASTDCEDL,
        "licence": MINCROP_LICENCE,
        "version": f"record {record[1]}",
        "pinned_in": "her2core/cohorts/archive.py",
    }


def _phantom_source(acquire):
    """A synthetic cohort is its parameters; `jobs` changes no byte."""
    return {
        "source": "phantom: made by her2core.phantom.patient",
        "doi": None,
        "licence": "MIT, as the code",
        "seed": acquire["seed"],
        "parameters": {k: v for k, v in acquire.items() if k not in ("jobs", "source", "seed")},
    }


def data_sources(study: Study) -> dict:
    """What a study's data are and which version, for JSON; read from the raw files as they are here."""
    acquire, files = study.section("acquire"), study.data("acquire") / "files.csv"
    if study.is_synthetic:
        sources = [_phantom_source(acquire)]
    else:
        sources = [
            source
            for dataset, where in acquire["collections"].items()
            for source in _collection_sources(dataset, where, acquire["zenodo"], study.top / "manifests")
        ]
    table = pd.read_csv(files, dtype={"patient": str, "series_uid": str})
    table["series"] = table["series_uid"].fillna("").str.split().str.len()  # NIfTI has none
    on_disk = {
        dataset: {"patients": len(part)} | {k: int(part[k].sum()) for k in ("series", "files", "bytes")}
        for dataset, part in table.groupby("dataset", sort=True)
    }
    return {
        "cohort": study.name,
        "synthetic": study.is_synthetic,
        "sources": sources,
        "on_disk": on_disk,
        "files_md5": _md5(files),
    }


def _collection_sources(dataset, where, zenodo, manifests):
    """The entries of one collection of the real cohort."""
    if where == "idc":
        return _archive_sources(dataset, manifests / f"{MANIFESTS[dataset]}.csv")
    if where == "zenodo":
        return [_release_source(dataset, zenodo)]
    raise ValueError(f"{dataset}: expected idc or zenodo, found {where!r}")
