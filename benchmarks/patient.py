"""What one patient costs, from files to prepared arrays and to a probability, beside the sum of its parts.

    python benchmarks/patient.py        # minutes; writes benchmarks/patient.json

Patients: phantoms of the embedded study, as DICOM (AMBL's form: a file for each slice of five phases) and as NIfTI
(I-SPY 1's in BreastDCEDL's form: a file for each phase).  Whole: `prepare_patient`, raw and N4, as the stage
`prepare` does it; and `read_case`, `network_input` and three seeds of `thda-n4`, as `her2 predict` does.  Their
weights are random, which costs the same.  Parts: the same functions of the package one by one, each on what the one
before it gave, the results compared with the whole's.  Whole and parts take turns on one thread; files lie in the
system's cache; seconds are the processor's.  Command: `her2 predict` on the cases of the study `sample`, from the
start of the process to the written page.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from her2core import preprocess  # of its private functions the parts are made
from her2core.bias_field import correct_patient
from her2core.case import network_input, read_case
from her2core.cohort import included, patient_table
from her2core.cohorts.acquire import get_all
from her2core.cohorts.phantom import EmbeddedConfig
from her2core.config import Study
from her2core.formats.volume import PHASE_COLUMNS, as_uint16
from her2core.kinetics import lesion_features
from her2core.normalize import maps, piecewise
from her2core.preprocess import PrepareConfig, prepare_patient, read_patient
from her2core.records import check_complete
from her2core.runs import Run
from her2core.train import AGGREGATE, predict_slices
from timing import in_turns, machine, spread, write

PATIENTS, ROUNDS, SEEDS = 6, 5, 3
FORMS = {"ambl": "DICOM", "spy1": "NIfTI"}
STUDY = Study.open("sample")  # its parameters are the embedded study's
CONFIG, RUN = STUDY.params("prepare", PrepareConfig), Run.of(STUDY, "thda-n4")


@dataclass
class Laps:
    """Calls functions and keeps how long each part took."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, part, function, *arguments):
        start = time.process_time()
        result = function(*arguments)
        self.seconds.setdefault(part, []).append(time.process_time() - start)
        return result


def crop(volume, mask, geometry):
    """The slices and the cut that `pack` takes of one volume, `(n, P, H, W)`."""
    centre, chosen = np.argwhere(mask).mean(0)[1:], preprocess._choose_slices(mask, CONFIG.slices)
    return np.stack([preprocess._crop(volume, z, centre, geometry.spacing_mm, CONFIG) for z in chosen])


def arrays_in_parts(row, raw, laps):
    """What `prepare_patient` does, part by part; {bias field: images}."""
    laps("digests", check_complete, row["patient"], raw)
    found = laps("read", read_patient, row, raw, CONFIG)
    mask, geometry = found.mask, found.geometry
    phases, _ = laps("phases", as_uint16, found.phases, row["patient"])
    volumes = {"raw": phases, "n4": laps("N4", correct_patient, phases, geometry, CONFIG.n4)}
    images = {name: laps("crop", crop, volume, mask, geometry) for name, volume in volumes.items()}
    laps("crop", crop, mask[None].astype(np.float32) * 255, mask, geometry)
    for name, volume in volumes.items():
        laps("quantiles", preprocess._statistics_of, volume, images[name], CONFIG.quantiles)
    laps("kinetics", lesion_features, phases, mask, geometry.spacing_mm)
    return images


def answer(networks, images):
    """The mean probability of three seeds, each the median of its slices."""
    combine = AGGREGATE[RUN.training.aggregate]
    return float(np.mean([combine(predict_slices(network, torch.from_numpy(images))) for network in networks]))


def probability(networks, folder):
    return answer(networks, network_input(read_case(folder, CONFIG), CONFIG, RUN)[2])


def windowed(images, quantiles, moments):
    return piecewise(images, *maps(RUN.window, quantiles, CONFIG.quantiles, moments, RUN.opened.training))


def probability_in_parts(networks, folder, laps):
    case = laps("read", read_case, folder, CONFIG)
    volume = laps("N4", correct_patient, case.phases, case.geometry, CONFIG.n4)
    images = laps("crop", crop, volume, case.mask, case.geometry)
    laps("crop", crop, case.mask[None].astype(np.float32) * 255, case.mask, case.geometry)
    statistics_ = laps("quantiles", preprocess._statistics_of, volume, images, CONFIG.quantiles)
    return laps("predict", answer, networks, laps("window", windowed, images, *statistics_))


def acquire(folder):
    """Phantoms of the embedded study in both forms: the rows of the patient table."""
    study = Study.open("embedded")
    config = study.params("acquire", EmbeddedConfig)
    few = {"spy2": (0, 0, 0), "spy1": (PATIENTS, 0, 0), "ambl": PATIENTS, "unknown_her2": 0, "jobs": 1}
    get_all(replace(config, **few), folder)
    table = patient_table(pd.read_csv(folder / "metadata.csv", dtype={"pid": str}))
    return included(table).to_dict("records")


def case_of(row, raw, home):
    """The patient as a case of one's own: DICOM as it lies there, NIfTI with what BreastDCEDL's table says."""
    if row["dataset"] == "ambl":
        return raw / "ambl" / row["patient"]
    folder = home / row["patient"]
    for file in check_complete(row["patient"], raw)["files"]:
        (folder / Path(file).parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(raw / file, folder / Path(file).parent.name / Path(file).name)
    told = {key: int(row[key]) for key in PHASE_COLUMNS} | {k: row[k] for k in ("slice_thick", "xy_spacing")}
    (folder / "case.json").write_text(json.dumps(told))
    return folder


def one(whole, parts):
    """Medians over rounds of one patient: {"whole": s, "sum": s, "parts": {part: s}}."""
    laps = Laps()
    whole_s = in_turns({"whole": whole, "parts": partial(parts, laps=laps)}, ROUNDS)["whole"]
    calls = {part: np.reshape(seconds, (1 + ROUNDS, -1)).sum(1)[1:] for part, seconds in laps.seconds.items()}
    medians = {part: float(np.median(seconds)) for part, seconds in calls.items()}
    return {"whole": statistics.median(whole_s), "sum": sum(medians.values()), "parts": medians}


def over_patients(label, found):
    """Spreads over patients; printed as a line."""
    result = {key: spread([patient[key] for patient in found]) for key in ("whole", "sum")}
    result["beyond_parts"] = spread([patient["whole"] / patient["sum"] - 1 for patient in found])
    result["parts"] = {part: spread([p["parts"][part] for p in found], 5) for part in found[0]["parts"]}
    shares = ", ".join(f"{part} {1000 * s['median']:.1f}" for part, s in result["parts"].items())
    whole, total, beyond = (result[key]["median"] for key in ("whole", "sum", "beyond_parts"))
    print(
        f"{label}: {1000 * whole:.0f} ms, parts {1000 * total:.0f} ms, beyond them {beyond:.1%}; {shares}",
        flush=True,
    )
    return result


def costs(rows, raw, home, networks):
    """{form: {"arrays": …, "probability": …}}, after the parts have given what the whole gives."""
    found = {form: {"arrays": [], "probability": []} for form in FORMS.values()}
    for row in rows:
        folder, its = case_of(row, raw, home), found[FORMS[row["dataset"]]]
        arrays = partial(prepare_patient, row, raw, CONFIG), partial(arrays_in_parts, row, raw)
        answers = partial(probability, networks, folder), partial(probability_in_parts, networks, folder)
        images = arrays[1](Laps())
        same = [np.array_equal(arrays[0]().arrays[f"images_{name}"], images[name]) for name in images]
        if not all(same) or answers[0]() != answers[1](Laps()):
            raise ValueError(f"{row['patient']}: the parts give another result than the whole")
        its["arrays"].append(one(*arrays))
        its["probability"].append(one(*answers))
    return {
        form: {what: over_patients(f"{form} → {what}", those) for what, those in its.items()}
        for form, its in found.items()
    }


def commands():
    """{form: seconds of `her2 predict`, process and all} on the sample's two cases."""
    cases = {FORMS[home.parent.name]: home for home in sorted(STUDY.data("acquire").glob("*/*"))}
    program = [sys.executable, "-c", "from her2core.study import main; main()", "predict"]
    arms = {
        form: partial(
            subprocess.run, [*program, case, "--cohort", STUDY.name], check=True, stdout=subprocess.DEVNULL
        )
        for form, case in cases.items()
    }
    times = in_turns(arms, ROUNDS, lambda: os.times().children_user + os.times().children_system)
    found = {form: spread(seconds, 2) for form, seconds in times.items()}
    print("her2 predict:", {form: f"{s['median']:.1f} s" for form, s in found.items()})
    return found


@torch.inference_mode()
def main():
    about = machine("numpy", "scipy", "torch", "SimpleITK", "pydicom", "nibabel")
    torch.set_num_threads(1)
    with TemporaryDirectory() as home:
        raw = Path(home) / "acquire"
        networks = [RUN.fresh(seed) for seed in range(SEEDS)]
        found = costs(acquire(raw), raw, Path(home) / "cases", networks)
    counts = {"patients_of_each_form": PATIENTS, "rounds": ROUNDS, "seeds": SEEDS}
    write(__file__, {"machine": about} | counts | {"forms": found, "command": commands()})


if __name__ == "__main__":
    main()
