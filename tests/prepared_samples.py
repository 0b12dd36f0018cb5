"""A folder as the stage `prepare` leaves it, filled with random slices of made-up patients; and a run on it."""

import numpy as np

from her2core.baselines import ModelConfig
from her2core.model import ThdaConfig
from her2core.normalize import statistics
from her2core.records import write_digests
from her2core.runs import Run
from her2core.train import TrainConfig

LEVELS = (0.0, 0.01, *(k / 10 for k in range(1, 10)), 0.95, 0.98, 0.99, 1.0)
PATIENTS = [("007", "train", 1, 2), ("a", "test", 0, 2), ("b", "train", 0, 1), ("c", "validation", 1, 600)]


def write_prepared(folder, rng, patients=PATIENTS, gains=None, px=4):
    """patients: name, split, HER2 and number of slices of each; gains: factor of the intensities, by name."""
    lines, images, quantiles, moments = ["patient,split,label,dataset,pixel_mm"], [], [], []
    for number, (name, split, her2, count) in enumerate(patients):
        slices = (rng.gamma(2, 100 * (gains or {}).get(name, 1), (count, 3, px, px)) + 5).astype(np.uint16)
        of_channels = [statistics(slices[:, phase], LEVELS) for phase in range(3)]
        of_all = statistics(slices, LEVELS)
        for image in slices:
            scopes = [[statistics(image, LEVELS)] * 3, of_channels, [of_all] * 3]
            quantiles.append([[q for q, _ in phases] for phases in scopes])
            moments.append([[m for _, m in phases] for phases in scopes])
        lines += [f"{name},{split},{her2},{('spy1', 'spy2')[number % 2]},2.0"] * count
        images += list(slices)
    np.save(folder / "images_raw.npy", np.array(images))
    np.save(folder / "quantiles_raw.npy", np.array(quantiles))
    np.save(folder / "moments_raw.npy", np.array(moments, np.float32))
    np.save(folder / "levels.npy", np.array(LEVELS))
    np.save(folder / "masks.npy", rng.random((len(images), px, px)) < 0.3)
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")
    return sealed(folder)


def sealed(folder):
    """The folder with the table of digests of what lies there now, as if the stage had written it."""
    write_digests(folder / "digests.csv", sorted(p for p in folder.iterdir() if p.name != "digests.csv"))
    return folder


def make_run(prepared, folder, **changes):
    """A small run without a study.  prepared: as above; folder: of the weights, their digests beside it."""
    fields = {"name": "thda-channel_q98-raw", "model": "thda", "window": "channel_q98", "bias_field": "raw"}
    fields |= {"models": ModelConfig(ThdaConfig(width=8)), "training": TrainConfig(device="cpu", jobs=1)}
    fields |= {"cohort": "c", "prepared": prepared, "folder": folder, "stage": f"train@{fields['name']}"}
    fields |= {"frozen": folder and folder.with_name(f"{folder.name}.csv")}
    return Run(**fields | changes)
