"""What a radiologist's worksheet knows of a lesion: its size and how its signal changes; and a line through it.

Percent enhancement PE, signal enhancement ratio SER and washout are those of breast MRI (Hylton, J Clin Oncol
2006;24:3293): PE = (S1 − S0) / S0, SER = (S1 − S0) / (S2 − S0), washout = (S2 − S1) / S1, with S0, S1, S2 the
mean signal of the lesion before contrast, early and late.  A logistic regression on these is the bar that a
network has to clear.
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = ("log_volume_ml", "pe_early", "pe_late", "ser", "washout")
SER_LIMIT = 3.0  # a lesion that hardly enhances late has no ratio; beyond this it says no more


def lesion_features(phases, mask, spacing_mm):
    """Phases `(3, Z, Y, X)` (pre, early, late) and mask `(Z, Y, X)` → {feature: value} of the whole lesion."""
    if phases.shape[0] != 3 or phases.shape[1:] != mask.shape:
        raise ValueError(f"phases {phases.shape} and mask {mask.shape}, expected (3, Z, Y, X) and (Z, Y, X)")
    if not mask.any():
        raise ValueError("empty mask, expected at least one tumour voxel")
    pre, early, late = (max(float(phase[mask].mean()), 1.0) for phase in phases)  # below 1 there is no signal
    ser = (early - pre) / (late - pre) if late > pre else SER_LIMIT
    return {
        "log_volume_ml": float(np.log(mask.sum() * np.prod(spacing_mm) / 1000)),
        "pe_early": early / pre - 1,
        "pe_late": late / pre - 1,
        "ser": float(np.clip(ser, -SER_LIMIT, SER_LIMIT)),
        "washout": late / early - 1,
    }


def fit_kinetics(table):
    """Logistic regression on the training patients of a table with FEATURES, split and her2."""
    train = table[table["split"] == "train"]
    if train["her2"].nunique() != 2:
        raise ValueError(
            f"{len(train)} training patients with HER2 {sorted(set(train['her2'].tolist()))}, expected 0 and 1"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    return model.fit(train[list(FEATURES)].to_numpy(), train["her2"].to_numpy())


def simple_predictions(table, cohort, splits, seeds):
    """The prediction table of two models without a network: `kinetics`, and `majority`, the training prevalence.

    table: one row per patient with FEATURES, split and her2.  Neither has a random part, so every seed has the
    same rows: seeds that vary in one model only would not pair.
    """
    rows = table[table["split"].isin(splits)].sort_values(["split", "patient"])
    prevalence = table.loc[table["split"] == "train", "her2"].mean()
    found = {
        "kinetics": fit_kinetics(table).predict_proba(rows[list(FEATURES)].to_numpy())[:, 1],
        "majority": np.full(len(rows), prevalence),
    }
    keep = rows[["patient", "split", "her2"]].reset_index(drop=True)
    parts = []
    for model, probability in found.items():
        names = {"run": f"{model}-none-raw", "model": model, "window": "none", "bias_field": "raw"}
        for seed in seeds:
            parts.append(keep.assign(cohort=cohort, **names, seed=seed, probability=probability.round(6)))
    columns = ["cohort", "patient", "split", "her2", *names, "seed", "probability"]
    return pd.concat(parts, ignore_index=True)[columns]
