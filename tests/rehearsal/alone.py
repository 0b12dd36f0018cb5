"""One patient of real size by itself, from archive to prepared slices:  python -m rehearsal.alone PATIENT HOME

Prints one line of JSON: seconds of processor time and the peak of memory, this process's and its transfers'.
"""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from her2core.cohort import included, patient_table
from her2core.cohorts.acquire import SOURCES, get_all
from her2core.config import Study
from her2core.preprocess import PrepareConfig, prepare_patient
from rehearsal.compendium import NAME


def _used():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in both), max(u.ru_maxrss for u in both) * 1024 / 1e9


def measure(patient: str, home: Path) -> dict:
    """home: manifests and sheet of this patient alone.  Works in a folder of its own in the copy's data."""
    study = Study.open(NAME)
    folder = study.data(f"alone-{patient}")
    config = study.params("acquire", SOURCES)
    collection = {"ambl": "idc"} if patient.startswith("AMBL") else {"spy2": "idc"}
    config = replace(config, collections=collection, manifests=str(home / "manifests"), jobs=1)
    config = replace(config, ambl_clinical=str(next(home.glob("*.xlsx"))))
    prepare = study.params("prepare", PrepareConfig)
    before, _ = _used()
    get_all(config, folder)
    acquired, peak_acquire = _used()
    rows = included(patient_table(pd.read_csv(folder / "metadata.csv", dtype={"pid": str}))).to_dict("records")
    (row,) = [row for row in rows if row["patient"] == patient]
    prepare_patient(row, folder, prepare)
    prepared, peak = _used()
    found = {"patient": patient, "acquire_cpu_s": acquired - before, "acquire_peak_GB": peak_acquire}
    return found | {"prepare_cpu_s": prepared - acquired, "peak_GB": peak}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
