"""A run is one model under one window on raw or bias-corrected images: `thda-channel_q98-raw`, all its seeds.

Its name says all of it, so that a further run is one more line under `runs` in `params.yaml`.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from her2core.baselines import MODELS, build_model
from her2core.dataset import BIAS_FIELDS
from her2core.normalize import Window
from her2core.parallel import each
from her2core.train import fit, predict, seed_everything


@dataclass(frozen=True)
class Run:
    """name: model-window-bias_field."""

    model: str
    window: str
    bias_field: str

    @classmethod
    def parse(cls, name):
        parts = name.split("-")
        if len(parts) != 3 or parts[0] not in MODELS or parts[2] not in BIAS_FIELDS:
            raise ValueError(
                f"run {name!r}: expected model-window-bias_field such as thda-channel_q98-raw, "
                f"models {', '.join(MODELS)}, bias fields {', '.join(BIAS_FIELDS)}"
            )
        Window.parse(parts[1])
        return cls(*parts)

    @property
    def name(self):
        return "-".join((self.model, self.window, self.bias_field))


def train_seed(seed, run, slices, models, config):
    """One training, start to end → its weights (on the CPU) and history."""
    config = replace(config, lr=config.lr_of.get(run.model, config.lr))
    build = partial(build_model, run.model, models, slices.images.shape[-1])
    bar = partial(tqdm, desc=f"{run.name} seed {seed}", unit="epoch", position=config.seeds.index(seed))
    model, history = fit(build, slices.of_split("train"), slices.of_split("validation"), config, seed, bar)
    return {k: v.cpu().contiguous() for k, v in model.state_dict().items()}, history


def train_run(run, slices, models, config):
    """All seeds of a run: on the CPU side by side.  Returns {seed: weights} and the histories as one table."""
    jobs = config.jobs if slices.images.device.type == "cpu" else 1
    train = partial(train_seed, run=run, slices=slices, models=models, config=config)
    results = each(train, config.seeds, jobs, "seeds", unit="training")
    weights = {seed: w for seed, (w, _) in zip(config.seeds, results, strict=True)}
    return weights, pd.DataFrame([row for _, history in results for row in history])


def save_weights(weights, folder):
    """{seed: weights} → folder/seed<k>.safetensors; no pickle, the same bytes for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, tensors in weights.items():
        partial_path = folder / f".seed{seed}.partial"
        save_file(tensors, partial_path)
        partial_path.replace(folder / f"seed{seed}.safetensors")


def load_model(path, run, models, image_px):
    """Weights of one seed in their network, ready to predict."""
    model = build_model(run.model, models, image_px)
    model.load_state_dict(load_file(path))
    return model.eval()


def predictions(run, cohort, slices, splits, models, config, folder):
    """The frozen seeds of a run on some splits: the prediction table, sorted; see `evaluate.COLUMNS`."""
    seed_everything(0, config.threads)
    parts = []
    for seed in config.seeds:
        path = folder / f"seed{seed}.safetensors"
        model = load_model(path, run, models, slices.images.shape[-1]).to(slices.images.device)
        for split in splits:
            patient, her2, probability = predict(model, slices.of_split(split), config.aggregate)
            rows = {"cohort": cohort, "patient": patient, "split": split, "her2": her2, "run": run.name}
            parts.append(pd.DataFrame(rows | asdict(run) | {"seed": seed, "probability": probability.round(6)}))
    return pd.concat(parts, ignore_index=True)


def load_seeds(folder, run, models, image_px):
    """Every seed of a run, ready to predict; `folder` as `save_weights` filled it."""
    paths = sorted(folder.glob("seed*.safetensors"))
    if not paths:
        raise ValueError(f"no weights of {run.name} in {folder.name}/: run the training stage first")
    return [load_model(path, run, models, image_px) for path in paths]


@torch.inference_mode()
def spatial_attention(networks, images):
    """Where THDA's spatial gates are open: images `(N, P, H, W)` uint8 → `(N, P, H, W)` in [0, 1].

    The gates of all stages at the image's resolution, averaged over stages and networks.
    """
    maps = []
    for network in networks:
        _, gates = network(images.float() / 255, return_attention=True)
        for stage in gates.values():
            maps.append(torch.nn.functional.interpolate(stage["spatial"], images.shape[-2:], mode="bilinear"))
    return torch.stack(maps).mean(0)
