"""What each single deviation from a study's way of preparing, training or scoring costs, on the same patients.

Run by hand, in notebook 13, and never by `dvc repro`: somebody who cannot reproduce a number finds here by how much
each mistake, or honest difference, moves it.  The frozen networks score the test patients again only to price
mistakes; nothing is chosen from it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from her2core.auc import EvaluateConfig, auc
from her2core.baselines import build_model
from her2core.config import read_yaml
from her2core.dataset import Prepared, Slices
from her2core.evaluate import comparisons, matrix, read_predictions, summary
from her2core.formats.volume import PHASE_COLUMNS, as_uint16
from her2core.normalize import SCOPES, Window, maps, piecewise
from her2core.parallel import each
from her2core.preprocess import PrepareConfig, pack, read_patient
from her2core.records import check_complete, whole
from her2core.runs import Run
from her2core.train import fit, predict

FAITHFUL = "faithful"
_UNSEEN = "no difference detected"
_LAST_DIGIT = 2e-6  # of a probability of six digits: batches of another size sum in another order
_OFF_CENTRE_MM = 10.0
_FEWEST = 2  # patients of either class, below which nothing can be compared
_BY_SLICE = ("images", "quantiles", "moments", "patient", "split", "dataset", "label", "pixel_mm")
_INVERSE = "dicom_analysis_mask"  # the layout whose masks are 0 inside the tumour

_TABLE = Path(__file__).with_suffix(".yaml")
DEVIATIONS = {name: (where, words) for where, of in read_yaml(_TABLE).items() for name, words in of.items()}


# ------------------------------------------------------------------------------------------------- of packed arrays


def tested(prepared: Prepared) -> Prepared:
    """The slices of the splits test and external; ValueError where there is no test split, as under folds."""
    if "test" not in prepared.split:
        raise ValueError(f"splits {sorted(set(prepared.split))}, expected test: of folds nothing is priced here")
    return _rows(prepared, np.flatnonzero(np.isin(prepared.split, ["test", "external"])))


def _rows(prepared, rows):
    return replace(prepared, **{name: getattr(prepared, name)[rows] for name in _BY_SLICE})


def phases_as(prepared: Prepared, *order: int) -> Prepared:
    """Other phases in the places of pre, early and late, with their statistics: (0, 2, 1) swaps the last two."""
    of_phase = {name: getattr(prepared, name)[:, :, list(order)] for name in ("quantiles", "moments")}
    return replace(prepared, images=prepared.images[:, list(order)], **of_phase)


def mirrored(prepared: Prepared, axis: int) -> Prepared:
    """Images mirrored: axis 3 left for right, 2 up for down."""
    return replace(prepared, images=np.flip(prepared.images, axis))


def middle_alone(prepared: Prepared) -> Prepared:
    """The middle slice of each patient."""
    return _rows(prepared, prepared.middle())


def _place(patient):
    """Number of each slice in its patient, from 0."""
    first = np.flatnonzero(np.append(True, patient[1:] != patient[:-1]))
    return np.arange(patient.size) - np.repeat(first, np.diff(np.append(first, patient.size)))


def _arrays(prepared) -> Iterator[tuple[str, Prepared]]:
    """What else may have been made of the packed arrays of the tested patients."""
    for name, order in {"early_late": (0, 2, 1), "pre_late": (2, 1, 0), "late_missing": (0, 1, 1)}.items():
        yield name, phases_as(prepared, *order)
    yield "left_right", mirrored(prepared, 3)
    yield "up_down", mirrored(prepared, 2)
    yield "middle_slice", middle_alone(prepared)
    yield "second_slices", _rows(prepared, np.flatnonzero(_place(prepared.patient) % 2 == 0))
    if (prepared.folder / "images_n4.npy").is_file():
        yield "n4", tested(Prepared.open(prepared.folder, "n4"))


def other_windows(window: Window, levels: Sequence[float]) -> dict[str, Window]:
    """The window with another scope, and with white at other quantiles; levels: those that are stored."""
    scopes = [scope for scope in SCOPES if scope != window.scope and (window.method, scope) != ("nyul", "slice")]
    found = {f"scope_{scope}": replace(window, scope=scope) for scope in scopes}
    for white in (0.99, 0.98, 0.95) if window.method == "quantile" else ():
        if white != window.upper and np.isclose(levels, white).any():
            found[f"white_{white * 100:.0f}"] = replace(window, upper=white)
    return found


# ----------------------------------------------------------------------------------------------- of the raw files


def _box(mask):
    """The smallest box around a mask."""
    filled = np.zeros_like(mask)
    filled[tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(mask))] = True
    return filled


def _beside(mask, spacing_mm):
    """A mask moved along its rows, towards the middle of the image."""
    step = round(_OFF_CENTRE_MM / spacing_mm[2])
    return np.roll(mask, step if np.nonzero(mask)[2].mean() < mask.shape[2] / 2 else -step, axis=2)


def other_packs(
    mask: np.ndarray, spacing_mm: Sequence[float], layout: str, config: PrepareConfig
) -> dict[str, tuple[np.ndarray, PrepareConfig]]:
    """{deviation: (mask, parameters)} that a patient may be packed with instead; first the faithful ones.

    mask: bool `(Z, Y, X)`; spacing_mm: (z, y, x).  layout: of the row; only I-SPY2's masks are inverse."""
    found = {FAITHFUL: (mask, config)}
    if config.crop_mm is not None:
        sizes = {"crop_smaller": 0.8 * config.crop_mm, "crop_larger": 1.25 * config.crop_mm, "native_pixels": None}
        found |= {name: (mask, replace(config, crop_mm=size)) for name, size in sizes.items()}
    masks = {"off_centre": _beside(mask, spacing_mm), "box": _box(mask), "mask_upside_down": mask[::-1]}
    masks["mask_not_inverted"] = ~mask if layout == _INVERSE else mask
    return found | {name: (other, config) for name, other in masks.items()}


def _pack_otherwise(row, raw, config):
    """{deviation: images, quantiles, moments} of one patient."""
    check_complete(row["patient"], raw)
    found = read_patient(row, raw, config)
    packs = other_packs(found.mask, found.geometry.spacing_mm, row["layout"], config)
    ways = {name: (found.phases, *way) for name, way in packs.items()}
    ways["first_last"] = (_first_and_last(row, raw, config, found), found.mask, config)
    return {
        name: pack(as_uint16(phases, row["patient"])[0], mask, found.geometry, how)[2]["raw"]
        for name, (phases, mask, how) in ways.items()
    }


def _first_and_last(row, raw, config, found):
    """The pre, the first and the last phase of a series; BreastDCEDL's has only three."""
    if row["layout"] == "breastdcedl":
        return found.phases
    return read_patient(row | dict.fromkeys(PHASE_COLUMNS), raw, replace(config, early_s=0.0, late_s=1e6)).phases


def repacked(
    prepared: Prepared, patients: pd.DataFrame, raw: Path, config: PrepareConfig
) -> Iterator[tuple[str, Prepared]]:
    """The tested patients packed otherwise, from their raw files: (deviation, arrays) of each.

    prepared: `tested`; patients: rows of the patient table; raw: the folder of the stage `acquire`.  ValueError
    unless the faithful way gives the very images that were packed."""
    firsts = np.flatnonzero(_place(prepared.patient) == 0)
    config = replace(config, bias_fields=("raw",), neighbours=False)
    own = patients.set_index("patient", drop=False).loc[prepared.patient[firsts]]
    pack_one = partial(_pack_otherwise, raw=Path(raw).absolute(), config=config)
    packs = each(pack_one, own.to_dict("records"), config.jobs, "packed otherwise")
    for name in packs[0]:
        parts = [one[name] for one in packs]
        counts = [len(part["images"]) for part in parts]
        arrays = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
        other = replace(_rows(prepared, np.repeat(firsts, counts)), **arrays)
        if name != FAITHFUL:
            yield name, other
        elif not np.array_equal(other.images, prepared.images):
            raise ValueError(f"{raw}: does not give the arrays in {prepared.folder}; run: dvc repro prepare")


# -------------------------------------------------------------------------------------------- predicted and scored


def _shown(prepared, window, training):
    """Slices under a window, which learns, if it does, from faithful training patients."""
    x, y = maps(window, prepared.quantiles, prepared.levels, prepared.moments, training)
    images = torch.from_numpy(piecewise(prepared.images, x, y))
    return Slices(images.contiguous(), prepared.patient, prepared.split, prepared.label)


def at_prediction(run: Run, others: Iterable[tuple[str, Prepared]] = ()) -> pd.DataFrame:
    """The prediction table of a run's frozen networks on test and external patients, `run` being the deviation.

    others: (deviation, arrays) besides those that the packed arrays allow, such as `repacked`.  ValueError for a
    run under folds, or whose heads see adjacent slices, which are not looked after here."""
    if run.folds or run.sees_neighbours or run.bias_field != "raw":
        raise ValueError(f"{run.name}: expected a run on raw images, without folds and adjacent slices")
    opened = run.opened
    prepared, training, window = tested(opened), opened.training, Window.parse(run.window)
    splits = [split for split in ("test", "external") if split in prepared.split]

    def predicted(name, arrays=prepared, under=window, aggregate=None):
        return run.predict(*splits, slices=_shown(arrays, under, training), aggregate=aggregate).assign(run=name)

    tables = [predicted(FAITHFUL)]
    tables += [predicted(name, arrays=arrays) for name, arrays in (*_arrays(prepared), *others)]
    tables += [predicted(name, under=other) for name, other in other_windows(window, prepared.levels).items()]
    tables += [predicted(way, aggregate=way) for way in ("max", "mean", "median") if way != run.training.aggregate]
    return pd.concat([*tables, of_seeds(tables[0])], ignore_index=True)


def of_seeds(faithful: pd.DataFrame) -> pd.DataFrame:
    """Averaged probabilities, and one seed's, the best or the worst of a split, in place of each seed's own."""
    parts = []
    for _, rows in faithful.groupby("split", sort=False):
        labels, found = matrix(rows)
        aucs = auc(labels, found)
        told = {"best_seed": found[aucs.argmax()], "worst_seed": found[aucs.argmin()], "averaged": found.mean(0)}
        for name, values in told.items():
            of = dict(zip(sorted(set(rows["patient"])), values, strict=True))
            parts.append(rows.assign(run=name, probability=rows["patient"].map(of)))
    return pd.concat(parts, ignore_index=True)


def check_faithful(table: pd.DataFrame, paths: Iterable[Path]) -> float:
    """The largest distance of the faithful predictions from those in the files that stages wrote: 0 on the machine
    that wrote them.  ValueError beyond the last digit, or where a patient lacks: nothing could be priced."""
    keys, paths = ["patient", "split", "seed"], list(paths)
    known = pd.concat([read_predictions([path]) for path in paths])
    own = table[(table["run"] == FAITHFUL) & table["split"].isin(known["split"])]
    both = own.merge(known, on=keys, how="left", suffixes=("", "_known"), validate="1:1")
    apart = float((both["probability"] - both["probability_known"]).abs().max())
    lacking = int(both["probability_known"].isna().sum())
    if lacking or not apart <= _LAST_DIGIT:
        where = ", ".join(map(str, paths))
        found = f"faithful predictions: up to {apart:.6f} away from those in {where}, {lacking} not there"
        raise ValueError(f"{found}, expected the same ones; run: dvc repro")
    return apart


# ------------------------------------------------------------------------------------------------------ in training


def split_by_slice(slices: Slices) -> tuple[Slices, Slices, Slices]:
    """Train, validation and tested slices where slices were split, not patients: every second slice of the test
    patients is trained on, in place of as many training patients, and the others are tested."""
    leaked = (slices.split == "test") & (_place(slices.patient) % 2 == 1)
    train = slices.of_split("train")
    kept = train.some_patients(max(len(train.patients()[0]) - len(set(slices.patient[leaked])), 0))
    seen = slices.where(leaked | np.isin(slices.patient, kept.patient))
    return seen, slices.of_split("validation"), slices.where(np.isin(slices.split, ["test", "external"]) & ~leaked)


def checkpoint_on_test(slices: Slices) -> tuple[Slices, Slices, Slices]:
    """Train, validation and tested slices where the test patients choose the checkpoint."""
    tested_ = slices.where(np.isin(slices.split, ["test", "external"]))
    return slices.of_split("train"), slices.of_split("test"), tested_


_TRAINED: Mapping[str, Callable] = {"split_by_slice": split_by_slice, "checkpoint_on_test": checkpoint_on_test}


def _train_otherwise(seed, run, name, parts):
    """One training → its predictions."""
    train, validation, tested_ = parts
    build, config = partial(build_model, run.model, run.models, train.images.shape[-1]), run.training
    if config.patients:
        train = train.some_patients(config.patients, seed if config.redraw else None)
    network, _ = fit(build, train, validation, config, seed)
    rows, found = {"cohort": run.cohort, "run": name}, []
    rows |= {"model": run.model, "window": run.window, "bias_field": run.bias_field}
    for split in dict.fromkeys(tested_.split):
        patient, label, probability = predict(network, tested_.of_split(split), config.aggregate)
        of = {"patient": patient, "split": split, "label": label, "seed": seed, "probability": probability.round(6)}
        found.append(pd.DataFrame(rows | of))
    return pd.concat(found)


def in_training(run: Run, path: Path) -> pd.DataFrame:
    """The prediction table of networks trained otherwise, by the run's recipe and seeds.

    path: its file, which grows deviation by deviation.  What stands there is not trained again: delete it after a
    change of the data or code."""
    slices, table = run.slices(), pd.read_csv(path, dtype={"patient": str}) if path.is_file() else pd.DataFrame()
    for name, deal in _TRAINED.items():
        if len(table) and name in set(table["run"]):
            continue
        train = partial(_train_otherwise, run=run, name=name, parts=deal(slices))
        table = pd.concat([table, *run.each_of(run.training.seeds, train, name)], ignore_index=True)
        with whole(path) as part:
            table.to_csv(part, index=False)
    return table


# ----------------------------------------------------------------------------------------------------------- priced


def priced(table: pd.DataFrame, config: EvaluateConfig) -> pd.DataFrame:
    """What each deviation costs on the test and on the external patients: AUC, paired difference and verdict.

    table: predictions of `at_prediction` and `in_training`.  Rows as of `evaluate.comparisons`, in the order of
    `DEVIATIONS`; p_holm is corrected for all rows of a split.  A deviation that changes no probability of a split
    has no row there, and a split with fewer than two patients of either class none."""
    found = []
    for split, part in table.groupby("split", sort=False):
        labels = part.drop_duplicates("patient")["label"]
        if min(labels.sum(), (1 - labels).sum()) < _FEWEST:
            continue
        part = part[part["run"].isin({FAITHFUL, *_changed(part)})]
        aucs = summary(part, config).set_index("run")["auc"]
        pairs = comparisons(part, FAITHFUL, config).assign(split=split)
        pairs["auc"], pairs["faithful_auc"] = pairs["run"].map(aucs), aucs[FAITHFUL]
        found.append(pairs.sort_values("run", key=lambda run: run.map([*DEVIATIONS].index)))
    out = pd.concat(found, ignore_index=True).rename(columns={"run": "deviation"})
    out["where"], out["words"] = ([DEVIATIONS[name][k] for name in out["deviation"]] for k in (0, 1))
    columns = "deviation words where split auc faithful_auc difference low high p_holm detectable verdict".split()
    return out[[*columns, "patients", "positives", "seeds"]]


def _changed(part):
    """The deviations that change a probability."""
    wide = part.pivot(index=["patient", "seed"], columns="run", values="probability")
    return [name for name in wide if not wide[name].equals(wide[FAITHFUL])]


def _told(row):
    """A deviation in words, with its difference and interval, or, if undetected, with what could have been."""
    seen = f"{row['low']:+.2f} to {row['high']:+.2f}"
    ends = f"(detectable {row['detectable']:.2f})" if row["verdict"] == _UNSEEN else f"({seen})"
    return f"{row['words']} {row['difference']:+.2f} {ends}".replace("-", "−")


def _said(split, rows):
    """One split's deviations in sentences, the dearest first."""
    one, rows = rows.iloc[0], rows.sort_values("difference")
    n = f"n = {one['patients']}, {one['positives']} of them positive, seeds: {one['seeds']}"
    said = f"- **{split.capitalize()}** ({n}), faithfully {one['faithful_auc']:.2f}."
    for verdict, part in rows.groupby("verdict", sort=False):
        said += f" {verdict.capitalize()}: {'; '.join(_told(row) for _, row in part.iterrows())}."
    return said


def answer(found: pd.DataFrame, title: str) -> str:
    """What `priced` found, in sentences: split by split and verdict by verdict, the dearest deviation first.

    title: the study's, which says whether its cohort is synthetic."""
    start = f"{title[:1].upper()}{title[1:]}: the AUC with each single deviation less the faithful one"
    said = (_said(split, rows) for split, rows in found.groupby("split", sort=False))
    return "\n".join([f"{start}, on the same patients.", "", *said])
