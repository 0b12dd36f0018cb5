"""Before the first byte: is everything there that the study will need?
    python -m her2core.cohorts.preflight COHORT          checks it all, and lists all that is wanting at once
    python -m her2core.cohorts.preflight --dry COHORT    says what the study takes, without network

data/<cohort>/preflight/plan.csv   what will be acquired.  The download depends on it, and it says nothing of later
                                   stages: a parameter of theirs is checked here and leaves the download alone
"""

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from her2core.auc import EvaluateConfig
from her2core.baselines import build_model, needed_weights
from her2core.cohorts import archive
from her2core.cohorts import phantom as embedded
from her2core.cohorts.acquire import SOURCES
from her2core.cohorts.manifest import MINCROP_LICENCE, totals
from her2core.cohorts.transfer import check_reachable, check_space
from her2core.config import Study, steady_dependencies
from her2core.normalize import LANDMARKS, Window, columns
from her2core.preprocess import PrepareConfig
from her2core.records import whole
from her2core.runs import Run
from her2core.train import TrainConfig
from her2core.weights import fetch

_BREASTDCEDL = {"spy2": (982, 982), "spy1": (172, 167)}  # its patients, and those with a HER2 status
_MINCROP_MB = 12  # per patient of the release, about: all of it is 22 to 25 GB for 2,063
_KEPT_MB = 16.7  # per real patient: three cropped phases, uncompressed; 16.4 GB over the 982 of I-SPY2
_TRAINED = 0.77  # share of the patients in training: 885 of 1,149
# Of an H100's 989 TFLOP/s in bfloat16, as published for ResNet-50 (11 to 18 %, MLPerf 3.0); not measured here
_GPU_FLOPS = 0.12 * 989e12
_CLASSES = {"prepare": PrepareConfig, "train": TrainConfig, "evaluate": EvaluateConfig}


# --- what it takes ------------------------------------------------------------------------------------------


def plan(study: Study) -> pd.DataFrame:
    """What will be acquired, a row per collection: where from, patients, series, files, GB (of MinCrop about)."""
    config = study.params("acquire", SOURCES)
    if isinstance(config, embedded.EmbeddedConfig):
        sites = pd.DataFrame(embedded.draw_cohort(config))["dataset"].value_counts(sort=False)
        return pd.DataFrame({"collection": sites.index, "from": "phantom", "patients": sites.to_numpy()})
    rows = []
    for dataset, where in config.collections.items():
        if where == "idc":
            row = totals(archive.read_series(dataset, study.top / config.manifests)[0])
        else:
            patients, _ = _BREASTDCEDL[dataset]
            row = {"patients": patients, "series": 0, "instances": 1, "licences": [MINCROP_LICENCE]}
            row["GB"] = patients * _MINCROP_MB / 1000
        rows.append({"collection": dataset, "from": where} | row)
    table = pd.DataFrame(rows).rename(columns={"instances": "files", "GB": "download_GB"})
    return table.assign(licences=table["licences"].str.join(", "))


def _raw_gb(study):
    """Disk of the stage acquire: what stays, and the most that is under way beside it."""
    config = study.params("acquire", SOURCES)
    if isinstance(config, embedded.EmbeddedConfig):
        sites = [embedded.site_of(row, config.coarse) for row in embedded.draw_cohort(config)]
        return sum(2e-9 * math.prod(s.shape) * len(s.phase_times_s) for s in sites), 0.0  # 16 bits per voxel
    under_way = [0.0]
    for dataset, where in config.collections.items():
        if where == "idc":
            series = archive.read_series(dataset, study.top / config.manifests)[0]
            under_way.append(series.groupby("patient")["size_MB"].sum().max() / 1000 * max(config.jobs, 1))
        else:
            under_way.append(_BREASTDCEDL[dataset][0] * _MINCROP_MB / 1000)
    return plan(study)["patients"].sum() * _KEPT_MB / 1000, max(under_way)


def _prepared_gb(study, patients):
    """The packed arrays."""
    config = study.params("prepare", PrepareConfig)
    pictures = len(config.bias_fields) * 3 * (3 if config.neighbours else 1)  # 16 bits; the masks have 8
    return patients * config.slices * config.crop_px**2 * (2 * pictures + 1) / 1e9


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
        rows.append((run.model, len(run.training.seeds), run.training.epochs, *known[run.model]))
    return pd.DataFrame(rows, columns=["model", "seeds", "epochs", "parameters", "flops"])


def _disk_gb(study: Study, trained: pd.DataFrame) -> dict[str, float]:
    """{what: GB} of the whole study; trained: its `_networks`.

    DVC's cache holds arrays and weights a second time, where the file system cannot share blocks; packed arrays
    stand twice while they are assembled; a checkpoint has the best weights and two moments as well.
    """
    raw, under_way = _raw_gb(study)
    arrays = _prepared_gb(study, plan(study)["patients"].sum())
    of_run = 4e-9 * trained["parameters"] * trained["seeds"]  # 32 bits
    return {
        "raw files": raw,
        "downloads under way": under_way,
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
    if known := [_BREASTDCEDL[d][1] for d in table["collection"] if not study.is_synthetic and d in _BREASTDCEDL]:
        lines[-1] += f"; HER2 status known in BreastDCEDL: {' + '.join(map(str, known))} = {sum(known):,}"
    if "download_GB" in table:
        size = table["download_GB"].sum()
        hours = size * 8 / 3600  # at 1 Gbit/s
        speeds = f"{hours / 0.1:.1f} h at 100 Mbit/s, {hours:.1f} h at 1 Gbit/s"
        lines.append(f"Download: {size:.0f} GB; {speeds}")
    parts = _disk_gb(study, trained)
    lines += [
        f"Disk: {sum(parts.values()):.1f} GB in all",
        *(f"  {what}: {gb:.2g} GB" for what, gb in parts.items()),
    ]
    weights = needed_weights(Run.of(study).models, trained["model"])
    lines.append(f"Pretrained weights: {', '.join(weights) or 'none'}")
    hours = f"about {_gpu_hours(study, trained):.1f} h on an H100, by their operations"
    return "\n".join([*lines, f"{trained['seeds'].sum()} trainings: {hours}"])


# --- what is wanting ----------------------------------------------------------------------------------------


def _parameters(study):
    """Every section can be read, every run be made of what prepare will store, and all of it fits on the disk."""
    for section, into in _CLASSES.items():
        study.params(section, into)
    config = study.params("prepare", PrepareConfig)
    for run in (Run.of(study, name) for name in study.runs):
        window = Window.parse(run.window)
        if window.method != "zscore":
            columns(config.quantiles, LANDMARKS if window.method == "nyul" else (window.lower, window.upper))
        if run.bias_field not in config.bias_fields:
            raise ValueError(f"run {run.name} needs {run.bias_field} in prepare.bias_fields {config.bias_fields}")
        if run.sees_neighbours and not config.neighbours:
            raise ValueError(f"run {run.name} needs prepare.neighbours: true")
    if Run.of(study).name not in study.runs:
        raise ValueError(f"runs lack {Run.of(study).name}, with which all others are compared")
    _check_disk(study, _networks(study))


def _check_disk(study, trained):
    """All of it fits, less what is there."""
    folder = study.data("")
    there = [p.stat().st_size for place in (folder, study.models) for p in place.rglob("*") if p.is_file()]
    nearest = next(p for p in (folder, *folder.parents) if p.is_dir())
    check_space(sum(_disk_gb(study, trained).values()) - sum(there) / 1e9, nearest)


def _pretrained(study):
    """Weights lie in a cache or a folder, or are fetched there now."""
    models, wanting = Run.of(study).models, []
    for name in needed_weights(models, [Run.of(study, run).model for run in study.runs]):
        try:
            fetch(name, models.weights)
        except (ValueError, OSError) as error:
            wanting.append(str(error))
    if wanting:
        raise ValueError("; ".join(wanting))


def _all_here(study):
    """Whether all collections were acquired before."""
    path = study.data("acquire") / "metadata.csv"
    return path.is_file() and set(study.section("acquire")["collections"]) <= set(pd.read_csv(path)["dataset"])


def _idc(study):
    """IDC answers, if it is needed."""
    config = study.params("acquire", SOURCES)
    if "idc" in config.collections.values() and not _all_here(study):
        check_reachable(config.idc)


def _zenodo(study):
    """Zenodo answers, if it is needed, and BreastDCEDL's table can be read."""
    config, folder = study.params("acquire", SOURCES), study.data("acquire")
    if not set(config.collections) & {"spy1", "spy2"}:
        return
    if not ((folder / config.release("table")[0]).is_file() and _all_here(study)):
        check_reachable(config.zenodo)
    archive.read_ispy(config, folder)


def _sheet(study):
    """AMBL's sheet is there, and says what its values mean."""
    config = study.params("acquire", SOURCES)
    if "ambl" in config.collections:
        archive.read_ambl(config)


def problems(study: Study) -> list[str]:
    """All that the study lacks, a line each."""
    checks: list[Callable] = [_parameters, _pretrained]
    if not study.is_synthetic:
        checks += [_idc, _zenodo, _sheet]
    with ThreadPoolExecutor() as pool:  # side by side: without a network each waits for its own server
        done = [pool.submit(check, study) for check in checks]
    return [str(error) for error in (one.exception() for one in done) if _expected(error)]


def _expected(error):
    """Whether a check failed; what is no fault of the study's is raised."""
    if error and not isinstance(error, ValueError | OSError):
        raise error
    return bool(error)


def main(arguments: list[str]) -> None:
    """The stage `preflight`, or its dry run."""
    is_dry = arguments[:1] == ["--dry"]
    if len(arguments) != 1 + is_dry or arguments[-1].startswith("-"):
        sys.exit(__doc__)
    try:
        study = Study.open(arguments[-1])
        if is_dry:
            print(describe(study))
            return
        with steady_dependencies("her2core/cohorts/preflight.py", study):
            if wanting := problems(study):
                raise ValueError("; ".join(wanting))
            with whole(study.data("preflight") / "plan.csv") as part:
                plan(study).to_csv(part, index=False)
    except (ValueError, OSError) as error:
        sys.exit(f"\npreflight: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
