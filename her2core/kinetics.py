"""A lesion on a radiologist's worksheet: its size and how its signal changes; and a model of these alone.

Percent enhancement PE, signal enhancement ratio SER and washout are those of breast MRI (Hylton, J Clin Oncol
2006;24:3293): PE = (S1 − S0) / S0, SER = (S1 − S0) / (S2 − S0), washout = (S2 − S1) / S1, with S0, S1, S2 the
mean signal of the lesion before contrast, early and late.  A logistic regression on these is what a network has to
beat.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
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


def _fitted(table, features):
    """Logistic regression on the training patients, of both classes; who lacks a value has the median, and is
    told."""
    train = table[table["split"] == "train"]
    if len(found := sorted(set(train["label"].tolist()))) != 2:
        raise ValueError(f"{len(train)} training patients with the labels {found}, expected 0 and 1")
    filled = SimpleImputer(strategy="median", add_indicator=True)
    model = make_pipeline(filled, StandardScaler(), LogisticRegression(class_weight="balanced"))
    return model.fit(train[[*features]].to_numpy(float), train["label"].to_numpy())


def clinical(patients: pd.DataFrame, endpoint: str) -> pd.DataFrame:
    """Age, menopause (1 post) and hormone receptors of each patient, by patient, NaN where unknown; without the
    receptors where they are the endpoint or a part of it, and without what nobody has."""
    found = patients.set_index("patient")[["age", "menopause", "hr"]].replace({"menopause": {"pre": 0, "post": 1}})
    found = found.drop(columns="hr" if endpoint in ("hr", "triple_negative") else []).astype(float)
    return found.dropna(axis=1, how="all")


def simple_predictions(
    table: pd.DataFrame,
    cohort: str,
    splits: Sequence[str],
    seeds: Sequence[int],
    models: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """The prediction table of models without a network: a regression on each set of columns in `models`, and
    `majority`, the training prevalence.

    table: one row per patient with those columns, split and label.  No model has a random part, so the rows of all
    seeds are the same; they are there so that seeds can be paired with those of networks.
    """
    rows = table[table["split"].isin(splits)].sort_values(["split", "patient"])
    told = {"majority": table.loc[table["split"] == "train", "label"].mean()}
    for name, features in models.items():
        told[name] = _fitted(table, features).predict_proba(rows[[*features]].to_numpy(float))[:, 1]
    out = rows[["patient", "split", "label"]]
    out.insert(0, "cohort", cohort)
    parts = []
    for model, probability in told.items():
        names = {"run": f"{model}-none-raw", "model": model, "window": "none", "bias_field": "raw"}
        parts += [out.assign(**names, seed=seed, probability=np.round(probability, 6)) for seed in seeds]
    return pd.concat(parts, ignore_index=True)


def combined(network: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """What a network adds to a model without one: prediction tables of one run each → that of both together.

    A logistic regression, without penalty, on the logits of both, fitted for each seed on the validation patients,
    of whom neither was trained, and under folds for each fold; so its AUC less the baseline's is the network's
    increment."""
    keys = ["patient", "split", "label", "seed"]
    both = network.merge(baseline[[*keys, "probability"]], on=keys, suffixes=("", "_baseline"), validate="1:1")
    logits = [logit(both[c].clip(1e-6, 1 - 1e-6)) for c in ("probability", "probability_baseline")]
    both["x"], both["z"] = logits
    for (seed, *_), part in both.groupby([c for c in ("seed", "fold") if c in both]):
        fit = part[part["split"] == "validation"]
        if set(fit["label"]) != {0, 1}:
            raise ValueError(f"seed {seed}: {len(fit)} validation patients, expected some of both labels")
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(fit[["x", "z"]], fit["label"])
        both.loc[part.index, "probability"] = model.predict_proba(part[["x", "z"]])[:, 1].round(6)
    name = f"{baseline['model'].iloc[0]}+{network['model'].iloc[0]}"
    return both.drop(columns=["probability_baseline", "x", "z"]).assign(run=f"{name}-none-raw", model=name)
