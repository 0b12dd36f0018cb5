"""A small study of phantoms in a folder of its own, as if computed by `dvc repro`, but for untrained networks."""

import pandas as pd
from house import TOP
from ruamel.yaml import YAML

from her2core.cohort import included, patient_table
from her2core.cohorts.acquire import SOURCES, get_all
from her2core.config import Study
from her2core.preprocess import PrepareConfig, prepare
from her2core.runs import Run

CHANGED = {
    "runs": ["thda-channel_q98-raw"],
    "acquire": {"spy2": [3, 2, 2], "spy1": [3, 2, 2], "ambl": 2, "unknown_her2": 0, "coarse": 2, "jobs": 1},
    "prepare": {
        "crop_px": 32,
        "slices": 3,
        "jobs": 1,
        "n4": {"grid_mm": 9.0, "iterations": [2, 2], "field": "shared"},
    },
    "train": {"window": "channel_q98", "seeds": [0, 1], "jobs": 1},
}


def write_parameters(top, changed=CHANGED):
    """params.yaml of the top level, with these values and a narrow network."""
    yaml = YAML(typ="safe")
    values = yaml.load(TOP / "params.yaml")
    for section, own in changed.items():
        values[section] = own if isinstance(own, list) else values[section] | own
    values["models"]["thda"]["width"] = 8
    yaml.dump(values, top / "params.yaml")


def compute(top):
    """Everything up to the predictions; the working directory has to be `top`."""
    write_parameters(top)
    study = Study.open()
    raw, config = study.data("acquire"), study.params("prepare", PrepareConfig)
    get_all(study.params("acquire", SOURCES), raw)
    prepare(included(patient_table(pd.read_csv(raw / "metadata.csv"))), raw, study.data("prepare"), config)
    run = Run.of(study)
    run.freeze({member: run.fresh(member[0]).state_dict() for member in run.members})
    (study.results / "predictions").mkdir()
    run.predict("validation", "test").to_csv(study.results / "predictions" / f"{run.name}.csv", index=False)
    return study
