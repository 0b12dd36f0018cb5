"""Before the first byte: is everything there that the study will need?
    python -m her2core.cohorts.preflight COHORT          checks it all, and lists all that is wanting at once
    python -m her2core.cohorts.preflight --dry COHORT    says what the study takes and lacks, without network

data/<cohort>/preflight/plan.csv   what will be acquired.  The download depends on it, and it says nothing of later
                                   stages: a parameter of theirs is checked here and leaves the download alone
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from her2core.auc import EvaluateConfig
from her2core.baselines import ModelConfig, build_model, is_model, needed_weights
from her2core.cohorts.acquire import SOURCES
from her2core.cohorts.collections import collections
from her2core.cohorts.transfer import check_reachable, check_space, fetch_file
from her2core.config import Study, build, steady_dependencies
from her2core.formats.weights import find, published
from her2core.model import ThdaConfig
from her2core.normalize import LANDMARKS, Window, columns
from her2core.preprocess import PrepareConfig
from her2core.records import whole
from her2core.runs import Run
from her2core.train import TrainConfig, choose_device

_TRAINED = 0.77  # share of the patients in training: 885 of 1,149
# Of an H100's 989 TFLOP/s in bfloat16, as published for ResNet-50 (11 to 18 %, MLPerf 3.0); not measured here
_GPU_FLOPS = 0.12 * 989e12
_PLAN = ("collection", "from", "patients", "series", "files", "download_GB", "licences")  # its columns
_CLASSES = {"acquire": SOURCES, "prepare": PrepareConfig, "models": ModelConfig}
_CLASSES |= {"train": TrainConfig, "evaluate": EvaluateConfig}


def plan(study: Study) -> pd.DataFrame:
    """What will be acquired, a row per collection: where from, patients, series, files, GB (of MinCrop about)."""
    table = study.params("acquire", SOURCES).describe()
    return table[[c for c in _PLAN if c in table]]


def _networks(study: Study) -> pd.DataFrame:
    """A row per run: model, seeds, epochs, parameters, and the operations of a slice forward.  Nothing is computed,
    but a network that cannot be built for the study's images is a ValueError."""
    px, known, rows = study.params("prepare", PrepareConfig).crop_px, {}, []
    for run in (Run.of(study, name) for name in study.runs):
        if run.model not in known:
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                network = build_model(run.model, run.models, px, pretrained=False).eval()
                network(torch.zeros(1, 9 if run.sees_neighbours else 3, px, px))
            known[run.model] = sum(p.numel() for p in network.parameters()), counter.get_total_flops()
        rows.append((run.model, len(run.members), run.training.epochs, *known[run.model]))
    return pd.DataFrame(rows, columns=["model", "seeds", "epochs", "parameters", "flops"])


def _disk_gb(study: Study, trained: pd.DataFrame) -> dict[str, float]:
    """{what: GB} of the whole study; trained: its `_networks`.

    DVC's cache holds arrays and weights a second time, where the file system cannot share blocks; packed arrays
    stand twice while they are assembled; a checkpoint has the best weights and two moments as well.
    """
    table, config = study.params("acquire", SOURCES).describe(), study.params("prepare", PrepareConfig)
    pictures = len(config.bias_fields) * 3 * (3 if config.neighbours else 1)  # 16 bits; the masks have 8
    arrays = table["patients"].sum() * config.slices * config.crop_px**2 * (2 * pictures + 1) / 1e9
    of_run = 4e-9 * trained["parameters"] * trained["seeds"]  # 32 bits
    return {
        "raw files": table["kept_GB"].sum(),
        "downloads under way": table["under_way_GB"].max(),
        "packed arrays, twice while assembled": 2 * arrays,
        "weights": of_run.sum(),
        "checkpoints": 4 * of_run.max(),
        "DVC's cache": arrays + of_run.sum(),
    }


def _gpu_hours(study: Study, trained: pd.DataFrame) -> float:
    """Time of all trainings on an H100, estimated from their operations; a step takes three forward passes."""
    # an epoch: a slice of each training patient, forward and back, and all slices of the validation patients
    looks = 3 * _TRAINED + (1 - _TRAINED) / 2 * study.params("prepare", PrepareConfig).slices
    flops = (trained["flops"] * trained["epochs"] * trained["seeds"]).sum()
    return plan(study)["patients"].sum() * looks * flops / _GPU_FLOPS / 3600


def describe(study: Study) -> str:
    """All of it in words; needs no network."""
    table, trained = plan(study), _networks(study)
    lines = [table.round(1).to_string(index=False, na_rep="") + "\n", f"Patients: {table['patients'].sum():,}"]
    published = {} if study.is_synthetic else {name: c.published for name, c in collections().items()}
    if known := [published[name][1] for name in table["collection"] if published.get(name)]:
        lines[-1] += f"; HER2 status known in BreastDCEDL: {' + '.join(map(str, known))} = {sum(known):,}"
    if "download_GB" in table:
        size = table["download_GB"].sum()
        hours = size * 8 / 3600  # at 1 Gbit/s
        lines.append(f"Download: {size:.0f} GB; {hours / 0.1:.1f} h at 100 Mbit/s, {hours:.1f} h at 1 Gbit/s")
    parts = _disk_gb(study, trained)
    lines.append(f"Disk: {sum(parts.values()):.1f} GB in all")
    lines += [f"  {what}: {gb:.2g} GB" for what, gb in parts.items()]
    weights = needed_weights(Run.of(study).models, trained["model"])
    lines.append(f"Pretrained weights: {', '.join(weights) or 'none'}")
    hours = _gpu_hours(study, trained)
    lines.append(f"{trained['seeds'].sum()} trainings: about {hours:.1f} h on an H100, by their operations")
    return "\n".join(lines)


def _section(study, name):
    """A section can be read."""
    study.params(name, _CLASSES[name])
    if study.section(name).get("jobs") == 0:
        raise ValueError(f"{study.name}: {name}.jobs is 0, expected a number of processes, or -1: one per core")


def _runs(study):
    """Every run can be made of what prepare will store, and all of it fits on the disk."""
    config, training, models = (study.params(name, _CLASSES[name]) for name in ("prepare", "train", "models"))
    if twice := {name for name in study.runs if study.runs.count(name) > 1}:
        raise ValueError(f"runs has {', '.join(sorted(twice))} twice")
    if strangers := [name for name in training.of if not is_model(name)]:
        raise ValueError(f"train.of: no model is called {', '.join(strangers)}")
    for name in training.of:
        training.of_model(name)
    for name, changes in models.variants.items():
        build(ThdaConfig, study.section("models")["thda"] | changes, f"{study.name}: models.variants.{name}")
    for run in (Run.of(study, name) for name in study.runs):
        window = Window.parse(run.window)
        if window.method != "zscore":
            columns(config.quantiles, LANDMARKS if window.method == "nyul" else (window.lower, window.upper))
        if run.bias_field not in config.bias_fields:
            raise ValueError(f"run {run.name} needs {run.bias_field} in prepare.bias_fields {config.bias_fields}")
        if run.sees_neighbours and not config.neighbours:
            raise ValueError(f"run {run.name} needs prepare.neighbours: true")
    if training.reference not in study.runs:
        raise ValueError(f"runs lack {training.reference}, with which all others are compared")
    if sum(name.startswith("thda-") for name in study.runs) < 2:
        raise ValueError(f"runs need another thda-… to compare with {training.reference}")
    _check_disk(study, _networks(study))


def _device(study):
    """The device is there, and the compiler if it is wanted."""
    training = study.params("train", TrainConfig)
    try:
        sample = torch.zeros(8, device=choose_device(training.device))
        if training.compile:
            torch.compile(torch.sin)(sample)
    except (RuntimeError, AssertionError) as error:
        how = "device: auto takes what is there, compile: false needs no compiler"
        raise ValueError(f"train: {str(error).strip().splitlines()[0]}; {how}") from error


def _check_disk(study, trained):
    """All of it fits, less what is there."""
    folder = study.data("")
    there = [p.stat().st_size for place in (folder, study.models) for p in place.rglob("*") if p.is_file()]
    nearest = next(p for p in (folder, *folder.parents) if p.is_dir())
    check_space(sum(_disk_gb(study, trained).values()) - sum(there) / 1e9, nearest)


def _pretrained(study, network):
    """Weights lie in a cache or a folder, or are fetched there now."""
    models = Run.of(study).models
    names = needed_weights(models, [Run.of(study, run).model for run in study.runs])
    _need([partial(_fetch_weights if network else find, name, models.weights) for name in names])


def _fetch_weights(name, weights):
    try:
        find(name, weights)
    except FileNotFoundError as missing:
        path, url = published(name)
        try:
            check_reachable(url)
            fetch_file(url, path, getattr(weights, name), "sha256")
        except (ValueError, OSError) as error:
            raise ValueError(f"{missing}; its download failed: {error}") from error


def _patients(study, network):
    """What the patients' source needs is there."""
    _need([*study.params("acquire", SOURCES).checks(study.data("acquire"), network)])


def check_study(study: Study, network: bool = True) -> None:
    """Raise ValueError with all that the study lacks; network: ask servers too, and fetch pretrained weights."""
    checks = [partial(_section, name=name) for name in _CLASSES] + [_runs, _device]
    checks += [partial(each, network=network) for each in (_pretrained, _patients)]
    _need([partial(check, study) for check in checks])


def _need(checks):
    """Raise ValueError with the words of all the checks that fail, each once."""
    with ThreadPoolExecutor() as pool:  # side by side: without a network each waits for its own server
        if wanting := dict.fromkeys(words for words in pool.map(_wanting, checks) if words):
            raise ValueError("; ".join(wanting))


def _wanting(check):
    """What a check finds wanting; what is no fault of the study's is raised."""
    try:
        check()
    except (ValueError, OSError) as error:
        return str(error)


def main(arguments: list[str]) -> None:
    """The stage `preflight`, or its dry run."""
    is_dry = arguments[:1] == ["--dry"]
    if len(arguments) != 1 + is_dry or arguments[-1].startswith("-"):
        sys.exit(__doc__)
    try:
        study = Study.open(arguments[-1])
        if is_dry:
            print(describe(study))
            wanting = (_wanting(partial(check_study, study, network=False)) or "nothing").split("; ")
            print("Wanting here:", *wanting, sep="\n- " if len(wanting) > 1 else " ")
            return
        with steady_dependencies("her2core/cohorts/preflight.py", study):
            check_study(study)
            with whole(study.data("preflight") / "plan.csv") as part:
                plan(study).to_csv(part, index=False)
    except (ValueError, OSError) as error:
        sys.exit(f"\npreflight: {error}")
    except KeyboardInterrupt:
        sys.exit("\npreflight: stopped")


if __name__ == "__main__":
    main(sys.argv[1:])
