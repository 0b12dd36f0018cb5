"""A lesion on a radiologist's worksheet: its size and how its signal changes; and a model of these alone.

Percent enhancement PE, signal enhancement ratio SER and washout are those of breast MRI (Hylton, J Clin Oncol
2006;24:3293): PE = (S1 − S0) / S0, SER = (S1 − S0) / (S2 − S0), washout = (S2 − S1) / S1, with S0, S1, S2 the
mean signal of the lesion before contrast, early and late.  A logistic regression on these is what a network has to
beat.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = ("log_volume_ml", "pe_early", "pe_late", "ser", "washout")
_SER_LIMIT = 3.0  # a lesion that hardly enhances late has no ratio; beyond this it says no more


def lesion_features(phases: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Phases `(3, Z, Y, X)` (pre, early, late), mask `(Z, Y, X)`, (z, y, x) mm → {feature: value} of the lesion."""
    if phases.shape[0] != 3 or phases.shape[1:] != mask.shape:
        raise ValueError(f"phases {phases.shape} and mask {mask.shape}, expected (3, Z, Y, X) and (Z, Y, X)")
    if not mask.any():
        raise ValueError("empty mask, expected at least one tumour voxel")
    pre, early, late = (max(float(phase[mask].mean()), 1.0) for phase in phases)  # below 1 there is no signal
    ser = (early - pre) / (late - pre) if late > pre else _SER_LIMIT
    return {
        "log_volume_ml": float(np.log(mask.sum() * np.prod(spacing_mm) / 1000)),
        "pe_early": early / pre - 1,
        "pe_late": late / pre - 1,
        "ser": float(np.clip(ser, -_SER_LIMIT, _SER_LIMIT)),
        "washout": late / early - 1,
    }


def fit_kinetics(table: pd.DataFrame) -> Pipeline:
    """Logistic regression on the training patients, of both classes, of a table with FEATURES, split and her2."""
    train = table[table["split"] == "train"]
    if len(found := sorted(set(train["her2"].tolist()))) != 2:
        raise ValueError(f"{len(train)} training patients with HER2 {found}, expected 0 and 1")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    return model.fit(train[list(FEATURES)].to_numpy(), train["her2"].to_numpy())


def simple_predictions(
    table: pd.DataFrame, cohort: str, splits: Sequence[str], seeds: Sequence[int]
) -> pd.DataFrame:
    """The prediction table of two models without a network: `kinetics`, and `majority`, the training prevalence.

    table: one row per patient with FEATURES, split and her2.  Neither model has a random part, so the rows of all
    seeds are the same; they are there so that seeds can be paired with those of networks.
    """
    rows = table[table["split"].isin(splits)].sort_values(["split", "patient"])
    prevalence = table.loc[table["split"] == "train", "her2"].mean()
    line = fit_kinetics(table).predict_proba(rows[list(FEATURES)].to_numpy())[:, 1]
    out = rows[["patient", "split", "her2"]].rename(columns={"her2": "label"})
    out.insert(0, "cohort", cohort)
    parts = []
    for model, probability in (("kinetics", line), ("majority", prevalence)):
        names = {"run": f"{model}-none-raw", "model": model, "window": "none", "bias_field": "raw"}
        parts += [out.assign(**names, seed=seed, probability=np.round(probability, 6)) for seed in seeds]
    return pd.concat(parts, ignore_index=True)
