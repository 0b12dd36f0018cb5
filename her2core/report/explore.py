"""Sliders over prepared patients: what the networks get, attend to and answer; without JupyterLab, single views."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from her2core.config import Study
from her2core.preprocess import PrepareConfig
from her2core.records import alias
from her2core.report.figures.sheet import explored
from her2core.report.figures.style import PHASE_NAMES
from her2core.runs import Run, parse_run, spatial_attention
from her2core.train import AGGREGATE, predict_slices

_BIAS_FIELDS = {"raw": "raw", "n4": "N4"}  # as they are called here


def ready(top: Path) -> list[str]:
    """The studies whose arrays and reference's weights are here, the top level's first."""
    own = sorted(path.parent.name for path in top.glob("studies/*/params.yaml"))
    return [name for name in (Study.open().name, *own) if _is_ready(name)]


def _is_ready(name):
    try:
        study = Study.open(name)
        run = Run.of(study)
    except ValueError:
        return False
    return all(path.exists() for path in (study.data("prepare") / "digests.csv", run.folder, run.frozen))


@cache
def _opened(cohort):
    """A study, its reference, and a network per seed: under folds those of the first."""
    study = Study.open(cohort)
    run = Run.of(study)
    study.need("prepare", study.data("prepare"))
    study.need(f"train@{run.name}", run.folder, run.frozen)
    first = run.members[0][1]
    return study, run, {s: net for (s, fold), net in zip(run.members, run.networks(), strict=True) if fold == first}


def patients(cohort: str) -> dict[str, str]:
    """What a patient is called, with split and class → its identifier, in the table's order."""
    study, run, _ = _opened(cohort)
    found = run.opened
    rows = zip(found.patient, found.split, found.label, strict=True)
    return {f"{alias(name)}, {split}, {study.title.endpoint.of(label)}": name for name, split, label in rows}


def known_windows(cohort: str) -> list[str]:
    """The reference's window, and those of the top level's runs."""
    window = _opened(cohort)[1].window
    return [*dict.fromkeys([window, *(parse_run(name, window)[1] for name in Study.open().runs)])]


def answers(cohort: str, patient: str, window: str, bias_field: str) -> pd.DataFrame:
    """Probabilities of a patient's slices, a column per seed; ValueError for a patient who is not there."""
    _, reference, networks = _opened(cohort)
    run, rows = replace(reference, window=window, bias_field=bias_field), _rows(reference, patient)
    images = run.slices(rows).images
    return pd.DataFrame({seed: predict_slices(net, images) for seed, net in networks.items()})


def _rows(run, patient):
    rows = np.flatnonzero(run.opened.patient == patient)
    if not rows.size:
        known = run.opened.patient[0]
        raise ValueError(f"no patient {patient!r} among the prepared ones; expected one such as {known}")
    return rows


def view(cohort: str, patient: str, number: int, phase: int, window: str, bias_field: str) -> Figure:
    """Slice `number` (from 1) of a patient under a window, raw or after N4; phase: 0 to 2.

    The networks are always the reference's, so other images than theirs show what the same weights make of them."""
    study, reference, networks = _opened(cohort)
    run, rows = replace(reference, window=window, bias_field=bias_field), _rows(reference, patient)
    found, at = answers(cohort, patient, window, bias_field), min(number, len(rows)) - 1
    prepared, row = run.opened, rows[[at]]
    image = prepared.under(window, rows=row).images[0].numpy()
    gates = spatial_attention([*networks.values()], run.slices(row).images)[0].cpu().numpy()
    combine = run.training.aggregate
    mean = found.apply(AGGREGATE[combine]).mean()
    endpoint, kind = study.title.endpoint, _BIAS_FIELDS[bias_field]
    status = endpoint.of(prepared.label[row[0]])
    name = f"{alias(patient)}, {status}; slice {at + 1} of {len(rows)}, {window}, {kind}"
    said = f"{name}; probability of {endpoint.positive} {mean:.2f} ({combine} of slices, mean of seeds)"
    place = prepared.masks[row[0]], prepared.pixel_mm[row[0]], phase
    return explored(image, gates, *place, found, at, said, study.title)


def _show(**chosen):
    """`view`, or the one line that says why not."""
    try:
        view(**chosen)
    except ValueError as error:
        print(error)


def sliders(cohort: str) -> widgets.VBox:
    """Everything to turn, and below it the view, which follows."""
    lazy = {"continuous_update": False}
    controls = {
        "cohort": widgets.Dropdown(options=ready(Study.open().top), value=cohort),
        "patient": widgets.Dropdown(),
        "number": widgets.IntSlider(min=1, description="slice", **lazy),
        "phase": widgets.SelectionSlider(
            options=[(name, k) for k, name in enumerate(PHASE_NAMES)], value=1, **lazy
        ),
        "window": widgets.Dropdown(),
        "bias_field": widgets.ToggleButtons(description="bias field"),
    }
    for name, control in controls.items():
        control.description = control.description or name
        control.layout.width, control.style.description_width = "34rem", "5rem"

    def of_cohort(_=None):
        name = controls["cohort"].value
        fields = Study.open(name).params("prepare", PrepareConfig).bias_fields
        of = {"bias_field": [(_BIAS_FIELDS[field], field) for field in fields], "window": known_windows(name)}
        for control, options in (of | {"patient": [*patients(name).items()]}).items():
            controls[control].options, controls[control].index = options, 0

    def of_patient(_=None):
        run = _opened(controls["cohort"].value)[1]
        controls["number"].max = int((run.opened.patient == controls["patient"].value).sum()) or 1

    of_cohort()
    of_patient()
    controls["cohort"].observe(of_cohort, "value")
    controls["patient"].observe(of_patient, "value")
    return widgets.VBox([*controls.values(), widgets.interactive_output(_show, controls)])
